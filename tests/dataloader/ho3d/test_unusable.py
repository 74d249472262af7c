"""The table of unusable frames: what a user reads, and when a run goes on without them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dataloader.ho3d.layout import FrameList
from dataloader.ho3d.unusable import Fault, Reason, UnusableFrames
from src.config import DatasetConfig
from src.errors import ConfigError, DataError

LISTING = Path("unusable.txt")
TREE = {Reason.DECODE: 18, Reason.OUTSIDE: 3, Reason.BEHIND: 2, Reason.HAND: 2, Reason.SIZE: 1}


def frames_of(counts: dict[Reason, int], listed: int = 72, name: str = "train") -> UnusableFrames:
    """A list of one sequence whose first frames are unusable."""
    faults: dict[int, Fault] = {}
    for reason, count in counts.items():
        for _ in range(count):
            faults[len(faults)] = Fault(reason, f"{reason.name.lower()} of frame {len(faults)}.")
    frames = FrameList(name, "", tuple(f"MC1/{2 * k:04d}" for k in range(listed)))  # type: ignore[arg-type]
    return UnusableFrames.of(frames, faults)


def allowing(setting: object, **fields: object) -> DatasetConfig:
    return dataclasses.replace(DatasetConfig(), max_unusable=setting, **fields)


@pytest.mark.parametrize("setting", [25, "36.1%"])
def test_one_line_says_the_table_the_file_and_the_setting(setting: object) -> None:
    """Who is refused reads from one line which frames, why, and what would go on; a share is rounded down."""
    with pytest.raises(DataError) as error:
        frames_of(TREE).require(allowing(setting), LISTING)
    text = str(error.value)
    assert "\n" not in text
    for part in (
        f"HO3D train: 26 of 72 frames are unusable, and dataset.max_unusable={setting} allows ",
        "18 joints not what the hand model decodes: train/MC1/0000, train/MC1/0002,",
        "3 hand outside the picture: train/MC1/0036, train/MC1/0038, train/MC1/0040; 2 hand not",
        "First: train/MC1/0000: decode of frame 0.",
        "All with their reasons: unusable.txt.",
        "go on without them: dataset.max_unusable=26.",
    ):
        assert part in text
    assert "mano.model_path" not in text  # a quarter of the frames is no systematic cause


@pytest.mark.parametrize("setting", [26, "36.12 %"])
def test_what_is_allowed_goes_on_with_one_warning(setting: object, caplog: pytest.LogCaptureFixture) -> None:
    """The user asked to go on: the count and the table are said, once; of nothing, nothing is said."""
    with caplog.at_level("INFO", logger="utnet"):
        frames_of({}).require(allowing(0), LISTING)
        frames_of(TREE).require(allowing(setting), LISTING)
    (record,) = caplog.records
    lines = record.message.splitlines()
    assert "26 of 72 frames are unusable. They are left out" in lines[0]
    assert f"max_unusable={setting} allows" in lines[0]
    assert lines[1].startswith("  18 joints not what the hand model decodes")
    assert lines[2] == "    decode of frame 0."


def test_no_setting_makes_a_data_set_of_nothing() -> None:
    """Nor one of an evaluation list with holes: its rows are those of a submission."""
    for setting in (72, "99.999%"):
        with pytest.raises(DataError, match=r"72 of 72 frames are unusable, so none is left") as error:
            frames_of({Reason.MISSING: 40, Reason.EMPTY: 32}).require(allowing(setting), LISTING)
        assert "go on without" not in str(error.value)
    with pytest.raises(DataError, match=r"1 of 50 .*evaluation/MC1/0000.*rows of a submission") as error:
        frames_of({Reason.EMPTY: 1}, 50, "evaluation").require(allowing(40), LISTING)
    assert "max_unusable" not in str(error.value)
    with pytest.raises(ConfigError, match=r"dataset.max_unusable: want .* got '120%'"):
        frames_of(TREE).require(allowing("120%"), LISTING)  # of a configuration that was made in code


def test_what_most_frames_share_has_a_likely_cause() -> None:
    """83,325 frames do not break one by one: the hand, the release or the axes are the wrong ones."""
    for reason, cause in (
        (Reason.DECODE, "mano.model_path is not the hand of these labels"),
        (Reason.BEHIND, "must be OpenGL"),
        (Reason.RELEASE, "set dataset.version=v2"),
    ):
        for count in (36, 37):
            with pytest.raises(DataError) as error:
                frames_of({reason: count}).require(allowing(0), LISTING)
            assert (cause in str(error.value)) == (count == 37)


def test_long_lists_are_cut_and_the_file_has_them_all(tmp_path: Path) -> None:
    """A table of 83,325 names is no table; the file says of each frame what was measured."""
    found = frames_of({Reason.OUTSIDE: 1500, Reason.DECODE: 21}, 4000)
    with pytest.raises(DataError, match=r"train/MC1/0038 and 1,480 more; 21 joints .* and 1 more\."):
        found.require(allowing(0), LISTING)
    found.write(tmp_path / "unusable.txt")
    lines = (tmp_path / "unusable.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1521
    assert lines[1500] == "train/MC1/3000\tjoints not what the hand model decodes\tdecode of frame 1500."
