"""Writing so that a file or folder is either whole or not there, reading only what is whole, and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import multiprocessing
import os
import stat
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from src.errors import DataError
from src.runtime.files.unfinished import temporary_name, unfinished
from src.runtime.log import get_logger
from src.runtime.ranks.launch import rank_from_environment

ZIP_FAILURES = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What a damaged zip file can raise (RuntimeError: unknown compression, or encrypted by a flipped bit)."""
_BLOCK_BYTES = 1 << 22
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)
_NO_SYNC = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EROFS)
"""What file systems say that have no such thing (network, FUSE), not what a failing disk says (EIO)."""
_PACKED = 16
"""Bytes of arrays per byte of an .npz: ours are not compressed, and numbers hardly can be."""
_log = get_logger("files")
_said: set[tuple[int, str]] = set()
"""What was said of which file system (its device), once in a run."""


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file for reading. A pipe would be waited for, and a device may never end.

    Raises:
        OSError: it cannot be opened, or is no plain file.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no plain file", os.fspath(path))
    return file


def read_plain(path: Path, most: int) -> bytes:
    """Content of a plain file of at most `most` bytes: of any length, it would fill the memory.

    Raises:
        OSError: as of `open_plain`, or it is longer.
    """
    with open_plain(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, at most {most:,} are read", os.fspath(path))
        return file.read(size)


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
    with unfinished(path) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()
        sync_file(file)
        temporary.replace(path)  # while it is claimed: from here on it has no name that anybody removes
        sync_folder(path.parent)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Make a temporary folder beside `path`; on success rename it to `path`, else remove it.

    Args:
        path: final folder; it must not exist, or be empty.

    Yields:
        the temporary folder.
    """
    path = Path(path)
    with unfinished(path, folder=True) as temporary:
        yield temporary
        temporary.replace(path)
        sync_folder(path.parent)


def require_place(path: Path, *, folder: bool = False, room_bytes: int = 0, room_files: int = 0) -> Path:
    """Look, before the work, whether what it makes can be written; nothing is left behind.

    Args:
        path: file that `atomic_write`, or folder that `atomic_directory`, is to make. A file may be there, a
            folder only if it is empty.
        folder: which of the two.
        room_bytes: what it takes on the disk; 0: little.
        room_files: how many files and folders.

    Returns:
        `path`; of a folder with its links followed, because a link is no place for one.

    Raises:
        DataError: something else is there, this user may not write there, or the disk has too little room.
    """
    path, remedy = Path(path), "Name another place"
    real = Path(os.path.realpath(path)) if folder else Path(os.path.realpath(path.parent), path.name)
    kind, other = ("folder", "file") if folder else ("file", "folder")
    if os.path.lexists(real) and real.is_dir() != folder:
        raise DataError(f"{path} is a {other}, want a {kind} to write. {remedy}")
    if folder and real.is_dir() and any(real.iterdir()):
        raise DataError(f"{path} is not empty. {remedy}, or remove what is there yourself")
    if folder and real == Path.cwd():
        raise DataError(f"{path} is the working folder, which is not replaced. Name a folder inside it")
    above = next(parent for parent in real.parents if os.path.lexists(parent))
    probe = above / temporary_name(real)
    try:
        if folder:
            probe.mkdir()
            if above == real.parent:  # the last thing that is done: into the place itself
                there = real.exists()
                probe.replace(real)
                if not there:
                    real.rmdir()
        else:
            probe.touch(exist_ok=False)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror} ({above}). {remedy}") from error
    finally:
        with contextlib.suppress(OSError):
            probe.rmdir() if folder else probe.unlink()
    disk = os.statvfs(above)
    need, free = room_bytes / 2**30, disk.f_bavail * disk.f_frsize / 2**30
    if need > free:
        raise DataError(f"{path} needs about {need:.2f} GiB, {above} has {free:.2f} GiB free. {remedy}")
    if disk.f_files and room_files > disk.f_favail:
        raise DataError(
            f"{path} needs about {room_files:,} files, {above} has room for {disk.f_favail:,}. {remedy}"
        )
    return real


def set_aside(path: Path) -> Path:
    """Give what is at `path`, a damaged file for one, a name of its own beside it; returns that."""
    names = (path.with_name(f"{path.name}.damaged{k or ''}") for k in count())
    free = next(name for name in names if not os.path.lexists(name))
    path.rename(free)
    return free


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz by name, without pickles.

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
            return dict(stored)
    except FileNotFoundError:
        raise
    except (*ZIP_FAILURES, TypeError, OverflowError, MemoryError, RecursionError) as error:
        raise DataError(f"{path} is torn, or no .npz of arrays: {error}") from error


def read_array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran's order, and type of what `np.save` wrote; ValueError: it did not."""
    forms = np.lib.format
    first = forms.read_magic(file) == (1, 0)
    return forms.read_array_header_1_0(file) if first else forms.read_array_header_2_0(file)


def _require_array(archive: zipfile.ZipFile, name: str, size: int) -> None:
    """ValueError: a record's head claims another number of bytes than the record has."""
    with archive.open(name) as file:
        shape, _, dtype = read_array_header(file)
        if dtype.hasobject or file.tell() + math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{name} says that it holds {dtype} in the shape {shape}")


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


def open_lock(path: Path) -> BinaryIO:
    """Open a lock file, made if need be; it follows no link and changes no content.

    Raises:
        OSError: it is a link or no file, or cannot be made or opened.
    """

    def opener(name: str, _: int) -> int:
        flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            return os.open(name, os.O_RDWR | os.O_CREAT | flags, 0o666)
        except PermissionError:
            return os.open(name, os.O_RDONLY | flags)  # another user's: enough to lock it

    return open(path, "r+b", opener=opener)


def lock(file: BinaryIO, *, shared: bool = False, wait_s: float = 0.0) -> bool:
    """Take a lock; it goes with the last descriptor of `file`.

    Args:
        file: open.
        shared: others may hold it too, if they share it.
        wait_s: longest wait for whoever holds it, seconds.

    Returns:
        False where the file system has no locks (Lustre and NFS, by how they are mounted).

    Raises:
        BlockingIOError: another process holds it.
        OSError: the disk failed.
    """
    deadline = time.monotonic() + wait_s
    try:
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.05)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        so = "two runs may do the same work"
        _lacks(file.fileno(), Path(file.name), "has no file locks", error, so)
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` outlive a power cut, where its file system can do that.

    Raises:
        OSError: the disk failed.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written to and not listed
        return
    try:
        _sync(descriptor, folder)
    finally:
        os.close(descriptor)


def sync_file(file: IO[bytes]) -> None:
    """Bring what was written to `file` onto the disk, where its file system can do that.

    Raises:
        OSError: the disk failed.
    """
    _sync(file.fileno(), Path(file.name))


def _sync(descriptor: int, path: Path) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        kind = "folders" if path.is_dir() else "files"
        _lacks(descriptor, path, f"cannot sync {kind}", error, "a power cut may undo what was written last")


def _lacks(descriptor: int, path: Path, what: str, error: OSError, so: str) -> None:
    """Say what the file system of `path` cannot do."""
    key = os.fstat(descriptor).st_dev, what
    if key in _said or multiprocessing.parent_process() is not None or rank_from_environment() != 0:
        return
    _said.add(key)
    _log.warning(f"WARNING: {path}: this file system {what} ({error.strerror}): {so}.")
