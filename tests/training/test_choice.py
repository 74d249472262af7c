"""Which validation is the best: the rule that decides which weights people keep."""

from __future__ import annotations

import dataclasses
import math

import pytest

from src.errors import TrainingError
from src.evaluation.evaluator import CheckedResult
from src.training.checkpoints.checkpoint import Progress
from src.training.validation import is_best, report
from tests.log_lines import log_lines
from tests.training.test_recorder import result
from tests.training.toy import ALONE


def judged(rgbd: CheckedResult, rgb: CheckedResult | None, best_mm: float) -> tuple[bool, Progress]:
    """Whether a validation of epoch 7 is the best after `best_mm` of epoch 4, and what is remembered."""
    position = Progress(epoch=7, best_mpjpe_mm=best_mm, best_epoch=4)
    results = {"rgbd": rgbd} if rgb is None else {"rgbd": rgbd, "rgb": rgb}
    return is_best(results, position), position  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("with_depth", "without", "chosen"),
    [
        (19.9, 30.0, True),
        (20.1, 30.0, False),
        (20.1, 10.0, False),  # without depth it would be better
        (19.9, 99.0, True),
        (20.0, 30.0, False),  # as good is not better: the earlier epoch stays
    ],
)
def test_mpjpe_with_depth_decides(with_depth: float, without: float, chosen: bool) -> None:
    """RGB-D, by MPJPE, strictly lower; PA-MPJPE (10 in each) and RGB-only say nothing."""
    best, position = judged(result(with_depth), result(without), 20.0)
    assert best is chosen
    kept = (with_depth, 7) if chosen else (20.0, 4)
    assert (position.best_mpjpe_mm, position.best_epoch) == kept


def test_the_first_validation_is_the_best_so_far() -> None:
    """A run that is stopped after one validation has a best.pt."""
    best, position = judged(result(500.0), None, math.inf)
    assert best
    assert (position.best_mpjpe_mm, position.best_epoch) == (500.0, 7)


@pytest.mark.parametrize("broken", ["rgbd", "rgb"])
def test_nothing_that_is_broken_is_chosen(broken: str) -> None:
    """Low numbers of either modality beside predictions that are not finite choose nothing."""
    bad = dataclasses.replace(result(1.0), nonfinite_count=1, nonfinite_indices=(3,))
    position = Progress(best_mpjpe_mm=20.0, best_epoch=4)
    results = {"rgbd": result(1.0), "rgb": result(1.0)} | {broken: bad}
    with pytest.raises(TrainingError, match=r"1 \(samples 3\)"):
        is_best(results, position)  # type: ignore[arg-type]
    assert (position.best_mpjpe_mm, position.best_epoch) == (20.0, 4)


def test_the_lines_of_a_validation_have_each_number_in_its_place() -> None:
    """With depth first, then by which split, then without depth."""
    without = dataclasses.replace(result(25.0, loss=4.0), pa_mpjpe_mm=15.0, num_samples=39, unusable_labels=1)
    with log_lines("validation") as lines:
        report({"rgbd": result(), "rgb": without}, "HO3D v3 val", ALONE)
    assert lines == [
        "  Val Loss: 3.000, MPJPE: 20.000 mm, PA-MPJPE: 10.000 mm",
        "  Evaluated on 40 samples from all 1 CPU ranks",
        "  Vertices: MPVPE 21.000 mm, PA-MPVPE 11.000 mm",
        "  Before refinement: MPJPE 23.000 mm, PA-MPJPE 13.000 mm",
        "  Baselines of this split: zero pose MPJPE 110.000 mm, PA-MPJPE 50.000 mm; mean pose "
        "MPJPE 80.000 mm, PA-MPJPE 30.000 mm; nearest training pose PA-MPJPE 12.000 mm",
        "  Split: HO3D v3 val",
        "  Without depth: Loss: 4.000, MPJPE: 25.000 mm, PA-MPJPE: 15.000 mm (39 samples)",
    ]
