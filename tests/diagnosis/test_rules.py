"""Rules of the doctor on numbers made by hand: which ones must agree, and which steps count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from src.training.diagnosis.scores import check_scores
from src.training.diagnosis.steps import CLIPPED_STEPS, check_clipped

BASELINES = {
    "zero_mpjpe_mm": 102.152,
    "zero_pa_mm": 48.320,
    "mean_pose_mpjpe_mm": 78.0,
    "mean_pose_pa_mm": 14.5,
}


def causes(mpjpe_mm: float, pa_mpjpe_mm: float) -> list[str]:
    """What is not OK about a validation with these scores, long after the start."""
    result: Any = SimpleNamespace(
        num_samples=100,
        unusable_labels=0,
        nonfinite_count=0,
        is_finite=True,
        mpjpe_mm=mpjpe_mm,
        pa_mpjpe_mm=pa_mpjpe_mm,
        baselines=BASELINES,
        rows=None,
    )
    return [
        f.what for f in check_scores({"rgbd": result}, None, steps=1000, samples=100_000) if f.status != "OK"
    ]


@pytest.mark.parametrize(
    ("mpjpe_mm", "pa_mpjpe_mm", "named"),
    [
        (102.150, 48.320, ["metric equals the zero pose"]),
        (78.3, 14.6, ["metric equals the mean pose"]),
        (40.0, 14.5, []),  # turns the hand well and bends no finger yet
        (78.0, 9.0, []),
        (60.0, 48.320, []),
        (110.0, 20.0, ["metric no better than the zero pose"]),
    ],
)
def test_both_metrics_must_be_a_constant_predictors(
    mpjpe_mm: float, pa_mpjpe_mm: float, named: list[str]
) -> None:
    """On its way down a metric passes a baseline's: alone that says nothing, and a FAIL may end the run."""
    assert causes(mpjpe_mm, pa_mpjpe_mm) == named


def test_clipped_steps_are_the_last_ones() -> None:
    """Steps of a warm-up that are long past must not be held against a run, nor hide what goes on now."""
    calm, clipped = [False] * 10, [True] * CLIPPED_STEPS
    assert [f.what for f in check_clipped(calm + clipped)] == ["every step clipped"]
    assert [f.what for f in check_clipped(clipped + calm)] == ["clipped share"]
    assert list(check_clipped(clipped[1:])) == []
