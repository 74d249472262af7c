"""Which samples are shown with depth."""

from __future__ import annotations

import numpy as np
import pytest

from dataloader.crop.augment import show_depth


def test_fixed_modalities_do_not_draw() -> None:
    """Validation with depth shows it for every sample, whatever p_drop says."""
    assert all(show_depth("rgbd", 1.0, 0, 0, i) for i in range(50))
    assert not any(show_depth("rgb", 0.0, 0, 0, i) for i in range(50))


@pytest.mark.parametrize("p_drop", [0.0, 0.25, 0.4, 1.0])
def test_depth_is_dropped_as_often_as_asked(p_drop: float) -> None:
    """0 and 1 are exact: they are how a network with or without depth alone is trained (lesson 20)."""
    shown = [show_depth("train", p_drop, 0, 3, i) for i in range(2000)]
    # 2000 draws: three standard errors are below 0.035
    assert np.mean(shown) == pytest.approx(1 - p_drop, abs=0.035 if 0 < p_drop < 1 else 0)


def test_a_sample_is_seen_both_ways_over_the_epochs() -> None:
    """A modality fixed per sample would leave 40 % of the pictures without depth for ever."""
    seen = {index: {show_depth("train", 0.4, 0, epoch, index) for epoch in range(30)} for index in range(20)}
    assert all(kinds == {True, False} for kinds in seen.values())
    assert show_depth("train", 0.4, 0, 5, 7) == show_depth("train", 0.4, 0, 5, 7)
