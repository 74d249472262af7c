"""Files are whole or not there."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from src.errors import DataError
from src.runtime.files import disk as files
from src.runtime.files.disk import atomic_directory, atomic_write, require_place
from tests.log_lines import log_lines


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """A run killed while it saves must find its previous checkpoint whole."""
    path = tmp_path / "deep" / "last.pt"
    with atomic_write(path) as file:
        file.write(b"old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]


def test_a_failed_folder_is_not_there(tmp_path: Path) -> None:
    """Half a data set under its final name would be trained on."""
    target = tmp_path / "set"

    def fail() -> None:
        with atomic_directory(target) as folder:
            (folder / "a").write_text("1")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - our own, without text
        fail()
    assert list(tmp_path.iterdir()) == []
    with atomic_directory(target) as folder:
        (folder / "a").write_text("1")
    assert (target / "a").read_text() == "1"


def test_a_place_is_looked_at_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written in the end is said in the beginning, and a look leaves nothing behind."""
    (tmp_path / "file").touch()
    (tmp_path / "full" / "x").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "dangling").symlink_to("nowhere")
    before = {p: p.is_dir() for p in tmp_path.rglob("*")}
    monkeypatch.chdir(tmp_path / "empty")
    for path, folder, said in (
        (tmp_path / "full", True, "full is not empty"),
        (tmp_path / "file", True, "file is a file, want a folder"),
        (tmp_path / "full", False, "full is a folder, want a file"),
        (tmp_path / "file" / "x", False, "cannot be written: Not a directory"),
        (tmp_path / "file" / "x" / "y", True, "cannot be written: Not a directory"),
        (Path("/proc/x/y"), False, "/proc/x/y cannot be written: "),
        (Path("/proc/x"), True, "/proc/x cannot be written: "),
        (tmp_path / ("n" * 250), True, "cannot be written: File name too long"),
        (Path(), True, " is the working folder"),
        (Path(), False, " is a folder"),
        (Path("/"), True, "/ is not empty"),
    ):
        with pytest.raises(DataError, match=re.escape(said)):
            require_place(path, folder=folder)
    monkeypatch.chdir(tmp_path)
    assert require_place(Path("link"), folder=True) == tmp_path / "empty"
    assert require_place(Path("dangling"), folder=True) == tmp_path / "nowhere"
    assert require_place(Path("new/a/b"), folder=True) == tmp_path / "new" / "a" / "b"
    require_place(Path("new/a.csv"))
    require_place(Path("file"))

    def busy(*_: object) -> None:  # another disk is mounted there
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    with pytest.raises(DataError, match="empty cannot be written: Device or resource busy"):
        require_place(Path("empty"), folder=True)
    assert {p: p.is_dir() for p in tmp_path.rglob("*")} == before


def test_a_disk_with_too_little_room_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes for this user (not those kept for root), and names where the file system counts them."""
    disk = SimpleNamespace(f_bavail=1000, f_bfree=9000, f_frsize=4096, f_files=100, f_favail=10)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    require_place(tmp_path / "x" / "y", room_bytes=1000 * 4096, room_files=10)
    with pytest.raises(DataError, match=r"y needs about 1\.00 GiB, .* has 0\.00 GiB free"):
        require_place(tmp_path / "x" / "y", room_bytes=2**30)
    with pytest.raises(DataError, match=r"y needs about 11 files, .* has room for 10"):
        require_place(tmp_path / "x" / "y", folder=True, room_files=11)
    disk.f_files = 0  # btrfs does not count
    require_place(tmp_path / "x" / "y", folder=True, room_files=11)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Warnings about a place, each once in a process: here once in a test."""
    files._said.clear()
    with log_lines("files") as lines:
        yield lines
    files._said.clear()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EROFS])
@pytest.mark.parametrize("kind", ["folders", "files"])
def test_a_file_system_that_cannot_sync_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], number: int, kind: str
) -> None:
    """CIFS and FUSE refuse it: the file is whole all the same, and the run must not end for it."""
    refuse_sync(monkeypatch, number, kind)
    for k in range(3):
        with atomic_write(tmp_path / "a.txt") as file:
            file.write(b"%d" % k)
        assert (tmp_path / "a.txt").read_bytes() == b"%d" % k
    (line,) = said
    assert line.startswith(f"WARNING: {tmp_path}")
    why = f"cannot sync {kind} ({os.strerror(number)})"
    assert line.endswith(f": this file system {why}: a power cut may undo what was written last.")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("kind", ["folders", "files"])
def test_a_disk_that_fails_to_sync_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], number: int, kind: str
) -> None:
    """What did not reach the disk was not written."""
    refuse_sync(monkeypatch, number, kind)
    with pytest.raises(OSError, match=os.strerror(number)), atomic_write(tmp_path / "a.txt") as file:
        file.write(b"new")
    assert said == []


def refuse_sync(monkeypatch: pytest.MonkeyPatch, number: int, kind: str) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == (kind == "folders"):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL])
def test_a_file_system_without_locks_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], number: int
) -> None:
    """Lustre and NFS by their mounts: everything that locks goes on without."""

    def flock(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    for shared in (True, False):
        with (tmp_path / "a.lock").open("wb") as file:
            assert not files.lock(file, shared=shared)
    assert len(said) == 1
    assert said[0].startswith(
        f"WARNING: {tmp_path}/a.lock: this file system has no file locks ({os.strerror(number)})"
    )


def test_a_lock_that_fails_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing disk is not a file system without locks."""

    def flock(file: object, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with (tmp_path / "a.lock").open("wb") as file, pytest.raises(OSError, match="Input/output"):
        files.lock(file)


def test_a_folder_that_may_not_be_listed_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared folders of labs: enter and write, but not look."""
    real = os.open

    def opened(path: object, flags: int, *more: int) -> int:
        if Path(str(path)) == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(files.os, "open", opened)
    with atomic_write(tmp_path / "a.txt") as file:
        file.write(b"whole")
    assert (tmp_path / "a.txt").read_bytes() == b"whole"
