"""Timing, tables and JSON that all benchmarks share."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    what: str
    """What was measured, with its value."""
    reference: str
    """What it is compared with, with its value."""
    ratio: float
    """reference / measured where less is better, so that above 1 means better."""
    unit: str
    """Unit of the two values."""


def interleaved(candidates: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each candidate; rounds alternate, so a slow minute of the machine hits all alike."""
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(name: str, rows: Sequence[Row]) -> Path:
    """Print the table and write runs/bench/<name>.json; returns its path."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    print(f"{name} ({machine}; " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ")")
    width = max((len(r.what) for r in rows), default=0)
    for row in rows:
        print(f"  {row.what:<{width}}  {row.ratio:7.2f} x  {row.reference} [{row.unit}]")
    path = Path("runs/bench") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"name": name, "machine": machine, "versions": versions, "rows": [asdict(r) for r in rows]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
