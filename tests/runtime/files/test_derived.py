"""The store of derived files: what a run has opened stays what it is; nobody else's file is touched."""

from __future__ import annotations

import contextlib
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
from tests.log_lines import log_lines

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
    return store_of(place, **options).ensure({"of": value}, writer(value))


def folders(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.is_dir())


def test_each_is_made_once_and_the_newest_stay(tmp_path: Path) -> None:
    """A second start that makes it again takes minutes; one that reads another fingerprint's is wrong.

    Baselines of three splits, tried in turn, would be computed anew each time.
    """
    calls: list[int] = []
    for value in (1, 1, 2, 3, 4, 3, 2):
        found = store_of(tmp_path, keep=2).ensure({"of": value, "pair": (1, 2)}, writer(value, calls))
        assert (found.facts, int(found.array("a.npy")[7])) == ({"value": value}, value)
        assert isinstance(found.array("a.npy"), np.memmap)
        found.close()
    assert calls == [1, 2, 3, 4]
    assert len(folders(tmp_path)) == 3


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


def change_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[700] ^= 4
    path.write_bytes(content)


def replace(path: Path) -> None:
    np.save(path.with_name("b.npy"), np.full(1000, 2))
    path.with_name("b.npy").replace(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def put_a_pipe(path: Path) -> None:
    """Whoever opens it for reading stands until somebody writes: for ever."""
    path.unlink()
    os.mkfifo(path)


CHANGES: list[tuple[Callable[[Path], Any], str]] = [
    (change_a_bit, "a.npy"),
    (replace, "a.npy"),
    (cut, "a.npy"),
    (Path.unlink, "a.npy"),
    (cut, MARKER),
    (put_a_pipe, MARKER),
    (Path.unlink, MARKER),
    (lambda folder: folder.rename(folder.with_name("elsewhere")), ""),
]


@pytest.mark.parametrize(("change", "name"), CHANGES)
def test_what_changed_is_an_error_in_a_copy_and_made_anew_by_the_next_start(
    tmp_path: Path, change: Callable[[Path], Any], name: str
) -> None:
    """One flipped bit is a wrong label; what somebody's script leaves is right in name and size."""
    mine = made(tmp_path, 1)
    copy = pickle.loads(pickle.dumps(mine))
    mine.close()
    change(mine.folder / name)
    with pytest.raises(DataError, match=r"a\.npy is not the file that this run opened when it started"):
        copy.array("a.npy")
    copy.close()
    with log_lines(derived._log.name.removeprefix("utnet.")) as said:
        assert (np.array(made(tmp_path, 1).array("a.npy")) == 1).all()
    assert (len(said) == 1 and "is damaged or incomplete" in said[0]) == bool(name)
    assert len(folders(tmp_path)) == (1 if name and change is not put_a_pipe else 2)


def test_every_flipped_bit_of_the_marker_is_found(tmp_path: Path) -> None:
    """It holds the names of sequences and the identity of labels: one bit makes ABF11 of ABF10."""
    store, made_of = store_of(tmp_path), {"of": [1, "ABF10"]}
    kept = store.ensure(made_of, lambda folder: {"sequences": ["ABF10", "ABF11"], "listed": 12})
    kept.close()
    marker = kept.path(MARKER)
    whole = marker.read_bytes()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        marker.write_bytes(changed)
        found = store.find(made_of)
        assert found is None or found.facts == kept.facts, f"byte {at}: {found.facts}"


def test_files_without_checksums_of_their_own_are_summed(tmp_path: Path) -> None:
    """Beside blocks that are checked when they are read stands the table that says where they are."""
    store = store_of(tmp_path, unsummed="part-")

    def make(folder: Path) -> dict[str, Any]:
        for name in ("part-0", "table.npy"):
            (folder / name).write_bytes(bytes(1000))
        return {}

    kept = store.ensure({"of": 1}, make)
    change_a_bit(kept.path("part-0"))
    assert store.find({"of": 1}) is not None
    change_a_bit(kept.path("table.npy"))
    assert store.find({"of": 1}) is None


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


def _make_slowly(place: Path, log: Path, inside: Any, go: Any) -> None:
    def make(folder: Path) -> dict[str, Any]:
        inside.set()
        assert go.wait(JOIN_S), "the test did not go on"
        with log.open("a") as file:
            file.write("made\n")
        return writer(1)(folder)

    assert int(store_of(place).ensure({"of": 1}, make).array("a.npy")[0]) == 1


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


def test_without_locks_nothing_is_shared_or_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can be kept out, and nobody can tell what is in use: each makes its own, and all are whole."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    made(tmp_path, 1).close()
    monkeypatch.setattr(fcntl, "flock", flock)

    def make(folder: Path) -> dict[str, int]:
        made(tmp_path, 7).close()  # another run, meanwhile, in the same place
        assert folder.is_dir(), "another maker removed what is being made"
        return writer(7)(folder)

    mine = store_of(tmp_path, resumable=True).ensure({"of": 7}, make)
    assert int(mine.array("a.npy")[0]) == 7
    assert len(folders(tmp_path)) == 3
    assert not list(tmp_path.glob("*.part"))


def interrupted(folder: Path) -> dict[str, Any]:
    (folder / "half").write_text("done")
    raise KeyboardInterrupt


def test_what_was_interrupted_goes_on_only_where_it_can(tmp_path: Path) -> None:
    """Hours of decoding must outlive a kill; what was begun for other inputs must not get in, nor half a
    thing under its final name.
    """
    for resumable in (False, True):
        store = store_of(tmp_path, resumable=resumable)
        for value in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                store.ensure({"of": value}, interrupted)
        assert len(folders(tmp_path)) == resumable
    (half,) = folders(tmp_path)
    assert half.endswith(".part")
    found = store.ensure({"of": 2}, lambda folder: {"seen": (folder / "half").read_text()})
    assert found.facts == {"seen": "done"}


def test_what_is_not_ours_is_not_touched(tmp_path: Path) -> None:
    """In a shared folder somebody's file may have the name of our lock, or a link that of our folder:
    emptied, replaced or worked in, it is lost.
    """
    place, own = tmp_path / "place", tmp_path / "own"
    own.mkdir()
    (own / "thesis").write_text("ten years")
    resumable, lock = store_of(place, resumable=True), place / "things.lock"
    with contextlib.suppress(KeyboardInterrupt):
        resumable.ensure({"of": 1}, interrupted)
    (half,) = folders(place)
    (place / half / "half").unlink()
    (place / half).rmdir()
    (place / half).symlink_to(own)
    (place / "things-all.part").mkdir()
    with pytest.raises(DataError, match="is not a folder of UTNet"):
        resumable.ensure({"of": 1}, writer(1))
    made(place, 1).close()
    assert (place / "things-all.part").is_dir()
    assert (place / half).is_symlink()
    for target in (own / "thesis", tmp_path / "nothing", None):
        lock.unlink(missing_ok=True)
        lock.symlink_to(target) if target is not None else lock.mkdir()
        with pytest.raises(DataError, match=r"thing: cannot write"):
            made(place, 2)
    assert [(path.name, path.read_text()) for path in own.iterdir()] == [("thesis", "ten years")]
    assert not (tmp_path / "nothing").exists()


def test_a_place_that_cannot_be_written_is_named_or_read(tmp_path: Path) -> None:
    """Data sets often lie on a read-only share: a finished index there is as good as any, and for others the
    message says which key names another folder.
    """
    (tmp_path / "file").touch()
    closed = tmp_path / "file" / "place"
    with pytest.raises(DataError, match=r"cannot write to .*Set dataset\.index_dir to a folder that can be"):
        made(closed, 1)
    assert "cannot write" in (store_of(closed).offer({"of": 1}, writer(1)) or "")
    assert store_of(tmp_path).offer({"of": 1}, writer(1)) is None
    (tmp_path / "things.lock").unlink()
    (tmp_path / "things.lock").mkdir()  # no lock can be had
    before = sorted(tmp_path.rglob("*"))
    assert int(made(tmp_path, 1).array("a.npy")[0]) == 1
    assert sorted(tmp_path.rglob("*")) == before
