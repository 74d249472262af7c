"""Augmentation: what is drawn and by which rule; one draw, the same for everyone, applied to everything."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dataloader.batches.samplers import SampleKey
from dataloader.crop import augment
from dataloader.crop.augment import (
    DEPTH_NOISE_M,
    MAX_SHIFT,
    P_HOLES,
    SIDES,
    Augmentation,
    Augmenter,
    Patch,
    disturb_depth,
    draw,
    paint_rgb,
    show_depth,
)
from src.config import AugmentationConfig
from src.schema import DEPTH_UNIT_M
from tests.dataloader.tree import dataset_of, run_config, write_tree

CONFIG = AugmentationConfig()


def test_draws_fill_their_ranges() -> None:
    """A range that is written in the configuration but not reached is a dead key (lesson 20)."""
    low, high = np.log(SIDES)
    changes = [Augmenter(CONFIG, 0).draw(7, i) for i in range(1500)]
    sides = np.log([c.scale for c in changes]) - (low + high) / 2
    for values, bound, usual in (
        ([c.roll_rad for c in changes], np.pi, 1 / 2),
        (sides, (high - low) / 2, 1 / 8),
        ([v for c in changes for v in c.shift], MAX_SHIFT, 1 / 8),
    ):
        assert 0.98 * bound < np.max(values) <= bound * (1 + 1e-12)
        assert -0.98 * bound > np.min(values) >= -bound * (1 + 1e-12)
        assert abs(np.mean(values)) < 0.1 * bound
        assert np.median(np.abs(values)) / bound == pytest.approx(usual, abs=0.05), "most boxes are near"
    # 1500 draws: three standard errors of a share are below 0.04
    for kind, share in (("occluders", CONFIG.p_occluder), ("holes", P_HOLES)):
        assert np.mean([bool(getattr(c, kind)) for c in changes]) == pytest.approx(share, abs=0.04)
    assert all(c.noise_seed is not None for c in changes), "the sensor's noise"


@pytest.mark.parametrize(
    ("field", "attribute", "plain"),
    [
        ("roll_deg", "roll_rad", 0),
        ("p_occluder", "occluders", ()),
        ("colour", "colour_affine", np.eye(3, 4)),
    ],
)
def test_zero_switches_a_change_off(field: str, attribute: str, plain: object) -> None:
    """Each key does what it says (lesson 20)."""
    off = dataclasses.replace(CONFIG, **{field: 0.0})
    for i in range(30):
        np.testing.assert_allclose(getattr(draw(off, 0, 0, i), attribute), plain, atol=1e-7)


class Draws:
    """A generator whose uniform numbers are chosen."""

    def __init__(self, *numbers: list[float]) -> None:
        self.numbers = list(numbers)

    def uniform(self, low: float, high: float, count: int) -> np.ndarray:
        assert (low, high, count) == (-1, 1, 3)
        return np.array(self.numbers.pop(0))


SAME = [0.0, 0, 0]


@pytest.mark.parametrize(
    ("drawn", "balance", "colour", "expected"),
    [
        ([1, 0, 0], SAME, [0.2, 0.4, 0.6], [0.45, 0.65, 0.85]),  # brighter by a quarter
        ([0, 1, 0], SAME, [0.5, 0.7, 0.3], [0.5, 0.8, 0.2]),  # half as much contrast again, about mid-grey
        ([0, 0, -1], SAME, [1.0, 0.0, 0.0], [0.6495, 0.1495, 0.1495]),  # half way to the grey of red
        ([0, 0, -1], SAME, [0.0, 0.0, 1.0], [0.057, 0.057, 0.557]),  # blue is darker than red
        (SAME, [1, 0, -1], [0.4, 0.4, 0.4], [0.5, 0.4, 0.3]),  # white balance, channel by channel
    ],
)
def test_colours_change_as_their_names_say(
    drawn: list[float], balance: list[float], colour: list[float], expected: list[float]
) -> None:
    """At strength 0.5: R, G, B in this order, by Rec. 601's shares of grey."""
    matrix = augment._colour_matrix(0.5, Draws(drawn, balance))  # type: ignore[arg-type]
    assert (matrix @ [*colour, 1.0]).tolist() == pytest.approx(expected, abs=1e-4)


