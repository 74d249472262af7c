"""Boxes that a user wrote: they reach the frame that is meant, or a sentence says where they are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from src.errors import DataError
from src.predict.boxes.files import FileBoxes
from src.predict.frame import Frame, HandBox

NAMES = ["a/0001", "a/0002.jpg", "b/0002.jpg", "b/0003"]
HEADER = "frame,x0,y0,x1,y1\n"


def frame(name: str) -> Frame:
    return Frame(name, np.zeros((4, 4, 3), np.uint8), None, np.eye(3))


def boxes(tmp_path: Path, text: str | bytes, kind: str = "csv", names: list[str] = NAMES) -> FileBoxes:
    path = tmp_path / f"boxes.{kind}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return FileBoxes(path, names)


def test_rows_become_the_boxes_of_their_frames(tmp_path: Path) -> None:
    """A hand lost or given to another frame would be predicted wrongly without a word."""
    found = boxes(
        tmp_path,
        "frame,x0,y0,x1,y1,hand,score\na/0001,1,2,30,40,,\nb/0003.png,5,6,70,80.5,left,0.5\na/0001,9,2,30,40,right,1\n",
    )
    assert found.find(frame("a/0001")) == [HandBox((1, 2, 30, 40)), HandBox((9, 2, 30, 40))]
    assert found.find(frame("b/0003")) == [HandBox((5, 6, 70, 80.5), left=True, score=0.5)]
    assert found.find(frame("b/0002.jpg")) == []


@pytest.mark.parametrize("named", ["a/0001", "a/0001.png", "0001", "0001.jpg"])
def test_a_frame_may_be_written_in_short(tmp_path: Path, named: str) -> None:
    """Lists of other tools name the picture with its ending, or without its folder."""
    assert boxes(tmp_path, f"{HEADER}{named},1,2,30,40\n").find(frame("a/0001"))


@pytest.mark.parametrize(
    "text",
    [
        '[{"frame": "a/0001", "x0": 1, "y0": 2, "x1": 30, "y1": 40}]',
        '{"a/0001": [1, 2, 30, 40]}',
        '{"a/0001": {"x0": 1, "y0": 2, "x1": 30, "y1": 40, "hand": "right"}}',
        '{"a/0001": [[1, 2, 30, 40]]}',
    ],
)
def test_all_forms_of_json_say_the_same(tmp_path: Path, text: str) -> None:
    """Each form that the help names must be read."""
    assert boxes(tmp_path, text, "json").find(frame("a/0001")) == [HandBox((1, 2, 30, 40))]


def test_what_a_spreadsheet_adds_does_no_harm(tmp_path: Path) -> None:
    """A byte order mark, Windows line ends, spaces and empty lines."""
    text = b"\xef\xbb\xbfframe, x0, y0, x1, y1\r\n\r\na/0001, 1, 2, 30, 40\r\n,,,,\r\n"
    assert boxes(tmp_path, text).find(frame("a/0001")) == [HandBox((1, 2, 30, 40))]


ROW = "a/0001,1,2,30,40\n"
WRONG = {
    "empty": ("", "there is no box"),
    "header alone": (HEADER, "there is no box"),
    "no header": (ROW, "line 1: got the fields a/0001,1,2,30,40, want frame"),
    "semicolons": ("frame;x0;y0;x1;y1\na/0001;1;2;30;40\n", "by commas"),
    "sizes": ("frame,x,y,w,h\na/0001,1,2,30,40\n", "x1 = x [+] width"),
    "unknown column": ("frame,x0,y0,x1,y1,side\na/0001,1,2,30,40,left\n", "side"),
    "column twice": ("frame,x0,y0,x1,y1,x0\na/0001,1,2,30,40,1\n", "got the fields"),
    "cells": (HEADER + ROW + "a/0001,1,2,30\n", "line 3: got 4 cells, want 5"),
    "word": (HEADER + "a/0001,1,two,30,40\n", "line 2: y0 is 'two'"),
    "nan": (HEADER + "a/0001,1,2,nan,40\n", "x1 is 'nan'"),
    "no size": (HEADER + "a/0001,30,2,30,40\n", "line 2: the box .* has no size"),
    "swapped": (HEADER + "a/0001,30,40,1,2\n", "two opposite corners"),
    "shares": (HEADER + "a/0001,0.1,0.2,0.5,0.9\n", "in pixels"),
    "hand": ("frame,x0,y0,x1,y1,hand\na/0001,1,2,30,40,L\n", "hand is 'L', want left or right"),
    "score": ("frame,x0,y0,x1,y1,score\na/0001,1,2,30,40,7\n", "score is 7.0"),
    "twice": (HEADER + ROW + ROW, "line 3: .* has this box already"),
    "strange": (HEADER + ROW + "c/9,1,2,30,40\nd/9,1,2,30,40\n", "2 of 3 rows .*first: 'c/9', line 3"),
    "other ending": (HEADER + "a/0002.png,1,2,30,40\n", "1 of 1 rows"),
    "ambiguous": (HEADER + "0002,1,2,30,40\n", "can be 'a/0002.jpg' and 'b/0002.jpg'"),
    "quote": (HEADER + '"a/0001,1,2,30,40\n', "no CSV"),
    "encoding": ((HEADER + ROW).encode("utf-16"), "no UTF-8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_csv_is_named_with_its_line(tmp_path: Path, case: str) -> None:
    """Whoever wrote 5000 rows must learn which one is wrong, before the first prediction."""
    text, says = WRONG[case]
    with pytest.raises(DataError, match=says) as raised:
        boxes(tmp_path, text)
    assert "boxes.csv" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"a/0001": [1, 2, 30, 40], "a/0001": [1, 2, 30, 41]}', "'a/0001' stands in it twice"),
        ("{}", "there is no box"),
        ("7", "entry 1: got 7"),
        ('{"a/0001": [1, 2, 30]}', "frame 'a/0001': got .1, 2, 30."),
        ('{"a/0001": null}', "got null"),
        ('[{"frame": "a/0001", "x0": 1}]', "entry 1: got the fields frame,x0"),
        ('{"a/0001": [1, 2, 30, true]}', "y1 is True"),
        ('{"a/0001": [1, 2, 30, NaN]}', "y1 is nan"),
        (json.dumps({"a/0001": [1, 2, 30, "40px"]}), "y1 is '40px'"),
    ],
)
def test_a_wrong_json_is_named_with_its_entry(tmp_path: Path, content: str, says: str) -> None:
    """As for a CSV."""
    with pytest.raises(DataError, match=says):
        boxes(tmp_path, content, "json")


def test_what_is_no_file_of_boxes_is_refused(tmp_path: Path) -> None:
    """A folder, a missing file and another kind of file each say what they are."""
    (tmp_path / "folder.csv").mkdir()
    for name, says in (
        ("folder.csv", "cannot be read"),
        ("none.json", "No such"),
        ("none.npz", "read from .csv and .json"),
        ("b.xlsx", ".xlsx"),
    ):
        with pytest.raises(DataError, match=says):
            FileBoxes(tmp_path / name, NAMES)
