"""The store of derived files: what a run has opened stays what it is; nobody else's file is touched."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.errors import DataError
from src.runtime.files import derived
from src.runtime.files.derived import MARKER, Derived, Store

FORK = multiprocessing.get_context("fork")
JOIN_S = 60


def store_of(place: Path, **options: Any) -> Store:
    return Store(place, "things", "thing", **options)


def writer(value: int, calls: list[int] | None = None) -> Callable[[Path], dict[str, Any]]:
    """Writes an array that holds `value`."""

    def make(folder: Path) -> dict[str, Any]:
        if calls is not None:
            calls.append(value)
        np.save(folder / "a.npy", np.full(1000, value))
        return {"value": value}

    return make


def made(place: Path, value: int, **options: Any) -> Derived:
    """The thing made from `value`."""
    found = store_of(place, **options).ensure({"of": value}, writer(value))
    return found


def folders(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.is_dir())


def test_it_is_made_once_and_says_what_its_maker_noted(tmp_path: Path) -> None:
    """A second start that makes it again takes minutes; one that reads another fingerprint's is wrong."""
    calls: list[int] = []
    for value in (1, 1, 2, 2):
        found = store_of(tmp_path, keep=1).ensure({"of": value, "pair": (1, 2)}, writer(value, calls))
        assert (found.facts, int(found.array("a.npy")[7])) == ({"value": value}, value)
        assert isinstance(found.array("a.npy"), np.memmap)
        found.close()
    assert calls == [1, 2]


def test_a_copy_opens_what_its_parent_opened(tmp_path: Path) -> None:
    """A loader process that starts after another run's rebuild must not read that run's rows."""
    mine = made(tmp_path, 1)
    copy = pickle.loads(pickle.dumps(mine))
    other = FORK.Process(target=made, args=(tmp_path, 2))
    other.start()
    other.join(JOIN_S)
    assert other.exitcode == 0
    assert int(copy.array("a.npy")[0]) == 1
    assert len(folders(tmp_path)) == 2


@pytest.mark.parametrize("change", ["rewritten", "replaced", "removed", "folder removed", "marker removed"])
def test_a_copy_of_what_changed_is_an_error(tmp_path: Path, change: str) -> None:
    """Right in name and size, wrong in content: what somebody's script leaves behind."""
    mine = made(tmp_path, 1)
    copy = pickle.loads(pickle.dumps(mine))
    path = mine.path("a.npy")
    if change == "rewritten":
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b"\x01")
    elif change == "replaced":
        np.save(tmp_path / "b.npy", np.full(1000, 2))
        (tmp_path / "b.npy").replace(path)
    elif change == "removed":
        path.unlink()
    elif change == "folder removed":
        mine.folder.rename(tmp_path / "elsewhere")
    else:
        mine.path(MARKER).unlink()
    with pytest.raises(DataError, match=r"a\.npy is not the file that this run opened when it started"):
        copy.array("a.npy")


def _hold(place: Path, opened: Any, leave: Any) -> None:
    """Another run that has the first thing open."""
    found = store_of(place).find({"of": 1})
    assert found is not None
    opened.set()
    leave.wait(JOIN_S)


def test_nothing_is_removed_that_another_process_has_open(tmp_path: Path) -> None:
    """A run of days reads its crops again in each epoch; a rebuild by another run must leave them there."""
    made(tmp_path, 1).close()
    opened, leave = FORK.Event(), FORK.Event()
    reader = FORK.Process(target=_hold, args=(tmp_path, opened, leave))
    reader.start()
    assert opened.wait(JOIN_S)
    made(tmp_path, 2).close()
    assert len(folders(tmp_path)) == 2
    leave.set()
    reader.join(JOIN_S)
    assert reader.exitcode == 0
    made(tmp_path, 3).close()
    assert len(folders(tmp_path)) == 1


def test_unused_ones_stay_as_many_as_asked_for(tmp_path: Path) -> None:
    """Baselines of three splits, tried in turn, would be computed anew each time."""
    calls: list[int] = []
    for value in (1, 2, 3, 4, 3, 2):
        found = store_of(tmp_path, keep=2).ensure({"of": value}, writer(value, calls))
        found.close()
    assert calls == [1, 2, 3, 4]
    assert len(folders(tmp_path)) == 3


