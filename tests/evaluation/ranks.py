"""Bodies of the ranks that the distributed tests start; light to import, because every rank imports it."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch

from dataloader.batches.samplers import validation_batches
from src.errors import CollectError
from src.evaluation.collect import Link
from src.evaluation.evaluator import CheckedResult, EvaluationShard, evaluate, write_per_sample
from src.evaluation.report import report_lines
from src.evaluation.seeded import Samples, make_samples
from src.runtime.ranks.distributed import DistContext

BATCH = 4
COLUMNS = ("mpvpe_mm", "pa_mpvpe_mm", "mesh_usable")


def columns_of(samples: Samples, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Numbers that only sample i can have; every fifth mesh is without a label."""
    labelled = rows % 5 != 3
    error = (samples.pred[rows] - samples.target[rows]).double().norm(dim=-1).mean(-1) * 1000.0
    return {
        "mesh_usable": labelled.double(),
        "mpvpe_mm": torch.where(labelled, error, torch.nan),
        "pa_mpvpe_mm": torch.where(labelled, error / 3.0, torch.nan),
    }


def fill(shard: EvaluationShard, samples: Samples, batches, columns=columns_of) -> None:
    """Add batches to a shard; `columns`: samples and rows -> numbers of its columns."""
    for batch in batches:
        rows = torch.arange(batch.start, batch.stop)
        samples.add_to(shard, batch, columns(samples, rows) if shard.columns else None)


def score(
    context: DistContext, samples: Samples, *, reverse: bool = False, batch: int = BATCH
) -> CheckedResult:
    """Score samples with this rank's share of the batches."""
    batches = validation_batches(len(samples.loss), batch, context.rank, context.world)
    shard = EvaluationShard(sum(map(len, batches)), columns=COLUMNS)
    with shard.guard():
        fill(shard, samples, batches[::-1] if reverse else batches)
    return evaluate(
        shard,
        num_samples=len(samples.loss),
        split_hash="test",
        group=context.side_group,
        timeout_s=60.0,
        baselines={"zero_mpjpe_mm": 1.0 / 3.0} if context.rank == 0 else None,
        device_label=context.devices_label,
    )


def score_alone(samples: Samples, columns=None, **arguments) -> CheckedResult:
    """The result of one process without a group; `columns`: name -> (N,)."""
    size, given = len(samples.loss), {name: torch.as_tensor(v) for name, v in (columns or {}).items()}
    shard = EvaluationShard(size, columns=tuple(given))
    batches = validation_batches(size, 32, 0, 1)
    fill(shard, samples, batches, lambda _, rows: {name: values[rows] for name, values in given.items()})
    return evaluate(shard, num_samples=size, split_hash="test", **arguments)


def public(result: CheckedResult) -> str:
    """The numbers of a result to the last bit (repr of a float64 is exact, and nan equals nan)."""
    return repr({name: value for name, value in vars(result).items() if name not in ("rows", "receipt")})


def digests(context: DistContext, sizes: list[int], folder: str) -> list[tuple[str, str, list[str], bool]]:
    """For each N: public numbers, digest of the per-sample file, log lines, whether row i is sample i."""
    found = []
    everything = make_samples(max(sizes), seed=7)
    for size in sizes:
        samples = Samples(*(part[:size] for part in vars(everything).values()))
        # Small splits in batches of 4, so that most ranks have some; each odd rank in the wrong order.
        result = score(context, samples, reverse=context.rank % 2 == 1, batch=BATCH if size < 100 else 64)
        digest, lines, in_place = "", [], False
        if result.rows is not None:
            path = Path(folder) / f"{context.world}-{size}.npz"
            write_per_sample(path, result, [f"S/{i:04d}" for i in range(size)], split="val")
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            path.unlink()
            own = {"pred": samples.pred, **columns_of(samples, torch.arange(size))}
            got = {"pred": result.rows.pred_joints_cam_m, **result.rows.columns}
            in_place = all(np.array_equal(got[name], own[name].numpy(), equal_nan=True) for name in own)
            lines = report_lines(result, context.world, context.devices_label)
        found.append((public(result), digest, lines, in_place))
    return found


