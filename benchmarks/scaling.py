"""Training speed over 1, 2 and 4 ranks: the tiny network's steps, each rank with the same batch.

More ranks than cores share them, and the ratio shows what that costs.

    python -m benchmarks scaling
"""

from __future__ import annotations

import os
import time

import torch

from benchmarks.common import Row, report
from benchmarks.scene import alone, scene
from src.config import RunConfig
from src.hand.mano import ManoLayer
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.runtime.ranks.distributed import DistContext, spawn_ranks
from src.schema import HandBatch
from src.training.step import TrainStep

RANKS, BATCH, STEPS, WARM_UP = (1, 2, 4), 8, 8, 2
ARMS = ("adamw", "muon")


def _rank(context: DistContext, config: RunConfig, batch: HandBatch) -> float:
    """Seconds of a step on this rank."""
    hand = ManoLayer.from_file(config.mano.model_path)
    torch.manual_seed(config.seed)
    step = TrainStep(UTNet(config.model, hand), HandLoss(config.loss, hand), config, context, 1000)
    for _ in range(WARM_UP):
        step([batch])
    context.barrier()
    began = time.perf_counter()
    for _ in range(STEPS):
        step([batch])
    return (time.perf_counter() - began) / STEPS


def main() -> None:
    """Samples a second of all ranks together."""
    rows = []
    for optimizer in ARMS:
        settings = (
            "model.preset=tiny",
            "model.image_size=[128, 128]",
            "training.precision=fp32",
            f"optimizer.name={optimizer}",
        )
        with scene(*settings, sequences=1, frames=BATCH) as made:
            batch = made.batch(BATCH, alone(torch.device("cpu")).device)
            speed = {
                ranks: ranks * BATCH / max(spawn_ranks(_rank, ranks, (made.config, batch), timeout_s=300))
                for ranks in RANKS
            }
        rows += [
            Row(
                f"tiny, batch {BATCH}, {optimizer}, {ranks} ranks on {os.cpu_count()} cores: {value:.1f}",
                f"1 rank: {speed[1]:.1f}",
                value / speed[1],
                "samples/s",
            )
            for ranks, value in speed.items()
        ]
    report("scaling", rows)


if __name__ == "__main__":
    main()
