"""Files are whole or not there, on whatever disk; what killed writers left goes, what has a writer stays."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import re
import signal
import stat
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest

from src.errors import DataError
from src.runtime.files import disk
from src.runtime.files.disk import atomic_directory, atomic_write, require_place
from src.runtime.files.unfinished import machine
from tests.log_lines import log_lines

DAY_S = 86_400.0


def write(path: Path, content: bytes = b"new") -> None:
    with atomic_write(path) as file:
        file.write(content)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    """A run killed while it saves must find its previous checkpoint; half a data set would be trained on."""
    path, folder = tmp_path / "deep" / "last.pt", tmp_path / "set"
    write(path, b"old")
    with contextlib.suppress(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half of the new")
        raise KeyboardInterrupt
    with contextlib.suppress(KeyboardInterrupt), atomic_directory(folder) as made:
        (made / "a").touch()
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert names(path.parent) == {"last.pt"}
    assert names(tmp_path) == {"deep"}
    with atomic_directory(folder) as made:
        (made / "a").touch()
    assert names(folder) == {"a"}


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
        (Path(), True, " is the working folder"),
        (Path("/"), True, "/ is not empty"),
    ):
        with pytest.raises(DataError, match=re.escape(said)):
            require_place(path, folder=folder)
    monkeypatch.chdir(tmp_path)
    for name, real in (("link", "empty"), ("dangling", "nowhere"), ("new/a/b", "new/a/b")):
        assert require_place(Path(name), folder=True) == tmp_path / real
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
    place = tmp_path / "x" / "y"
    room = SimpleNamespace(f_bavail=1000, f_bfree=9000, f_frsize=4096, f_files=100, f_favail=10)
    monkeypatch.setattr(os, "statvfs", lambda _: room)
    require_place(place, room_bytes=1000 * 4096, room_files=10)
    with pytest.raises(DataError, match=r"y needs about 1\.00 GiB, .* has 0\.00 GiB free"):
        require_place(place, room_bytes=2**30)
    with pytest.raises(DataError, match=r"y needs about 11 files, .* has room for 10"):
        require_place(place, folder=True, room_files=11)
    room.f_files = 0  # btrfs does not count
    require_place(place, folder=True, room_files=11)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Warnings about a place, each once in a process: here once in a test."""
    disk._said.clear()
    with log_lines("files") as lines:
        yield lines
    disk._said.clear()


POWER = "a power cut may undo what was written last."
NONE = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
FAULTS = [
    ("sync files", True, (*NONE, errno.EROFS)),
    ("sync folders", True, (*NONE, errno.EROFS)),
    ("lock", True, (*NONE, errno.ENOLCK)),
    ("sync files", False, (errno.EIO, errno.ENOSPC)),
    ("sync folders", False, (errno.EIO, errno.EDQUOT)),
    ("lock", False, (errno.EIO,)),
]
"""What Lustre, NFS, CIFS and FUSE say of what they lack, and what a failing or full disk says."""


@pytest.mark.parametrize(
    ("what", "lacks", "number"), [(what, lacks, n) for what, lacks, numbers in FAULTS for n in numbers]
)
def test_what_a_file_system_lacks_is_one_warning_and_a_failing_disk_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], what: str, lacks: bool, number: int
) -> None:
    """The file is whole all the same, and the run must not end for it; what a disk lost was not written."""
    why, real = os.strerror(number), os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == (what == "sync folders"):
            raise OSError(number, why)
        real(descriptor)

    def flock(*_: object) -> None:
        raise OSError(number, why)

    def use(content: bytes) -> None:
        write(tmp_path / "a", content)
        with (tmp_path / "a").open("rb") as file:
            assert file.read() == content
            assert disk.lock(file, shared=True) == (what != "lock")

    monkeypatch.setattr(fcntl, "flock", flock) if what == "lock" else monkeypatch.setattr(os, "fsync", fsync)
    if not lacks:
        with pytest.raises(OSError, match=why):
            use(b"new")
        assert said == []
        return
    for content in (b"1", b"2"):
        use(content)
    (line,) = said
    assert line.startswith(f"WARNING: {tmp_path}")
    missing, so = ("has no file locks", "two runs") if what == "lock" else (f"cannot {what}", POWER)
    assert f": this file system {missing} ({why}): {so}" in line


def test_a_folder_that_may_not_be_listed_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared folders of labs: enter and write, but not look."""
    real = os.open

    def opened(path: object, flags: int, *more: int) -> int:
        if Path(str(path)) == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", opened)
    write(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_bytes() == b"new"


def _write(folder: Path, says: Connection) -> None:
    """A writer in the middle of its work, for as long as it lives."""
    with atomic_write(folder / "last.pt"):
        says.send("writing")
        signal.pause()


def _make(folder: Path, says: Connection) -> None:
    """The same of a folder."""
    with atomic_directory(folder / "last.pt") as inside:
        (inside / "a").touch()
        says.send("writing")
        signal.pause()


@pytest.mark.parametrize("writer", [_write, _make])
def test_a_killed_writers_leftover_goes_and_a_living_ones_stays(
    tmp_path: Path, writer: Callable[[Path, Connection], None]
) -> None:
    """Every kill in a save would keep a checkpoint's size of the disk for ever; even of the same name, a
    writer that finds its file gone would lose what it has written.
    """
    context = multiprocessing.get_context("fork")
    hears, says = context.Pipe(duplex=False)
    process = context.Process(target=writer, args=(tmp_path, says))
    process.start()
    try:
        assert hears.poll(60.0)
        (part,) = names(tmp_path)
        os.utime(tmp_path / part, (0, 0))  # it has written nothing for long
        write(tmp_path / "last.pt")
        assert names(tmp_path) == {part, "last.pt"}
        assert process.is_alive()
    finally:
        process.kill()
        process.join()
    write(tmp_path / "last.pt")
    assert names(tmp_path) == {"last.pt"}


@pytest.mark.parametrize(
    ("name", "idle_s"),
    [
        (f".last.pt.77.{machine()}01234567.part", 30.0),
        (".last.pt.77.ffffffff01234567.part", DAY_S),
        (".last.pt.77.01234567.part", DAY_S),
    ],
)
def test_a_leftover_stays_while_it_may_have_a_writer(tmp_path: Path, name: str, idle_s: float) -> None:
    """One that was just begun has no lock yet; and locks may not reach from machine to machine."""
    left, own = tmp_path / name, tmp_path / "own"
    left.touch()
    own.touch()
    now = own.stat().st_mtime
    for age, stays in ((0.0, True), (idle_s - 20, True), (idle_s + 600, False)):
        os.utime(left, (now - age, now - age))
        write(own)
        assert left.exists() == stays, age


def test_what_is_no_leftover_stays(tmp_path: Path) -> None:
    """Other programs' parts, and what a link leads to."""
    theirs = ["film.part", ".film.part", ".a.b.0123456701234567.part", ".a.7.0123456701234567.part.txt"]
    link = tmp_path / f".last.pt.7.{machine()}01234567.part"
    link.symlink_to("film.part")
    for name in theirs:
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (0, 0))
    os.utime(link, (0, 0), follow_symlinks=False)
    write(tmp_path / "own")
    assert names(tmp_path) == {"own", link.name, *theirs}
    assert (tmp_path / "film.part").read_text() == "x"
