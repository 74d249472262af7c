"""What is being written, under a name of its own until it is whole.

Its writer holds a lock on it for as long as it lives. What a killed writer left behind is removed by a later
one in that folder, and what may have a writer never is.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import platform
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

_LEFTOVER = re.compile(r"\..+\.[0-9]+\.(?P<machine>[0-9a-f]{8})?[0-9a-f]{8}\.part", re.DOTALL)
"""Names of what is written; older programs wrote no machine into them."""
_IDLE_S = 30.0
"""How long a leftover has not changed; in less time every writer has its lock."""
_FOREIGN_IDLE_S = 86_400.0
"""The same of another machine, where locks may not be shared, or not exist."""
_here: set[Path] = set()
"""What this process is writing."""


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
def unfinished(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A place beside `path` for what is to become it; whatever is still there in the end is removed.

    Args:
        path: its folder is made, and cleared of what killed writers left in it.
        folder: whether an empty folder stands there in the beginning, or an empty file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path))
    _here.add(temporary)
    try:
        temporary.mkdir() if folder else temporary.touch(exist_ok=False)
        with _opened(temporary) as descriptor:
            with contextlib.suppress(OSError):  # there are no locks here
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_leftovers(temporary)
            yield temporary
    finally:
        _discard(temporary)
        _here.discard(temporary)


def remove_unfinished() -> None:
    """Remove what this process is writing: for a thread that is about to end it."""
    for path in tuple(_here):
        with contextlib.suppress(OSError):
            _discard(path)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Descriptor of a temporary file or folder; a link is nothing of ours, and leads to what is not ours."""
    mode = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDWR | os.O_NONBLOCK
    descriptor = os.open(path, mode | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_leftovers(own: Path) -> None:
    """Remove what killed writers left beside `own`, by the clock of the file system.

    A lock that can be had proves on the writer's own machine that it is dead.
    """
    with contextlib.suppress(OSError), os.scandir(own.parent) as entries:
        now = own.stat().st_mtime
        for entry in entries:
            found = _LEFTOVER.fullmatch(entry.name)
            if found is None or entry.name == own.name:
                continue
            local = found["machine"] == machine()
            idle = _IDLE_S if local else _FOREIGN_IDLE_S
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime <= now - idle:
                    _remove_unclaimed(Path(entry.path), without_locks=not local)


def _remove_unclaimed(path: Path, *, without_locks: bool) -> None:
    """Remove a temporary file or folder whose lock nobody holds; if asked, also where there are no locks."""
    with _opened(path) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError) or not without_locks:
                return
        _discard(path)  # while its lock is held


def _discard(path: Path) -> None:
    """Remove a temporary file or folder."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
