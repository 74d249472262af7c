"""Defects of data, planted one by one where they would really be made: the doctor must name each of them.

Each is planted in the loader, or in what it hands over; the doctor sees up to three batches of 8 and nothing
else. The first finding that is not OK must be the planted one: a consequence named first sends its reader to
the wrong file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import dataloader.crop.prepare as preparation
import dataloader.ho3d.labels as door
import dataloader.ho3d_dataset as loader
from src.hand.mano import ManoLayer
from src.hand.mano_assets import load_hand_asset
from src.runtime import log
from src.schema import DEPTH_CLIP, DEPTH_RANGE_M
from src.training.diagnosis.alignment import check_alignment
from src.training.diagnosis.doctor import check_data
from tests.diagnosis.conftest import Clinic, names

Patch = pytest.MonkeyPatch
Array = np.ndarray


def labels(change: Callable[[door.Labels], dict[str, Any]]) -> Callable[[Patch], None]:
    """Plant a change of the labels in the image camera, where HO3D's conventions become ours."""

    def plant(patch: Patch) -> None:
        original = loader.convert

        def convert(*arguments: Any) -> door.Labels:
            made = original(*arguments)
            return dataclasses.replace(made, **change(made))

        patch.setattr(loader, "convert", convert)

    return plant


def raw(change: Callable[[Any, Any], dict[str, Any]]) -> Callable[[Patch], None]:
    """Plant a change of what a loader process hands over; the augmentation of the sample is known to it."""

    def plant(patch: Patch) -> None:
        original = loader.assemble

        def assemble(*arguments: Any) -> Any:
            made = original(*arguments)
            return dataclasses.replace(made, **change(made, arguments[2]))

        patch.setattr(loader, "assemble", assemble)

    return plant


def attribute(module: Any, name: str, value: Any) -> Callable[[Patch], None]:
    """Plant another value."""
    return lambda patch: patch.setattr(module, name, value)


def prepared(change: Callable[[Any], dict[str, Any]]) -> Callable[[Patch], None]:
    """Plant a change of the finished batch."""

    def plant(patch: Patch) -> None:
        original = preparation.prepare

        def prepare(arguments: Any) -> Any:
            made = original(arguments)
            return dataclasses.replace(made, **change(made))

        patch.setattr("dataloader.build.prepare", prepare)

    return plant


def turn(angle: float) -> Array:
    return Rotation.from_rotvec([0, 0, angle]).as_matrix().astype(np.float32)


def unrolled(sample: Any, change: Any, *fields: str) -> dict[str, Any]:
    """Fields of a raw sample without the augmentation's roll."""
    back = turn(-change.roll_rad)
    made = {}
    for name in fields:
        value = getattr(sample, name)
        made[name] = back @ value if name == "global_orient" else value @ back.T
    return made


def left_hand(made: door.Labels) -> dict[str, Any]:
    """What a left hand's annotation holds: everything mirrored, rotations conjugate."""
    flip = np.diag([-1.0, 1.0, 1.0]).astype(np.float32)
    return {
        "joints_cam_m": made.joints_cam_m @ flip,
        "root_cam_m": made.root_cam_m @ flip,
        "global_orient": flip @ made.global_orient @ flip,
        "hand_pose": flip @ made.hand_pose @ flip,
    }


def pictures(change: Callable[[Array, Array], tuple[Array, Array]]) -> Callable[[Patch], None]:
    """Plant a change of the cropped picture (H, W, 3) and depth (H, W)."""

    def plant(patch: Patch) -> None:
        original = loader.HO3DDataset._pixels

        def pixels(self: Any, *arguments: Any) -> Any:
            made = original(self, *arguments)
            rgb, depth = arguments[-2:]  # where it writes them
            rgb[:], depth[:] = change(rgb.copy(), depth.copy())
            return made

        patch.setattr(loader.HO3DDataset, "_pixels", pixels)

    return plant


def wrong_crop(patch: Patch) -> None:
    """A crop beside the hand."""
    original = loader.crop_camera

    def camera(intrinsics: Array, box: Array, *more: Any) -> Any:
        side = max(box[2] - box[0], box[3] - box[1])
        return original(intrinsics, box + np.array([0.9 * side, 0, 0.9 * side, 0]), *more)

    patch.setattr(loader, "crop_camera", camera)


def depth_unit(factor: float) -> Callable[[Patch], None]:
    """Depth in another unit wherever it is read."""

    def plant(patch: Patch) -> None:
        for module in ("dataloader.crop.prepare", "dataloader.crop.camera"):
            patch.setattr(f"{module}.DEPTH_UNIT_M", 0.00012498664727900177 * factor)

    return plant


