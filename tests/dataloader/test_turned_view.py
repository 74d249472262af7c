"""Turned scenes: picture, depth and labels go round the hand together, from measured depth alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from dataloader.batches.collate import collate
from dataloader.batches.samplers import SampleKey
from dataloader.crop.augment import draw, in_epoch, widest
from dataloader.crop.camera import crop_camera, footprint, warp_depth, warp_rgb
from dataloader.crop.prepare import prepare
from dataloader.crop.turned_view import View, turned_crop
from dataloader.ho3d_dataset import HO3DDataset
from dataloader.pictures import decode
from src.config import AugmentationConfig
from src.hand.mano import ManoLayer
from src.render.rasterizer import rasterize
from src.schema import DEPTH_CLIP, DEPTH_RANGE_M, DEPTH_UNIT_M
from tests.dataloader.posed import NO_PIXEL_CHANGE, write_rendered_hands
from tests.dataloader.tree import FanHand, run_config, write_pictures, write_tree

TURNED = {**NO_PIXEL_CHANGE, "view_deg": 20.0}


@pytest.fixture(scope="module")
def root(standin: ManoLayer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 rendered hands before a wall, exact depth."""
    folder = tmp_path_factory.mktemp("turned")
    write_rendered_hands(folder, standin, 9)
    return folder


def dataset_of(root: Path, hand: Any, modality: Any = "rgbd", **changes: Any) -> HO3DDataset:
    """The 8 training hands, turned; `changes` replace fields of augmentation."""
    config = run_config(
        root, image_size=(256, 192), split={"val_percent": 12}, augmentation={**TURNED, **changes}
    )
    return HO3DDataset(config, "train", hand, show_progress=False).view(modality=modality, augmented=True)


def test_the_turned_labels_stand_on_the_turned_depth(standin: ManoLayer, root: Path) -> None:
    """A hand turned the other way than its labels teaches what is never true (lessons 1, 4, 18).

    The hand decoded from the turned labels is drawn with the crop camera: its depth is the measured one, its
    outline the painted one. What the turn uncovers is missing there; no hand may appear where none is.
    """
    dataset = dataset_of(root, standin)
    keys = [SampleKey(i, e) for i in range(len(dataset)) for e in range(4)]
    batch = prepare(collate(dataset.raws(keys)))
    still = prepare(collate(dataset_of(root, standin, view_deg=0.0).raws(keys)))
    angle = torch.linalg.matrix_norm(batch.global_orient - still.global_orient)
    assert float(angle.max()) > np.radians(15)
    with torch.no_grad():
        posed = standin(batch.global_orient, batch.hand_pose, batch.betas, batch.translation_m)
    np.testing.assert_allclose(posed.joints_m, batch.joints_cam_m, atol=2e-5)
    errors, invented, missing = [], [], []
    for b in range(batch.size):
        sample = batch.row(b)
        k = sample.intrinsics_crop_px.double().numpy()
        seen = rasterize(posed.vertices_m[b].double().numpy(), standin.faces.numpy(), k, 192, 256)
        drawn = np.full((256, 192), np.nan)
        drawn.reshape(-1)[seen.pixel] = seen.depth_m
        measured = (sample.depth[0] * DEPTH_RANGE_M + sample.z_ref_m).double().numpy()
        inside = (sample.depth[0].abs().numpy() < DEPTH_CLIP) & (sample.depth_valid[0].numpy() > 0)
        both = np.isfinite(drawn) & inside
        assert both.sum() > 400
        errors.append(np.abs(measured - drawn)[both])
        skin = sample.rgb[0].numpy() > 0
        hand = np.isfinite(drawn)
        invented.append((skin & ~hand).sum() / hand.sum())
        missing.append((hand & ~skin).sum() / hand.sum())
    error = np.concatenate(errors)
    assert np.median(error) < 1e-3
    assert np.percentile(error, 85) < 4e-3
    assert np.median(invented) < 0.03
    assert max(invented) < 0.15
    assert np.median(missing) < 0.12


def test_a_turn_by_nothing_is_the_plain_crop(root: Path, standin: ManoLayer) -> None:
    """The projection into the depth buffer and back must not move, blur or invent a pixel."""
    dataset = dataset_of(root, standin)
    labels = dataset.labels(np.array([2])).row(0)
    frame = decode.PictureFrame(dataset._path(2, "rgb"), dataset._path(2, "depth"))
    camera = crop_camera(labels.intrinsics_img_px[0].astype(np.float64), labels.box_px[0], (256, 192), 1.5)
    window = footprint(camera, frame.size)
    rgb, depth = frame.rgb(window), frame.depth(window)
    still = View(np.eye(3), labels.joints_cam_m[0].mean(0).astype(np.float64))
    turned = turned_crop(rgb, depth, window, camera, camera, still)
    assert turned is not None
    turned_rgb, turned_depth = turned
    plain_rgb, plain_depth = warp_rgb(rgb, camera, window), warp_depth(depth, camera, window)
    assert np.abs(turned_rgb.astype(int) - plain_rgb).max() <= 2
    known = turned_depth > 0
    assert known.mean() > 0.9  # the rim of the hand is taken as not measured
    off = np.abs(turned_depth.astype(int) - plain_depth)[known]
    assert np.percentile(off, 95) <= 16  # 2 mm


