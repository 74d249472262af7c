"""What the crop cache holds of a picture: all that any allowed crop can depend on, and little more."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from dataloader.cache.window import Geometry, geometry_of, reach
from dataloader.crop.augment import Augmentation, draw
from dataloader.crop.camera import Window, crop_camera, footprint, warp_depth, warp_rgb
from src.config import AugmentationConfig, DatasetConfig, ModelConfig, RunConfig

PICTURE = (480, 640)
HANDS = 60
SIZES = ((128, 128), (256, 192), (64, 160))


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


def clipped(window: np.ndarray) -> Window:
    """Inside the picture."""
    x0, y0, x1, y1 = np.clip(window, 0, [PICTURE[1], PICTURE[0]] * 2).tolist()
    return Window(x0, y0, x1, y1)


def extremes(change: AugmentationConfig) -> list[Augmentation]:
    """The corners of the ranges, and rolls all around."""
    rolls = np.radians(np.linspace(-change.roll_deg, change.roll_deg, 23))
    shifts = list(itertools.product((-change.shift, 0.0, 0.6 * change.shift, change.shift), repeat=2))
    return [Augmentation(float(roll), 1 + change.scale, shift) for roll in rolls for shift in shifts]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("box_scale", "ranges"),
    [
        (1.6, {}),
        (1.0, {"roll_deg": 20.0, "scale": 0.3, "shift": 0.3}),
        (2.4, {"roll_deg": 95.0, "scale": 0.0, "shift": 0.5}),
        (1.6, {"roll_deg": 0.0, "scale": 0.0, "shift": 0.0}),
    ],
)
def test_no_crop_looks_outside_its_window(
    size: tuple[int, int], box_scale: float, ranges: dict[str, float]
) -> None:
    """Outside, there is nothing to read: a run would stop at the one draw in a million that gets there."""
    config = config_of(size, box_scale, **ranges)
    change = config.augmentation
    intrinsics, boxes = hands(size[1])
    windows = reach(intrinsics, boxes, geometry_of(config, "train"))
    random = [draw(change, 3, 0, i) for i in range(12 * HANDS)]
    for k in range(HANDS):
        window = clipped(windows[k])
        for moved in [*extremes(change), *random[k::HANDS]]:
            camera = crop_camera(intrinsics[k], boxes[k], size, box_scale, moved)
            seen = footprint(camera, PICTURE)
            if seen.x0 < seen.x1 and seen.y0 < seen.y1:
                assert window.contains(seen), (k, moved)


@pytest.mark.parametrize("size", [(112, 128), (128, 128), (256, 192)])
def test_no_roll_between_two_tried_ones_looks_outside(size: tuple[int, int]) -> None:
    """A hand that fills a large picture: corners of a crop swing out between the rolls that are tried."""
    config = config_of(size, shift=0.0)
    picture = (6000, 6000)
    intrinsics = np.array([[[4000.0, 0, 3000], [0, 4000.0, 3000], [0, 0, 1]]])
    box = np.array([[2000.0, 2000, 4000, 4000]])
    x0, y0, x1, y1 = reach(intrinsics, box, geometry_of(config, "train"))[0].tolist()
    for roll in np.radians(np.linspace(-180, 180, 721)):
        moved = Augmentation(float(roll), 1 + config.augmentation.scale)
        seen = footprint(crop_camera(intrinsics[0], box[0], size, 1.6, moved), picture)
        assert Window(x0, y0, x1, y1).contains(seen), f"{np.degrees(roll):.1f} degrees"


@pytest.mark.parametrize("size", SIZES)
def test_a_crop_depends_on_its_footprint_alone(size: tuple[int, int]) -> None:
    """A footprint that is too tight would give black where the cache ends, and other bytes than decoding."""
    intrinsics, boxes = hands(7)
    config = config_of(size)
    inside = np.random.default_rng(0).integers(1, 255, (*PICTURE, 3), np.uint8)
    for k in range(HANDS):
        camera = crop_camera(intrinsics[k], boxes[k], size, 1.6, draw(config.augmentation, 0, 0, k))
        window = footprint(camera, PICTURE)
        if not (window.x0 < window.x1 and window.y0 < window.y1):
            continue
        other = 255 - inside  # another picture everywhere but in the footprint
        rows, columns = slice(window.y0, window.y1), slice(window.x0, window.x1)
        other[rows, columns] = inside[rows, columns]
        whole = Window(0, 0, PICTURE[1], PICTURE[0])
        assert np.array_equal(warp_rgb(inside, camera, whole), warp_rgb(other, camera, whole))
        a, b = (picture[..., 0].astype(np.uint16) for picture in (inside, other))
        assert np.array_equal(warp_depth(a, camera, whole), warp_depth(b, camera, whole))
        # Cut out, the same picture: up to the resampler's rounding, and black borders where they were.
        piece = np.ascontiguousarray(inside[rows, columns])
        difference = warp_rgb(piece, camera, window).astype(int) - warp_rgb(inside, camera, whole)
        assert (np.abs(difference) > 2).mean() < 0.001
        assert np.array_equal(
            warp_rgb(inside[rows, columns], camera, window), warp_rgb(piece, camera, window)
        )


def test_windows_are_not_wasteful() -> None:
    """A window of twice the needed side costs four times the disk."""
    config = config_of((128, 128))
    intrinsics = np.array([[[615.0, 0, 320], [0, 615, 240], [0, 0, 1]]])
    box = np.array([[260.0, 190.0, 380.0, 290.0]])
    (window,) = reach(intrinsics, box, geometry_of(config, "train"))
    need = 120 * (1.6 * 1.15 * np.sqrt(2) + 2 * 0.1)  # the diagonal of the largest crop, and the shift
    assert need < window[2] - window[0] < 1.04 * need + 8
    (window,) = reach(intrinsics, box, geometry_of(config, "evaluation"))
    assert 120 * 1.6 < window[2] - window[0] < 120 * 1.6 + 12


def test_hands_that_no_crop_can_show_get_the_largest_window() -> None:
    """The loader says what is wrong with them; the cache must not stumble before."""
    intrinsics, boxes = hands(1)
    boxes[0], boxes[1] = np.nan, [-9000.0, -9000, 9000, 9000]
    windows = reach(intrinsics, boxes, geometry_of(config_of((128, 128)), "train"))
    assert (windows[:2] == [-(10**6), -(10**6), 10**6, 10**6]).all()
    assert np.array_equal(
        windows[2:], reach(intrinsics[2:], boxes[2:], geometry_of(config_of((128, 128)), "train"))
    )


def test_covers_is_what_reach_says() -> None:
    """A cache that is reused must hold what a new one would."""
    intrinsics, boxes = hands(2)
    rng = np.random.default_rng(5)
    made = []
    for _ in range(40):
        half = rng.uniform(0.5, 2.0, 2)
        roll = float(rng.choice([0.0, 30.0, 90.0, 180.0]))
        made.append(Geometry(float(half[0]), float(half[1]), roll, float(rng.choice([0.0, 0.1, 0.3]))))
    windows = [reach(intrinsics, boxes, geometry) for geometry in made]
    covered = 0
    for a, b in itertools.permutations(range(40), 2):
        if made[a].covers(made[b]):
            covered += 1
            # Outlines of partial rolls are rounded outwards: a pixel of slack, which MARGIN_PX has.
            assert (windows[a][:, :2] <= windows[b][:, :2] + 1).all()
            assert (windows[a][:, 2:] >= windows[b][:, 2:] - 1).all()
    assert covered > 50
    wide = Geometry(1.0, 1.0, 180.0, 0.1)
    assert wide.covers(dataclasses.replace(wide, half_height=0.9, half_width=0.7))
    assert not wide.covers(dataclasses.replace(wide, half_height=1.2))
    assert not dataclasses.replace(wide, roll_deg=30.0).covers(wide)
    assert not wide.covers(dataclasses.replace(wide, shift=0.2))
