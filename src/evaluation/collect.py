"""Rows of a validation: gathered on each rank, brought to rank 0, every sample exactly once.

The order of events is the same on every rank: (1) one all_gather of a fixed int64 header, whose disagreement
stops everything before a byte of content moves; (2) send/recv of the indices to rank 0, which checks that
each of the N samples is there exactly once and tells everybody; (3) send/recv of the rows in rank order, each
put at its index. A rank that raised in its loop sends that as its status. A rank without rows says so with
one word: silence means that it is gone. Who is to blame for a wait that failed is found out by
`src.runtime.ranks.link`.

Legend: n rows of a rank, N of all ranks, B of a batch, J 21 joints, K columns. Joints are `OPENPOSE21`,
metres, absolute, in the **image camera** (OpenCV). A *column* is a number per sample that the rank computed
itself, because what it is computed from (a mesh) is too large to travel.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.errors import CollectError, ShapeError
from src.geometry.in_view import UNKNOWN
from src.hand.joints import OPENPOSE21
from src.runtime.outlet import Guard
from src.runtime.ranks.link import Link, name_ranks

MESH_USABLE = "mesh_usable"
"""Column that is 1 where the sample's mesh is labelled and 0 where it is not."""

PROTOCOL_VERSION = 4
_J = len(OPENPOSE21)
_FIELDS: dict[str, tuple[int, ...]] = {
    "pred": (_J, 3), "target": (_J, 3), "conf": (_J,), "in_view": (_J,), "loss": (),
}  # fmt: skip
"""What stands in a row before the columns, and in what shape."""
_WIDTH = sum(map(math.prod, _FIELDS.values()))
_SHOWN = 5
_U64 = 2**64 - 1


