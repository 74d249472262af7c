"""Collection of all ranks' rows on rank 0: every sample exactly once, or an error that names rank and cause.

The order of events is the same on every rank: (1) one all_gather of a fixed int64 header, whose
disagreement stops everything before a byte of content moves; (2) send/recv of the indices to rank 0, which
checks that each of the N samples is there exactly once and tells everybody; (3) send/recv of the rows in rank
order, one fixed field order, through one small buffer, each row put at its index. A rank that raised in its
loop sends that as its status.

gloo compares neither shapes nor types, and an error of gloo names a socket, not a rank. So each rank leaves a
mark in the group's store when it arrives, and whoever first knows the culprit leaves a note that the others
repeat.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from src.errors import CollectError
from src.evaluation.shard import ROW_DTYPES, EvaluationShard

PROTOCOL_VERSION = 1
HEADER = ("version", "status", "count", "joints", "dtype", "samples", "split")
"""Names of the header's int64 words. All but status and count must be equal on every rank."""

_TEXT_BYTES = 1024
_CHUNK_ROWS = 4096
_SHOWN = 5
_GRACE_S = 3.0
"""How long a rank that lost its connection waits for another rank's explanation."""


@dataclass(frozen=True)
class Receipt:
    """Says that the exactly-once check passed; made by `collect` alone."""

    num_samples: int
    """N rows, index i at row i."""
    world: int
    """Ranks that the rows came from."""


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


class Link:
    """The ranks of one collection: waits that are bounded and failures that have a name."""

    def __init__(self, group: dist.ProcessGroup | None, *, timeout_s: float, where: str) -> None:
        """Join a collection.

        Args:
            group: gloo group of all ranks; None: this process alone holds every row. Give the group itself
                the same timeout: a stalled peer keeps its threads, and thereby the exit, waiting that long.
            timeout_s: longest wait for one message, seconds.
            where: what error messages begin with.

        Raises:
            CollectError: the group is not gloo, or this process is not in it.
        """
        self.where = where
        self.timeout_s = timeout_s
        self.group = group
        self.rank, self.world = 0, 1
        if group is None:
            return
        if dist.get_backend(group) != "gloo":
            raise CollectError(f"{where}: the group is {dist.get_backend(group)}; give a gloo group")
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise CollectError(f"{where}: this process is not in the group")
        self._started = time.monotonic()
        self._store = group.get_group_store()
        self._prefix = "utnet-evaluation/"
        with contextlib.suppress(RuntimeError):  # without its store a failure is still one, only nameless
            self._prefix += f"{self._store.add(f'{self._prefix}calls/{self.rank}', 1)}/"
            self._store.set(f"{self._prefix}arrived/{self.rank}", "1")

    def gather(self, words: Tensor, what: str) -> Tensor:
        """(F,) of this rank -> (W, F) of all ranks, on every rank."""
        if self.group is None:
            return words[None]
        every = [torch.empty_like(words) for _ in range(self.world)]
        self._finish(lambda: dist.all_gather(every, words, group=self.group, async_op=True), what, None)
        return torch.stack(every)

    def send(self, tensor: Tensor, what: str) -> None:
        """Send a contiguous tensor to rank 0."""
        self._finish(lambda: dist.isend(tensor, group=self.group, group_dst=0), what, 0)

    def receive(self, buffer: Tensor, source: int, what: str) -> None:
        """Fill a contiguous tensor with what rank `source` sends."""
        self._finish(lambda: dist.irecv(buffer, group=self.group, group_src=source), what, source)

    def broadcast(self, text: str | None, what: str) -> str:
        """Rank 0's text, on every rank; the others give None."""
        if self.group is None:
            return text or ""
        content = _bytes_of(text or "")
        size = torch.tensor([content.numel()], dtype=torch.int64)
        self._finish(lambda: self._broadcast(size), what, None if self.rank == 0 else 0)
        if int(size) == 0:
            return ""
        if self.rank != 0:
            content = torch.empty(int(size), dtype=torch.uint8)
        self._finish(lambda: self._broadcast(content), what, None if self.rank == 0 else 0)
        return bytes(content.numpy()).decode()

    def _broadcast(self, tensor: Tensor) -> dist.Work | None:
        return dist.broadcast(tensor, group=self.group, group_src=0, async_op=True)

    def _finish(self, start: Callable[[], dist.Work | None], what: str, peer: int | None) -> None:
        """Start a transfer and wait for it, at most `timeout_s`."""
        try:
            work = start()
            if work is not None:
                work.wait(timedelta(seconds=self.timeout_s))
        except RuntimeError as error:
            raise CollectError(f"{self.where}: {self._explain(str(error), what, peer)}") from error

    def _explain(self, error: str, what: str, peer: int | None) -> str:
        """Which rank is to blame for gloo's `error`; the first rank that knows tells the others."""
        late = "timed out" in error.lower()
        why = f"nothing came for {self.timeout_s:g} s" if late else "its connection closed: the process ended"
        try:
            told = self._told(0.0)
            if told:
                return told
            absent = self._absent(wait=not late)
            if absent:
                return self._tell(f"{_ranks(absent)} did not reach the collection ({why})")
            if self.rank == 0 and peer is not None:
                return self._tell(f"rank {peer} did not deliver its {what} ({why})")
            told = self._told(min(_GRACE_S, self.timeout_s))  # rank 0 sees all the others and knows best
            if told:
                return told
            if peer is not None:
                return self._tell(f"rank {peer} did not answer about {what} ({why})")
        except RuntimeError as lost:  # the store went down with the rank or agent that held it
            return f"{what} failed at rank {self.rank} and the ranks' store is gone ({error}; {lost})"
        return f"{what} failed at rank {self.rank} ({error})"

    def _absent(self, *, wait: bool) -> list[int]:
        """Ranks that have left no mark; with `wait`, slow ranks are given their time to leave theirs."""
        deadline = self._started + self.timeout_s
        while True:
            absent = [r for r in range(self.world) if not self._store.check([f"{self._prefix}arrived/{r}"])]
            if not wait or len(absent) <= 1 or time.monotonic() >= deadline:
                return absent
            time.sleep(0.02)

    def _tell(self, text: str) -> str:
        """Leave the explanation for the others; the first one that was left is the one that counts."""
        return self._store.compare_set(f"{self._prefix}failure", "", text[:_TEXT_BYTES]).decode()

    def _told(self, patience_s: float) -> str:
        """The explanation that another rank left, or ''."""
        deadline = time.monotonic() + patience_s
        key = f"{self._prefix}failure"
        while not self._store.check([key]):
            if time.monotonic() >= deadline:
                return ""
            time.sleep(0.02)
        return self._store.get(key).decode()


