"""How long training waits for its data: the tiny network's steps behind a loader with the raw crop cache.

One rank with one loader process, and one that loads in its own process, on one thread each; the share of time
in which the step has no batch yet, and the speed.

    python -m benchmarks loader
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch

from benchmarks.common import Row, report
from benchmarks.scene import Scene, alone, device, scene
from dataloader.build import build_train_loader
from src.runtime.pace import Pace, PaceMeter

CONFIG = Path("config/learn.yaml")
STEPS, WARM_UP, BATCH = 24, 4, 8
LIMIT = 0.03


def _pace(made: Scene) -> Pace:
    """Pace of STEPS training steps after WARM_UP."""
    where = device()
    loader = build_train_loader(made.config, made.train, 0, 1, where)
    step = made.trainer(alone(where))
    loader.set_epoch(0)
    batches = iter(loader)
    for batch in islice(batches, WARM_UP):
        step([batch])
    meter = PaceMeter()
    for _ in range(STEPS):
        with meter.waiting():
            batch = next(batches)
        step([batch])
    step.settled(everything=True)
    return meter.read()


def main() -> None:
    """Both ways of loading."""
    torch.set_num_threads(1)
    rows = []
    for workers in (0, 1):
        settings = (f"dataset.num_workers={workers}", f"training.batch_size={BATCH}")
        # 15 sequences of 16 frames: more batches than are taken.
        with scene(*settings, config=CONFIG, sequences=15) as made:
            pace = _pace(made)
        who = f"{workers} loader process" if workers else "in the rank's own process"
        rows.append(
            Row(
                f"tiny, raw cache, {who}: waits {pace.data_wait_share:.2%} of "
                f"{1e3 / pace.rounds_per_s:.0f} ms a step",
                f"limit: {LIMIT:.0%}",
                LIMIT / max(pace.data_wait_share, 1e-6),
                "share of the step",
            )
        )
    report("loader", rows)


if __name__ == "__main__":
    main()
