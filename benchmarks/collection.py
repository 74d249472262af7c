"""Collection and metrics of 8332 samples over 4 gloo ranks: ours step by step, and well-kept references.

The references bring the same rows to the same metric code: accelerate's `gather_for_metrics` batch by batch,
as its documentation shows it, and torchmetrics' `gather_all_tensors` once at the end, on ranks whose rows are
kept until then. All three run in turns in the same ranks. The metric code itself is compared with a loop over
frames around scipy's Procrustes.

    python -m benchmarks collection
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from scipy.linalg import orthogonal_procrustes
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.utilities.distributed import gather_all_tensors

from benchmarks.common import Row, interleaved, report
from dataloader.batches.samplers import validation_batches
from src.evaluation.evaluator import EvaluationShard, evaluate
from src.evaluation.metrics import mpjpe_mm, pa_mpjpe_mm
from src.evaluation.seeded import MESH_COLUMNS, Samples, make_samples
from src.runtime.ranks.distributed import DistContext, spawn_ranks

SAMPLES, BATCH, RANKS, REPEATS = 8332, 64, 4, 7
STEPS = ("shards", "header", "indices", "rows", "metrics", "broadcast")
LIMIT_S = 0.5
OURS, ACCELERATE, TORCHMETRICS = "ours", "accelerate, gather_for_metrics", "torchmetrics, gather_all_tensors"
Fields = tuple[Tensor, Tensor, Tensor, Tensor]


def _shard(samples: Samples, batches: Sequence[range], columns: tuple[str, ...]) -> EvaluationShard:
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


class _Rows(Dataset[Fields]):
    """The same samples as a data set of whole batches, so that no time goes into stacking single rows."""

    def __init__(self, samples: Samples) -> None:
        self.fields = (torch.arange(SAMPLES), samples.pred, samples.target, samples.loss)

    def __len__(self) -> int:
        return SAMPLES

    def __getitems__(self, rows: Sequence[int]) -> Fields:
        chosen = torch.tensor(rows)
        index, pred, target, loss = (field[chosen] for field in self.fields)
        return index, pred, target, loss


def _as_is(batch: Fields) -> Fields:
    """Batches come whole."""
    return batch


def _accelerate_loop(samples: Samples, context: DistContext) -> Callable[[], None]:
    """One validation with accelerate."""
    os.environ |= {
        "RANK": str(context.rank),
        "LOCAL_RANK": str(context.rank),
        "WORLD_SIZE": str(context.world),
        "LOCAL_WORLD_SIZE": str(context.world),
        "MASTER_ADDR": "localhost",
        "OMP_NUM_THREADS": "1",
    }
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(_Rows(samples), batch_size=BATCH, collate_fn=_as_is))

    def run() -> None:
        gathered = [accelerator.gather_for_metrics(batch) for batch in loader]
        if context.is_main:
            _score([torch.cat(parts) for parts in zip(*gathered, strict=True)])

    return run


def _torchmetrics_loop(samples: Samples, context: DistContext) -> Callable[[], None]:
    """One validation with torchmetrics' gather at the end."""
    batches = validation_batches(SAMPLES, BATCH, context.rank, context.world)

    def run() -> None:
        kept = [[f[b.start : b.stop] for f in _Rows(samples).fields] for b in batches]
        mine = [torch.cat(parts) for parts in zip(*kept, strict=True)]
        whole = [torch.cat(gather_all_tensors(field)) for field in mine]
        if context.is_main:
            _score(whole)

    return run


def _score(fields: Sequence[Tensor]) -> None:
    """What rank 0 makes of gathered rows: the metrics of ours, over samples and not rows."""
    index, pred, target, loss = fields
    assert torch.equal(index.sort().values, torch.arange(SAMPLES)), "a sample is missing or twice there"
    assert np.isfinite([mpjpe_mm(pred, target).mean(), pa_mpjpe_mm(pred, target).mean(), loss.mean()]).all()