def collect(
    shard: EvaluationShard, link: Link, *, num_samples: int, split_hash: str
) -> tuple[Rows | None, Receipt]:
    """Bring every rank's rows to rank 0, each sample of the split exactly once.

    Args:
        shard: this rank's rows, or the exception of its loop.
        link: the ranks.
        num_samples: N, samples of the split.
        split_hash: names the split's content; must be equal on every rank.

    Returns:
        the N rows in the order of the split (on rank 0, else None), and the receipt.
        A single rank whose rows are in order gets views of its shard.

    Raises:
        CollectError: on every rank, with the rank and the cause: a rank raised, ranks disagree about joints,
            dtype, N or split, an index is missing or repeated, a rank died or stalled.
    """
    counts = _agree(shard, link, num_samples, split_hash)
    order = _exchange_indices(shard, link, counts, num_samples)
    receipt = Receipt(num_samples=num_samples, world=link.world)
    return _exchange_rows(shard, link, counts, order), receipt


def _agree(shard: EvaluationShard, link: Link, num_samples: int, split_hash: str) -> list[int]:
    """Exchange headers; rows of each rank."""
    split = int.from_bytes(hashlib.sha256(split_hash.encode()).digest()[:8], "big", signed=True)
    words = (
        PROTOCOL_VERSION,
        int(shard.error is not None),
        shard.count,
        shard.num_joints,
        ROW_DTYPES.index(shard.dtype),
        num_samples,
        split,
    )
    headers = link.gather(torch.tensor(words, dtype=torch.int64), "header")
    if bool(headers[:, HEADER.index("status")].any()):
        _stop_with_causes(shard, link, headers[:, HEADER.index("status")])
    shown: dict[str, Callable[[int], str]] = {"split": lambda v: f"{v & (2**64 - 1):016x}"}
    shown["dtype"] = lambda v: str(ROW_DTYPES[v]) if 0 <= v < len(ROW_DTYPES) else f"unknown ({v})"
    for column, name in enumerate(HEADER):
        values = headers[:, column].tolist()
        if name in ("status", "count") or len(set(values)) == 1:
            continue
        parts = [
            f"{shown.get(name, str)(value)} on {_ranks([r for r, v in enumerate(values) if v == value])}"
            for value in sorted(set(values), key=lambda v: (-values.count(v), v))
        ]
        raise CollectError(
            f"{link.where}: ranks disagree about {name}: {'; '.join(parts)}. Nothing was scored."
        )
    return [int(count) for count in headers[:, HEADER.index("count")]]