DEFECTS: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "y of the joints not flipped": (
        "axis flip",
        labels(lambda m: {"joints_cam_m": m.joints_cam_m * np.float32([1, -1, 1])}),
    ),
    "one sign of OpenGL missed": ("axis flip", attribute(door, "CV_FROM_GL", np.float32([1, 1, -1]))),
    "two signs of OpenGL exchanged": ("axis flip", attribute(door, "CV_FROM_GL", np.float32([-1, 1, -1]))),
    "pose left in OpenGL": (
        "axis flip",
        labels(lambda m: {"global_orient": m.global_orient * np.float32([1, -1, -1])[:, None]}),
    ),
    "joints in millimetres": ("unit of labels", labels(lambda m: {"joints_cam_m": m.joints_cam_m * 1000})),
    "all labels in millimetres": (
        "unit of labels",
        labels(lambda m: {"joints_cam_m": m.joints_cam_m * 1000, "root_cam_m": m.root_cam_m * 1000}),
    ),
    "joints left in HO3D's order": ("joint order", attribute(door, "TO_OPENPOSE", list(range(21)))),
    "two fingers exchanged": (
        "joint order",
        labels(lambda m: {"joints_cam_m": m.joints_cam_m[:, [*range(13), *range(17, 21), *range(13, 17)]]}),
    ),
    "left hand": ("left hand", labels(left_hand)),
    "labels already relative": (
        "labels already relative",
        labels(lambda m: {"joints_cam_m": m.joints_cam_m - m.joints_cam_m[:, :1]}),
    ),
    "labels not rolled with the picture": (
        "label and picture augmented apart",
        raw(lambda s, c: unrolled(s, c, "joints_cam_m", "root_cam_m", "global_orient")),
    ),
    "joints not rolled with the pose": (
        "joints and pose turned apart",
        raw(lambda s, c: unrolled(s, c, "joints_cam_m", "root_cam_m")),
    ),
    "root not rolled with the joints": (
        "joints and pose turned apart",
        raw(lambda s, c: unrolled(s, c, "root_cam_m")),
    ),
    "joints left in the image camera": (
        "joints and pose turned apart",
        raw(lambda s, c: {"joints_cam_m": s.joints_cam_m @ s.rot_crop_from_img}),
    ),
    "camera not rolled with the picture": (
        "crop and its camera differ",
        raw(lambda s, c: {"rot_crop_from_img": turn(-c.roll_rad) @ s.rot_crop_from_img}),
    ),
    "wrist taken from the translation": (
        "wrist without J0(betas)",
        raw(lambda s, c: {"root_cam_m": s.root_cam_m - (s.root_cam_m - s.translation_m)}),
    ),
    "picture mirrored, labels not": ("axis flip", pictures(lambda rgb, d: (rgb[:, ::-1], d[:, ::-1]))),
    "depth mirrored, picture not": ("picture and depth apart", pictures(lambda rgb, d: (rgb, d[:, ::-1]))),
    "BGR": ("BGR", pictures(lambda rgb, d: (rgb[..., ::-1], d))),
    "black crops": ("blank crops", pictures(lambda rgb, d: (np.zeros_like(rgb), d))),
    "RGB not normalised": (
        "RGB normalisation",
        attribute(preparation, "normalise_rgb", lambda rgb, affine: rgb.permute(0, 3, 1, 2).float() / 255),
    ),
    "crop beside the hand": ("joints outside the crop", wrong_crop),
    "depth ten times too far": ("depth scale", depth_unit(10.0)),
    "depth in the unit of another sensor": ("depth scale", depth_unit(0.5)),
    "depth input ten times too small": ("depth scale", attribute(preparation, "DEPTH_RANGE_M", 1.5)),
    "depth input ten times too large": ("depth scale", attribute(preparation, "DEPTH_RANGE_M", 0.015)),
    "no depth measured": ("depth all invalid", pictures(lambda rgb, d: (rgb, np.zeros_like(d)))),
    "depth bytes exchanged": ("depth digits mixed", pictures(lambda rgb, d: (rgb, d.byteswap()))),
    "projection divided by the size twice": (
        "projection of labels",
        prepared(lambda b: {"joints_unit": b.joints_unit / 64}),
    ),
    "fingers of the pose in another order": (
        "pose convention",
        labels(lambda m: {"hand_pose": m.hand_pose[:, [12, 13, 14, *range(12)]]}),
    ),
    "pose transposed": (
        "pose convention",
        labels(lambda m: {"hand_pose": np.ascontiguousarray(m.hand_pose.transpose(0, 1, 3, 2))}),
    ),
    "rotations not rotations": ("rotations of labels", labels(lambda m: {"hand_pose": m.hand_pose * 0.9})),
    "every label the first one": (
        "same sample again and again",
        raw(lambda s, c: {"sample_index": np.asarray(0, np.int64)}),
    ),
    "labels not finite": (
        "labels exist",
        labels(lambda m: {"joints_cam_m": m.joints_cam_m * np.float32(np.nan)}),
    ),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    log.configure(rank=1)
    yield
    log.configure()


