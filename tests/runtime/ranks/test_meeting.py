"""Meetings of ranks: a late rank is waited for, a lost one is named."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from src.errors import LostRankError
from src.runtime.ranks import distributed, meeting
from src.runtime.ranks.distributed import DistContext, spawn_ranks
from src.runtime.ranks.meeting import Beat, Meetings, Watch
from tests.log_lines import log_lines

LIMIT_S = 1.0
WORK_S = 1.4
"""Longer than a collective may wait."""


def works_alone(context: DistContext, folder: str) -> list[Any]:
    """Rank 0, then rank 1, is longer at work than the groups' limit before each helper; what they give."""
    group = distributed._gloo_group(LIMIT_S)
    context = dataclasses.replace(context, meetings=Meetings(group, LIMIT_S))

    def work(rank: int = 0) -> str:
        time.sleep(WORK_S if context.rank == rank else 0.0)
        return f"of {context.rank}"

    seen: list[Any] = [context.together("building", work, main_first=True)]
    work(1)
    seen.append(context.broadcast_object(f"from {context.rank}"))
    if context.rank == 0:
        work()
        (Path(folder) / "done").touch()
    context.finish()
    seen.append((Path(folder) / "done").exists())
    return seen


def test_a_rank_may_work_longer_than_any_collective_waits(tmp_path: Path) -> None:
    """An hour of index building must not end a run whose limit is half of it; the last one is waited for."""
    assert spawn_ranks(works_alone, 2, (str(tmp_path),), timeout_s=60.0) == [
        ["of 0", "from 0", True],
        ["of 1", "from 0", True],
    ]


def is_killed(context: DistContext) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_stopped(context: DistContext) -> None:
    """Stop as a debugger or a full machine does, right after a beat: nothing of the store is held."""
    assert context.meetings is not None
    pulse = context.meetings._pulse
    give = pulse._give

    def last() -> None:
        give()
        os.kill(os.getpid(), signal.SIGSTOP)

    pulse._give = last  # type: ignore[method-assign]
    time.sleep(60.0)


def lost_while_awaited(
    context: DistContext, bad: int, fate: Callable[[DistContext], None], in_a_step: bool
) -> None:
    meeting.LEAST_SILENCE_S = 1.0
    assert context.meetings is not None
    context.meetings.limit_s = 0.1
    context.barrier()
    if context.rank == bad:
        fate(context)
    with context.naming_the_lost():
        if in_a_step:
            dist.all_reduce(torch.ones(1))
        context.barrier("building")


@pytest.mark.parametrize(
    ("fate", "bad", "in_a_step", "words"),
    [
        (is_killed, 0, False, "building: rank 0 ended (connection closed by peer)"),
        (is_killed, 2, True, "a collective failed: rank 2 ended (connection closed by peer)"),
        (is_stopped, 1, False, "building: no sign of life of rank 1 for 1 s"),
    ],
)
def test_a_lost_rank_is_named_by_all_others(
    fate: Callable[[DistContext], None], bad: int, in_a_step: bool, words: str
) -> None:
    """Who waits as long as it takes must not wait for the dead; and of 32 ranks, which machine was it?"""
    outcomes = spawn_ranks(
        lost_while_awaited, 3, (bad, fate, in_a_step), timeout_s=60.0, check=False, grace_s=5.0
    )
    for outcome in outcomes:
        if outcome.rank != bad:
            assert words in (outcome.brief or ""), outcome


def watch(monkeypatch: pytest.MonkeyPatch, limit_s: float, rank: int = 1) -> Watch:
    monkeypatch.setattr(meeting, "_LOOK_S", 1.0)
    return Watch(rank, 3, "scoring the baselines", limit_s)


def beats(count: int, ran: int | None = None, met: int = 4) -> tuple[Beat, ...]:
    """Of rank 0, and of ranks 1 and 2, which are in the meeting and alive."""
    alive = 1000 + time.monotonic_ns()
    return (Beat(count, met, count if ran is None else ran), Beat(alive, 5, alive), Beat(alive, 5, alive))


