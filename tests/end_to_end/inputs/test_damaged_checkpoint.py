"""Damaged checkpoints and scores that are none: what a user sees of them, and the exit status."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.tools import export_submission
from tests.end_to_end.conftest import Embedded
from tests.end_to_end.test_validation import nan_everywhere, nan_without_depth

SHORT = ("training.num_epochs=1", "training.max_steps_per_epoch=2", "validation.pictures=0")


@pytest.fixture(scope="module")
def trained(embedded: Embedded) -> Path:
    """Checkpoints of a run of one epoch of two steps."""
    done = embedded.main("name=short", *SHORT)
    assert done.returncode == 0, done.stderr
    checkpoints = embedded.newest("short") / "checkpoints"
    assert len({path.stat().st_ino for path in checkpoints.iterdir()}) == 2
    return checkpoints


def copied(embedded: Embedded, trained: Path, name: str) -> Path:
    """The same checkpoints in a run of another name."""
    folder = embedded.runs / f"20200101-000000-{name}" / "checkpoints"
    shutil.copytree(trained, folder)
    return folder


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


def test_a_run_goes_on_from_the_newest_whole_checkpoint(embedded: Embedded, trained: Path) -> None:
    """last.pt overwritten with zeros: one line says why, from where, and where that stands; ranks agree."""
    folder = copied(embedded, trained, "zeros")
    last = folder / "last.pt"
    last.write_bytes(bytes(last.stat().st_size))
    done = embedded.main("name=zeros", *SHORT, "training.num_epochs=2", "--resume", "auto", ranks=2)
    assert done.returncode == 0, done.stderr
    source = folder / "best.pt"
    for text in (done.stdout, (folder.parent / "log.txt").read_text()):
        warnings = [line for line in text.splitlines() if "WARNING: checkpoint" in line]
        assert len(warnings) == 1
        assert warnings[0].startswith(
            f"WARNING: checkpoint {last} is no whole file of torch.save: it does not "
        )
        assert f"Going on from {source} (epoch 1, step 2), the newest whole one there" in warnings[0]
        assert f"Resumed {source} at epoch 1, step 2" in text
    assert re.search(r"Finished 2 epochs, best MPJPE [\d.]+ mm", done.stdout)
    assert last.is_file()


def test_no_older_run_is_taken_for_a_damaged_one(embedded: Embedded, trained: Path) -> None:
    """Days of training would be repeated without a word."""
    folder = copied(embedded, trained, "spoilt")
    (embedded.runs / "20190101-000000-spoilt").mkdir()
    shutil.copytree(trained, embedded.runs / "20190101-000000-spoilt" / "checkpoints")
    for path in folder.iterdir():
        flip(path)
    done = embedded.main("name=spoilt", *SHORT, "--resume", "auto")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert all(f"checkpoint {path} is no whole file" in lines[0] for path in folder.iterdir())
    assert "No checkpoint of this run is whole, and no older run is taken for it" in lines[0]
    assert "Resumed" not in done.stdout


def test_a_damaged_checkpoint_is_neither_scored_nor_exported(
    embedded: Embedded, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The score of other weights than the named ones would be the wrong number with the right name."""
    folder = copied(embedded, trained, "flipped")
    best = folder / "best.pt"
    flip(best)
    done = embedded.main("name=flipped-score", "--evaluate", str(best), ranks=2)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"AssetError: checkpoint {best} is no whole file of torch.save: ")
    assert f"Whole ones beside it, the newest first: {folder / 'last.pt'} (epoch 1, step 2)" in lines[0]
    assert "MPJPE" not in done.stdout
    assert export_submission.main(["--checkpoint", str(best), "--out", str(folder / "out")]) == 2
    assert capsys.readouterr().err.splitlines() == lines
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("plant", "which"),
    [
        (nan_everywhere, "RGB-D MPJPE nan mm, PA-MPJPE nan mm: .*16 .*; RGB-only MPJPE nan mm, .*16 "),
        (nan_without_depth, r"number\. RGB-only MPJPE nan mm, PA-MPJPE nan mm: .* 16 "),
    ],
)
def test_a_score_that_is_not_finite_leaves_with_2(
    embedded: Embedded, trained: Path, plant: Any, which: str
) -> None:
    """A script that goes by the exit status took `MPJPE: nan` for a success; all is written all the same."""
    name = f"score-{plant.__name__}"
    ranks = 2 if plant is nan_everywhere else 1
    done = embedded.main(f"name={name}", "--evaluate", str(trained / "best.pt"), ranks=ranks, plant=plant)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert re.match(r"TrainingError: the score is not a finite number\. ", lines[0])
    assert re.search(which, lines[0])
    for label, file in (("", "per_sample.npz"), (" without depth", "per_sample_rgb.npz")):
        path = embedded.newest(name) / "val" / file
        assert f"Per-sample results{label}: {path}" in done.stdout
        with np.load(path) as rows:
            assert len(rows["mpjpe_mm"]) == 16
    assert "Evaluated on 16 samples" in done.stdout
