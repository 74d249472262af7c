"""Augmentation: one draw, the same for everyone, applied to everything."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dataloader.batches.samplers import SampleKey
from dataloader.build import build_dataset
from dataloader.crop.augment import (
    UNCHANGED,
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


def numbers(change: Augmentation) -> tuple[object, ...]:
    """Everything that was drawn, comparable."""
    patches = [(p.corners_unit.tolist(), p.colour, p.nearer_m) for p in (*change.occluders, *change.holes)]
    return change.roll_rad, change.scale, change.shift, change.colour().tolist(), patches, change.noise_seed


def test_a_draw_depends_on_seed_epoch_and_sample_alone() -> None:
    """Runs with other worker or rank counts must be the same run."""
    first = numbers(draw(CONFIG, 0, 3, 17))
    draw(CONFIG, 0, 3, 18)
    np.random.seed(5)  # noqa: NPY002 - must not matter
    assert numbers(draw(CONFIG, 0, 3, 17)) == first
    others = [draw(CONFIG, 1, 3, 17), draw(CONFIG, 0, 4, 17), draw(CONFIG, 0, 3, 16)]
    assert len({other.roll_rad for other in others} | {first[0]}) == 4


def test_draws_fill_their_ranges_and_no_more() -> None:
    """A range that is written in the configuration but not reached is a dead key (lesson 20)."""
    changes = [draw(CONFIG, 0, 0, i) for i in range(1500)]
    for values, bound in (
        ([c.roll_rad for c in changes], np.pi),
        ([c.scale - 1 for c in changes], CONFIG.scale),
        ([v for c in changes for v in c.shift], CONFIG.shift),
    ):
        assert np.abs(values).max() <= bound
        assert np.max(values) > 0.98 * bound
        assert np.min(values) < -0.98 * bound
        assert abs(np.mean(values)) < 0.1 * bound
    # 1500 draws: three standard errors of a share are below 0.04
    assert np.mean([bool(c.occluders) for c in changes]) == pytest.approx(CONFIG.p_occluder, abs=0.04)
    assert np.mean([bool(c.holes) for c in changes]) == pytest.approx(CONFIG.p_depth_holes, abs=0.04)


@pytest.mark.parametrize(
    ("field", "attribute"),
    [
        ("roll_deg", "roll_rad"),
        ("shift", "shift"),
        ("p_occluder", "occluders"),
        ("p_depth_holes", "holes"),
        ("depth_noise_m", "depth_noise_m"),
    ],
)
def test_zero_switches_a_change_off(field: str, attribute: str) -> None:
    """Each key does what it says (lesson 20)."""
    off = dataclasses.replace(CONFIG, **{field: 0.0})
    for i in range(30):
        assert not np.any(getattr(draw(off, 0, 0, i), attribute))


def test_disabled_is_unchanged() -> None:
    """`augmentation.enabled: false` shows samples as validation sees them."""
    assert draw(dataclasses.replace(CONFIG, enabled=False), 0, 0, 0) is UNCHANGED
    rgb, depth = np.full((8, 8, 3), 7, np.uint8), np.full((8, 8), 9, np.uint16)
    paint_rgb(rgb, UNCHANGED)
    assert (rgb == 7).all()
    assert (disturb_depth(depth, UNCHANGED) == 9).all()
    assert np.array_equal(UNCHANGED.colour(), np.eye(3, 4))


def test_colour_strength_zero_is_identity_and_grey_stays_mild() -> None:
    """The matrix acts on [0, 1]; written for 0..255 it would bleach every picture."""
    np.testing.assert_allclose(
        draw(dataclasses.replace(CONFIG, colour=0.0), 0, 0, 0).colour(), np.eye(3, 4), atol=1e-7
    )
    grey = np.array([0.5, 0.5, 0.5, 1.0])
    values = np.stack([draw(CONFIG, 0, 0, i).colour() @ grey for i in range(300)])
    assert 0.15 < values.min() < 0.4
    assert 0.6 < values.max() < 0.85


def test_depth_noise_has_the_size_it_says() -> None:
    """2 mm of noise, unbiased, nothing invented where nothing was measured."""
    depth = np.full((100, 100), 5000, np.uint16)
    depth[:10] = 0
    out = disturb_depth(depth, Augmentation(depth_noise_m=0.002, noise_seed=4))
    assert (out[:10] == 0).all()
    error = (out[10:].astype(float) - 5000) * DEPTH_UNIT_M
    assert error.std() == pytest.approx(0.002, rel=0.05)
    assert abs(error.mean()) < 1e-4
    again = disturb_depth(depth, Augmentation(depth_noise_m=0.002, noise_seed=4))
    assert np.array_equal(out, again)
    assert (depth[10:] == 5000).all()


def test_occluders_hide_picture_and_stand_in_front() -> None:
    """An occluder behind the hand, or in the picture alone, is a thing that cannot be."""
    config = dataclasses.replace(CONFIG, p_occluder=1.0, p_depth_holes=0.0, depth_noise_m=0.0)
    for i in range(40):
        change = draw(config, 0, 0, i)
        rgb, depth = np.zeros((128, 96, 3), np.uint8), np.full((128, 96), 5000, np.uint16)
        change = dataclasses.replace(
            change,
            occluders=tuple(dataclasses.replace(p, colour=(200.0, 200.0, 200.0)) for p in change.occluders),
        )
        paint_rgb(rgb, change)
        out = disturb_depth(depth, change)
        changed = out != depth
        painted = rgb[..., 0] > 0
        assert 0.002 < changed.mean() < 0.6
        assert (painted ^ changed).mean() < 0.03  # antialiased edges
        assert ((5000 - out[changed].astype(int)) * DEPTH_UNIT_M > 0.015).all()


def test_holes_remove_depth() -> None:
    """A sensor leaves zeros, not a distance."""
    config = dataclasses.replace(CONFIG, p_occluder=0.0, p_depth_holes=1.0, depth_noise_m=0.0)
    depth = np.full((128, 96), 5000, np.uint16)
    for i in range(40):
        out = disturb_depth(depth, draw(config, 0, 0, i))
        assert set(np.unique(out)) <= {0, 5000}
    assert any((disturb_depth(depth, draw(config, 0, 0, i)) == 0).any() for i in range(5))


def test_the_last_epochs_are_calm() -> None:
    """A key that moved nothing would be believed; one that calmed the whole run would take its variety."""
    config = dataclasses.replace(CONFIG, calm_share=0.2)
    assert [calm_from(config, n) for n in (10, 4)] == [8, 3]
    assert calm_from(CONFIG, 4) == 4, "no calm epoch unless asked for"
    # 1.5 and 2.5 epochs of 15 and 25 tenths: whole epochs, rounded.
    assert [calm_from(AugmentationConfig(calm_share=s), 10) for s in (0.0, 0.16, 0.24, 1.0)] == [10, 8, 8, 0]
    augmenter = Augmenter(config, 0, 8)
    before, after = ([augmenter.draw(epoch, i) for i in range(400)] for epoch in (7, 8))
    for field in ("roll_rad", "shift"):
        wide, calm = (np.abs([getattr(c, field) for c in part]).max() for part in (before, after))
        assert calm == pytest.approx(wide * config.calm_strength, rel=0.03)
    assert max(abs(c.scale - 1) for c in after) <= config.scale * config.calm_strength
    for field in ("occluders", "holes"):
        wide, calm = (np.mean([bool(getattr(c, field)) for c in part]) for part in (before, after))
        assert calm == pytest.approx(wide * config.calm_strength, abs=0.07)
    assert after[0].depth_noise_m == before[0].depth_noise_m


def test_the_log_says_what_an_epoch_shows() -> None:
    """A loss that jumps between two epochs is looked for in the model if nothing says what changed."""
    config = dataclasses.replace(CONFIG, calm_share=0.25)
    assert [len(epoch_notes(config, e, 4)) for e in range(4)] == [0, 0, 0, 1]
    assert "Epoch 3 of 4 is calm" in epoch_notes(config, 3, 4)[0]
    for silent in (dataclasses.replace(config, enabled=False), CONFIG):
        assert not any(epoch_notes(silent, e, 2) for e in range(2))


def test_a_sample_of_a_calm_epoch_is_calm(tmp_path: Path) -> None:
    """The data set must ask which epoch it is in."""
    write_tree(tmp_path, {"MC1": 8})
    config = run_config(
        tmp_path, training={"num_epochs": 5}, augmentation={"calm_share": 0.2, "calm_strength": 0.0}
    )
    train = build_dataset(config, "train", FanHand(), show_progress=False)  # type: ignore[arg-type]
    plain = train.view(modality="train", augmented=False)
    for epoch, same in ((3, False), (4, True)):
        a, b = train.batch([SampleKey(1, epoch)]), plain.batch([SampleKey(1, epoch)])
        assert np.array_equal(a.crop_from_img, b.crop_from_img) == same


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
