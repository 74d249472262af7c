"""Collection and metrics of 8332 samples over 4 gloo ranks, step by step, against one process."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.common import Row, report
from dataloader.samplers import validation_batches
from src.evaluation.evaluator import EvaluationShard, evaluate
from src.evaluation.seeded import MESH_COLUMNS, Samples, make_samples
from src.runtime.distributed import DistContext, spawn_ranks

SAMPLES, BATCH, RANKS, REPEATS = 8332, 64, 4, 7
STEPS = ("shards", "header", "indices", "rows", "metrics", "broadcast", "all")
LIMIT_S = 0.5


def _shard(samples: Samples, batches: list[range], columns: tuple[str, ...]) -> EvaluationShard:
    """Batches as an evaluation loop adds them; the columns' numbers are made up."""
    shard = EvaluationShard(sum(map(len, batches)), columns=columns)
    with shard.guard():
        for batch in batches:
            rows = slice(batch.start, batch.stop)
            shard.add(
                sample_index=torch.arange(batch.start, batch.stop),
                pred_joints_m=samples.pred[rows],
                target_joints_m=samples.target[rows],
                conf=samples.conf[rows],
                loss=samples.loss[rows],
                columns={name: torch.ones(len(batch), dtype=torch.float64) for name in columns},
            )
    return shard


def _rank(context: DistContext, columns: tuple[str, ...]) -> dict[str, float]:
    """Median seconds of each step on this rank; all ranks start together."""
    samples = make_samples(SAMPLES, 0)
    batches = validation_batches(SAMPLES, BATCH, context.rank, context.world)
    seconds: dict[str, list[float]] = {step: [] for step in STEPS}
    for _ in range(REPEATS + 1):
        context.barrier()
        began = time.perf_counter()
        shard = _shard(samples, batches, columns)
        filled = time.perf_counter()
        result = evaluate(shard, num_samples=SAMPLES, split_hash="benchmark", group=context.side_group)
        ended = time.perf_counter()
        assert result.receipt.num_samples == SAMPLES
        for step, value in {
            **result.receipt.seconds,
            "shards": filled - began,
            "all": ended - began,
        }.items():
            seconds[step].append(value)
    # The first round pays for connections and pages; rank 0 alone scores.
    return {step: statistics.median(values[1:]) if values else 0.0 for step, values in seconds.items()}


def main() -> None:
    """Time four ranks and one, with and without the columns of vertices."""
    rows = []
    for name, columns in (("joints", ()), ("joints + vertex columns", MESH_COLUMNS)):
        four = spawn_ranks(_rank, RANKS, (columns,), timeout_s=120)
        one = spawn_ranks(_rank, 1, (columns,), timeout_s=120)[0]
        total = max(rank["all"] for rank in four)
        split = ", ".join(f"{step} {four[0][step]:.4f}" for step in STEPS[:-1])
        rows.append(
            Row(
                f"{name}: {SAMPLES} samples, {RANKS} ranks: {total:.3f} (rank 0: {split})",
                f"one process: {one['all']:.3f}",
                one["all"] / total,
                "s",
            )
        )
        rows.append(Row(f"{name}: {RANKS} ranks: {total:.3f}", f"limit: {LIMIT_S:.3f}", LIMIT_S / total, "s"))
    report("collection", rows)


if __name__ == "__main__":
    main()