def test_where_there_are_no_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks nobody can tell what is in use."""
    made(tmp_path, 1).close()
    real = fcntl.flock

    def flock(file: Any, operation: int) -> None:
        if not isinstance(file, int) and str(file.name).endswith(MARKER):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert int(made(tmp_path, 2).array("a.npy")[0]) == 2
    assert len(folders(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["bit", "cut", "missing", "marker", "no marker"])
def test_what_is_damaged_is_made_anew(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One flipped bit of a label is a wrong label; a half file is a traceback of numpy."""
    monkeypatch.setattr(derived._log, "propagate", True)
    first = made(tmp_path, 1)
    path, marker = first.path("a.npy"), first.path(MARKER)
    first.close()
    if damage == "bit":
        content = bytearray(path.read_bytes())
        content[700] ^= 4
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "missing":
        path.unlink()
    elif damage == "marker":
        marker.write_text(marker.read_text()[:40])
    else:
        marker.unlink()
    with caplog.at_level("WARNING"):
        assert (np.array(made(tmp_path, 1).array("a.npy")) == 1).all()
    assert "is damaged or incomplete" in caplog.text
    assert len(folders(tmp_path)) == 1


def test_a_making_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Half a thing under its final name would be read by the next start."""

    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        store_of(tmp_path).ensure({"of": 1}, fail)
    assert folders(tmp_path) == []


def test_a_resumable_making_goes_on_with_what_is_there(tmp_path: Path) -> None:
    """Hours of decoding must outlive a kill; what was begun for other inputs must not get in."""
    store = store_of(tmp_path, resumable=True)

    def begin(folder: Path) -> dict[str, Any]:
        (folder / "part").write_text("done")
        raise KeyboardInterrupt

    for value in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            store.ensure({"of": value}, begin)
    (half,) = folders(tmp_path)
    assert half.endswith(".part")
    found = store.ensure({"of": 2}, lambda folder: {"seen": (folder / "part").read_text()})
    assert found.facts == {"seen": "done"}


def _make_slowly(place: Path, log: Path, inside: Any, go: Any) -> None:
    def make(folder: Path) -> dict[str, Any]:
        inside.set()
        assert go.wait(JOIN_S), "the test did not go on"
        with log.open("a") as file:
            file.write("made\n")
        return writer(1)(folder)

    found = store_of(place).ensure({"of": 1}, make)
    assert int(found.array("a.npy")[0]) == 1


def test_processes_that_start_together_make_it_once(tmp_path: Path) -> None:
    """Four ranks that each read 83,325 annotations start in minutes."""
    inside, go = FORK.Event(), FORK.Event()
    args = (tmp_path / "place", tmp_path / "log", inside, go)
    ranks = [FORK.Process(target=_make_slowly, args=args) for _ in range(3)]
    for rank in ranks:
        rank.start()
    assert inside.wait(JOIN_S)
    with pytest.raises(DataError, match="waited 0 s for another process"):
        store_of(tmp_path / "place").ensure({"of": 1}, writer(1), wait_s=0.1)
    go.set()
    for rank in ranks:
        rank.join(JOIN_S)
        assert rank.exitcode == 0
    assert (tmp_path / "log").read_text() == "made\n"


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder"])
def test_a_lock_file_that_is_a_link_leads_nowhere(tmp_path: Path, kind: str) -> None:
    """In a shared folder somebody's file may have the name: emptied or replaced, it is lost."""
    place, own = tmp_path / "place", tmp_path / "thesis.tex"
    place.mkdir()
    own.write_text("ten years")
    lock = place / "things.lock"
    if kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(own if kind == "link" else tmp_path / "nothing")
    with pytest.raises(DataError, match=r"thing: cannot write"):
        made(place, 1)
    assert own.read_text() == "ten years"
    assert not (tmp_path / "nothing").exists()


def interrupted(folder: Path) -> dict[str, Any]:
    raise KeyboardInterrupt