def test_beyond_the_source_is_its_mirror_image_without_depth() -> None:
    """Black bars would say by how much a scene is turned; a depth there was measured by nobody."""
    k = np.array([[600.0, 0, 320], [0, 600.0, 240], [0, 0, 1]])
    source = crop_camera(k, np.array([270.0, 190, 370, 290]), (128, 96), 1.5)
    window = footprint(source, (480, 640))
    height, width = window.y1 - window.y0, window.x1 - window.x0
    rgb, depth = np.full((height, width, 3), 90, np.uint8), np.full((height, width), 4800, np.uint16)
    angle = np.radians(35)
    about_y = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    view = View(about_y, np.array([0.0, 0.0, 4800 * DEPTH_UNIT_M]))
    made = turned_crop(rgb, depth, window, source, source, view)
    assert made is not None
    assert (made[0] == 90).all()
    z = made[1] * DEPTH_UNIT_M
    x = (np.arange(96) - 48) / source.intrinsics_px[0, 0]
    plane = 4800 * DEPTH_UNIT_M * np.cos(angle) / (np.cos(angle) + x * np.sin(angle))
    known = z > 0
    assert 0.6 < known.mean() < 0.95
    assert not known[:, [0, -1]].all()
    assert np.abs(z - plane)[known].max() < 3e-3


@pytest.mark.parametrize("lost_px", [0, 1])
def test_the_rim_that_the_sensor_loses_goes_with_the_hand(lost_px: int) -> None:
    """A pixel of skin with the wall's depth would stay behind: a thin second outline beside every finger."""
    k = np.array([[600.0, 0, 320], [0, 600.0, 240], [0, 0, 1]])
    source = crop_camera(k, np.array([270.0, 190, 370, 290]), (128, 128), 1.5)
    window = footprint(source, (480, 640))
    middle, radius = (320 - window.x0, 240 - window.y0), 30
    rgb = np.full((window.y1 - window.y0, window.x1 - window.x0, 3), 40, np.uint8)
    depth = np.full(rgb.shape[:2], 6000, np.uint16)
    cv2.circle(rgb, middle, radius, (200, 200, 200), -1)
    cv2.circle(depth, middle, radius - lost_px, 4800, -1)
    view = View(cv2.Rodrigues(np.array([0.0, 0.35, 0.0]))[0], np.array([0.0, 0.0, 4800 * DEPTH_UNIT_M]))
    made = turned_crop(rgb, depth, window, source, source, view)
    assert made is not None
    skin = (made[0][..., 0] > 120).astype(np.uint8)
    skin[:, :20] = 0  # beyond the source crop: its mirror image
    count, _, stats, _ = cv2.connectedComponentsWithStats(skin)
    assert count == 2  # the wall and one disc
    scale = source.intrinsics_px[0, 0] / 600
    assert stats[1, cv2.CC_STAT_AREA] == pytest.approx(np.pi * (radius * scale) ** 2 * np.cos(0.35), rel=0.1)


def test_labels_far_from_what_was_measured_turn_nothing(root: Path, standin: ManoLayer) -> None:
    """A crop in which no point lies says None: made up of nothing, it would be believed."""
    dataset = dataset_of(root, standin)
    labels = dataset.labels(np.array([2])).row(0)
    frame = decode.PictureFrame(dataset._path(2, "rgb"), dataset._path(2, "depth"))
    k = labels.intrinsics_img_px[0].astype(np.float64)
    source, aside = (crop_camera(k, labels.box_px[0] + by, (128, 96), 1.5) for by in (0.0, 3000.0))
    window = footprint(source, frame.size)
    still = View(np.eye(3), labels.joints_cam_m[0].mean(0).astype(np.float64))
    assert turned_crop(frame.rgb(window), frame.depth(window), window, source, aside, still) is None
    behind = View(np.diag([-1.0, 1.0, -1.0]), np.zeros(3))  # all points behind the camera, on the same lines
    assert turned_crop(frame.rgb(window), frame.depth(window), window, source, source, behind) is None


