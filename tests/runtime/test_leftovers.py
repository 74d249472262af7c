"""What a killed write left behind is removed by the next one; what has a writer never is."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO

import pytest

from src.runtime.files.disk import atomic_directory, atomic_write
from src.runtime.files.unfinished import machine, unfinished

DAY_S = 86_400.0


def _write(folder: Path, says: Connection) -> None:
    """A writer in the middle of its work, for as long as it lives."""
    with atomic_write(folder / "last.pt") as file:
        file.write(b"half")
        file.flush()
        says.send("writing")
        signal.pause()


def _make(folder: Path, says: Connection) -> None:
    """The same of a folder."""
    with atomic_directory(folder / "set") as inside:
        (inside / "a").write_text("half")
        says.send("writing")
        signal.pause()


Start = Callable[[Callable[[Path, Connection], None], Path], "multiprocessing.process.BaseProcess"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a writer and waits until it writes; ends all of them."""
    context, begun = multiprocessing.get_context("fork"), []

    def one(write: Callable[[Path, Connection], None], folder: Path) -> multiprocessing.process.BaseProcess:
        hears, says = context.Pipe(duplex=False)
        process = context.Process(target=write, args=(folder, says))
        process.start()
        begun.append(process)
        assert hears.poll(60.0)
        return process

    yield one
    for process in begun:
        process.kill()
        process.join()


def parts(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.endswith(".part"))


@pytest.mark.parametrize("write", [_write, _make])
def test_a_killed_writers_leftover_goes_with_the_next_write(
    tmp_path: Path, start: Start, write: Callable[[Path, Connection], None]
) -> None:
    """Every kill in a save would keep a checkpoint's size of the disk for ever."""
    process = start(write, tmp_path)
    assert len(parts(tmp_path)) == 1
    with atomic_write(tmp_path / "other.json") as file:  # its writer lives: it stays
        file.write(b"{}")
    assert len(parts(tmp_path)) == 1
    process.kill()
    process.join()
    with atomic_write(tmp_path / "other.json") as file:
        file.write(b"{}")
    assert [p.name for p in tmp_path.iterdir()] == ["other.json"]


def test_two_writers_of_one_file_both_end(tmp_path: Path, start: Start) -> None:
    """A writer that finds its file gone would lose what it has written."""
    process = start(_write, tmp_path)
    with atomic_write(tmp_path / "last.pt") as file:
        file.write(b"mine")
        assert len(parts(tmp_path)) == 2
    assert (tmp_path / "last.pt").read_bytes() == b"mine"
    assert process.is_alive()
    assert len(parts(tmp_path)) == 1


@pytest.mark.parametrize("name", [".last.pt.77.ffffffff01234567.part", ".last.pt.77.01234567.part"])
def test_another_machines_file_stays_for_a_day(tmp_path: Path, name: str) -> None:
    """Locks may not reach from machine to machine: a file that has just been written to may have a writer."""
    left = tmp_path / name
    left.write_bytes(b"half")
    own = tmp_path / "own"
    own.touch()
    now = own.stat().st_mtime
    for age, stays in ((0.0, True), (DAY_S - 600, True), (DAY_S + 600, False)):
        os.utime(left, (now - age, now - age))
        with atomic_write(own) as file:
            file.write(b"x")
        assert left.exists() == stays, age


def test_what_is_no_leftover_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs' parts, and what a link leads to."""
    theirs = tmp_path / "theirs"
    theirs.write_text("x")
    names = ["film.part", ".film.part", ".a.b.0123456701234567.part", ".a.7.0123456701234567.part.txt"]
    link = tmp_path / f".last.pt.7.{machine()}01234567.part"
    link.symlink_to(theirs)
    for name in names:
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (0, 0))
    with atomic_write(tmp_path / "own") as file:
        file.write(b"x")
    assert {p.name for p in tmp_path.iterdir()} == {"own", "theirs", link.name, *names}
    assert theirs.read_text() == "x"


def test_what_was_taken_for_a_leftover_is_made_again(tmp_path: Path) -> None:
    """Another writer removed it between its making and its lock: it would be written into nowhere."""
    made: list[BinaryIO] = []

    def make(path: Path) -> BinaryIO:
        file = path.open("xb")
        made.append(file)
        if len(made) == 1:
            path.unlink()
        return file

    with unfinished(tmp_path / "x", make) as (_, file):
        assert len(made) == 2
        assert os.fstat(file.fileno()).st_nlink == 1
