"""Collection of all ranks' rows on rank 0: every sample exactly once, or an error that names rank and cause.

The order of events is the same on every rank: (1) one all_gather of a fixed int64 header, whose
disagreement stops everything before a byte of content moves; (2) send/recv of the indices to rank 0, which
checks that each of the N samples is there exactly once and tells everybody; (3) send/recv of the rows in rank
order, one fixed field order, through one small buffer, each row put at its index. A rank that raised in its
loop sends that as its status. A rank without rows says so with one word: silence means that it is gone.

gloo compares neither shapes nor types: what could disagree is in the header. Who is to blame for a wait that
failed is found out by `src.runtime.ranks.link`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.errors import CollectError
from src.evaluation.shard import ROW_DTYPES, EvaluationShard
from src.runtime.memory import mapped
from src.runtime.ranks.link import Link, name_ranks

PROTOCOL_VERSION = 2
HEADER = (
    *("version", "status", "count", "capacity"),
    *("joints", "dtype", "samples", "split", "columns", "number of columns"),
)
"""Names of the header's int64 words. All but status, count and capacity must be equal on every rank."""
_HEADER_WORDS = 16  # of which the last are zero: another version of the protocol still fills the same message
_OF_ONE_RANK = ("status", "count", "capacity")

_CHUNK_ROWS = 1024
_SHOWN = 5
_MANY = 16
_U64 = 2**64 - 1


@dataclass(frozen=True)
class Receipt:
    """Says that the exactly-once check passed; made by `collect` alone."""

    num_samples: int
    """N rows, index i at row i."""
    world: int
    """Ranks that the rows came from."""
    split_hash: str = ""
    """The split's fingerprint, equal on all of them."""
    bytes_moved: int = dataclasses.field(default=0, compare=False)
    """What this rank sent to rank 0, or received as rank 0."""
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict, compare=False)
    """Wall time of each step on this rank, by name, in order."""


@dataclass(frozen=True)
class Rows:
    """All N rows in the order of the split, on rank 0 (CPU)."""

    pred: Tensor
    """(N, J, 3) metres, image camera."""
    target: Tensor
    """(N, J, 3) metres, image camera."""
    conf: Tensor
    """(N, J)."""
    loss: Tensor
    """(N,) float64."""
    columns: Tensor
    """(N, K) float64, the shards' columns in their order."""


def collect(
    shard: EvaluationShard, link: Link, *, num_samples: int, split_hash: str
) -> tuple[Rows | None, Receipt]:
    """Bring every rank's rows to rank 0, each sample of the split exactly once.

    Args:
        shard: this rank's rows, or the exception of its loop; its rows are handed over.
        link: the ranks.
        num_samples: N, samples of the split.
        split_hash: names the split's content; must be equal on every rank.

    Returns:
        the N rows in the order of the split (on rank 0, else None), and the receipt.
        A single rank whose rows are in order gets views of its shard.

    Raises:
        CollectError: on every rank, with the rank and the cause: a rank raised, ranks disagree about joints,
            dtype, N, split or columns, an index is missing or repeated, a rank died or stalled.
    """
    with link.step("header"):
        headers = _agree(shard, link, num_samples, split_hash)
    with link.step("indices"):
        order = _exchange_indices(shard, link, headers, num_samples)
    with link.step("rows"):
        rows = _exchange_rows(shard, link, order)
    receipt = Receipt(
        num_samples, link.world, split_hash, bytes_moved=link.bytes_moved, seconds=dict(link.seconds)
    )
    return rows, receipt


