"""How far a long loop is, how fast it goes, and how much of its time it waits for data."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

LINE_EVERY_S = 30.0
"""Seconds between lines where there is no terminal to redraw."""


def progress(iterable: Iterable[T], *, total: int | None, desc: str, enabled: bool = True) -> Iterator[T]:
    """Iterate with a bar on stderr; in a file or pipe, with a whole line every half minute instead.

    A bar redraws its line, and whatever else is printed meanwhile would be glued to it: `src.runtime.log`
    prints around the bar on a terminal, and elsewhere there is no bar, so that every line of a log stays
    greppable.

    Args:
        iterable: what is iterated.
        total: number of items, None if it is not known.
        desc: what is being done.
        enabled: False (ranks other than 0) shows nothing.
    """
    if not enabled:
        yield from iterable
    elif sys.stderr.isatty():
        yield from tqdm(iterable, total=total, desc=desc, dynamic_ncols=True, leave=False)
    else:
        yield from _lines(iterable, total, desc)


def _lines(iterable: Iterable[T], total: int | None, desc: str) -> Iterator[T]:
    """Iterate with a line now and then."""
    began = shown = time.monotonic()
    for done, item in enumerate(iterable):
        now = time.monotonic()
        if now - shown >= LINE_EVERY_S:
            shown = now
            rate = done / (now - began)
            left = f", about {(total - done) / rate:.0f} s left" if total and rate > 0 else ""
            sys.stderr.write(f"{desc}: {done} of {total or '?'}, {rate:.2f}/s{left}\n")
        yield item


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
