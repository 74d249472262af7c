"""Writing so that a file or folder is either whole or not there, reading only what is whole, and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import math
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from src.errors import DataError

ZIP_FAILURES = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What a damaged zip file can raise (RuntimeError: unknown compression, or encrypted by a flipped bit)."""
_BLOCK_BYTES = 1 << 22
_PACKED = 16
"""Bytes of arrays per byte of an .npz: ours are not compressed, and numbers hardly can be."""
_LEFTOVER = re.compile(r"\..+\.[0-9]+\.(?P<machine>[0-9a-f]{8})?[0-9a-f]{8}\.part", re.DOTALL)
"""Names of what is written; older programs wrote no machine into them."""
_IDLE_S = 86_400.0
_CLAIMS = 10
_Opened = TypeVar("_Opened", BinaryIO, "_Descriptor")


def read_plain(path: Path, most: int) -> bytes:
    """Content of a plain file of at most `most` bytes.

    A pipe would be waited for, a device read for ever, a file of any length read into memory.

    Raises:
        OSError: it cannot be read, is no plain file, or is longer.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123  (a descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", os.fspath(path))
        if status.st_size > most:
            why = f"it has {status.st_size:,} bytes, at most {most:,} are read"
            raise OSError(errno.EFBIG, why, os.fspath(path))
        parts = []
        while part := file.read(most):
            parts.append(part)
            if (most := most - len(part)) <= 0:
                break
        return b"".join(parts)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success sync it and move it into place, else remove it.

    What writers that were killed left behind in that folder is removed first.

    Args:
        path: final path; its folder is made.

    Yields:
        a binary file open for writing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with _claimed(temporary, lambda: temporary.open("xb")) as file:
            _remove_leftovers(temporary)
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)  # while it is claimed: from here on it has no name that anybody removes
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Make a temporary folder beside `path`; on success rename it to `path`, else remove it.

    Args:
        path: final folder; it must not exist, or be empty.

    Yields:
        the temporary folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)

    def make() -> int:
        temporary.mkdir()
        return os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)

    try:
        with _claimed(temporary, lambda: _Descriptor(make())):
            _remove_leftovers(temporary)
            yield temporary
            temporary.replace(path)
        sync_folder(path.parent)
    finally:
        _discard(temporary)


class _Descriptor:
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


def _temporary(path: Path) -> Path:
    """Name of what is written for `path`: by which process, in which life of which machine."""
    return path.with_name(f".{path.name}.{os.getpid()}.{_machine()}{secrets.token_hex(4)}.part")


@functools.cache
def _machine() -> str:
    """8 hex digits of this machine since it was started: processes with the same ones share its locks."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        text = platform.node().encode()
    return f"{zlib.crc32(text):08x}"


@contextlib.contextmanager
def _claimed(temporary: Path, make: Callable[[], _Opened]) -> Iterator[_Opened]:
    """Make and open what is written, and hold its lock: who finds it locked knows that its writer lives."""
    for _ in range(_CLAIMS):
        with make() as opened:
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


def _discard(path: Path) -> None:
    """Remove a temporary file or folder."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_leftovers(own: Path) -> None:
    """Remove what killed writers left beside `own`, never what may have a writer.

    A lock that can be had proves on the writer's own machine that it is dead. On another one locks may not be
    shared, or not exist: there it also takes a day without a change, by the clock of the file system.
    """
    with contextlib.suppress(OSError), os.scandir(own.parent) as entries:
        old = own.stat().st_mtime - _IDLE_S
        for entry in entries:
            found = _LEFTOVER.fullmatch(entry.name)
            if found is None or entry.name == own.name or entry.is_symlink():
                continue
            here = found["machine"] == _machine()
            with contextlib.suppress(OSError):
                if here or entry.stat(follow_symlinks=False).st_mtime <= old:
                    _remove_unclaimed(entry, without_locks=not here)


def _remove_unclaimed(entry: os.DirEntry[str], *, without_locks: bool) -> None:
    """Remove a temporary file or folder whose lock nobody holds.

    Args:
        entry: it.
        without_locks: remove it where there are no locks either.
    """
    mode = os.O_RDONLY | os.O_DIRECTORY if entry.is_dir() else os.O_RDWR | os.O_NONBLOCK
    with _Descriptor(os.open(entry.path, mode | os.O_NOFOLLOW | os.O_CLOEXEC)) as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            if not without_locks:
                return
        _discard(Path(entry.path))  # while its lock is held


def set_aside(path: Path) -> Path:
    """Give what is at `path`, a damaged file for one, a name of its own beside it; returns that."""
    names = (path.with_name(f"{path.name}.damaged{k or ''}") for k in count())
    free = next(name for name in names if not os.path.lexists(name))
    path.rename(free)
    return free


def read_npz(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz by name, without pickles.

    Args:
        path: the file.
        wanted: which names are read; the others are only checked to be whole.

    Raises:
        FileNotFoundError: no such file.
        DataError: torn, damaged, or no .npz.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # before a damaged header asks for an array of any size
            sizes = {record.filename: record.file_size for record in archive.infolist()}
            if sum(sizes.values()) > _PACKED * path.stat().st_size:
                raise ValueError(f"{sum(sizes.values()):,} bytes by its own list")
            if (torn := archive.testzip()) is not None:
                raise ValueError(f"{torn} is damaged")
            for name, size in sizes.items():
                _require_array(archive, name, size)
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files if wanted(name)}
    except FileNotFoundError:
        raise
    except (*ZIP_FAILURES, TypeError, OverflowError, MemoryError, RecursionError) as error:
        raise DataError(f"{path} is torn, or no .npz of arrays: {error}") from error


def _require_array(archive: zipfile.ZipFile, name: str, size: int) -> None:
    """ValueError: a record's head claims another number of bytes than the record has."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        if dtype.hasobject or file.tell() + math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{name} says that it holds {dtype} in the shape {shape}")


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def crc32(file: BinaryIO, length: int | None = None, copy: BinaryIO | None = None) -> int:
    """CRC-32 of the next bytes of a file, read in parts.

    Args:
        file: open for reading.
        length: how many bytes; None: all that are left. A file that ends before gives the sum up to there.
        copy: the bytes are written to it too.
    """
    crc, block = 0, memoryview(bytearray(_BLOCK_BYTES))
    left = sys.maxsize if length is None else length
    while left > 0 and (count := file.readinto(block[: min(left, _BLOCK_BYTES)])):  # type: ignore[attr-defined]
        crc = zlib.crc32(block[:count], crc)
        left -= count
        if copy is not None:
            copy.write(block[:count])
    return crc


def open_lock(path: Path) -> int:
    """Descriptor of a lock file, made if need be; it follows no link and changes no content.

    Raises:
        OSError: it is a link, or cannot be made or opened.
    """
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY | flags)  # another user's: enough to lock it


def share_lock(file: BinaryIO) -> None:
    """Take a shared lock; where the file system has no locks, none is taken.

    Raises:
        BlockingIOError: another process holds it alone.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass
