"""Where ranks wait for one another: as long as the late one works, but not for one that is gone.

A collective has a time limit and cannot tell a rank that is busy from one that is dead; and rank 0 alone
builds, scores, draws and writes. So ranks meet before a collective that somebody may be late for: in a
barrier of gloo without a limit, out of which each looks for the others.

- A process that ended is noticed at once: its connections close.
- One that is stopped, or whose machine is gone, gives no more beats: a thread of each rank leaves one in the
  group's store every `BEAT_S`.
- One that is stuck beats on, but its main thread does not run. (One that loops for ever, or spins for a GPU
  that never answers, cannot be told from one at work: the line of every minute names it.)

The store is asked by the thread alone: it may be held by the very process that is stopped.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from src.errors import LostRankError
from src.runtime.log import get_logger
from src.runtime.ranks.link import name_ranks

BEAT_S = 0.25
"""Seconds between two beats of a rank."""

LEAST_SILENCE_S = 5.0
"""A rank that gave no beat for less is never taken for stopped, however short the limit: machines falter."""

LEAST_STUCK_S = 600.0
"""A main thread that did not run for less is never taken for stuck: it may wait for a disk or a process."""

LINE_EVERY_S = 60.0
"""Seconds between two lines that say who is waited for."""

_LOOK_S = 0.25
_PROOF_S = 4 * BEAT_S
_NO_LIMIT = timedelta(days=365)

_log = get_logger("ranks")


@dataclass(frozen=True)
class Beat:
    """A sign of life of one rank."""

    count: int
    """Number of the beat."""
    met: int
    """Meetings that the rank has come to."""
    ran_ns: int
    """Processor time of its main thread, nanoseconds."""


def lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank is gone or silent."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError):
        return True
    text = str(error)
    if "pair closure" in text:  # gloo, in a backward pass
        return True
    return "gloo" in text and any(
        word in text for word in ("closed", "reset", "Broken pipe", "imed out", "refused")
    )


class Pulse:
    """The thread that gives this rank's beats and, while this rank waits, reads those of all."""

    def __init__(
        self,
        store: dist.Store,  # type: ignore[name-defined]  # exported, but not typed
        rank: int,
        world: int,
    ) -> None:
        """Give the first beat.

        Args:
            store: of all ranks; used by this thread alone from now on.
            rank: this one.
            world: number of ranks.
        """
        self.met = 0
        self.reading = False
        self.seen: tuple[Beat, ...] | None = None
        """What all ranks' beats were when they were last read."""
        self._store = store
        self._keys = [f"utnet-beat/{other}" for other in range(world)]
        self._own = self._keys[rank]
        self._count = 0
        ident = threading.main_thread().ident
        assert ident is not None
        self._clock = time.pthread_getcpuclockid(ident)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beats", daemon=True)
        self._give()
        self._thread.start()
        # A thread that is inside the store when the interpreter ends takes the exit status with it.
        atexit.register(self.stop)

    @property
    def alive(self) -> bool:
        """Whether the store still answers, as far as is known."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Give no more beats."""
        self._ended.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store went down with the process that held it
            while not self._ended.wait(BEAT_S):
                self._give()
                if self.reading:
                    texts = self._store.multi_get(self._keys)
                    self.seen = tuple(Beat(*map(int, text.split())) for text in texts)

    def _give(self) -> None:
        self._count += 1
        self._store.set(self._own, f"{self._count} {self.met} {time.clock_gettime_ns(self._clock)}")


