"""Messages between the ranks of a collection: every wait is bounded and every failure has a name.

An error of gloo names a socket, not a rank. So each rank leaves a mark in the group's store when it arrives,
and whoever first knows the culprit leaves a note that the others repeat.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from src.errors import CollectError

TEXT_BYTES = 1024
"""Longest text that `Link.gather_texts` carries; a longer one is cut."""

_GRACE_S = 3.0
"""How long a rank that lost its connection waits for another rank's explanation."""


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
        self.bytes_moved = 0
        self.seconds: dict[str, float] = {}
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

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the wall time of a block to `seconds[name]`."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def gather(self, words: Tensor, what: str) -> Tensor:
        """(F,) of this rank -> (W, F) of all ranks, on every rank."""
        if self.group is None:
            return words[None]
        every = [torch.empty_like(words) for _ in range(self.world)]
        self._finish(lambda: dist.all_gather(every, words, group=self.group, async_op=True), what, None)
        return torch.stack(every)

    def gather_texts(self, text: str, what: str) -> list[str]:
        """A short text of each rank, on every rank."""
        content = torch.zeros(TEXT_BYTES, dtype=torch.uint8)
        encoded = _bytes_of(text)[:TEXT_BYTES]
        content[: encoded.numel()] = encoded
        return [
            bytes(r.numpy()).rstrip(bytes(1)).decode(errors="replace") for r in self.gather(content, what)
        ]

    def send(self, tensor: Tensor, what: str) -> None:
        """Send a contiguous tensor to rank 0."""
        self._finish(lambda: dist.isend(tensor, group=self.group, group_dst=0), what, 0)
        self.bytes_moved += tensor.numel() * tensor.element_size()

    def receive(self, buffer: Tensor, source: int, what: str) -> None:
        """Fill a contiguous tensor with what rank `source` sends."""
        self._finish(lambda: dist.irecv(buffer, group=self.group, group_src=source), what, source)
        self.bytes_moved += buffer.numel() * buffer.element_size()

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
            self._store.set(f"{self._prefix}asked/{self.rank}", "1")
            told = self._told(0.0)
            if told:
                return told
            absent = self._absent(wait=not late)
            if absent:
                return self._tell(f"{name_ranks(absent)} did not reach the collection ({why})")
            if self.rank == 0 and peer is not None:
                return self._tell(f"rank {peer} did not deliver its {what} ({why})")
            if peer is None or late:  # rank 0 sees all the others and knows best; it speaks before it leaves
                told = self._told(min(_GRACE_S, self.timeout_s))
            if told:
                return told
            if peer is not None:
                return self._tell(f"rank {peer} did not answer about {what} ({why})")
            silent = self._without("asked")  # whoever is alive has noticed by now, and asks like this rank
            if silent:
                return self._tell(f"{name_ranks(silent)} fell silent during the {what} ({why})")
        except RuntimeError as lost:  # the store went down with the rank or agent that held it
            return f"{what} failed at rank {self.rank} and the ranks' store is gone ({error}; {lost})"
        return f"{what} failed at rank {self.rank} ({error})"

    def _without(self, mark: str) -> list[int]:
        """Ranks that have not left this mark."""
        return [r for r in range(self.world) if not self._store.check([f"{self._prefix}{mark}/{r}"])]

    def _absent(self, *, wait: bool) -> list[int]:
        """Ranks that have left no mark; with `wait`, slow ranks are given their time to leave theirs."""
        deadline = self._started + self.timeout_s
        while True:
            absent = self._without("arrived")
            if not wait or len(absent) <= 1 or time.monotonic() >= deadline:
                return absent
            time.sleep(0.02)

    def _tell(self, text: str) -> str:
        """Leave the explanation for the others; the first one that was left is the one that counts."""
        return self._store.compare_set(f"{self._prefix}failure", "", text[:TEXT_BYTES]).decode()

    def _told(self, patience_s: float) -> str:
        """The explanation that another rank left, or ''."""
        deadline = time.monotonic() + patience_s
        key = f"{self._prefix}failure"
        while not self._store.check([key]):
            if time.monotonic() >= deadline:
                return ""
            time.sleep(0.02)
        return self._store.get(key).decode()


def name_ranks(ranks: list[int]) -> str:
    """`rank 1` or `ranks 0, 2`."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _bytes_of(text: str) -> Tensor:
    return torch.tensor(list(text.encode(errors="backslashreplace")), dtype=torch.uint8)
