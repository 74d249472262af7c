"""Names and order of frames, and which depth belongs to which picture."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from src.errors import DataError
from src.predict.frames.files import DEPTHS, PICTURES, list_files, pair


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(given: object) -> list[str]:
    return list(list_files(str(given), PICTURES, "pictures"))


def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Sorted as text, frame 10 would be smoothed between frames 1 and 2."""
    touch(
        tmp_path,
        "f10.jpg",
        "f9.JPG",
        "f1.png",
        "b/2.png",
        ".hidden.png",
        "notes.txt",
        "depth/1.png",
        "x.jpg/3.png",
    )
    assert names(tmp_path) == ["b/2", "f1", "f9", "f10", "x.jpg/3"]
    assert names(tmp_path / "f*.*") == ["f1", "f9", "f10"]
    assert names(tmp_path / "*" / "*.png") == ["b/2", "depth/1", "x.jpg/3"]
    assert names(tmp_path / "f1.png") == ["f1"]


def test_no_two_frames_share_a_name(tmp_path: Path) -> None:
    """The second would be taken for done."""
    touch(tmp_path, "a.jpg", "a.png", "b.png")
    assert names(tmp_path) == ["a.jpg", "a.png", "b"]
    touch(tmp_path, "a.jpg.png")
    assert len(set(names(tmp_path))) == 4


def test_odd_names_are_names(tmp_path: Path) -> None:
    """Brackets and spaces in a path that exists are no pattern; bytes that are no text stay."""
    touch(tmp_path, "run [1] ü/a*.png", "run [1] ü/" + os.fsdecode(b"\xff.png"))
    assert set(names(tmp_path / "run [1] ü")) == {"a*", os.fsdecode(b"\xff")}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("empty", "holds no pictures .*there is: nothing"),
        ("texts", "holds no pictures .*there is: a.txt, b.txt"),
        ("texts/*.png", "matches no pictures .*there is: a.txt"),
        ("nowhere", "no such file"),
        ("texts/a.txt", "this ending are not read, want .jpg"),
        ("folders/*.jpg", "matches no pictures .*there is: x.jpg"),
    ],
)
def test_a_place_without_pictures_says_what_is_there(tmp_path: Path, given: str, says: str) -> None:
    """A run over nothing would end well."""
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "texts/a.txt", "texts/b.txt", "folders/x.jpg/1.txt")
    with pytest.raises(DataError, match=says) as error:
        names(tmp_path / given)
    assert "\n" not in str(error.value)


def test_depth_is_paired_by_name_or_by_number(tmp_path: Path) -> None:
    """Sorted order alone would shift all pairs where one depth file is missing."""
    touch(tmp_path, "depth_0007.png", "depth_0008.png", "depth_0009.png", "8.npy")
    depth = list_files(str(tmp_path / "depth*"), DEPTHS, "depth")
    assert [p.name for p in pair(["c_9", "c_7"], depth, "d")] == ["depth_0009.png", "depth_0007.png"]
    assert [p.name for p in pair(["depth_0008"], depth, "d")] == ["depth_0008.png"]
    with pytest.raises(DataError, match=r"1 of 2 pictures have no depth: c_6\. There are 3"):
        pair(["c_7", "c_6"], depth, "d")
    both = list_files(str(tmp_path), DEPTHS, "depth")
    with pytest.raises(DataError, match="do not tell which"):
        pair(["c_7", "c_8"], both, "d")
    with pytest.raises(DataError, match="do not tell which"):
        pair(["a/7", "b/7"], depth, "d")
