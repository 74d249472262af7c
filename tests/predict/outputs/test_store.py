"""Predictions on disk: kept through a kill, exact, and never mixed with those of another run."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from src.errors import DataError
from src.predict.hands import PER_HAND
from src.predict.outputs.paths import place
from src.predict.outputs.store import UNFINISHED, UNITS, Store
from tests.predict.outputs.made import frame_hands, some_hands

SETTINGS = {"checkpoint": "a", "boxes": "detect"}
FACES = some_hands(1).faces
FRAMES = [("seq/0000", 1), ("seq/0001", 0), ("手 2.x", 2), ("seq/0003", 1)]


def write(out: Path, frames: list[tuple[str, int]] = FRAMES, *, finish: bool = True) -> Store:
    store = Store.open(out, SETTINGS, FACES)
    for number, (name, count) in enumerate(frames):
        if name not in store.done_names:
            store.add(frame_hands(name, count, number))
    if finish:
        store.finish()
    return store


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / f"predictions.{name}").read_bytes() for name in ("npz", "jsonl")}


def test_the_files_say_what_was_predicted_in_what_units(tmp_path: Path) -> None:
    """Whoever gets the file alone must be able to use it, and must get the very numbers."""
    write(tmp_path)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as file:
        npz = dict(file)
    assert npz["frame"].tolist() == ["seq/0000", "手 2.x", "手 2.x", "seq/0003"]
    assert npz["frames_without_hand"].tolist() == ["seq/0001"]
    assert npz["left"].tolist() == [False, False, True, False]
    assert npz["columns"].tolist() == list(UNITS)
    assert npz["units"].tolist() == list(UNITS.values())
    third = frame_hands("手 2.x", 2, 2)
    for name in PER_HAND:
        assert np.array_equal(npz[name][1:3], getattr(third.hands, name)), name
    assert npz["global_orient_aa"][0] == pytest.approx([np.pi, 0, 0], abs=1e-5)
    header, *lines = map(json.loads, (tmp_path / "predictions.jsonl").read_text().splitlines())
    assert header["settings"] == SETTINGS
    assert [(line["frame"], len(line["hands"])) for line in lines] == FRAMES
    vertices = np.array(lines[2]["hands"][1]["vertices_m"], np.float32)
    assert np.array_equal(vertices, third.hands.vertices_m[1])
    assert lines[2]["hands"][1]["left"] is True
    assert not (tmp_path / UNFINISHED).exists()


def _work(out: Path) -> None:
    store = Store.open(out, SETTINGS, FACES)
    for number, (name, count) in enumerate(FRAMES[:3]):
        store.add(frame_hands(name, count, number))
    time.sleep(60)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """A night's work must survive a kill, and the result must not show that there was one."""
    write(tmp_path / "whole")
    out = tmp_path / "killed"
    worker = multiprocessing.get_context("spawn").Process(target=_work, args=(out,))
    worker.start()
    deadline = time.monotonic() + 60
    while not (out / UNFINISHED).exists() or (out / UNFINISHED).read_bytes().count(b"\n") < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(DataError, match="another process is at work"):
        Store.open(out, SETTINGS, FACES)
    os.kill(worker.pid or 0, signal.SIGKILL)
    worker.join(30)
    with (out / UNFINISHED).open("r+b") as file:  # the kill met the last line half written
        file.truncate(file.seek(-40, os.SEEK_END))
    assert Store.open(out, SETTINGS, FACES).order == ["seq/0000", "seq/0001"]
    write(out)
    assert contents(out) == contents(tmp_path / "whole")


def test_what_another_run_left_is_not_mixed_in(tmp_path: Path) -> None:
    """Half of the hands of one network and half of another would be a result of neither."""
    write(tmp_path, FRAMES[:2], finish=False)
    other = {**SETTINGS, "boxes": "depth"}
    with pytest.raises(DataError, match="unfinished run with another boxes"):
        Store.open(tmp_path, other, FACES)
    replaced = Store.open(tmp_path, other, FACES, overwrite=True)
    assert replaced.order == []
    replaced.add(frame_hands("x", 1))
    replaced.finish()
    with pytest.raises(DataError, match="holds predictions already"):
        Store.open(tmp_path, other, FACES)
    stale = place(tmp_path, "overlays", "x", ".jpg")
    stale.parent.mkdir()
    stale.touch()
    again = Store.open(tmp_path, SETTINGS, FACES, overwrite=True)
    again.add(frame_hands("y", 1))
    again.finish()
    assert np.load(tmp_path / "predictions.npz")["frame"].tolist() == ["y"]
    assert not stale.exists(), "a picture of a frame that is no more in the result"


def test_two_that_begin_together_do_not_replace_each_other(tmp_path: Path) -> None:
    """The slower of two processes must not write over what the faster has finished."""
    slow = Store.open(tmp_path, SETTINGS, FACES)
    write(tmp_path)
    with pytest.raises(DataError, match="another process has written here meanwhile"):
        slow.begin()


def test_a_damaged_unfinished_file_is_said(tmp_path: Path) -> None:
    """A power cut may leave zeros; a traceback would not say what to remove."""
    write(tmp_path, FRAMES[:3], finish=False)
    lines = (tmp_path / UNFINISHED).read_bytes().splitlines(keepends=True)
    for wrong in (b"\x00" * 50 + b"\n", b"[1]\n"):
        for place_of in (0, 1):
            parts = [wrong if k == place_of else line for k, line in enumerate(lines)]
            (tmp_path / UNFINISHED).write_bytes(b"".join(parts))
            with pytest.raises(DataError, match=r"predictions\.unfinished is damaged.*Remove it"):
                Store.open(tmp_path, SETTINGS, FACES)


def test_nothing_is_there_before_the_first_frame(tmp_path: Path) -> None:
    """A wrong input must not leave a folder that looks like a result."""
    Store.open(tmp_path / "out", SETTINGS, FACES)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises((DataError, OSError)):
        Store.open(tmp_path / "file", SETTINGS, FACES)


@pytest.mark.parametrize(
    "name", ["a/0", "../../etc", "..", "a//b", "/abs", "x\ny", "%2E", "é" * 300, "手 1.2", "a.jpg/b"]
)
def test_a_frame_s_files_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    """Names come from other people's files: `..` in one must not write beside the results."""
    path = place(tmp_path, "overlays", name, ".jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert path.resolve().is_relative_to((tmp_path / "overlays").resolve())
    assert path != place(tmp_path, "overlays", name + "x", ".jpg")
