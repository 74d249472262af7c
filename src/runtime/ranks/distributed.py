"""Ranks: who am I, on which device, and how do ranks talk.

One *main group* (NCCL on GPUs, gloo on the CPU) carries gradients. Two gloo groups carry what lives on the
CPU: the *side group* the validation's rows, and the group of the *meetings* small statuses. Before each of
these, ranks meet (`src.runtime.ranks.meeting`), so that no collective ever waits for a rank that is at work
elsewhere: whatever one rank does alone must be followed by a `barrier`, or by a helper that holds one, before
the next collective of the main or side group. With one process there is no group at all and every helper here
is the identity.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from src.errors import ConfigError, PeerError, UTNetError
from src.runtime.outlet import Guard
from src.runtime.ranks.launch import end_with_parent, place_from_environment, reach_ranks
from src.runtime.ranks.meeting import Meetings, lost_peer
from src.runtime.signals import end_helpers

T = TypeVar("T")


@dataclass(frozen=True)
class DistContext:
    """This process among the ranks of the run."""

    rank: int
    """0 .. world - 1 over all machines."""
    world: int
    """Number of ranks."""
    local_rank: int
    """Rank on this machine (of this torchrun agent)."""
    device: torch.device
    """Where this rank computes."""
    side_group: dist.ProcessGroup | None
    """Gloo group of all ranks for the collection of a validation; None with one rank."""
    meetings: Meetings | None = None
    """Where ranks wait for one another, with a gloo group for small values; None with one rank."""

    @property
    def is_main(self) -> bool:
        """Rank 0: the one that writes and prints."""
        return self.rank == 0

    @property
    def devices_label(self) -> str:
        """`GPUs` or `CPU ranks`, as the validation line says it."""
        return "GPUs" if self.device.type == "cuda" else "CPU ranks"

    def barrier(self, what: str = "the next step") -> None:
        """Wait until every rank has come here, however long one of them works.

        Args:
            what: the work that ranks come from, for messages.

        Raises:
            LostRankError: a rank ended, or gave no sign of life for the time limit; also from every method
                below.
        """
        if self.meetings is not None:
            self.meetings.meet(what)

    def finish(self) -> None:
        """The last thing that ranks do together: whoever is done waits for those that still work."""
        if self.meetings is not None:
            self.meetings.finish()

    @contextlib.contextmanager
    def naming_the_lost(self) -> Iterator[None]:
        """Inside, a collective that fails because of another rank raises LostRankError, which names it."""
        try:
            yield
        except RuntimeError as error:
            if self.meetings is None or not lost_peer(error):
                raise
            raise self.meetings.lost("a collective failed", error) from error

    def gather_objects(self, value: Any, what: str = "the next step") -> list[Any]:
        """Small Python values of all ranks in rank order, on every rank (not for arrays of results)."""
        if self.meetings is None:
            return [value]
        self.meetings.meet(what)
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.meetings.group)
        return values

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's small Python value, on every rank."""
        return self.gather_objects(value if self.is_main else None)[0]

    def agree(self, error: UTNetError | None, what: str) -> None:
        """Raise on every rank if any rank has an error: its own on the first such rank, PeerError elsewhere.

        Args:
            error: this rank's error, or None.
            what: the step that the ranks just did, for the message.
        """
        texts = self.gather_objects(None if error is None else str(error), what)
        failed = [rank for rank, text in enumerate(texts) if text is not None]
        if not failed:
            return
        if error is not None and self.rank == failed[0]:
            raise error
        raise PeerError(f"{what}: rank {failed[0]} failed: {texts[failed[0]]}")

    def together(self, what: str, work: Callable[[], T], *, main_first: bool = False) -> T:
        """Do `work` on every rank; a UTNetError of one rank stops all of them.

        Args:
            what: the step, for the message.
            work: what each rank does; no collective inside.
            main_first: rank 0 does it alone before the others (it builds what they then read).

        Returns:
            what `work` returned on this rank.
        """
        turns = [self.is_main, not self.is_main] if main_first and self.world > 1 else [True]
        box: list[T] = []
        for mine in turns:
            error: UTNetError | None = None
            if mine:
                try:
                    box.append(work())
                except UTNetError as caught:
                    error = caught
            self.agree(error, what)
        return box[0]