def test_depth_noise_is_small_unbiased_and_another_in_each_sample() -> None:
    """2 mm, nothing invented where nothing was measured; one pattern for all is a texture to be learned."""
    depth = np.full((100, 100), 5000, np.uint16)
    depth[:10] = 0
    first, second = (disturb_depth(depth, Augmentation(noise_seed=seed)) for seed in (4, 77_777))
    assert not first[:10].any()
    error = (first[10:].astype(float) - 5000) * DEPTH_UNIT_M
    assert error.std() == pytest.approx(DEPTH_NOISE_M, rel=0.05)
    assert abs(error.mean()) < 1e-4
    # 9000 independent pairs: three standard errors of a correlation are 0.032.
    assert abs(np.corrcoef(error.ravel(), second[10:].astype(float).ravel())[0, 1]) < 0.04
    assert (depth[10:] == 5000).all()


def test_an_occluder_stands_at_its_place_before_the_hand() -> None:
    """On a crop of 64 x 128: a quarter to the right, a quarter up; 5 cm before the median of the middle:
    before the hand, and neither the wall beside it nor a stray value.
    """
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64) * 0.05 + [0.25, -0.25]
    change = Augmentation(occluders=(Patch(corners, colour=(10.0, 20.0, 30.0), nearer_m=0.05),))
    rgb, depth = np.zeros((64, 128, 3), np.uint8), np.full((64, 128), round(1.5 / DEPTH_UNIT_M), np.uint16)
    depth[16:48, 32:90], depth[30, 64] = round(0.6 / DEPTH_UNIT_M), round(0.1 / DEPTH_UNIT_M)
    paint_rgb(rgb, change)
    out = disturb_depth(depth, change)
    y, x = np.nonzero(out != depth)
    assert [x.mean(), y.mean()] == pytest.approx([96.0, 16.0], abs=0.6)
    assert out[16, 96] * DEPTH_UNIT_M == pytest.approx(0.55, abs=1e-3)
    assert rgb[16, 96].tolist() == [10, 20, 30]
    assert (rgb.any(2) ^ (out != depth)).mean() < 0.03  # antialiased edges


def test_drawn_shapes_hide_a_part_of_the_depth() -> None:
    """Holes have no distance; drawn occluders stand 15 mm or more before the hand."""
    sure = dataclasses.replace(CONFIG, p_occluder=1.0)
    depth = np.full((128, 96), 5000, np.uint16)
    for drawn in (draw(sure, 0, 0, i) for i in range(40)):
        for kind, nearest in (("occluders", 0.015), ("holes", 5000 * DEPTH_UNIT_M - 1e-9)):
            shapes = getattr(drawn, kind)
            out = disturb_depth(depth, Augmentation(**{kind: shapes}))
            changed = out != depth
            assert (0.002 < changed.mean() < 0.6) == bool(shapes)
            assert ((5000 - out[changed].astype(int)) * DEPTH_UNIT_M > nearest).all()


def test_each_epoch_changes_a_sample_anew(tmp_path: Path) -> None:
    """A data set that does not ask which epoch it is in shows one and the same crops in all of them."""
    write_tree(tmp_path, {"MC1": 8})
    train = dataset_of(run_config(tmp_path))
    first, again, next_epoch = (train.batch([SampleKey(1, epoch)]).crop_from_img for epoch in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.allclose(first, next_epoch)


@pytest.mark.parametrize("p_drop", [0.0, 0.4, 1.0])
def test_depth_is_dropped_as_often_as_asked(p_drop: float) -> None:
    """0 and 1 are exact: they are how a network with or without depth alone is trained (lesson 20).

    Drawn from the stream of rolls, samples without depth would all be rolled one way. A validation shows it,
    or hides it, for every sample, whatever p_drop says.
    """
    shown = np.array([show_depth("train", p_drop, 0, 2, i) for i in range(2000)])
    left = np.array([draw(CONFIG, 0, 2, i).roll_rad for i in range(2000)]) < 0
    for side in (left, ~left):  # 1000 draws a side: three standard errors are below 0.05
        assert shown[side].mean() == pytest.approx(1 - p_drop, abs=0.05 if 0 < p_drop < 1 else 0)
    assert all(show_depth("rgbd", p_drop, 0, 0, i) for i in range(50))
    assert not any(show_depth("rgb", p_drop, 0, 0, i) for i in range(50))