RECOVERABLE = (
    *("raise", "samples", "split", "columns", "column order", "column count"),
    *("duplicate", "missing", "outside"),
)


def recoverable_faults(context: DistContext) -> dict[str, str]:
    """What this rank is told for each fault that leaves the group whole; rank 1 is the one at fault."""
    told = {fault: _fault(context, fault) for fault in RECOVERABLE}
    # and after all that, a sound validation still works
    told["sound"] = str(score(context, make_samples(9, seed=3)).num_samples)
    return told


def _fault(context: DistContext, fault: str) -> str:
    guilty = fault if context.rank == 1 else ""
    own = validation_batches(9, BATCH, context.rank, context.world)
    columns = {
        "columns": ("mpvpe_mm", "pa_mpvpe_cm", "mesh_usable"),
        "column order": ("pa_mpvpe_mm", "mpvpe_mm", "mesh_usable"),
        "column count": (),
    }
    batches = {"columns": [], "missing": [], "duplicate": [*own, range(8, 9)], "outside": [range(9, 10)]}
    capacity = sum(map(len, own)) + (guilty == "duplicate")
    shard = EvaluationShard(capacity, columns.get(guilty, COLUMNS))
    with shard.guard():
        if guilty == "raise":
            raise ValueError("unreadable frame S/0005")
        fill(shard, make_samples(10, seed=3), batches.get(guilty, own))
    size, split = 10 if guilty == "samples" else 9, "other" if guilty == "split" else "test"
    return message_of(context, shard, num_samples=size, split_hash=split, timeout_s=60.0)


BAD = {
    "stall": (1, 40, "start"),
    "stall send": (2, 40, "rows"),
    "stall empty": (1, 3, "rows"),
    "stall zero": (0, 40, "rows"),
    "kill": (1, 40, "start"),
    "kill gather": (1, 40, "gather"),
    "kill send": (1, 40, "rows"),
    "kill empty": (2, 3, "rows"),
    "kill zero": (0, 40, "start"),
    "kill zero send": (0, 40, "rows"),
}
"""Fault -> the rank that stalls or dies, samples (rank 0 has all of three), and when."""


def broken_peer(context: DistContext, fault: str, folder: str) -> str:
    """What a survivor is told when a rank stalls or dies."""
    (guilty, size, moment), told = BAD[fault], Path(folder)
    shard = EvaluationShard(size)
    fill(shard, make_samples(size, seed=3), validation_batches(size, BATCH, context.rank, context.world))

    def strike(*_: object) -> torch.Tensor:
        if fault.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        _until([told / str(rank) for rank in range(context.world) if rank != guilty])
        return torch.empty(0, 148, dtype=torch.float64)

    if context.rank == guilty and moment == "start":
        return str(strike())
    if context.rank == guilty and moment == "rows":
        shard.rows = strike
    if context.rank == guilty and moment == "gather":
        Link.gather = strike
    if fault == "kill" and context.rank == 0:
        # Rank 0 has lost rank 1 when it looks who is absent; only then does rank 2 arrive. The slow rank must
        # not be taken for the dead one.
        look = Link._absent
        Link._absent = lambda link: (told / "looking").touch() or look(link)
    if fault == "kill" and context.rank == 2:
        _until([told / "looking"])
    message = message_of(
        context, shard, num_samples=size, split_hash="test", timeout_s=2.0 if "stall" in fault else 30.0
    )
    (told / str(context.rank)).touch()
    if message != "no error" and context.rank != guilty:
        raise CollectError(message)  # and leave, as a run does: the others then lose this rank too
    return message


def _until(files: list[Path]) -> None:
    """Wait, at most half a minute, until files are there."""
    deadline = time.monotonic() + 30.0
    while not all(file.exists() for file in files) and time.monotonic() < deadline:
        time.sleep(0.01)


def message_of(context: DistContext, shard: EvaluationShard, **arguments) -> str:
    """The CollectError that `evaluate` raises here, or 'no error'."""
    try:
        evaluate(shard, group=context.side_group, device_label=context.devices_label, **arguments)
    except CollectError as error:
        return str(error)
    return "no error"
