"""Another frame's surroundings behind the hand: a network must not tell the motion by its room."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dataloader.augment import BEHIND_M, draw, exchange_background
from dataloader.ho3d_dataset import HO3DDataset
from dataloader.samplers import SampleKey
from src.config import AugmentationConfig
from src.hand.mano import ManoLayer
from src.render.rasterizer import rasterize
from src.schema import DEPTH_UNIT_M
from tests.dataloader.posed import write_posed_hands
from tests.dataloader.tree import SIZE, run_config, write_pictures

FRAMES = 8
SKIN = 230
OFF = {"colour": 0.0, "p_occluder": 0.0, "p_depth_holes": 0.0, "depth_noise_m": 0.0}


def wall(number: int) -> int:
    """Grey of the wall behind hand `number`; its distance tells it as well."""
    return 20 + 30 * number


@pytest.fixture(scope="module")
def rooms(standin: ManoLayer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, int]]:
    """Hands of one colour, each before a wall of its own grey; and the depth of each grey."""
    root = tmp_path_factory.mktemp("rooms")
    depth_of = {}
    for number, (key, hand) in enumerate(write_posed_hands(root, standin, FRAMES).items()):
        vertices = hand.vertices_m @ np.diag([1.0, -1.0, -1.0])
        seen = rasterize(vertices, standin.faces.numpy(), hand.intrinsics, SIZE[1], SIZE[0])
        depth_of[wall(number)] = round((1.5 + 0.1 * number) / DEPTH_UNIT_M)
        depth = np.full(SIZE[0] * SIZE[1], depth_of[wall(number)], np.uint16)
        rgb = np.full((SIZE[0] * SIZE[1], 3), wall(number), np.uint8)
        depth[seen.pixel], rgb[seen.pixel] = np.rint(seen.depth_m / DEPTH_UNIT_M), SKIN
        write_pictures(root / "train/MC1", key[-4:], rgb.reshape(*SIZE, 3), depth.reshape(SIZE))
    return root, depth_of


def opened(root: Path, hand: ManoLayer, p_background: float, **dataset: object) -> HO3DDataset:
    """The training split, shown with depth."""
    config = run_config(root, split={"val_percent": 12}, augmentation=OFF | {"p_background": p_background})
    config = dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, **dataset))
    return HO3DDataset(config, "train", hand, show_progress=False).view(modality="rgbd", augmented=True)


def test_what_lies_far_behind_the_hand_is_another_frames(
    standin: ManoLayer, rooms: tuple[Path, dict[int, int]]
) -> None:
    """Half a swap, picture without depth, would teach that rooms contradict their depth."""
    root, depth_of = rooms
    own, other = opened(root, standin, 0.0), opened(root, standin, 1.0)
    walls = set()
    for key in [SampleKey(i, e) for i in range(len(own)) for e in range(5)]:
        before, after = own.raw(key), other.raw(key)
        for name in ("joints_cam_m", "hand_pose", "root_cam_m", "crop_from_img", "colour_affine"):
            assert np.array_equal(getattr(before, name), getattr(after, name))
        changed = (before.depth_u16 != after.depth_u16) | (before.rgb_u8 != after.rgb_u8).any(-1)
        far_m = before.depth_u16 * DEPTH_UNIT_M
        limit_m = far_m[changed].min() if changed.any() else np.inf
        assert limit_m > 0.3 + BEHIND_M  # hands stand nearer
        # A pixel of the plain wall, seen whole, is one room's or another's, in grey and distance alike.
        grey, depth = after.rgb_u8[..., 0], after.depth_u16
        for value, distance in depth_of.items():
            plain = changed & (depth == distance)
            mixed = np.abs(grey[plain].astype(int) - value) > 1
            assert mixed.mean() < 0.05 if plain.sum() > 100 else True  # edges of the other hand
            if plain.sum() > 500:
                walls.add(value)
    assert len(walls) >= 4


def test_hand_and_what_it_holds_stay(standin: ManoLayer, rooms: tuple[Path, dict[int, int]]) -> None:
    """Skin cut away, or another's skin pasted behind, would be a hand that the label does not have."""
    root, _ = rooms
    own, other = opened(root, standin, 0.0), opened(root, standin, 1.0)
    for key in [SampleKey(i, e) for i in range(len(own)) for e in range(5)]:
        before, after = own.raw(key), other.raw(key)
        hand = before.depth_u16 * DEPTH_UNIT_M < 1.4
        assert hand.any()
        assert np.array_equal(hand, after.depth_u16 * DEPTH_UNIT_M < 1.4)
        assert np.array_equal(before.rgb_u8[hand], after.rgb_u8[hand])
        assert np.array_equal(before.depth_u16[hand], after.depth_u16[hand])


