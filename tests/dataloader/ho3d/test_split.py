"""Splits: the 8332 frames, and whole motions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataloader.ho3d.split import Split, divide, motion_of, read_held_out, whole_list
from src.config import SplitConfig
from src.errors import DataError

FRAMES = 83_325
SEQUENCES = tuple(
    f"{name}{k}" for name in ("ABF1", "BB1", "GPMF1", "MC", "SMu4", "ND", "SiBF1") for k in range(8)
)[:55]
SEQUENCE_OF_ROW = np.arange(FRAMES) * len(SEQUENCES) // FRAMES


def side(name: str, **fields: object) -> Split:
    """One side of a list as long as HO3D_v3's."""
    return divide(name, SplitConfig(**fields), SEQUENCE_OF_ROW, SEQUENCES, "list")  # type: ignore[arg-type]


def test_val_has_8332_frames() -> None:
    """`Evaluated on 8332 samples` is what users compare; int(83325 * 0.9) would leave 8333 (lesson 11)."""
    train, val = side("train"), side("val")
    assert len(val.rows) == 8332
    assert len(train.rows) == 74_993
    assert np.array_equal(np.sort(np.concatenate([train.rows, val.rows])), np.arange(FRAMES))


def test_split_is_fixed_by_its_own_seed() -> None:
    """Every rank and every run validates on the same frames, whatever was drawn before."""
    np.random.seed(1)  # noqa: NPY002 - must not matter
    first = side("val")
    np.random.seed(2)  # noqa: NPY002
    second = side("val")
    assert np.array_equal(first.rows, second.rows)
    assert (first.sha256, first.id) == (second.sha256, second.id)
    assert first.id == f"{int(first.sha256[:16], 16) // 2:016x}"


def test_split_hash_tells_sides_and_lists_apart() -> None:
    """Ranks with different data must notice before they collect."""
    hashes = {
        side("val").id,
        side("train").id,
        whole_list(8332, "list").id,
    }
    other = divide("val", SplitConfig(), SEQUENCE_OF_ROW, SEQUENCES, "another list")
    scored = whole_list(8332, "list").scored_by("truth"), whole_list(8332, "list").scored_by("edited truth")
    assert len(hashes | {other.id, *(split.id for split in scored)}) == 6


def test_motion_is_the_name_without_the_camera() -> None:
    """ABF10 and ABF14 film the same motion; single-digit sequences are cameras too."""
    assert motion_of("ABF10") == motion_of("ABF14") == "ABF1"
    assert motion_of("MC1") == motion_of("MC6") == "MC"
    assert motion_of("GSF") == "GSF"


def test_sequence_split_holds_whole_motions_out() -> None:
    """A motion seen by another camera in training would make the claim about new motions false."""
    train, val = side("train", by="sequence", val_percent=30), side("val", by="sequence", val_percent=30)

    def motions(split: Split) -> set[str]:
        return {motion_of(SEQUENCES[k]) for k in np.unique(SEQUENCE_OF_ROW[split.rows])}

    assert motions(train).isdisjoint(motions(val))
    assert len(motions(val)) == 7 * 30 // 100
    assert len(train.rows) + len(val.rows) == FRAMES
    assert "whole motions" in val.note
    assert "interpolation" in side("val").note


def test_sequence_split_holds_out_at_least_one_motion() -> None:
    """10 % of seven motions is none; a val split without frames cannot score."""
    assert len(side("val", by="sequence").rows) > 0


def test_divisions_that_leave_a_side_empty_are_errors() -> None:
    """An empty validation set would be scored as perfect or crash later."""
    with pytest.raises(DataError, match="no frame left"):
        divide("val", SplitConfig(), np.zeros(9, np.int64), ("ABF10",), "")
    with pytest.raises(DataError, match=r"only 1 \(ABF1\)"):
        divide("val", SplitConfig(by="sequence"), np.zeros(99, np.int64), ("ABF10", "ABF11"), "")


def test_evaluation_keeps_the_order_of_its_list() -> None:
    """Row i of a submission is line i of evaluation.txt."""
    assert np.array_equal(whole_list(5, "x").rows, np.arange(5))


def test_named_sequences_hold_their_motions_out() -> None:
    """A benchmark's fixed split: no camera of a held-out motion is trained on, no misspelt name passes."""
    config = SplitConfig(by="sequence")
    val = divide("val", config, SEQUENCE_OF_ROW, SEQUENCES, "list", ["ABF12", "ND0"])
    train = divide("train", config, SEQUENCE_OF_ROW, SEQUENCES, "list", ["ABF12", "ND0"])
    held = {SEQUENCES[i] for i in np.unique(SEQUENCE_OF_ROW[val.rows])}
    assert held == {name for name in SEQUENCES if motion_of(name) in ("ABF1", "ND")}
    assert len(train.rows) + len(val.rows) == FRAMES
    assert not np.intersect1d(train.rows, val.rows).size
    assert "split.held_out_list" in val.note
    with pytest.raises(DataError, match="ABF99"):
        divide("val", config, SEQUENCE_OF_ROW, SEQUENCES, "list", ["ABF12", "ABF99"])


def test_list_of_held_out_sequences(tmp_path: Path) -> None:
    """An empty or absent list must not quietly become a random draw."""
    path = tmp_path / "held_out.txt"
    path.write_text("# subject 3\nABF12\n\nND0  # cut\n", encoding="utf-8")
    assert read_held_out(path) == ("ABF12", "ND0")
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(DataError, match="names no sequence"):
        read_held_out(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_held_out(tmp_path / "other.txt")