def test_a_link_in_place_of_a_folder_is_not_worked_in(tmp_path: Path) -> None:
    """What is made, and above all what is cleared before, must not be somebody's folder."""
    place, own = tmp_path / "place", tmp_path / "own"
    for folder in (place, own):
        folder.mkdir()
    (own / "photo").write_text("mine")
    resumable = store_of(place, resumable=True)
    with pytest.raises(KeyboardInterrupt):
        resumable.ensure({"of": 1}, interrupted)
    (half,) = folders(place)
    (place / "things-all.part").mkdir()  # of somebody else: what only looks like ours stays
    for store in (resumable, store_of(place)):
        link = place / half
        link.rmdir()
        link.symlink_to(own)
        with pytest.raises(DataError, match="is not a folder of UTNet"):
            store.ensure({"of": 1}, writer(1))
        assert [path.name for path in own.iterdir()] == ["photo"]
        link.unlink()
        link.mkdir()
    made(place, 1).close()
    assert (place / "things-all.part").is_dir()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Data sets often lie on a read-only share: which key names another folder?"""
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "place"
    with pytest.raises(DataError, match=r"cannot write to .*Set dataset\.index_dir to a folder that can be"):
        made(place, 1)
    lost = store_of(place).offer({"of": 1}, writer(1))
    assert lost is not None
    assert "cannot write" in lost
    assert store_of(tmp_path).offer({"of": 1}, writer(1)) is None
    assert store_of(tmp_path).find({"of": 1}) is not None


def test_what_stands_there_can_be_read_without_writing(tmp_path: Path) -> None:
    """A read-only mount with a finished index is a data set like any other."""
    made(tmp_path, 1).close()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    (tmp_path / "things.lock").unlink()
    (tmp_path / "things.lock").mkdir()  # no lock can be had
    assert int(made(tmp_path, 1).array("a.npy")[0]) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_every_flipped_bit_of_the_marker_is_found(tmp_path: Path) -> None:
    """It holds the names of sequences and the identity of labels: one bit makes ABF11 of ABF10."""
    store = Store(tmp_path, "thing", "thing")
    made_of = {"of": [1, "ABF10"]}
    kept = store.ensure(made_of, lambda folder: {"sequences": ["ABF10", "ABF11"], "listed": 12})
    marker = kept.path(MARKER)
    whole, facts = marker.read_bytes(), kept.facts
    kept.close()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        marker.write_bytes(changed)
        found = store.find(made_of)
        assert found is None or found.facts == facts, f"bit {bit}: {found.facts}"
        if found is not None:
            found.close()


def test_files_without_checksums_of_their_own_are_summed(tmp_path: Path) -> None:
    """Beside blocks that are checked when they are read stands the table that says where they are."""
    store = Store(tmp_path, "thing", "thing", unsummed="part-")

    def make(folder: Path) -> dict[str, Any]:
        for name in ("part-0", "table.npy"):
            (folder / name).write_bytes(bytes(100))
        return {}

    kept = store.ensure({"of": 1}, make)
    kept.close()
    kept.path("part-0").write_bytes(bytes(99) + b"1")
    assert store.find({"of": 1}) is not None
    kept.path("table.npy").write_bytes(bytes(99) + b"1")
    assert store.find({"of": 1}) is None


def test_a_pipe_in_the_place_of_a_marker_is_not_waited_for(tmp_path: Path) -> None:
    """Whoever opens it for reading stands until somebody writes: for ever."""
    kept = made(tmp_path, 1)
    kept.close()
    kept.path(MARKER).unlink()
    os.mkfifo(kept.path(MARKER))
    assert int(made(tmp_path, 1).array("a.npy")[0]) == 1


def test_without_locks_two_makers_do_not_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can be kept out: each makes its own, both are whole, the other's half made one stays."""
    monkeypatch.setattr(derived.disk, "lock", lambda file, **_: False)
    store = Store(tmp_path, "thing", "thing", resumable=True)

    def make(folder: Path) -> dict[str, int]:
        if folder.name.count("-") == 2 and not (tmp_path / "seen").exists():
            (tmp_path / "seen").write_text(folder.name)
            made(tmp_path, 7).close()  # another run, meanwhile, in the same place
            assert folder.is_dir(), "another maker removed what is being made"
        np.save(folder / "a.npy", np.array([7]))
        return {}

    mine = store.ensure({"of": 7}, make)
    assert int(mine.array("a.npy")[0]) == 7
    assert not list(tmp_path.glob("*.part"))
