"""Files are whole or not there."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from src.errors import DataError
from src.runtime.files import atomic_directory, atomic_write, require_place


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