def test_near_and_unmeasured_pixels_stay() -> None:
    """A hole in the depth may hide the hand; what stands next to it may be held."""
    limit = round((0.5 + BEHIND_M) / DEPTH_UNIT_M)
    depth = np.array([[0, 10, limit, limit + 1, limit + 1, limit + 1]], np.uint16)
    behind = np.array([[9000, 9000, 9000, 0, limit, 9000]], np.uint16)
    rgb, others = np.zeros((1, 6, 3), np.uint8), np.full((1, 6, 3), 7, np.uint8)
    exchange_background(rgb, depth, others, behind, 0.5, 0.4)
    assert rgb[0, :, 0].tolist() == [0, 0, 0, 0, 0, 7]
    assert depth[0].tolist() == [0, 10, limit, limit + 1, limit + 1, 9000]
    exchange_background(rgb, depth, others * 2, behind, 0.5, 9000 * DEPTH_UNIT_M - BEHIND_M)
    assert rgb.max() == 7  # the other hand itself stands there


def test_the_picture_does_not_depend_on_whether_depth_is_shown(
    standin: ManoLayer, rooms: tuple[Path, dict[int, int]]
) -> None:
    """RGB-only samples know motions by their rooms as well; what is drawn must not follow the modality."""
    seen = opened(rooms[0], standin, 1.0)
    dropped = opened(rooms[0], standin, 1.0, p_drop_depth=1.0).view(modality="train", augmented=True)
    for key in [SampleKey(i, 1) for i in range(len(seen))]:
        with_depth, without = seen.raw(key), dropped.raw(key)
        assert np.array_equal(with_depth.rgb_u8, without.rgb_u8)
        assert not without.depth_present
        assert not without.depth_u16.any()
        assert with_depth.depth_u16.any()


def test_the_cache_shows_the_same(standin: ManoLayer, rooms: tuple[Path, dict[int, int]]) -> None:
    """The other frame's crop must fit into what the cache holds of it."""
    plain, cached = opened(rooms[0], standin, 1.0), opened(rooms[0], standin, 1.0, cache="auto")
    keys = [SampleKey(i, e) for i in range(len(plain)) for e in range(8)]
    for a, b in zip(plain.raws(keys), cached.raws(keys), strict=True):
        for field in dataclasses.fields(a):
            assert np.array_equal(getattr(a, field.name), getattr(b, field.name)), field.name


def test_frames_are_drawn_from_all_over_the_split() -> None:
    """p_background is a share of samples, and drawing it moves no other draw."""
    config = AugmentationConfig(p_background=0.3)
    places = [draw(config, 0, 0, i).background for i in range(1500)]
    taken = [place for place in places if place is not None]
    assert len(taken) / 1500 == pytest.approx(0.3, abs=0.04)
    assert min(taken) < 0.02
    assert 0.98 < max(taken) < 1
    without, with_it = draw(AugmentationConfig(), 3, 1, 4), draw(AugmentationConfig(p_background=1), 3, 1, 4)
    assert (without.roll_rad, without.shift, without.noise_seed) == (
        with_it.roll_rad,
        with_it.shift,
        with_it.noise_seed,
    )
    assert without.background is None
