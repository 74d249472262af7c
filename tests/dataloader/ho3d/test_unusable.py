"""The table of unusable frames: what a user reads, and when a run goes on without them."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest

from dataloader.ho3d.layout import FrameList
from dataloader.ho3d.unusable import Fault, FrameError, Reason, UnusableFrames, add_fault
from src.config import DatasetConfig
from src.errors import ConfigError, DataError


def frames_of(counts: dict[Reason, int], listed: int, name: str = "train") -> UnusableFrames:
    """A list of one sequence whose first frames are unusable."""
    faults: dict[int, Fault] = {}
    for reason, count in counts.items():
        for _ in range(count):
            faults[len(faults)] = Fault(reason, f"{reason.name.lower()} of frame {len(faults)}.")
    content = "".join(f"MC1/{2 * k:04d}\n" for k in range(listed)).encode()
    frames = FrameList(name, Path(f"{name}.txt"), content)  # type: ignore[arg-type]
    return UnusableFrames.of(frames, faults)


def allowing(setting: object, **fields: object) -> DatasetConfig:
    return dataclasses.replace(DatasetConfig(), max_unusable=setting, **fields)


TREE = {Reason.DECODE: 18, Reason.OUTSIDE: 3, Reason.BEHIND: 2, Reason.HAND: 2, Reason.SIZE: 1}
"""The faults of the issue's tree of 72 frames."""


def test_one_line_says_the_table_the_file_and_the_setting(tmp_path: Path) -> None:
    """Who is refused reads from one line which frames, why, and what would go on."""
    found = frames_of(TREE, 72)
    with pytest.raises(DataError) as error:
        found.require(allowing(25), tmp_path / "unusable.txt")
    text = str(error.value)
    assert "\n" not in text
    for part in (
        "HO3D train: 26 of 72 frames are unusable, and dataset.max_unusable=25 allows 25:",
        "18 joints not what the hand model decodes: train/MC1/0000, train/MC1/0002,",
        "3 hand outside the picture: train/MC1/0036, train/MC1/0038, train/MC1/0040; 2 hand not",
        "First: train/MC1/0000: decode of frame 0.",
        f"All with their reasons: {tmp_path / 'unusable.txt'}.",
        "dataset.max_unusable=26.",
    ):
        assert part in text
    assert all(f"train/MC1/{2 * k:04d}" in text for k in range(26))
    assert "mano.model_path" not in text  # a quarter of the frames is no systematic cause


@pytest.mark.parametrize("setting", [26, 27, "36.2%", "36.12 %", "99.9%"])
def test_what_is_allowed_goes_on_with_one_warning(
    tmp_path: Path, setting: object, caplog: pytest.LogCaptureFixture
) -> None:
    """The user asked to go on: the count and the table are said, once."""
    with caplog.at_level("WARNING", logger="utnet"):
        frames_of(TREE, 72).require(allowing(setting), tmp_path / "unusable.txt")
    (record,) = caplog.records
    lines = record.message.splitlines()
    assert "26 of 72 frames are unusable. They are left out of every split" in lines[0]
    assert f"dataset.max_unusable={setting} allows" in lines[0]
    assert str(tmp_path / "unusable.txt") in lines[0]
    assert [line.split(":")[0] for line in lines[1::2]] == [
        "  18 joints not what the hand model decodes",
        "  3 hand outside the picture",
        "  2 hand not in front of the camera",
        "  2 hand not of a hand's size",
        "  1 picture of another size",
    ]
    assert lines[2] == "    decode of frame 0."


@pytest.mark.parametrize("setting", [0, 25, "36.1%", "0%", "36 %"])
def test_one_more_than_allowed_is_refused(tmp_path: Path, setting: object) -> None:
    """A share is rounded down: 36.1 % of 72 frames are 25.99."""
    with pytest.raises(DataError, match=r"26 of 72 .* go on without them: dataset.max_unusable=26\.$"):
        frames_of(TREE, 72).require(allowing(setting), tmp_path / "unusable.txt")