class EvaluationShard:
    """Rows of the samples that this rank evaluated, in any order; `evaluate` collects those of all ranks."""

    def __init__(self, capacity: int, columns: Sequence[str] = ()) -> None:
        """Reserve `capacity` rows on the CPU.

        Args:
            capacity: rows that this rank will hold; one that ends with fewer is named when samples are
                missing.
            columns: names of the per-sample numbers that `add` gets; the same, in the same order, on every
                rank.
        """
        self.columns = tuple(columns)
        self.capacity = capacity
        self.count = 0
        self._guard = Guard()
        self._index = torch.empty(capacity, dtype=torch.int64)
        # float64 keeps the bits of a float32, so that one table holds joints, losses and columns.
        self._rows = torch.empty(capacity, _WIDTH + len(self.columns), dtype=torch.float64)

    def guard(self) -> Guard:
        """Put the rank's loop inside: an exception becomes this rank's status, which stops every rank."""
        return self._guard

    @property
    def error(self) -> Exception | None:
        """What the guarded loop raised, or None."""
        return self._guard.error

    @torch.no_grad()
    def add(
        self,
        *,
        sample_index: Tensor,
        pred_joints_m: Tensor,
        target_joints_m: Tensor,
        conf: Tensor,
        loss: Tensor,
        in_view: Tensor | None = None,
        columns: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Copy the rows of a batch; the tensors given are left as they are.

        Args:
            sample_index: (B,) integers, rows of the split.
            pred_joints_m: (B, J, 3) any device, image camera, metres; kept as float32.
            target_joints_m: (B, J, 3) as the prediction.
            conf: (B, J) weight of each label; 0 = the label does not exist.
            loss: (B,) per-sample loss.
            in_view: (B, J) of `src.geometry.in_view`; None: nothing is known of any joint.
            columns: name -> (B,) per-sample number, for each name given at construction; nan where there is
                no label, `mesh_usable` 0 where there is no labelled mesh.

        Raises:
            ShapeError: shapes are not these, or columns are missing or unknown.
            CollectError: more rows than reserved.
        """
        given = dict(columns or {})
        if set(given) != set(self.columns):
            raise ShapeError(f"EvaluationShard.add: got columns {sorted(given)}, want {sorted(self.columns)}")
        if sample_index.is_floating_point():
            raise ShapeError(f"EvaluationShard.add: sample_index is {sample_index.dtype}, want integers")
        size = sample_index.numel()
        parts = {
            "pred_joints_m": (pred_joints_m.float(), _FIELDS["pred"]),
            "target_joints_m": (target_joints_m.float(), _FIELDS["target"]),
            "conf": (conf.float(), _FIELDS["conf"]),
            "in_view": (torch.full_like(conf, UNKNOWN) if in_view is None else in_view, _FIELDS["in_view"]),
            "loss": (loss, ()),
            **{f"column {name}": (given[name], ()) for name in self.columns},
        }
        for name, (tensor, shape) in {"sample_index": (sample_index, ()), **parts}.items():
            if tuple(tensor.shape) != (size, *shape):
                raise ShapeError(
                    f"EvaluationShard.add: {name} has shape {tuple(tensor.shape)}, want {(size, *shape)}"
                )
        place = slice(self.count, self.count + size)
        if place.stop > self.capacity:
            raise CollectError(
                f"EvaluationShard: {place.stop} rows added, {self.capacity} reserved for this rank"
            )
        self._index[place] = sample_index.cpu()
        rows = [tensor.reshape(size, -1).to("cpu", torch.float64) for tensor, _ in parts.values()]
        self._rows[place] = torch.cat(rows, dim=1)
        self.count = place.stop

    def sample_index(self) -> Tensor:
        """(n,) int64, rows of the split in the order they were added."""
        return self._index[: self.count]

    def rows(self) -> Tensor:
        """(n, W) float64: joints, weights, loss and columns of a sample side by side."""
        return self._rows[: self.count]


@dataclass(frozen=True)
class Receipt:
    """Says that the exactly-once check passed; made by `collect` alone."""

    num_samples: int
    """N rows, index i at row i."""
    world: int
    """Ranks that the rows came from."""
    split_hash: str = ""
    """The split's fingerprint, equal on all of them."""


def collect(
    shard: EvaluationShard, link: Link, *, num_samples: int, split_hash: str
) -> tuple[dict[str, Tensor] | None, Receipt]:
    """Bring every rank's rows to rank 0, each sample of the split exactly once.

    Args:
        shard: this rank's rows, or the exception of its loop.
        link: the ranks.
        num_samples: N, samples of the split.
        split_hash: names the split's content; must be equal on every rank.

    Returns:
        on rank 0 the N rows in the order of the split, elsewhere None: `pred` and `target` (N, J, 3) float32,
        image camera, metres, `conf` and `in_view` (N, J) float32, `loss` (N,) float64, and (N,) float64 for
        each column; and the receipt.

    Raises:
        CollectError: on every rank, with the rank and the cause: a rank raised, ranks disagree about N, split
            or columns, an index is missing or repeated, a rank died or stalled.
    """
    counts, capacities = _agree(shard, link, num_samples, split_hash)
    receipt = Receipt(num_samples, link.world, split_hash)
    indices = _to_main(link, shard.sample_index(), counts, "indices")
    fault = find_fault([part.numpy() for part in indices], num_samples, capacities) if indices else None
    if verdict := link.broadcast(fault, "verdict"):
        raise CollectError(f"{link.where}: {verdict}. Nothing was scored.")
    parts = _to_main(link, shard.rows(), counts, "rows")
    if not parts:
        return None, receipt
    table = torch.empty(num_samples, parts[0].shape[1], dtype=torch.float64)
    for place, part in zip(indices, parts, strict=True):
        table[place] = part
    shapes = _FIELDS | dict.fromkeys(shard.columns, ())
    columns = torch.split(table, [math.prod(shape) for shape in shapes.values()], dim=1)
    rows = {
        name: values.reshape(num_samples, *shape).to(torch.float32 if shape else torch.float64)
        for (name, shape), values in zip(shapes.items(), columns, strict=True)
    }
    return rows, receipt


def _agree(
    shard: EvaluationShard, link: Link, num_samples: int, split_hash: str
) -> tuple[list[int], list[int]]:
    """Exchange headers; rows and reserved rows of each rank."""
    own = {
        "version": PROTOCOL_VERSION,
        "status": int(shard.error is not None),
        "count": shard.count,
        "capacity": shard.capacity,
        "samples": num_samples,
        "split": _digest(split_hash),
        "columns": _digest("\n".join(shard.columns)),
    }
    every = link.gather(torch.tensor(list(own.values()), dtype=torch.int64), "header")
    headers = dict(zip(own, every.T.tolist(), strict=True))
    _compare(link, "version", headers["version"])
    if any(headers["status"]):
        _stop_with_causes(shard, link, headers["status"])
    _compare(link, "samples", headers["samples"])
    _compare(link, "split", [f"{digest & _U64:016x}" for digest in headers["split"]])
    if len(set(headers["columns"])) > 1:
        names = link.gather_texts(", ".join(shard.columns) or "none", "columns")
        _compare(link, "columns", names)
        _compare(link, "columns", headers["columns"])  # texts are cut: they may be alike up to there
    return headers["count"], headers["capacity"]


def _compare(link: Link, name: str, values: Sequence[object]) -> None:
    """Raise, naming the ranks of each value, unless all are equal."""
    holders = {value: [rank for rank, own in enumerate(values) if own == value] for value in values}
    if len(holders) > 1:
        most_first = sorted(holders.items(), key=lambda item: -len(item[1]))
        parts = "; ".join(f"{value} on {name_ranks(ranks)}" for value, ranks in most_first)
        raise CollectError(f"{link.where}: ranks disagree about {name}: {parts}. Nothing was scored.")


def _stop_with_causes(shard: EvaluationShard, link: Link, status: list[int]) -> None:
    """Raise on every rank what the failed ranks raised."""
    error = shard.error
    cause = "" if error is None else f"{type(error).__name__}: {error}"
    texts = enumerate(link.gather_texts(cause, "failure's cause"))
    causes = [f"rank {rank} raised {text}" for rank, text in texts if status[rank]]
    more = f"; and {len(causes) - _SHOWN} more ranks" if len(causes) > _SHOWN else ""
    message = f"{link.where}: {'; '.join(causes[:_SHOWN])}{more}. Nothing was scored."
    raise CollectError(message) from error


def _to_main(link: Link, own: Tensor, counts: Sequence[int], what: str) -> list[Tensor]:
    """Each rank's tensor on rank 0, where `counts` says how long they are; [] on the others."""
    parts = [own] if link.rank == 0 else []
    for source, count in enumerate(counts[1:], start=1) if link.rank == 0 else ():
        parts.append(torch.empty(count, *own.shape[1:], dtype=own.dtype))
        if count:
            link.receive(parts[-1], source, what)
    if link.rank != 0 and len(own):
        link.send(own, what)
    link.close(what)
    return parts


def find_fault(indices: list[NDArray[np.int64]], num_samples: int, capacities: Sequence[int]) -> str:
    """Why the ranks' indices are not 0 .. N-1 exactly once; '' if they are.

    Args:
        indices: (n_r,) of each rank.
        num_samples: N.
        capacities: rows that each rank had reserved; they tell who is short of some.
    """
    every = np.concatenate(indices)
    owner = np.repeat(np.arange(len(indices)), [len(part) for part in indices])
    outside = np.flatnonzero((every < 0) | (every >= num_samples))
    if outside.size:
        first = outside[0]
        return (
            f"index {every[first]} from rank {owner[first]} is outside of the split's {num_samples} samples"
        )
    times = np.bincount(every, minlength=num_samples)
    missing, repeated = np.flatnonzero(times == 0), np.flatnonzero(times > 1)
    faults = []
    if missing.size:
        faults.append(f"{missing.size} of {num_samples} samples are missing (first: {_numbers(missing)})")
        faults += [
            f"rank {rank} holds {len(part)} of the {share} rows that it reserved"
            for rank, (part, share) in enumerate(zip(indices, capacities, strict=True))
            if len(part) < share
        ]
    if repeated.size:
        senders = sorted(set(owner[every == repeated[0]].tolist()))
        faults.append(
            f"{repeated.size} samples came more than once (first: {_numbers(repeated)}; "
            f"{repeated[0]} from {name_ranks(senders)})"
        )
    return ", ".join(faults)


def _digest(text: str) -> int:
    """64 bits that stand for a text."""
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:8], "big", signed=True)


def _numbers(values: NDArray[np.int64]) -> str:
    """The first few of them."""
    return ", ".join(map(str, values[:_SHOWN].tolist())) + (", ..." if values.size > _SHOWN else "")
