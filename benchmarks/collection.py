"""Collection and metrics of 8332 samples over 4 gloo ranks, against one process that scores the same rows."""

from __future__ import annotations

import time

import torch

from benchmarks.common import Row, interleaved, report
from dataloader.samplers import validation_batches
from src.evaluation.evaluator import EvaluationShard, evaluate
from src.evaluation.metrics import mpjpe_mm, pa_mpjpe_mm
from src.runtime.distributed import DistContext, spawn_ranks

SAMPLES, BATCH, RANKS = 8332, 64, 4


def _rows(index: torch.Tensor) -> dict[str, torch.Tensor]:
    """Made-up rows of given samples: the same for any division."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(SAMPLES, 21, 3, generator=generator)[index] * 0.05
    noise = torch.randn(SAMPLES, 21, 3, generator=generator)[index] * 0.01
    return {
        "target_joints_m": target,
        "pred_joints_m": target + noise,
        "conf": torch.ones(len(index), 21),
        "loss": torch.zeros(len(index)),
    }


def _rank(context: DistContext, repeats: int) -> float:
    """Median seconds of collection and metrics on this rank, measured between barriers."""
    batches = validation_batches(SAMPLES, BATCH, context.rank, context.world)
    index = torch.tensor([i for batch in batches for i in batch], dtype=torch.int64)
    rows = _rows(index)
    seconds = []
    for _ in range(repeats):
        shard = EvaluationShard(capacity=len(index))
        with shard.guard():
            shard.add(sample_index=index, **rows)
        context.barrier()
        began = time.perf_counter()
        result = evaluate(shard, num_samples=SAMPLES, split_hash="benchmark", group=context.side_group)
        seconds.append(time.perf_counter() - began)
        assert result.num_samples == SAMPLES
    return sorted(seconds)[len(seconds) // 2]


def main() -> None:
    """Time one process, four ranks, and the metrics alone."""
    torch.set_num_threads(1)
    everything = _rows(torch.arange(SAMPLES))
    pred, target = everything["pred_joints_m"], everything["target_joints_m"]
    alone = interleaved({"metrics": lambda: (mpjpe_mm(pred, target), pa_mpjpe_mm(pred, target))}, 5)[
        "metrics"
    ]
    four = max(spawn_ranks(_rank, RANKS, (5,), timeout_s=120))
    one = spawn_ranks(_rank, 1, (5,), timeout_s=120)[0]
    report(
        "collection",
        [
            Row(
                f"collect + metrics, {SAMPLES} samples, {RANKS} ranks: {four:.3f}",
                f"one process: {one:.3f}",
                one / four,
                "s",
            ),
            Row(
                f"collect + metrics, {RANKS} ranks: {four:.3f}",
                f"metrics alone: {alone:.3f}",
                alone / four,
                "s",
            ),
        ],
    )


if __name__ == "__main__":
    main()
