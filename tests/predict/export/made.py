"""One export of a tiny network for all tests: tracing and converting take a minute."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from src.predict import export
from src.predict.graph import example_inputs
from src.predict.predictor import EagerEngine, eager_engine
from src.runtime.files.disk import atomic_directory
from tests.predict.network import SIZE, write_network

WITHOUT_ONNX = not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime")))
ENDINGS = [".pt2", pytest.param(".onnx", marks=pytest.mark.skipif(WITHOUT_ONNX, reason="onnx is an extra"))]


@dataclass(frozen=True)
class Made:
    """What was exported."""

    checkpoint: Path
    engine: EagerEngine
    folder: Path

    def file(self, ending: str) -> Path:
        """The file from raw crops."""
        return self.folder / f"utnet{ending}"


@functools.cache
def make() -> Made:
    """The checkpoint and its files from raw crops; without .onnx where onnx is not installed.

    They are kept in the machine's temporary folder, under a name made from the code that makes them.
    """
    digest = hashlib.sha256(f"{torch.__version__} {WITHOUT_ONNX}".encode())
    root = Path(__file__).parents[3]
    for source in sorted(
        p for room in ("src", "dataloader", "tests/predict") for p in (root / room).rglob("*.py")
    ):
        digest.update(source.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"utnet-tests-export-{digest.hexdigest()[:16]}"
    folder.mkdir(exist_ok=True)
    checkpoint, out = folder / "checkpoints" / "best.pt", folder / "out"
    with FileLock(folder / "lock"):
        if not out.is_dir():
            write_network(checkpoint)
        engine = eager_engine(checkpoint, device="cpu", precision="fp32")
        if not out.is_dir():
            with pytest.MonkeyPatch.context() as patch, quiet(), atomic_directory(out) as new:
                if WITHOUT_ONNX:
                    patch.setattr(export, "_write_onnx", lambda *_: None)
                export.write_files("raw", engine.graph, engine.facts, {"what": "a test"}, new)
    return Made(checkpoint, engine, out)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """pytest keeps every line of a tracer's log, which takes longer than the tracing."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def crops(count: int = 45) -> dict[str, Tensor]:
    """Raw crops of noise before a slanted plane, every other one without depth."""
    random = torch.Generator().manual_seed(0)
    rows = example_inputs(SIZE, count)
    rows["rgb_u8"] = torch.randint(0, 256, rows["rgb_u8"].shape, generator=random, dtype=torch.uint8)
    rows["depth_m"] = rows["depth_m"] + 0.05 * torch.linspace(-1, 1, SIZE[1]) * (rows["depth_m"] > 0)
    rows["z_ref_m"] = 0.5 + 0.3 * torch.rand(count, generator=random)
    return rows