def _agree(shard: EvaluationShard, link: Link, num_samples: int, split_hash: str) -> dict[str, list[int]]:
    """Exchange headers: word -> its value on each rank."""
    own = {
        "version": PROTOCOL_VERSION,
        "status": int(shard.error is not None),
        "count": shard.count,
        "capacity": shard.capacity,
        "joints": shard.num_joints,
        "dtype": ROW_DTYPES.index(shard.dtype),
        "samples": num_samples,
        "split": _digest(split_hash),
        "columns": _digest("\n".join(shard.columns)),
        "number of columns": len(shard.columns),
    }
    words = torch.zeros(_HEADER_WORDS, dtype=torch.int64)
    words[: len(HEADER)] = torch.tensor([own[name] for name in HEADER], dtype=torch.int64)
    every = link.gather(words, "header").T.tolist()
    headers = dict(zip(HEADER, every, strict=False))
    _compare(link, "version", [str(version) for version in headers["version"]])
    if any(headers["status"]):
        _stop_with_causes(shard, link, headers["status"])
    for name, values in headers.items():
        if name in _OF_ONE_RANK or len(set(values)) == 1:
            continue
        if name == "columns":
            names = link.gather_texts(", ".join(shard.columns) or "none", "columns")
            _compare(
                link,
                name,
                [f"{text} ({value & _U64:016x})" for text, value in zip(names, values, strict=True)],
            )
        shown = [str(value) for value in values]
        if name == "split":
            shown = [f"{value & _U64:016x}" for value in values]
        elif name == "dtype":
            shown = [str(ROW_DTYPES[v]) if 0 <= v < len(ROW_DTYPES) else f"unknown ({v})" for v in values]
        _compare(link, name, shown)
    return headers


def _compare(link: Link, name: str, values: Sequence[str]) -> None:
    """Raise, naming the ranks of each value, unless all are equal."""
    if len(set(values)) == 1:
        return
    parts = [
        f"{value} on {name_ranks([r for r, v in enumerate(values) if v == value])}"
        for value in sorted(set(values), key=lambda v: (-values.count(v), values.index(v)))
    ]
    raise CollectError(f"{link.where}: ranks disagree about {name}: {'; '.join(parts)}. Nothing was scored.")


def _stop_with_causes(shard: EvaluationShard, link: Link, status: list[int]) -> None:
    """Raise on every rank what the failed ranks raised."""
    error = shard.error
    cause = "" if error is None else f"{type(error).__name__}: {error}"
    texts = link.gather_texts(cause, "failure's cause")
    causes = [f"rank {r} raised {texts[r]}" for r, failed in enumerate(status) if failed]
    more = f"; and {len(causes) - _SHOWN} more ranks" if len(causes) > _SHOWN else ""
    message = f"{link.where}: {'; '.join(causes[:_SHOWN])}{more}. Nothing was scored."
    raise CollectError(message) from error


def _exchange_indices(
    shard: EvaluationShard, link: Link, headers: dict[str, list[int]], num_samples: int
) -> list[Tensor]:
    """Indices of each rank on rank 0, checked there; [] elsewhere. The verdict reaches every rank."""
    own = shard.sample_index()
    order: list[Tensor] = []
    verdict = None
    if link.rank == 0:
        order = [own] + [mapped((count,), torch.int64) for count in headers["count"][1:]]
        for source in range(1, link.world):
            for chunk in _chunks(order[source]):
                link.receive(chunk, source, "indices")
        link.close("indices")
        verdict = find_fault([part.numpy() for part in order], num_samples, headers["capacity"])
    else:
        for chunk in _chunks(own):
            link.send(chunk, "indices")
        link.close("indices")
    verdict = link.broadcast(verdict, "verdict")
    if verdict:
        raise CollectError(f"{link.where}: {verdict}. Nothing was scored.")
    return order


