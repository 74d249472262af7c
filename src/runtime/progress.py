"""One progress bar for long loops."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(iterable: Iterable[T], *, total: int | None, desc: str, enabled: bool = True) -> Iterator[T]:
    """Iterate with a bar on stderr; in a file or a pipe it prints a line every 30 s instead of redrawing.

    Args:
        iterable: what is iterated.
        total: number of items, None if it is not known.
        desc: what is being done.
        enabled: False (ranks other than 0) shows nothing.
    """
    interactive = sys.stderr.isatty()
    yield from tqdm(
        iterable,
        total=total,
        desc=desc,
        disable=not enabled,
        mininterval=0.2 if interactive else 30.0,
        maxinterval=10.0 if interactive else 60.0,
        dynamic_ncols=interactive,
        leave=interactive,
    )
