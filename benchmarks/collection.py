"""Collection and metrics of 8332 samples over 4 gloo ranks: ours, and well-kept references.

The references bring the same rows to the same metric code: accelerate's `gather_for_metrics` batch by batch,
as its documentation shows it, and torchmetrics' `gather_all_tensors` once at the end, on ranks whose rows are
kept until then. All three run in turns in the same ranks.

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
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.utilities.distributed import gather_all_tensors

from benchmarks.common import Row, report
from dataloader.batches.samplers import validation_batches
from src.evaluation.evaluator import EvaluationShard, evaluate
from src.evaluation.metrics import mpjpe_mm, pa_mpjpe_mm
from src.evaluation.seeded import Samples, make_samples
from src.runtime.ranks.distributed import DistContext, spawn_ranks

SAMPLES, BATCH, RANKS, REPEATS = 8332, 64, 4, 7
OURS, ACCELERATE, TORCHMETRICS = "ours", "accelerate, gather_for_metrics", "torchmetrics, gather_all_tensors"
Fields = tuple[Tensor, ...]


class _Rows(Dataset[Fields]):
    """The samples as a data set of whole batches, so that no time goes into stacking single rows."""

    def __init__(self, samples: Samples) -> None:
        self.fields = (torch.arange(SAMPLES), samples.pred, samples.target, samples.loss)

    def __len__(self) -> int:
        return SAMPLES

    def __getitems__(self, rows: Sequence[int]) -> Fields:
        chosen = torch.tensor(rows)
        return tuple(field[chosen] for field in self.fields)


def _as_is(batch: Fields) -> Fields:
    """Batches come whole."""
    return batch


def _our_loop(samples: Samples, context: DistContext) -> Callable[[], None]:
    """One validation with our collection."""
    batches = validation_batches(SAMPLES, BATCH, context.rank, context.world)

    def run() -> None:
        shard = EvaluationShard(sum(map(len, batches)))
        with shard.guard():
            for batch in batches:
                samples.add_to(shard, batch)
        result = evaluate(shard, num_samples=SAMPLES, split_hash="benchmark", group=context.side_group)
        assert result.receipt.num_samples == SAMPLES

    return run


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


def _rank(context: DistContext) -> dict[str, float]:
    """Median seconds of each collection on this rank; all ranks start together."""
    samples = make_samples(SAMPLES, 0)
    loops = {
        OURS: _our_loop(samples, context),
        ACCELERATE: _accelerate_loop(samples, context),
        TORCHMETRICS: _torchmetrics_loop(samples, context),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(REPEATS + 1):
        for name, loop in loops.items():
            context.barrier()
            began = time.perf_counter()
            loop()
            seconds[name].append(time.perf_counter() - began)
    # The first round pays for connections and pages.
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def main() -> None:
    """Time four ranks."""
    torch.set_num_threads(1)
    ranks = spawn_ranks(_rank, RANKS, timeout_s=240)
    total = {loop: max(rank[loop] for rank in ranks) for loop in ranks[0]}
    what = f"{SAMPLES} samples, {RANKS} ranks, metrics included: {total[OURS]:.3f}"
    rows = [
        Row(what, f"{loop}: {total[loop]:.3f}", total[loop] / total[OURS], "s")
        for loop in (ACCELERATE, TORCHMETRICS)
    ]
    report("collection", rows)


if __name__ == "__main__":
    main()
