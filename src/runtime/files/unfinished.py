"""What is being written, under a name of its own until it is whole.

Its writer holds a lock on it for as long as it lives. What a killed writer left behind is removed by the next
one in that folder, and what may have a writer never is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import platform
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Self, TypeVar

_LEFTOVER = re.compile(r"\..+\.[0-9]+\.(?P<machine>[0-9a-f]{8})?[0-9a-f]{8}\.part", re.DOTALL)
"""Names of what is written; older programs wrote no machine into them."""
_IDLE_S = 86_400.0
_CLAIMS = 10
_here: set[Path] = set()
"""What this process is writing."""


class Descriptor:
    """A descriptor that is closed with its context."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        """The descriptor."""
        return self._number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._number)


_Opened = TypeVar("_Opened", BinaryIO, Descriptor)


def temporary_name(path: Path) -> str:
    """Name of what is written for `path`: by which process, in which life of which machine."""
    return f".{path.name}.{os.getpid()}.{machine()}{secrets.token_hex(4)}.part"


@functools.cache
def machine() -> str:
    """8 hex digits of this machine since it was started: processes with the same ones share its locks."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        text = platform.node().encode()
    return f"{zlib.crc32(text):08x}"


@contextlib.contextmanager
def unfinished(path: Path, make: Callable[[Path], _Opened]) -> Iterator[tuple[Path, _Opened]]:
    """A place beside `path` for what is to become it; whatever is still there in the end is removed.

    Args:
        path: its folder is made, and cleared of what killed writers left in it.
        make: makes what is written, a file or folder, at a temporary place, and opens it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path))
    _here.add(temporary)
    try:
        with _claimed(temporary, make) as opened:
            _remove_leftovers(temporary)
            yield temporary, opened
    finally:
        _discard(temporary)
        _here.discard(temporary)


def remove_unfinished() -> None:
    """Remove what this process is writing: for a thread that is about to end it."""
    for path in tuple(_here):
        with contextlib.suppress(OSError):
            _discard(path)


@contextlib.contextmanager
def _claimed(temporary: Path, make: Callable[[Path], _Opened]) -> Iterator[_Opened]:
    """Make and open what is written, and hold its lock: who finds it locked knows that its writer lives."""
    for _ in range(_CLAIMS):
        with make(temporary) as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # taken for a leftover before it was locked
                time.sleep(0.01)
                _discard(temporary)
                continue
            except OSError:
                pass  # there are no locks here
            if temporary.exists():
                yield opened
                return
    raise OSError(errno.EAGAIN, "somebody removes what is written", os.fspath(temporary))


def _remove_leftovers(own: Path) -> None:
    """Remove what killed writers left beside `own`.

    A lock that can be had proves on the writer's own machine that it is dead. On another one locks may not be
    shared, or not exist: there it also takes a day without a change, by the clock of the file system.
    """
    with contextlib.suppress(OSError), os.scandir(own.parent) as entries:
        old = own.stat().st_mtime - _IDLE_S
        for entry in entries:
            found = _LEFTOVER.fullmatch(entry.name)
            if found is None or entry.name == own.name:
                continue
            local = found["machine"] == machine()
            with contextlib.suppress(OSError):
                if local or entry.stat(follow_symlinks=False).st_mtime <= old:
                    _remove_unclaimed(entry, without_locks=not local)


def _remove_unclaimed(entry: os.DirEntry[str], *, without_locks: bool) -> None:
    """Remove a temporary file or folder whose lock nobody holds.

    Args:
        entry: it.
        without_locks: remove it where there are no locks either.
    """
    # O_NOFOLLOW: a link is nothing that a writer of ours left, and leads to what is not ours.
    mode = os.O_RDONLY | os.O_DIRECTORY if entry.is_dir() else os.O_RDWR | os.O_NONBLOCK
    with Descriptor(os.open(entry.path, mode | os.O_NOFOLLOW | os.O_CLOEXEC)) as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            if not without_locks:
                return
        _discard(Path(entry.path))  # while its lock is held


def _discard(path: Path) -> None:
    """Remove a temporary file or folder."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