def test_nothing_unusable_is_nothing_to_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning at every start of a healthy run would be read by nobody."""
    with caplog.at_level("INFO", logger="utnet"):
        frames_of({}, 72).require(allowing(0), tmp_path / "unusable.txt")
    assert not caplog.records


def test_the_evaluation_list_allows_none(tmp_path: Path) -> None:
    """Its rows are the rows of a submission: one left out shifts all that follow."""
    found = frames_of({Reason.EMPTY: 1}, 50, "evaluation")
    with pytest.raises(DataError, match=r"1 of 50 .*evaluation/MC1/0000.*rows of a submission") as error:
        found.require(allowing(40), tmp_path / "unusable.txt")
    assert "max_unusable" not in str(error.value)


@pytest.mark.parametrize("setting", [72, 1000, "99.999%"])
def test_a_data_set_without_a_usable_frame_is_refused(tmp_path: Path, setting: object) -> None:
    """No setting makes a training set of nothing."""
    with pytest.raises(DataError, match=r"72 of 72 frames are unusable, so none is left") as error:
        frames_of({Reason.MISSING: 40, Reason.EMPTY: 32}, 72).require(allowing(setting), tmp_path / "x")
    assert "go on without" not in str(error.value)


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        (Reason.DECODE, "mano.model_path is not the hand of these labels"),
        (Reason.BEHIND, "must be OpenGL"),
        (Reason.RELEASE, "set dataset.version=v2"),
        (Reason.HAND, "must be in metres"),
        (Reason.CAMERA, "another resolution"),
        (Reason.MISSING, "extract it again"),
    ],
)
def test_what_most_frames_share_has_a_likely_cause(tmp_path: Path, reason: Reason, cause: str) -> None:
    """83,325 frames do not break one by one: the hand, the release or the axes are the wrong ones."""
    with pytest.raises(DataError, match=cause):
        frames_of({reason: 37}, 72).require(allowing(0), tmp_path / "x")
    with pytest.raises(DataError) as error:
        frames_of({reason: 36}, 72).require(allowing(0), tmp_path / "x")
    assert cause not in str(error.value)


def test_the_other_release_is_named_for_both() -> None:
    """Who has v2's pictures under version v3 sets v2, and the other way round."""
    with pytest.raises(DataError, match=r"set dataset\.version=v3"):
        frames_of({Reason.RELEASE: 9}, 9).require(allowing(0, version="v2"), Path("x"))


def test_long_lists_are_cut_and_the_file_has_them_all(tmp_path: Path) -> None:
    """A table of 83,325 names is no table; the file says of each frame what was measured."""
    found = frames_of({Reason.OUTSIDE: 1500, Reason.DECODE: 21}, 4000)
    first, second = found.rows()
    assert first.startswith("1,500 hand outside the picture: train/MC1/0000, ")
    assert first.endswith("train/MC1/0038 and 1,480 more")
    assert second.endswith(" and 1 more")
    found.write(tmp_path / "unusable.txt")
    lines = (tmp_path / "unusable.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1521
    assert lines[1500] == "train/MC1/3000\tjoints not what the hand model decodes\tdecode of frame 1500."


def test_what_is_stored_is_read_back() -> None:
    """The next start says the same without looking at the frames again."""
    found = frames_of(TREE, 72)
    again = UnusableFrames.from_facts("train", found.listed, json.loads(json.dumps(found.to_facts())))
    assert again == found
    assert len(again) == 26
    assert again.rows() == found.rows()
    with pytest.raises(DataError, match="made anew"):
        UnusableFrames.from_facts("train", 1, [["a", "UNHEARD", ""]])


def test_a_frame_has_its_most_basic_fault() -> None:
    """A frame without a picture is not reported as a hand outside it, in whatever order faults are met."""
    for order in ((Reason.DECODE, Reason.MISSING, Reason.CAMERA), (Reason.MISSING, Reason.DECODE)):
        faults: dict[int, Fault] = {}
        for reason in order:
            add_fault(faults, 3, Fault(reason, ""))
        assert faults == {3: Fault(Reason.MISSING, "")}


def test_a_fault_comes_whole_out_of_another_process() -> None:
    """Files are read in a pool."""
    error = pickle.loads(pickle.dumps(FrameError(Reason.EMPTY, "0001.jpg: rgb is empty")))
    assert (error.fault, str(error)) == (
        Fault(Reason.EMPTY, "0001.jpg: rgb is empty"),
        "0001.jpg: rgb is empty",
    )


def test_a_setting_that_means_nothing_is_refused(tmp_path: Path) -> None:
    """A configuration made in code is checked where it is used."""
    with pytest.raises(ConfigError, match=r"dataset.max_unusable: want .* got '120%'"):
        frames_of(TREE, 72).require(allowing("120%"), tmp_path / "x")
