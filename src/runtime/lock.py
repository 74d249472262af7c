"""One process at a time, over all processes of a machine that share a folder."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from src.errors import DataError

WAIT_S = 1800.0
"""Longest wait for another process, seconds."""


@contextlib.contextmanager
def file_lock(
    path: Path, what: str, *, wait_s: float = WAIT_S, mend: str = "Set dataset.index_dir to a folder"
) -> Iterator[None]:
    """Hold an exclusive lock that dies with its process; wait for another holder, but not for ever.

    Args:
        path: the lock file; its folder is made.
        what: what is built under the lock, for messages.
        wait_s: longest wait, seconds.
        mend: how to name a folder that can be written.

    Raises:
        DataError: no place to write, or the other process did not end in time.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise DataError(
            f"{what}: cannot write to {path.parent} ({error.strerror}). {mend} that can be written."
        ) from error
    with file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DataError(
                        f"{what}: waited {wait_s:.0f} s for another process to build it ({path}). "
                        "Build it with one process first, or delete the lock file."
                    ) from None
                time.sleep(0.05)
        yield
