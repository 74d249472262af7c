"""Messages between the ranks of a collection: every wait is bounded and every failure has a name.

An error of gloo names a socket, not a rank. So every message but one is between rank 0 and one other: whose
wait failed, knows with whom. Rank 0, which talks to all, names the culprit in the group's store before it
leaves; the others repeat that, and blame rank 0 only if it says nothing. Each rank leaves a mark in the store
when it arrives, which tells who never came; the one all_gather follows a roll call.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from src.errors import CollectError

TEXT_BYTES = 1024
"""Longest text that `Link.gather_texts` carries; a longer one is cut."""

_GRACE_S = 2.0
"""How long a rank that lost rank 0 waits for what rank 0 may have said before it left."""


class Link:
    """The ranks of one collection: waits that are bounded and failures that have a name."""

    def __init__(self, group: dist.ProcessGroup | None, *, timeout_s: float, where: str) -> None:
        """Join a collection.

        Args:
            group: gloo group of all ranks; None: this process alone holds every row. Give the group itself
                the same timeout: a stalled peer keeps its threads, and thereby the exit, waiting that long.
            timeout_s: longest wait for one message, seconds.
            where: what error messages begin with.
        """
        self.where = where
        self.timeout_s = timeout_s
        self.group = group
        self.rank, self.world = 0, 1
        if group is None:
            return
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self._store = group.get_group_store()
        self._prefix = "utnet-evaluation/"
        with contextlib.suppress(RuntimeError):  # without its store a failure is still one, only nameless
            self._prefix += f"{self._store.add(f'{self._prefix}calls/{self.rank}', 1)}/"
            self._store.set(f"{self._prefix}arrived/{self.rank}", "1")

    def gather(self, words: Tensor, what: str) -> Tensor:
        """(F,) of this rank -> (W, F) of all ranks, on every rank, by one all_gather.

        Rank 0 calls the roll first: a collective that fails cannot say who was missing.
        """
        if self.world == 1:
            return words[None]
        self.close(what)
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

    def send(self, tensor: Tensor, what: str, target: int = 0) -> None:
        """Send a contiguous tensor to rank `target`; one end of every message is rank 0."""
        self._finish(lambda: dist.isend(tensor, group=self.group, group_dst=target), what, target)

    def receive(self, buffer: Tensor, source: int, what: str) -> None:
        """Fill a contiguous tensor with what rank `source` sends."""
        self._finish(lambda: dist.irecv(buffer, group=self.group, group_src=source), what, source)

    def close(self, what: str) -> None:
        """End a part of the collection: rank 0 hears from every rank, also from one that had nothing to send.

        A rank that died is thus noticed here, and not when the others wait for rank 0 again.
        """
        word = torch.zeros(1, dtype=torch.int64)
        if self.rank != 0:
            self.send(word, what)
        else:
            for source in range(1, self.world):
                self.receive(word, source, what)

    def broadcast(self, text: str | None, what: str) -> str:
        """Rank 0's text, on every rank; the others give None."""
        content = _bytes_of(text or "")
        size = torch.tensor([content.numel()], dtype=torch.int64)
        if self.rank == 0:
            self._to_all(size, what)
            self._to_all(content, what)
            return text or ""
        self.receive(size, 0, what)
        content = torch.empty(int(size), dtype=torch.uint8)
        if content.numel():
            self.receive(content, 0, what)
        return bytes(content.numpy()).decode()

    def _to_all(self, tensor: Tensor, what: str) -> None:
        """Send from rank 0 to every other, one after the other; nothing of an empty tensor."""
        for target in range(1, self.world if tensor.numel() else 0):
            self.send(tensor, what, target)

    def _finish(self, start: Callable[[], dist.Work | None], what: str, peer: int | None) -> None:
        """Start a transfer and wait for it, at most `timeout_s`."""
        try:
            work = start()
            if work is not None:
                work.wait(timedelta(seconds=self.timeout_s))
        except RuntimeError as error:
            raise CollectError(f"{self.where}: {self._explain(str(error), what, peer)}") from error

    def _explain(self, error: str, what: str, peer: int | None) -> str:
        """Which rank is to blame for gloo's `error`; the first explanation is everybody's.

        `peer` is the other end; None when it was a collective, right after all had answered.
        """
        late = "timed out" in error.lower()
        why = f"nothing came for {self.timeout_s:g} s" if late else "its connection closed: the process ended"
        try:
            absent = self._absent()
            if self.rank != 0 and 0 not in absent:
                # Rank 0 speaks before it leaves; while it waits for another rank, it does so within its own
                # timeout, which began at the latest when this one ended.
                told = self._told(self.timeout_s if late else min(_GRACE_S, self.timeout_s))
                if told:
                    return told
            if peer in absent:
                gone = absent if late else [peer]
                return self._tell(f"{name_ranks(gone)} did not reach the collection ({why})")
            if peer is None:
                return self._tell(f"a rank was lost in the {what}, after all had answered ({why})")
            fault = f"did not answer about {what}" if peer == 0 else f"did not deliver its {what}"
            return self._tell(f"rank {peer} {fault} ({why})")
        except RuntimeError as lost:  # the store went down with the rank or agent that held it
            return f"{what} failed at rank {self.rank} and the ranks' store is gone ({error}; {lost})"

    def _absent(self) -> list[int]:
        """Ranks that have left no mark."""
        return [r for r in range(self.world) if not self._store.check([f"{self._prefix}arrived/{r}"])]

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