def test_the_crop_looks_at_the_turned_hand(root: Path, standin: ManoLayer) -> None:
    """Validation crops follow the hand's box: a turned hand in its old box would look like no such crop."""
    dataset = dataset_of(root, standin, roll_deg=0.0, shift=0.0, scale=0.0)
    side = dataset.config.dataset.box_scale
    moved = []
    for i in range(len(dataset)):
        raw = dataset.raw(SampleKey(i, 1))
        k = raw.intrinsics_img_px.astype(np.float64)
        pixels = raw.joints_cam_m @ raw.rot_crop_from_img @ k.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        want = crop_camera(k, np.concatenate([pixels.min(0), pixels.max(0)]), (256, 192), side)
        np.testing.assert_allclose(raw.intrinsics_crop_px, want.intrinsics_px, rtol=1e-4)
        np.testing.assert_allclose(raw.rot_crop_from_img, want.rot_crop_from_img, atol=1e-5)
        still = crop_camera(k, dataset.labels(np.array([i])).box_px[0], (256, 192), side)
        moved.append(abs(want.intrinsics_px[0, 0] / still.intrinsics_px[0, 0] - 1))
    assert max(moved) > 0.03


def test_every_modality_sees_the_same_turn(root: Path, standin: ManoLayer) -> None:
    """A turn only where depth is shown would tell the network which samples are turned."""
    shown = dataset_of(root, standin)
    hidden = shown.view(modality="rgb", augmented=True)
    for i in range(4):
        a, b = shown.raw(SampleKey(i, 1)), hidden.raw(SampleKey(i, 1))
        for name in ("rgb_u8", "joints_cam_m", "global_orient", "translation_m", "crop_from_img"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name
        assert a.depth_u16.any()
        assert not b.depth_u16.any()


def test_nothing_is_turned_without_depth(tmp_path: Path) -> None:
    """Where the sensor saw nothing there are no points to turn: the sample is left as it is."""
    made = write_tree(tmp_path, {"MC1": 8})
    for key in made:
        rgb = np.full((480, 640, 3), 90, np.uint8)
        write_pictures(tmp_path / "train/MC1", key[-4:], rgb, np.zeros((480, 640), np.uint16))
    turned, still = (dataset_of(tmp_path, FanHand(), view_deg=angle) for angle in (20.0, 0.0))
    for i in range(4):
        a, b = turned.raw(SampleKey(i, 0)), still.raw(SampleKey(i, 0))
        for field in dataclasses.fields(a):
            assert np.array_equal(getattr(a, field.name), getattr(b, field.name)), field.name


@pytest.mark.parametrize("size", [(128, 96), (64, 64)])
def test_a_turn_looks_at_what_a_cache_holds(
    root: Path, standin: ManoLayer, tmp_path: Path, size: Any
) -> None:
    """The cache knows roll, scale and shift: a turned crop that looked farther would see blank pixels."""
    changes: dict[str, Any] = {
        "image_size": size,
        "split": {"val_percent": 12},
        "augmentation": {**TURNED, "view_deg": 45.0},
    }
    plain, cached = (
        HO3DDataset(
            run_config(root, dataset={"cache": cache}, **changes), "train", standin, show_progress=False
        ).view(modality="rgbd", augmented=True)
        for cache in ("off", str(tmp_path / "cache"))
    )
    for i in range(len(plain)):
        for epoch in range(3):
            a, b = plain.raw(SampleKey(i, epoch)), cached.raw(SampleKey(i, epoch))
            for field in dataclasses.fields(a):
                assert np.array_equal(getattr(a, field.name), getattr(b, field.name)), field.name


def test_turns_fill_their_range_and_leave_other_draws_alone() -> None:
    """view_deg=0 is the recipe as it was; a calm epoch turns less."""
    still, turned = AugmentationConfig(), AugmentationConfig(view_deg=20.0, calm_share=0.2)
    draws = [draw(turned, 0, 1, i) for i in range(500)]
    angle = np.degrees([np.hypot(*d.view_rad) for d in draws])
    assert angle.max() <= 20
    assert angle.max() > 19.5
    assert abs(angle.mean() - 10) < 1
    direction = np.array([d.view_rad for d in draws]) / np.radians(angle)[:, None]
    assert np.abs(direction.mean(0)).max() < 0.1
    for i in range(20):
        a, b = draw(still, 0, 1, i), draws[i]
        assert a.view_rad == (0.0, 0.0)
        assert (a.roll_rad, a.scale, a.shift, a.noise_seed) == (b.roll_rad, b.scale, b.shift, b.noise_seed)
    calm = draw(in_epoch(turned, 9, 10), 0, 1, 3)
    np.testing.assert_allclose(calm.view_rad, np.multiply(draws[3].view_rad, turned.calm_strength))
    wide = widest(draws[0], turned)
    assert (wide.scale, wide.shift, wide.roll_rad) == (1 + turned.scale, (0.0, 0.0), draws[0].roll_rad)
