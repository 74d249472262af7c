"""How threads wait for each other (`src/runtime/__init__.py`), alone and beside busy processes.

The reference is torch as it comes. Each measurement is a process of its own: libgomp reads its surroundings
when torch is loaded.

    python -m benchmarks waiting
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.common import Row, report
from src.runtime.machine import worker_count

ROUNDS = 3
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
WORK = """
import time
import torch
torch.set_num_threads({threads})
tokens, weights = torch.randn(5312, 192), torch.randn(192, 192)
def some():
    began = time.perf_counter()
    for _ in range(30):
        torch.nn.functional.gelu(tokens @ weights)
    return time.perf_counter() - began
some()
print(sorted(some() for _ in range(5))[2])
"""
"""Small products and functions in turns, as a training step of tiny has them."""


def main() -> None:
    """Time both ways of waiting in turns."""
    threads = worker_count()
    rows = []
    for beside in (0, 1, 2):
        seconds: dict[str, list[float]] = {"import src\n": [], "": []}
        with _busy(beside):
            for _ in range(ROUNDS):
                for first, own in seconds.items():
                    own.append(_seconds(first + WORK.format(threads=threads)))
        ours, plain = (1e3 * statistics.median(own) for own in seconds.values())
        what = f"{threads} threads, busy processes beside them {beside}: {ours:.1f}"
        rows.append(Row(what, f"torch as it comes: {plain:.1f}", plain / ours, "ms"))
    report("waiting", rows)


def _seconds(program: str) -> float:
    """What a program says that its work took."""
    surroundings = {name: value for name, value in os.environ.items() if name not in WAITING}
    done = subprocess.run(
        [sys.executable, "-c", program], env=surroundings, stdout=subprocess.PIPE, timeout=300, check=True
    )
    return float(done.stdout)


@contextlib.contextmanager
def _busy(count: int) -> Iterator[None]:
    """Processes of one thread at work, as many as asked for."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


if __name__ == "__main__":
    main()