@pytest.mark.parametrize("defect", DEFECTS)
def test_named(defect: str, clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that cannot learn must say which file to mend, within its first three batches."""
    cause, plant = DEFECTS[defect]
    plant(monkeypatch)
    seen = []
    for batch in islice(clinic.stream(), 3):
        seen.append(batch)
        found = names(check_data(seen, clinic.hand))
        if found:
            break
    assert found[:1] == [cause], found


@pytest.mark.parametrize(
    "defect", ["picture mirrored, labels not", "labels not rolled with the picture", "BGR"]
)
def test_named_without_depth(defect: str, clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on RGB alone has no depth to tell by: colours must do."""
    cause, plant = DEFECTS[defect]
    plant(monkeypatch)
    found = names(check_data(list(islice(clinic.stream("dataset.p_drop_depth=1"), 3)), clinic.hand))
    assert found[:1] == [cause], found


def test_another_hand_model(clinic: Clinic) -> None:
    """MANO on stand-in labels, or the stand-in on HO3D: every metric would be off by a finger's width."""
    asset = load_hand_asset(clinic.data.hand)
    longer = dataclasses.replace(asset, v_template=asset.v_template * np.array([1.15, 1.0, 1.0]))
    found = names(check_data(clinic.batches(count=1), ManoLayer.from_asset(longer)))
    assert found[:1] == ["hand model is not the labels'"]


def test_the_best_permutation_is_shown(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong order is mended in one line if the order found is printed, in an evening if it is not."""
    DEFECTS["joints left in HO3D's order"][1](monkeypatch)
    found = check_data([next(clinic.stream())], clinic.hand)
    line = next(f.line() for f in found if f.what == "joint order")
    assert "[0, 5, 6, 7, 9, 10, 11, 17, 18, 19, 13, 14, 15, 1, 2, 3, 4, 8, 12, 16, 20]" in line
    assert "the labels are in HO3D's order" in line


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("p_drop_depth", [0.0, 0.4, 1.0])
def test_healthy(seed: int, p_drop_depth: float, clinic: Clinic) -> None:
    """A false alarm teaches people to ignore the next one."""
    batches = clinic.batches(f"seed={seed}", f"dataset.p_drop_depth={p_drop_depth}")
    for count in (1, 2, 3):
        found = check_data(batches[:count], clinic.hand)
        assert names(found) == [], [f.line() for f in found if f.status != "OK"]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("p_drop_depth", [0.0, 1.0])
def test_turned_scenes_are_healthy(seed: int, p_drop_depth: float, clinic: Clinic) -> None:
    """Labels, pictures and depth turn together: a user of augmentation.view_deg must not be warned."""
    turned = ("augmentation.view_deg=25", f"seed={seed}", f"dataset.p_drop_depth={p_drop_depth}")
    assert names(check_data(clinic.batches(*turned), clinic.hand)) == []


@pytest.mark.parametrize(("fingers", "healthy"), [(2, True), (5, False)])
def test_some_joints_that_a_turn_uncovers_are_healthy(fingers: int, healthy: bool, clinic: Clinic) -> None:
    """Ten epochs of turned scenes were told FAIL for 19 of 176 joints; a fifth and more is another frame."""
    batch = clinic.batches("dataset.p_drop_depth=0", count=1)[0]
    height, width = batch.rgb.shape[-2:]
    places = ((batch.joints_unit + 0.5) * torch.tensor([width, height]) - 0.5).round().long().clamp_min(2)
    behind = (batch.joints_cam_m[..., 2] + 0.08 - batch.z_ref_m[:, None]) / DEPTH_RANGE_M
    for sample in range(len(batch.rgb)):
        for tip in range(4, 4 * fingers + 1, 4):
            x, y = places[sample, tip].tolist()
            batch.depth[sample, 0, y - 1 : y + 2, x - 1 : x + 2] = behind[sample, tip].clamp_max(DEPTH_CLIP)
    (finding,), _ = check_alignment(batch)
    assert (finding.status == "OK") == healthy, finding.line()
    assert healthy == ("on skin" in finding.line()), finding.line()


def test_healthy_validation(clinic: Clinic) -> None:
    """Batches without augmentation are healthy too."""
    assert names(check_data(clinic.batches(split="val"), clinic.hand)) == []


def test_batches_on_a_device_are_only_read(clinic: Clinic) -> None:
    """The checks must not change what the network is about to be trained on."""
    batch = clinic.batches(count=1)[0]
    before = {name: value.clone() for name, value in vars(batch).items()}
    check_data([batch], clinic.hand)
    assert all(torch.equal(value, before[name]) for name, value in vars(batch).items())