def setup_distributed(device: str = "auto", timeout_s: float = 1800.0) -> DistContext:
    """Join the run that torchrun describes, or be a run of one process.

    Args:
        device: auto | cpu | cuda. auto takes GPUs if this machine has one for each of its ranks.
        timeout_s: longest wait of a collective, and longest silence of a rank that others wait for, seconds.

    Raises:
        ConfigError: the environment is not torchrun's, or cuda was asked for and there are fewer GPUs than
            ranks on this machine.
    """
    place = place_from_environment()
    end_with_parent()
    chosen = _choose_device(device, place.local_rank, place.local_world)
    if place.world == 1:
        return DistContext(0, 1, 0, chosen, None)
    store, limit = reach_ranks(place, timeout_s), timedelta(seconds=timeout_s)
    ranks = {"store": store, "rank": place.rank, "world_size": place.world, "timeout": limit}
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        dist.init_process_group("nccl", **ranks, device_id=chosen)
    else:
        dist.init_process_group("gloo", **ranks)
    side, meetings = _gloo_group(timeout_s), Meetings(_gloo_group(timeout_s), timeout_s)
    return DistContext(place.rank, place.world, place.local_rank, chosen, side, meetings)


def teardown() -> None:
    """Leave the groups; harmless without any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def abandon(status: int) -> None:
    """After a failure, end a process that has groups: one with a lost rank can block its own destructor."""
    if dist.is_available() and dist.is_initialized():
        end_helpers()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _gloo_group(timeout_s: float) -> dist.ProcessGroup:
    """A gloo group of all ranks with a timeout of its own, seconds."""
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    assert isinstance(group, dist.ProcessGroup)  # only ranks left out of a group get a number instead
    return group


def _choose_device(device: str, local_rank: int, local_world: int) -> torch.device:
    """The device of this rank."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and available < local_world:
        raise ConfigError(
            f"runtime.device=cuda: {local_world} ranks on this machine need a GPU each, found {available}. "
            "Start fewer ranks (--nproc_per_node), or set runtime.device=cpu"
        )
    if device == "cpu" or available < local_world:
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


@dataclass(frozen=True)
class RankOutcome:
    """How one rank of `spawn_ranks` ended."""

    rank: int
    value: Any
    """What the function returned; None if it did not return."""
    error: str | None = None
    """Traceback, or how the process ended; None on success."""
    brief: str | None = None
    """What was raised, without the traceback, or how the process ended."""


def spawn_ranks(
    function: Callable[..., Any],
    world: int,
    args: Sequence[Any] = (),
    timeout_s: float = 60.0,
    *,
    check: bool = True,
    grace_s: float | None = None,
) -> list[Any]:
    """Run `function(context, *args)` in `world` gloo ranks of this machine and return what they return.

    No rank starts with `function` before the groups of all of them stand, and none that returned leaves
    before all have returned or failed: a rank that is done early takes no connection away from the others. A
    rank that raised leaves at once, so that those that wait for it notice.

    Args:
        function: defined at the top level of a module (ranks are forked from a clean server process).
        world: number of ranks.
        args: further arguments, picklable.
        timeout_s: wall time after which all ranks are ended.
        check: raise if a rank fails; False returns `RankOutcome`s instead of values.
        grace_s: wall time that the other ranks still have once one has failed; None: until `timeout_s`.

    Returns:
        values in rank order, or `RankOutcome`s.

    Raises:
        UTNetError: with `check`, a rank raised, died or ran out of time; names each with its traceback.
    """
    context = multiprocessing.get_context("forkserver")
    # The server imports once what every rank needs; forking from it costs a tenth of a fresh interpreter.
    # (The list counts when the server starts, with the first call of a process.)
    context.set_forkserver_preload(["torch", "torch.distributed", "numpy", function.__module__])
    deadline = time.monotonic() + timeout_s
    with tempfile.TemporaryDirectory(prefix="utnet-ranks-") as folder:
        store = str(Path(folder) / "store")
        started: list[tuple[ForkServerProcess, Connection]] = []
        for rank in range(world):
            reader, writer = context.Pipe()
            process = context.Process(
                target=_rank_main,
                args=(function, rank, world, store, timeout_s, writer, tuple(args)),
                daemon=False,
            )
            process.start()
            writer.close()
            started.append((process, reader))
        messages = _await_messages([reader for _, reader in started], deadline, grace_s)
        outcomes = [
            _end_rank(rank, *pair, messages.get(rank), late=rank not in messages)
            for rank, pair in enumerate(started)
        ]
    failed = [o for o in outcomes if o.error is not None]
    if check and failed:
        raise UTNetError(*(f"rank {o.rank} of {world} failed: {o.error}" for o in failed))
    return [o.value for o in outcomes] if check else outcomes


