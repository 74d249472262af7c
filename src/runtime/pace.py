"""How fast a loop goes, and how much of its time it waits for data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """Of the rounds since the last reading."""

    rounds_per_s: float
    """Rounds of the loop in a second."""
    data_wait_share: float
    """Share of the time in which the loop waited for its next data, 0 to 1."""


class PaceMeter:
    """Times the rounds of a loop; call `waiting` around the wait for data of each round."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = clock()
        self._rounds, self._waited = 0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A round begins and waits for its data within this context."""
        began = self._clock()
        yield
        self._waited += self._clock() - began
        self._rounds += 1

    def read(self) -> Pace:
        """The pace since the last reading; 0 rounds give a pace of 0."""
        now = self._clock()
        seconds = max(now - self._began, 1e-9)
        pace = Pace(self._rounds / seconds, self._waited / seconds)
        self._began, self._rounds, self._waited = now, 0, 0.0
        return pace