def looks_until_lost(watched: Watch, look: Callable[[int], tuple[Beat, ...] | None]) -> tuple[int, str]:
    """(looks of one second each, what was said)."""
    for second in range(1, 3000):
        try:
            watched.look(look(second), 5)
        except LostRankError as error:
            return second, str(error)
    return 0, "nothing"


NO_NEWS = (Beat(7, 4, 7),) * 3
STORE = "the ranks' store has not answered for 10 s: rank 0"
LOOKS: list[tuple[str, float, Callable[[int], tuple[Beat, ...] | None], int, str]] = [
    # the first look has nothing to compare with
    (
        "stopped",
        100.0,
        lambda s: beats(7),
        102,
        "baselines: no sign of life of rank 0 for 100 s: stopped, or",
    ),
    ("stopped, a short limit", 1.0, lambda s: beats(7), 7, "no sign of life of rank 0 for 5 s"),
    ("falters", 100.0, lambda s: beats(s // 100), 0, "nothing"),
    # a deadlock beside a living thread of beats
    ("stuck", 1800.0, lambda s: beats(s, ran=7), 1802, "rank 0 did not run for 1800 s"),
    ("stuck, a short limit", 1.0, lambda s: beats(s, ran=7), 602, "rank 0 did not run for 600 s"),
    ("reads slowly", 1.0, lambda s: beats(s, ran=s // 500), 0, "nothing"),
    # rank 0 is stopped and holds the store: nobody's beats arrive
    ("no store", 10.0, lambda s: NO_NEWS, 12, STORE),
    ("never a store", 10.0, lambda s: None, 11, STORE),
]


@pytest.mark.parametrize(
    ("what", "limit_s", "look", "seconds", "words"), LOOKS, ids=[row[0] for row in LOOKS]
)
def test_who_is_silent_or_still_is_judged_by_the_limit(
    what: str, limit_s: float, look: Any, seconds: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped rank holds up 31 others: not longer than runtime.timeout_s; a faltering one is forgiven."""
    found, text = looks_until_lost(watch(monkeypatch, limit_s), look)
    assert found == seconds
    assert words in text


class Heard:
    """A store that keeps what the beats said."""

    def __init__(self) -> None:
        self.beats: list[Beat] = []

    def set(self, key: str, text: str) -> None:
        self.beats.append(Beat(*map(int, text.split())))


def test_beats_tell_work_from_waiting() -> None:
    """Only the main thread counts: a helper thread that polls would hide a deadlock for ever."""
    heard = Heard()
    pulse = meeting.Pulse(heard, 0, 1)
    ended = threading.Event()
    helper = threading.Thread(target=lambda: [sum(range(1000)) for _ in iter(ended.is_set, True)])
    helper.start()
    time.sleep(6 * meeting.BEAT_S)
    waiting = heard.beats[-3:-1]  # the last one may have come after the sleep
    ended.set()
    helper.join()
    first = len(heard.beats)
    while len(heard.beats) < first + 2:
        sum(range(1000))
    working = heard.beats[-2:]
    pulse.stop()
    assert not pulse.alive
    assert waiting[1].count == waiting[0].count + 1
    assert waiting[1].ran_ns == waiting[0].ran_ns
    assert working[1].ran_ns > working[0].ran_ns


def test_one_rank_says_who_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at a log that stands still must read why; from one rank, and once a minute."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with log_lines("ranks") as lines:
        for rank in (1, 2):
            clock[0] = 0.0
            watched = watch(monkeypatch, 1800.0, rank)
            for second in range(150):
                clock[0] = float(second)
                watched.look(beats(second), 5)
    assert lines == [
        "Waiting for rank 0: scoring the baselines, 60 s",
        "Waiting for rank 0: scoring the baselines, 120 s",
    ]


def test_one_process_has_no_meetings() -> None:
    """python train.py needs no thread and no store."""
    alone = DistContext(0, 1, 0, torch.device("cpu"), None)
    before = [thread.name for thread in threading.enumerate()]
    alone.barrier()
    alone.finish()
    assert alone.together("building", lambda: 3, main_first=True) == 3
    assert [thread.name for thread in threading.enumerate()] == before