def _await_messages(
    readers: Sequence[Connection], deadline: float, grace_s: float | None
) -> dict[int, RankOutcome | None]:
    """What each rank reported by the deadline; None from one that ended without a word."""
    messages: dict[int, RankOutcome | None] = {}
    while len(messages) < len(readers):
        waiting = {reader: rank for rank, reader in enumerate(readers) if rank not in messages}
        ready = multiprocessing.connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))
        for reader, rank in waiting.items():
            if reader not in ready:
                continue
            try:
                messages[rank] = reader.recv()
            except (EOFError, ConnectionResetError):
                messages[rank] = None
            message = messages[rank]
            if message is None or message.error is not None:
                reader.close()  # whoever raised may leave
                if grace_s is not None:
                    deadline = min(deadline, time.monotonic() + grace_s)
        if not ready:
            break
    return messages


def _end_rank(
    rank: int, process: ForkServerProcess, reader: Connection, message: RankOutcome | None, *, late: bool
) -> RankOutcome:
    """Let a rank go that has reported or died, end one that is `late`, and say how it ended."""
    # Tensors came by reference to the rank's memory: only now may it leave.
    reader.close()
    if not late:
        process.join(10.0)
    if process.is_alive():
        process.kill()
        process.join(10.0)
    if message is not None:
        return message
    status = process.exitcode or 0
    ended = f"ended with exit code {status} and no result"
    if status < 0:
        ended = f"was ended by {signal.Signals(-status).name} before it had a result"
    if late:
        ended = "did not end in time and was stopped"
    return RankOutcome(rank, None, ended, ended)


def _rank_main(
    function: Callable[..., Any],
    rank: int,
    world: int,
    store: str,
    timeout_s: float,
    writer: Connection,
    args: tuple[Any, ...],
) -> None:
    """Body of a spawned rank."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    value = None
    with Guard() as guard:
        limit = timedelta(seconds=timeout_s)
        meeting = dist.FileStore(store, world)  # type: ignore[attr-defined]  # exported, but not typed
        dist.init_process_group("gloo", store=meeting, rank=rank, world_size=world, timeout=limit)
        side = _gloo_group(timeout_s) if world > 1 else None
        meetings = None if side is None else Meetings(side, timeout_s)
        # Through the file, not the network: a rank may die as soon as all the others have their connections.
        meeting.set(f"utnet-ready/{rank}", "1")
        meeting.wait([f"utnet-ready/{other}" for other in range(world)], limit)
        value = function(DistContext(rank, world, rank, torch.device("cpu"), side, meetings), *args)
    report, error = RankOutcome(rank, value), guard.error
    if error is not None:
        brief = str(error) if isinstance(error, UTNetError) else f"{type(error).__name__}: {error}"
        report = RankOutcome(rank, None, "".join(traceback.format_exception(error)), brief)
    writer.send(report)
    writer.poll(timeout_s)  # until the caller closes its end
    writer.close()
    if error is None:
        if meetings is not None:
            meetings.stop()
        teardown()
    else:
        # A broken group can block its own destructor; the result is sent, so leave at once.
        os._exit(1)
