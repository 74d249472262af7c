"""Augmentation: one draw, the same for everyone, applied to everything."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dataloader.batches.samplers import SampleKey
from dataloader.build import build_dataset
from dataloader.crop import augment
from dataloader.crop.augment import (
    CALM_STRENGTH,
    DEPTH_NOISE_M,
    MAX_SHIFT,
    P_HOLES,
    Augmentation,
    Augmenter,
    calm_from,
    disturb_depth,
    draw,
    epoch_notes,
    paint_rgb,
    show_depth,
)
from src.config import AugmentationConfig
from src.schema import DEPTH_UNIT_M
from tests.dataloader.tree import FanHand, run_config, write_tree

CONFIG = AugmentationConfig()


def test_draws_fill_their_ranges_and_calm_ones_a_quarter_of_them() -> None:
    """A range that is written in the configuration but not reached is a dead key (lesson 20)."""
    augmenter = Augmenter(CONFIG, 0, calm_from=8)
    for epoch, strength in ((7, 1.0), (8, CALM_STRENGTH)):
        changes = [augmenter.draw(epoch, i) for i in range(1500)]
        for values, bound in (
            ([c.roll_rad for c in changes], np.pi),
            ([c.scale - 1 for c in changes], CONFIG.scale),
            ([v for c in changes for v in c.shift], MAX_SHIFT),
        ):
            assert 0.98 * strength * bound < np.max(values) <= strength * bound
            assert -0.98 * strength * bound > np.min(values) >= -strength * bound
            assert abs(np.mean(values)) < 0.1 * strength * bound
        # 1500 draws: three standard errors of a share are below 0.04
        occluded, holed = (
            np.mean([bool(getattr(c, kind)) for c in changes]) for kind in ("occluders", "holes")
        )
        assert occluded == pytest.approx(strength * CONFIG.p_occluder, abs=0.04)
        assert holed == pytest.approx(strength * P_HOLES, abs=0.04)
        assert all(c.noise_seed is not None for c in changes), "the sensor's noise stays"


@pytest.mark.parametrize(
    ("field", "attribute", "plain"),
    [
        ("roll_deg", "roll_rad", 0),
        ("scale", "scale", 1),
        ("p_occluder", "occluders", ()),
        ("colour", "colour_affine", np.eye(3, 4)),
    ],
)
def test_zero_switches_a_change_off(field: str, attribute: str, plain: object) -> None:
    """Each key does what it says (lesson 20)."""
    off = dataclasses.replace(CONFIG, **{field: 0.0})
    for i in range(30):
        np.testing.assert_allclose(getattr(draw(off, 0, 0, i), attribute), plain, atol=1e-7)


def test_depth_noise_has_the_size_it_says() -> None:
    """2 mm of noise, unbiased, nothing invented where nothing was measured."""
    depth = np.full((100, 100), 5000, np.uint16)
    depth[:10] = 0
    out = disturb_depth(depth, Augmentation(noise_seed=4))
    assert (out[:10] == 0).all()
    error = (out[10:].astype(float) - 5000) * DEPTH_UNIT_M
    assert error.std() == pytest.approx(DEPTH_NOISE_M, rel=0.05)
    assert abs(error.mean()) < 1e-4
    assert (depth[10:] == 5000).all()


@pytest.mark.parametrize("kind", ["occluders", "holes"])
def test_shapes_hide_depth(kind: str) -> None:
    """An occluder behind the hand, or in the picture alone, cannot be; a hole has no distance."""
    sure = dataclasses.replace(CONFIG, p_occluder=1.0)
    for i in range(40):
        drawn = draw(sure, 0, 0, i)
        shapes = tuple(dataclasses.replace(shape, colour=(200.0,) * 3) for shape in getattr(drawn, kind))
        change = Augmentation(**{kind: shapes})
        rgb, depth = np.zeros((128, 96, 3), np.uint8), np.full((128, 96), 5000, np.uint16)
        paint_rgb(rgb, change)
        out = disturb_depth(depth, change)
        changed = out != depth
        assert (0.002 < changed.mean() < 0.6) == bool(shapes)
        if kind == "holes":
            assert not rgb.any()
            assert not out[changed].any()
        else:
            assert ((rgb[..., 0] > 0) ^ changed).mean() < 0.03  # antialiased edges
            assert ((5000 - out[changed].astype(int)) * DEPTH_UNIT_M > 0.015).all()


def test_the_last_epochs_are_calm_and_the_log_says_so() -> None:
    """A loss that jumps between two epochs is looked for in the model if nothing says what changed."""
    # 1.6 and 2.4 epochs of ten: whole epochs, rounded.
    shares = (0.0, 0.16, 0.24, 1.0)
    assert [calm_from(AugmentationConfig(calm_share=share), 10) for share in shares] == [10, 8, 8, 0]
    config = dataclasses.replace(CONFIG, calm_share=0.25)
    assert [len(epoch_notes(config, epoch, 4)) for epoch in range(4)] == [0, 0, 0, 1]
    assert "Epoch 3 of 4 is calm" in epoch_notes(config, 3, 4)[0]
    for silent in (dataclasses.replace(config, enabled=False), CONFIG):
        assert not any(epoch_notes(silent, epoch, 2) for epoch in range(2))


def test_a_sample_of_a_calm_epoch_is_calm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set must ask which epoch it is in."""
    monkeypatch.setattr(augment, "CALM_STRENGTH", 0.0)
    write_tree(tmp_path, {"MC1": 8})
    config = run_config(tmp_path, training={"num_epochs": 5}, augmentation={"calm_share": 0.2})
    train = build_dataset(config, "train", FanHand(), show_progress=False)  # type: ignore[arg-type]
    plain = train.view(modality="train", augmented=False)
    for epoch, same in ((3, False), (4, True)):
        a, b = train.batch([SampleKey(1, epoch)]), plain.batch([SampleKey(1, epoch)])
        assert np.array_equal(a.crop_from_img, b.crop_from_img) == same


@pytest.mark.parametrize("p_drop", [0.0, 0.25, 0.4, 1.0])
def test_depth_is_dropped_as_often_as_asked(p_drop: float) -> None:
    """0 and 1 are exact: they are how a network with or without depth alone is trained (lesson 20).

    A validation shows it, or hides it, for every sample, whatever p_drop says.
    """
    shown = [show_depth("train", p_drop, 0, 3, i) for i in range(2000)]
    # 2000 draws: three standard errors are below 0.035
    assert np.mean(shown) == pytest.approx(1 - p_drop, abs=0.035 if 0 < p_drop < 1 else 0)
    assert all(show_depth("rgbd", p_drop, 0, 0, i) for i in range(50))
    assert not any(show_depth("rgb", p_drop, 0, 0, i) for i in range(50))
