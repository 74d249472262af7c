"""One progress bar for long loops."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
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