def find_fault(
    indices: list[NDArray[np.int64]], num_samples: int, capacities: Sequence[int] | None = None
) -> str:
    """Why the ranks' indices are not 0 .. N-1 exactly once; '' if they are.

    Args:
        indices: (n_r,) of each rank.
        num_samples: N.
        capacities: rows that each rank had reserved; they tell who is short of some.
    """
    every = np.concatenate(indices) if indices else np.empty(0, np.int64)
    owner = np.repeat(np.arange(len(indices)), [len(part) for part in indices])
    outside = np.flatnonzero((every < 0) | (every >= num_samples))
    if outside.size:
        first = outside[0]
        return (
            f"index {every[first]} from rank {owner[first]} is outside of the split's {num_samples} samples"
        )
    seen = np.bincount(every, minlength=num_samples)
    missing, repeated = np.flatnonzero(seen == 0), np.flatnonzero(seen > 1)
    faults = []
    if missing.size:
        faults.append(f"{missing.size} of {num_samples} samples are missing (first: {_numbers(missing)})")
        faults += _shortfalls([len(part) for part in indices], num_samples, capacities)
    if repeated.size:
        senders = sorted(set(owner[every == repeated[0]].tolist()))
        faults.append(
            f"{repeated.size} samples came more than once (first: {_numbers(repeated)}; "
            f"{repeated[0]} from {name_ranks(senders)})"
        )
    return ", ".join(faults)


def _shortfalls(counts: list[int], num_samples: int, capacities: Sequence[int] | None) -> list[str]:
    """Which ranks account for missing samples, as far as what they had reserved tells."""
    if capacities is None:
        return []
    if sum(capacities) < num_samples:
        shares = ", ".join(f"{share} by rank {rank}" for rank, share in enumerate(capacities[:_MANY]))
        more = ", ..." if len(capacities) > _MANY else ""
        return [f"the ranks' shares do not cover the split (reserved: {shares}{more})"]
    return [
        f"rank {rank} holds {count} of the {share} rows that it reserved"
        for rank, (count, share) in enumerate(zip(counts, capacities, strict=True))
        if count < share and sum(capacities) == num_samples
    ]


def _exchange_rows(shard: EvaluationShard, link: Link, order: list[Tensor]) -> Rows | None:
    """Send this rank's rows, or as rank 0 put every rank's rows at their indices."""
    own = shard.hand_over()
    if link.rank != 0:
        for name, field in own.items():
            for chunk in _chunks(field):
                link.send(chunk, name)
        link.close("rows")
        return None
    total = sum(part.numel() for part in order)
    if link.world == 1 and torch.equal(order[0], torch.arange(total)):
        return _rows(own, total)
    rows: dict[str, Tensor] = {}
    for name in tuple(own):  # each of the shard's own arrays is freed as soon as its copy is made
        rows[name] = _placed(own.pop(name), order[0], total)
    row_bytes = max(field.shape[1:].numel() * field.element_size() for field in rows.values())
    longest = max((part.numel() for part in order[1:]), default=0)
    buffer = mapped((min(_CHUNK_ROWS, longest) * row_bytes,), torch.uint8)
    for source in range(1, link.world):
        for name, field in rows.items():
            for place in _chunks(order[source]):
                shape = torch.Size((place.numel(), *field.shape[1:]))
                chunk = buffer[: shape.numel() * field.element_size()].view(field.dtype).view(shape)
                link.receive(chunk, source, name)
                field.index_copy_(0, place, chunk)
    link.close("rows")
    return _rows(rows, total)


def _placed(field: Tensor, place: Tensor, total: int) -> Tensor:
    """An array of `total` rows that holds `field` at rows `place`; the others are not yet written."""
    return mapped((total, *field.shape[1:]), field.dtype).index_copy_(0, place, field)


def _rows(fields: dict[str, Tensor], total: int) -> Rows:
    return Rows(**{"columns": torch.empty(total, 0, dtype=torch.float64), **fields})


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Views of at most `_CHUNK_ROWS` rows, in order; none of an empty tensor."""
    for start in range(0, tensor.shape[0], _CHUNK_ROWS):
        yield tensor[start : start + _CHUNK_ROWS]


def _digest(text: str) -> int:
    """64 bits that stand for a text."""
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:8], "big", signed=True)


def _numbers(values: NDArray[np.int64]) -> str:
    return ", ".join(map(str, values[:_SHOWN].tolist())) + (", ..." if values.size > _SHOWN else "")
