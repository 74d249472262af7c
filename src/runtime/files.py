"""Writing so that a file or folder is either whole or not there, reading only what is whole, and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from src.errors import DataError

ZIP_FAILURES = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What a damaged zip file can raise (RuntimeError: unknown compression, or encrypted by a flipped bit)."""
_BLOCK_BYTES = 1 << 22


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

    Args:
        path: final path; its folder is made.

    Yields:
        a binary file open for writing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    temporary.mkdir()
    try:
        yield temporary
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
            if (torn := archive.testzip()) is not None:
                raise ValueError(f"{torn} is damaged")
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files if wanted(name)}
    except FileNotFoundError:
        raise
    except ZIP_FAILURES as error:
        raise DataError(f"{path} is torn, or no .npz of arrays: {error}") from error


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
