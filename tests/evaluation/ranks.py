"""Bodies of the ranks that the distributed tests start; light to import, because every rank imports it."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import torch

from dataloader.samplers import validation_batches
from src.errors import CollectError
from src.evaluation.collect import Link
from src.evaluation.evaluator import CheckedResult, EvaluationShard, evaluate, report_lines, write_per_sample
from src.runtime.distributed import DistContext
from test_distributed_eval import Samples, make_samples

BATCH = 4


def fill(shard: EvaluationShard, samples: Samples, batches, *, reverse: bool = False) -> None:
    """Add batches to a shard, in order or from the last to the first."""
    for batch in reversed(batches) if reverse else batches:
        rows = torch.arange(batch.start, batch.stop)
        shard.add(
            sample_index=rows,
            pred_joints_m=samples.pred[rows],
            target_joints_m=samples.target[rows],
            conf=samples.conf[rows],
            loss=samples.loss[rows],
        )


def score(context: DistContext, samples: Samples, *, reverse: bool = False) -> CheckedResult:
    """Score samples with this rank's share of the batches."""
    batches = validation_batches(len(samples.loss), BATCH, context.rank, context.world)
    shard = EvaluationShard(capacity=sum(map(len, batches)))
    with shard.guard():
        fill(shard, samples, batches, reverse=reverse)
    return evaluate(
        shard,
        num_samples=len(samples.loss),
        split_hash="test",
        group=context.side_group,
        timeout_s=20.0,
        baselines={"zero_mpjpe_mm": 1.0 / 3.0} if context.rank == 0 else None,
        device_label=context.devices_label,
    )


def public(result: CheckedResult) -> str:
    """The numbers of a result to the last bit (repr of a float64 is exact, and nan equals nan)."""
    return repr({name: value for name, value in vars(result).items() if name not in ("rows", "receipt")})


def digests(context: DistContext, sizes: list[int], folder: str) -> list[tuple[str, str, str, int]]:
    """For each N: public numbers, digest of the per-sample file, 'Evaluated on' line, misplaced rows."""
    found = []
    for size in sizes:
        samples = make_samples(size, seed=7)
        result = score(context, samples, reverse=context.rank % 2 == 1)
        digest, wrong, line = "", 0, ""
        if result.rows is not None:
            path = Path(folder) / f"{context.world}-{size}.npz"
            write_per_sample(path, result, [f"S/{i:04d}" for i in range(size)])
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            in_place = torch.from_numpy(result.rows.pred_joints_cam_m) == samples.pred
            wrong = int((~in_place.flatten(1).all(1)).sum())
            line = report_lines(result, context.world, context.devices_label)[1]
        found.append((public(result), digest, line, wrong))
    return found


def recoverable_faults(context: DistContext) -> dict[str, str]:
    """What this rank is told for each fault that leaves the group whole; rank 1 is the one at fault."""
    told = {}
    for fault in ("raise", "samples", "joints", "dtype", "split", "duplicate", "missing", "outside"):
        guilty = context.rank == 1
        samples = make_samples(9, seed=3)
        batches = validation_batches(9, BATCH, context.rank, context.world)
        shard = EvaluationShard(
            capacity=16,
            num_joints=20 if guilty and fault == "joints" else 21,
            dtype=torch.float64 if guilty and fault == "dtype" else torch.float32,
        )
        with shard.guard():
            if guilty and fault == "raise":
                raise ValueError("unreadable frame S/0005")
            if guilty and fault == "missing":
                batches = []
            if guilty and fault == "duplicate":
                batches = [*batches, range(8, 9)]
            if not (guilty and fault in ("joints", "outside")):
                fill(shard, samples, batches)
            if guilty and fault == "outside":
                one = torch.ones(1, 21)
                hand = torch.zeros(1, 21, 3)
                shard.add(
                    sample_index=torch.tensor([9]),
                    pred_joints_m=hand,
                    target_joints_m=hand,
                    conf=one,
                    loss=torch.zeros(1),
                )
        told[fault] = message_of(
            context,
            shard,
            num_samples=10 if guilty and fault == "samples" else 9,
            split_hash="other" if guilty and fault == "split" else "test",
            timeout_s=20.0,
        )
    # and after all that, a sound validation still works
    told["sound"] = str(score(context, make_samples(9, seed=3)).num_samples)
    return told


def broken_peer(context: DistContext, fault: str) -> str:
    """What a survivor is told when rank 1 stalls or dies."""
    samples = make_samples(40, seed=3)
    shard = EvaluationShard(capacity=40)
    with shard.guard():
        fill(shard, samples, validation_batches(40, BATCH, context.rank, context.world))
    if context.rank == 1:
        if fault == "stall":
            time.sleep(4.0)
        if fault == "kill before":
            os._exit(9)
        if fault == "kill during":
            Link.send = _die_at_the_weights  # type: ignore[method-assign]
    if context.rank == 2 and fault == "kill before":
        time.sleep(0.5)  # a slow rank must not be taken for the dead one
    return message_of(context, shard, num_samples=40, split_hash="test", timeout_s=1.5)


_send = Link.send


def _die_at_the_weights(link: Link, tensor: torch.Tensor, what: str) -> None:
    if what == "conf":
        os._exit(9)
    _send(link, tensor, what)


def message_of(context: DistContext, shard: EvaluationShard, **arguments) -> str:
    """The CollectError that `evaluate` raises here, or 'no error'."""
    try:
        evaluate(shard, group=context.side_group, device_label=context.devices_label, **arguments)
    except CollectError as error:
        return str(error)
    return "no error"