def _rank(context: DistContext, columns: tuple[str, ...]) -> dict[str, float]:
    """Median seconds of each collection, and of the steps of ours, on this rank; all ranks start together."""
    samples = make_samples(SAMPLES, 0)
    batches = validation_batches(SAMPLES, BATCH, context.rank, context.world)
    seconds: dict[str, list[float]] = {}

    def ours() -> None:
        began = time.perf_counter()
        shard = _shard(samples, batches, columns)
        seconds.setdefault("shards", []).append(time.perf_counter() - began)
        result = evaluate(shard, num_samples=SAMPLES, split_hash="benchmark", group=context.side_group)
        assert result.receipt.num_samples == SAMPLES
        for step, value in result.receipt.seconds.items():
            seconds.setdefault(step, []).append(value)

    loops = {OURS: ours}
    if context.world > 1 and not columns:
        loops |= {
            ACCELERATE: _accelerate_loop(samples, context),
            TORCHMETRICS: _torchmetrics_loop(samples, context),
        }
    for _ in range(REPEATS + 1):
        for name, loop in loops.items():
            context.barrier()
            began = time.perf_counter()
            loop()
            seconds.setdefault(name, []).append(time.perf_counter() - began)
    # The first round pays for connections and pages; rank 0 alone scores.
    return {step: statistics.median(values[1:]) if values else 0.0 for step, values in seconds.items()}


def _loop_over_frames(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(N, 2) MPJPE and PA-MPJPE in mm, a frame at a time."""
    scores = np.empty((len(pred), 2))
    for k, (p, t) in enumerate(zip(pred.astype(np.float64), target.astype(np.float64), strict=True)):
        scores[k, 0] = np.linalg.norm((p - p[0]) - (t - t[0]), axis=1).mean()
        a, b = t - t.mean(0), p - p.mean(0)
        turn, scale = orthogonal_procrustes(b, a)
        if np.linalg.det(turn) < 0:
            u, s, v = np.linalg.svd(b.T @ a)
            u[:, -1] *= -1
            turn, scale = u @ v, s[:2].sum() - s[2]
        aligned = scale / np.square(b).sum() * b @ turn
        scores[k, 1] = np.linalg.norm(aligned - a, axis=1).mean()
    return 1000 * scores


def _metric_rows() -> list[Row]:
    """Our metrics against the loop, on one thread."""
    samples = make_samples(SAMPLES, 0)
    pred, target = samples.pred.numpy(), samples.target.numpy()
    ours = np.stack([mpjpe_mm(pred, target), pa_mpjpe_mm(pred, target)], axis=1)
    assert np.allclose(ours, _loop_over_frames(pred, target), atol=1e-6), "the two must agree"
    seconds = interleaved(
        {
            "ours": lambda: (mpjpe_mm(pred, target), pa_mpjpe_mm(pred, target)),
            "loop": lambda: _loop_over_frames(pred, target),
        },
        REPEATS,
    )
    return [
        Row(
            f"MPJPE and PA-MPJPE of {SAMPLES} samples: {seconds['ours']:.3f}",
            f"loop over frames, scipy: {seconds['loop']:.3f}",
            seconds["loop"] / seconds["ours"],
            "s",
        )
    ]


def main() -> None:
    """Time four ranks and one, with and without the columns of vertices; then the metrics alone."""
    torch.set_num_threads(1)
    rows = []
    for name, columns in (("joints", ()), ("joints + vertex columns", MESH_COLUMNS)):
        four = spawn_ranks(_rank, RANKS, (columns,), timeout_s=240)
        one = spawn_ranks(_rank, 1, (columns,), timeout_s=120)[0]
        total = {loop: max(rank[loop] for rank in four) for loop in four[0] if loop not in STEPS}
        split = ", ".join(f"{step} {four[0][step]:.4f}" for step in STEPS)
        what = f"{name}: {SAMPLES} samples, {RANKS} ranks: {total[OURS]:.3f}"
        rows.append(
            Row(
                f"{what} (rank 0: {split})",
                f"one process: {one[OURS]:.3f}",
                one[OURS] / total[OURS],
                "s",
            )
        )
        rows.append(Row(what, f"limit: {LIMIT_S:.3f}", LIMIT_S / total[OURS], "s"))
        rows += [
            Row(what, f"{loop}: {total[loop]:.3f}", total[loop] / total[OURS], "s")
            for loop in (ACCELERATE, TORCHMETRICS)
            if loop in total
        ]
    report("collection", rows + _metric_rows())


if __name__ == "__main__":
    main()
