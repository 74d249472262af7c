"""What the crop cache holds of a picture: all that any allowed crop can depend on, and little more."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from dataloader.cache import window
from dataloader.cache.window import Geometry, geometry_of, reach
from dataloader.crop.augment import MAX_SHIFT, SIDES, Augmentation, draw
from dataloader.crop.camera import Window, crop_camera, footprint, warp_depth, warp_rgb
from src.config import AugmentationConfig, DatasetConfig, ModelConfig, RunConfig

PICTURE = (480, 640)
WHOLE = Window(0, 0, PICTURE[1], PICTURE[0])
HANDS = 25
SIZES = ((256, 192), (64, 160))


def config_of(size: tuple[int, int], box_scale: float = 1.6, **augmentation: object) -> RunConfig:
    """Crop and augmentation of a run."""
    return RunConfig(
        dataset=DatasetConfig(box_scale=box_scale),
        model=ModelConfig(image_size=size),
        augmentation=AugmentationConfig(**augmentation),  # type: ignore[arg-type]
    )


def hands(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """K and boxes of hands everywhere in, and half out of, pictures of different cameras."""
    rng = np.random.default_rng(seed)
    intrinsics = np.zeros((HANDS, 3, 3))
    intrinsics[:, 0, 0] = rng.uniform(430, 900, HANDS)
    intrinsics[:, 1, 1] = intrinsics[:, 0, 0] * rng.uniform(0.97, 1.03, HANDS)
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = rng.uniform(280, 360, HANDS), rng.uniform(210, 270, HANDS)
    intrinsics[:, 2, 2] = 1
    centre, extent = rng.uniform([-20, -20], [660, 500], (HANDS, 2)), rng.uniform(15, 260, (HANDS, 2))
    return intrinsics, np.concatenate([centre - extent / 2, centre + extent / 2], 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("box_scale", "roll", "scale", "shift"),
    [(1.6, 180.0, max(SIDES), MAX_SHIFT), (1.0, 20.0, 1.3, 0.3), (2.4, 95.0, 1.0, 0.5), (1.6, 0.0, 1.0, 0.0)],
)
def test_no_crop_looks_outside_its_window(
    size: tuple[int, int],
    box_scale: float,
    roll: float,
    scale: float,
    shift: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Outside, there is nothing to read: a run would stop at the one draw in a million that gets there."""
    monkeypatch.setattr(window, "SIDES", (1.0, scale))
    config = config_of(size, box_scale, roll_deg=roll)
    geometry = dataclasses.replace(geometry_of(config, "train"), shift=shift)
    intrinsics, boxes = hands(size[1])
    windows = np.clip(reach(intrinsics, boxes, geometry), 0, [PICTURE[1], PICTURE[0]] * 2)
    rolls = np.radians(np.linspace(-roll, roll, 23)).tolist()
    shifts = list(itertools.product((-shift, 0.0, 0.6 * shift, shift), repeat=2))
    changes = [Augmentation(turn, scale, place) for turn in rolls for place in shifts]
    if shift == MAX_SHIFT:
        changes += [draw(config.augmentation, 3, 0, i) for i in range(12)]
    for k, change in itertools.product(range(HANDS), changes):
        seen = footprint(crop_camera(intrinsics[k], boxes[k], size, box_scale, change), PICTURE)
        if seen.x0 < seen.x1 and seen.y0 < seen.y1:
            assert Window(*windows[k].tolist()).contains(seen), (k, change)


@pytest.mark.parametrize("size", SIZES)
def test_a_crop_depends_on_its_footprint_alone(size: tuple[int, int]) -> None:
    """A footprint that is too tight gives black at the border of a crop, with a cache and without."""
    intrinsics, boxes = hands(7)
    inside = np.random.default_rng(0).integers(1, 255, (*PICTURE, 3), np.uint8)
    for k in range(HANDS):
        camera = crop_camera(intrinsics[k], boxes[k], size, 1.6, draw(AugmentationConfig(), 0, 0, k))
        window = footprint(camera, PICTURE)
        if not (window.x0 < window.x1 and window.y0 < window.y1):
            continue
        cut = slice(window.y0, window.y1), slice(window.x0, window.x1)
        other = 255 - inside  # another picture everywhere but in the footprint
        other[cut] = inside[cut]
        assert np.array_equal(warp_rgb(inside, camera, WHOLE), warp_rgb(other, camera, WHOLE))
        a, b = (picture[..., 0].astype(np.uint16) for picture in (inside, other))
        assert np.array_equal(warp_depth(a, camera, WHOLE), warp_depth(b, camera, WHOLE))
        # Cut out, the same picture: up to the resampler's rounding, and black borders where they were.
        piece = warp_rgb(inside[cut], camera, window)
        assert (np.abs(piece.astype(int) - warp_rgb(inside, camera, WHOLE)) > 2).mean() < 0.001


def test_windows_are_not_wasteful() -> None:
    """A window of twice the needed side costs four times the disk."""
    config = config_of((128, 128))
    intrinsics = np.array([[[615.0, 0, 320], [0, 615, 240], [0, 0, 1]]])
    box = np.array([[260.0, 190.0, 380.0, 290.0]])
    (held,) = reach(intrinsics, box, geometry_of(config, "train"))
    need = 120 * (
        1.6 * max(SIDES) * np.sqrt(2) + 2 * MAX_SHIFT
    )  # the diagonal of the largest crop, and the shift
    assert need < held[2] - held[0] < 1.04 * need + 8
    (held,) = reach(intrinsics, box, geometry_of(config, "evaluation"))
    assert 120 * 1.6 < held[2] - held[0] < 120 * 1.6 + 12


def test_covers_is_what_reach_says() -> None:
    """A cache that is reused must hold what a new one would."""
    intrinsics, boxes = hands(2)
    wide = Geometry(1.0, 1.0, 180.0, 0.1)
    made = [wide, Geometry(0.9, 0.7, 180.0, 0.1), Geometry(0.8, 0.7, 30.0, 0.0), Geometry(0.8, 0.7, 0.0, 0.0)]
    windows = [reach(intrinsics, boxes, geometry) for geometry in made]
    for (a, larger), (b, smaller) in itertools.combinations(enumerate(made), 2):
        assert larger.covers(smaller)
        # Outlines of partial rolls are rounded outwards: a pixel of slack, which MARGIN_PX has.
        assert (windows[a][:, :2] <= windows[b][:, :2] + 1).all()
        assert (windows[a][:, 2:] >= windows[b][:, 2:] - 1).all()
    for farther in ({"half_height": 1.2}, {"half_width": 1.2}, {"shift": 0.2}):
        assert not wide.covers(dataclasses.replace(wide, **farther))
    assert not dataclasses.replace(wide, roll_deg=30.0).covers(wide)