def _stop_with_causes(shard: EvaluationShard, link: Link, status: Tensor) -> None:
    """Raise on every rank what the failed ranks raised."""
    error = shard.error
    text = "" if error is None else f"{type(error).__name__}: {error}"
    content = torch.zeros(_TEXT_BYTES, dtype=torch.uint8)
    encoded = _bytes_of(text)[:_TEXT_BYTES]
    content[: encoded.numel()] = encoded
    every = link.gather(content, "cause of the failure")
    causes = [
        f"rank {r} raised {bytes(every[r].numpy()).rstrip(bytes(1)).decode(errors='replace')}"
        for r in torch.nonzero(status)[:, 0].tolist()
    ]
    more = f"; and {len(causes) - _SHOWN} more ranks" if len(causes) > _SHOWN else ""
    message = f"{link.where}: {'; '.join(causes[:_SHOWN])}{more}. Nothing was scored."
    raise CollectError(message) from error


def _exchange_indices(
    shard: EvaluationShard, link: Link, counts: list[int], num_samples: int
) -> list[Tensor]:
    """Indices of each rank on rank 0, checked there; [] elsewhere. The verdict reaches every rank."""
    own = shard.sample_index()
    order: list[Tensor] = []
    verdict = None
    if link.rank == 0:
        order = [own] + [torch.empty(count, dtype=torch.int64) for count in counts[1:]]
        for source in range(1, link.world):
            for chunk in _chunks(order[source]):
                link.receive(chunk, source, "indices")
        verdict = find_fault([indices.numpy() for indices in order], num_samples)
    else:
        for chunk in _chunks(own):
            link.send(chunk, "indices")
    verdict = link.broadcast(verdict, "verdict")
    if verdict:
        raise CollectError(f"{link.where}: {verdict}. Nothing was scored.")
    return order


def find_fault(indices: list[NDArray[np.int64]], num_samples: int) -> str:
    """Why the ranks' indices are not 0 .. N-1 exactly once; '' if they are.

    Args:
        indices: (n_r,) of each rank.
        num_samples: N.
    """
    every = np.concatenate(indices) if indices else np.empty(0, np.int64)
    owner = np.repeat(np.arange(len(indices)), [len(part) for part in indices])
    outside = np.flatnonzero((every < 0) | (every >= num_samples))
    if outside.size:
        first = outside[0]
        return f"index {every[first]} from rank {owner[first]} is outside of 0..{num_samples - 1}"
    seen = np.bincount(every, minlength=num_samples)
    missing, repeated = np.flatnonzero(seen == 0), np.flatnonzero(seen > 1)
    faults = []
    if missing.size:
        faults.append(f"{missing.size} of {num_samples} samples are missing (first: {_numbers(missing)})")
    if repeated.size:
        senders = sorted(set(owner[every == repeated[0]].tolist()))
        faults.append(
            f"{repeated.size} samples came more than once (first: {_numbers(repeated)}; "
            f"{repeated[0]} from {_ranks(senders)})"
        )
    return ", ".join(faults)


def _exchange_rows(shard: EvaluationShard, link: Link, counts: list[int], order: list[Tensor]) -> Rows | None:
    """Send this rank's rows, or as rank 0 put every rank's rows at their indices."""
    own = shard.payload()
    if link.rank != 0:
        for name, field in own.items():
            for chunk in _chunks(field):
                link.send(chunk, name)
        return None
    total = sum(counts)
    if link.world == 1 and torch.equal(order[0], torch.arange(total)):
        return Rows(**own)
    rows = {name: torch.empty((total, *field.shape[1:]), dtype=field.dtype) for name, field in own.items()}
    for name, field in own.items():
        rows[name].index_copy_(0, order[0], field)
    row_bytes = max(field.shape[1:].numel() * field.element_size() for field in own.values())
    buffer = torch.empty(min(_CHUNK_ROWS, max(counts[1:], default=0)) * row_bytes, dtype=torch.uint8)
    for source in range(1, link.world):
        for name, field in rows.items():
            for place in _chunks(order[source]):
                shape = torch.Size((place.numel(), *field.shape[1:]))
                chunk = buffer[: shape.numel() * field.element_size()].view(field.dtype).view(shape)
                link.receive(chunk, source, name)
                field.index_copy_(0, place, chunk)
    return Rows(**rows)


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Views of at most `_CHUNK_ROWS` rows, in order; none of an empty tensor."""
    for start in range(0, tensor.shape[0], _CHUNK_ROWS):
        yield tensor[start : start + _CHUNK_ROWS]


def _bytes_of(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _numbers(values: NDArray[np.int64]) -> str:
    return ", ".join(map(str, values[:_SHOWN].tolist())) + (", ..." if values.size > _SHOWN else "")