class Meetings:
    """Meetings of all ranks of a gloo group."""

    def __init__(self, group: dist.ProcessGroup, limit_s: float) -> None:
        """Give beats from now on; all ranks call it.

        Args:
            group: gloo group of all ranks.
            limit_s: longest silence of a living rank, seconds; at least `LEAST_SILENCE_S` are granted.
        """
        self.group = group
        self.limit_s = limit_s
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        # A connection of its own: others of this process may wait inside theirs.
        self._pulse = Pulse(group.get_group_store().clone(), self.rank, self.world)
        dist.barrier(group=group)  # from here on the beats of all ranks can be read

    def meet(self, what: str) -> None:
        """Wait until every rank has come here, however long one of them works.

        Args:
            what: the work that ranks come from, for messages.

        Raises:
            LostRankError: a rank ended, is stopped or is stuck; names it.
        """
        pulse = self._pulse
        pulse.met += 1
        options = dist.BarrierOptions()
        options.timeout = _NO_LIMIT
        options.device = torch.device("cpu")
        try:
            work = self.group.barrier(options)
            self._await(work, what)
            work.wait()
        except RuntimeError as error:
            raise self.lost(what, error) from error
        finally:
            pulse.reading = False

    def finish(self) -> None:
        """Meet for the last time: no rank leaves while another still works, or still needs its store."""
        self.meet("finishing the run")
        self.stop()
        dist.barrier(group=self.group)

    def stop(self) -> None:
        """Give no more beats."""
        self._pulse.stop()

    def _await(self, work: dist.Work, what: str) -> None:
        """Until the barrier has ended, one way or the other; raises if somebody is stopped or stuck."""
        watch = None
        while not work.is_completed():
            with contextlib.suppress(RuntimeError):  # not yet; or it failed, which the caller finds
                work.wait(timedelta(seconds=_LOOK_S))
            if work.is_completed():
                return
            if watch is None:
                watch = Watch(self.rank, self.world, what, self.limit_s)
                self._pulse.reading = True
            watch.look(self._pulse.seen, self._pulse.met)

    def lost(self, what: str, error: RuntimeError) -> LostRankError:
        """Who is behind a collective that failed with `error`, which names no rank: whose beats stopped."""
        self._pulse.reading = True
        time.sleep(2 * BEAT_S)
        before = self._pulse.seen
        time.sleep(_PROOF_S)
        now = self._pulse.seen
        gone: list[int] = []
        if not self._pulse.alive:  # held by rank 0, or by what started it
            gone = [0] if self.rank else []
        elif before is not None and now is not None:
            gone = [r for r in range(self.world) if r != self.rank and before[r].count == now[r].count]
            # Whoever came here and is gone as well has most likely found out earlier.
            gone = [r for r in gone if now[r].met < self._pulse.met] or gone
        if not gone:
            return LostRankError(f"{what}: another rank was lost ({str(error).splitlines()[0]})")
        if "imed out" in str(error):
            return LostRankError(f"{what}: {name_ranks(gone)}: no answer and no sign of life")
        own_line = "Its own line says why, if it had time"
        return LostRankError(f"{what}: {name_ranks(gone)} ended (connection closed by peer). {own_line}")


class Watch:
    """What one wait has seen of the other ranks.

    Time is counted in looks: a machine that stood still for a minute is not a minute of silence.
    """

    def __init__(self, rank: int, world: int, what: str, limit_s: float) -> None:
        """Begin a wait: this rank of `world`, what for, and the longest silence in seconds."""
        self.rank = rank
        self.what = what
        self.silence_s = max(limit_s, LEAST_SILENCE_S)
        self.stuck_s = max(limit_s, LEAST_STUCK_S)
        self._silent = [0.0] * world
        self._still = [0.0] * world
        self._last: tuple[Beat, ...] | None = None
        self._began = time.monotonic()
        self._lines = 0

    def look(self, seen: tuple[Beat, ...] | None, met: int) -> None:
        """Compare the beats with those of the last look, `_LOOK_S` ago; `met`: meetings of this rank.

        Raises:
            LostRankError: a rank was silent or still for too long.
        """
        for rank in range(len(self._silent)):
            beat, before = (beats[rank] if beats else None for beats in (seen, self._last))
            beats_on = beat is not None and (before is None or beat.count != before.count)
            runs_on = beat is not None and (before is None or beat.ran_ns != before.ran_ns)
            self._silent[rank] = 0.0 if beats_on else self._silent[rank] + _LOOK_S
            self._still[rank] = 0.0 if runs_on else self._still[rank] + _LOOK_S
        self._last = seen
        self._judge()
        waited = time.monotonic() - self._began
        if seen is not None and waited >= (self._lines + 1) * LINE_EVERY_S:
            self._lines += 1
            late = [rank for rank, beat in enumerate(seen) if beat.met < met]
            if late and self.rank == min(set(range(len(seen))) - set(late)):  # one of those who wait says it
                _log.warning(f"Waiting for {name_ranks(late)}: {self.what}, {waited:.0f} s")

    def _judge(self) -> None:
        silent = [rank for rank, seconds in enumerate(self._silent) if seconds > self.silence_s]
        stuck = [rank for rank, seconds in enumerate(self._still) if seconds > self.stuck_s]
        if self.rank in silent:  # this process lives: it is the store that does not answer
            raise LostRankError(
                f"{self.what}: the ranks' store has not answered for {self.silence_s:g} s: rank 0, or what "
                "started it and holds the store, is stopped, or its machine is gone"
            )
        if silent:
            raise LostRankError(
                f"{self.what}: no sign of life of {name_ranks(silent)} for {self.silence_s:g} s: stopped, or "
                "the machine is gone"
            )
        if stuck:
            raise LostRankError(
                f"{self.what}: {name_ranks(stuck)} did not run for {self.stuck_s:g} s: the process lives, "
                "but waits for something that does not come (a file system, a lock)"
            )
