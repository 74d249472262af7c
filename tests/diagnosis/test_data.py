"""Defects of data, planted one by one in healthy batches: the first finding that is not OK must name them, as
a consequence named first sends its reader to the wrong file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dataloader.ho3d.labels as door
from dataloader.crop.augment import Augmentation
from dataloader.crop.camera import crop_camera
from src.geometry.camera import project
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from src.hand.mano_assets import load_hand_asset
from src.schema import DEPTH_CLIP, DEPTH_RANGE_M, DEPTH_UNIT_M, HandBatch
from src.training.diagnosis.doctor import check_data
from src.training.diagnosis.samples import mirrors, rolls, some, turned
from tests.diagnosis.conftest import Clinic, names

Change = Callable[[HandBatch], dict[str, Any]]
ORDER = list(permutation(OPENPOSE21, HO3D21))
STD, MEAN = torch.tensor([[[0.229]], [[0.224]], [[0.225]]]), torch.tensor([[[0.485]], [[0.456]], [[0.406]]])


def moved(b: HandBatch, by: Tensor, *fields: str) -> dict[str, Any]:
    """Some labels turned or mirrored by (B, 3, 3)."""
    made = {}
    for name in fields:
        value = getattr(b, name)
        if name == "global_orient":
            made[name] = by @ value
        else:
            made[name] = turned(value[:, None] if value.ndim == 2 else value, by).view_as(value)
    return made


def bgr(b: HandBatch) -> dict[str, Any]:
    return {"rgb": ((b.rgb * STD + MEAN).flip(1) - MEAN) / STD}


def left_hand(b: HandBatch) -> dict[str, Any]:
    """What a left hand's annotation holds: everything mirrored in the image camera, rotations conjugate."""
    flip, by = torch.diag(torch.tensor([-1.0, 1.0, 1.0])), mirrors(b, (-1, 1, 1))
    made = moved(b, by, "joints_cam_m", "root_cam_m", "global_orient")
    return made | {"global_orient": made["global_orient"] @ flip, "hand_pose": flip @ b.hand_pose @ flip}


def depth_of_another_unit(b: HandBatch) -> dict[str, Any]:
    return {"depth": (b.depth / 2).clamp(-DEPTH_CLIP, DEPTH_CLIP), "z_ref_m": b.z_ref_m / 2}


def hidden_hand(b: HandBatch) -> dict[str, Any]:
    """Depth of what is 10 cm behind the hand, a little rough."""
    behind = (b.joints_cam_m[..., 2].amax(dim=1) + 0.1 - b.z_ref_m) / DEPTH_RANGE_M
    rough = 0.01 * torch.rand(b.depth.shape, generator=torch.Generator().manual_seed(0))
    depth = (behind[:, None, None, None] + rough).clamp_max(DEPTH_CLIP)
    return {"depth": depth, "depth_valid": torch.ones_like(depth)}


def bytes_exchanged(b: HandBatch) -> dict[str, Any]:
    """The two bytes of each depth the wrong way round."""
    z_ref = b.z_ref_m[:, None, None, None]
    units = ((b.depth * DEPTH_RANGE_M + z_ref) / DEPTH_UNIT_M).numpy().astype(np.uint16).byteswap()
    z = torch.from_numpy(units.astype(np.float32)) * DEPTH_UNIT_M
    return {"depth": ((z - z_ref) / DEPTH_RANGE_M).clamp(-DEPTH_CLIP, DEPTH_CLIP)}


JOINTS, ROOT, ORIENT = ALL = ("joints_cam_m", "root_cam_m", "global_orient")
PICTURE = ("rgb", "depth", "depth_valid")
EXCHANGED = [*range(13), *range(17, 21), *range(13, 17)]
"""Two fingers in each other's place."""

DEFECTS: list[tuple[str, Change]] = [
    ("labels exist", lambda b: {JOINTS: b.joints_cam_m * torch.nan}),
    ("labels exist", lambda b: {"joints_conf": b.joints_conf * 0}),
    ("axis flip", lambda b: moved(b, mirrors(b, (1, -1, 1)), JOINTS)),
    ("axis flip", lambda b: moved(b, mirrors(b, (1, -1, -1)), ORIENT)),  # the pose left in OpenGL
    ("axis flip", lambda b: moved(b, mirrors(b, (1, 1, -1)), *ALL)),
    ("axis flip", lambda b: {name: getattr(b, name).flip(-1) for name in PICTURE}),
    ("unit of labels", lambda b: {JOINTS: b.joints_cam_m * 1000}),
    (
        "unit of labels",
        lambda b: {JOINTS: b.joints_cam_m * 1000, "mano_valid": ~b.mano_valid},
    ),
    ("joint order", lambda b: {JOINTS: b.joints_cam_m[:, EXCHANGED]}),
    ("left hand", left_hand),
    ("labels already relative", lambda b: {JOINTS: b.joints_cam_m - b.joints_cam_m[:, :1]}),
    ("joints and wrist moved apart", lambda b: {ROOT: b.translation_m}),
    ("label and picture augmented apart", lambda b: moved(b, rolls(b, -1), *ALL)),
    ("joints and pose turned apart", lambda b: moved(b, rolls(b, -1), JOINTS, ROOT)),
    ("hand model is not the labels'", lambda b: {"hand_pose": b.hand_pose.mT}),
    ("blank crops", lambda b: {"rgb": b.rgb * 0 - 2}),
    ("joints outside the crop", lambda b: {"joints_unit": b.joints_unit + 0.9}),
    ("BGR", bgr),
    ("depth all invalid", lambda b: {"depth": b.depth * 0, "depth_valid": b.depth_valid * 0}),
    ("depth constant", lambda b: {"depth": b.depth * 0 + 0.3}),
    ("depth digits mixed", bytes_exchanged),
    ("label and picture apart", hidden_hand),
    ("depth scale", depth_of_another_unit),
]
"""What must be said first, and the defect."""


def planted(batch: HandBatch, change: Change) -> HandBatch:
    """A batch with a defect; what is derived of labels follows them."""
    made = change(batch)
    joints = made.get("joints_cam_m", batch.joints_cam_m)
    if "joints_cam_m" in made:
        height, width = batch.rgb.shape[-2:]
        unit = project(joints, batch.intrinsics_crop_px) / torch.tensor([width, height]) - 0.5
        made |= {"joints_root_m": joints - joints[:, :1], "joints_unit": unit}
    return dataclasses.replace(batch, **made)


@pytest.mark.parametrize(("cause", "change"), DEFECTS)
def test_named(cause: str, change: Change, clinic: Clinic) -> None:
    """A run that cannot learn must say which file to mend, within its first three batches."""
    found = check_data([planted(b, change) for b in clinic.batches("dataset.p_drop_depth=0")], clinic.hand)
    assert names(found)[:1] == [cause], [f.line() for f in found]


def frayed(b: HandBatch) -> dict[str, Any]:
    """A sensor that sees past two joints of each hand, as wide's do at edges and beside the colours."""
    depth, behind = b.depth.clone(), (b.joints_cam_m[..., 2] + 0.05 - b.z_ref_m[:, None]) / DEPTH_RANGE_M
    height, width = depth.shape[-2:]
    place = ((b.joints_unit + 0.5) * torch.tensor([width, height])).round().long()
    for i in range(b.size):
        for joint in (4, 20):
            x, y = place[i, joint].tolist()
            depth[i, 0, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = behind[i, joint]
    return {"depth": depth}


def test_a_sensor_that_frays_is_not_a_wrong_label(clinic: Clinic) -> None:
    """One look in twenty at sound frames of the wide world was a FAIL, which ends runs whose doctor may stop
    them.
    """
    batches = [planted(b, frayed) for b in clinic.batches("dataset.p_drop_depth=0")]
    found = check_data(batches, clinic.hand)
    (share,) = (
        float(re.findall(r"sees through ([0-9.]+)%", f.seen)[0]) for f in found if "through" in f.seen
    )
    assert 8.0 < share < 13.0, "the test is about what lies between"
    assert names(found) == []


@pytest.mark.parametrize("signs", [(1, 1, -1), (-1, 1, -1)])
def test_crops_that_follow_wrong_signs(
    signs: tuple[int, ...], clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels agree with themselves and the crop with them: only depth knows that it shows a wall."""
    monkeypatch.setattr(door, "CV_FROM_GL", np.array(signs, np.float32))
    found = check_data(list(islice(clinic.stream("dataset.p_drop_depth=0"), 3)), clinic.hand)
    assert names(found)[:1] == ["axis flip"], [f.line() for f in found]


def test_another_hand_model(clinic: Clinic) -> None:
    """MANO on stand-in labels, or the stand-in on HO3D: every metric would be off by a finger's width."""
    asset = load_hand_asset(clinic.data.hand)
    longer = dataclasses.replace(asset, v_template=asset.v_template * np.array([1.15, 1.0, 1.0]))
    found = names(check_data(clinic.batches(count=1), ManoLayer.from_asset(longer)))
    assert found[:1] == ["hand model is not the labels'"]


def test_the_best_permutation_is_shown(clinic: Clinic) -> None:
    """A wrong order is mended in one line if the order found is printed, in an evening if it is not."""
    batch = planted(clinic.batches(count=1)[0], lambda b: {"joints_cam_m": b.joints_cam_m[:, ORDER]})
    line = next(f.line() for f in check_data([batch], clinic.hand) if f.what == "joint order")
    assert f"the permutation {ORDER} (the labels are in HO3D's order) leaves 0.00 mm" in line


@pytest.mark.parametrize(("blank", "status"), [(2, "WARN"), (3, "FAIL")])
def test_one_blank_crop_warns_and_a_tenth_of_them_fails(blank: int, status: str, clinic: Clinic) -> None:
    """A hand in front of a white wall is no reason to end a run; a loader that reads nothing is."""
    batches = [dataclasses.replace(b, rgb=b.rgb.clone()) for b in clinic.batches()]
    for batch in batches[:blank]:
        batch.rgb[0] = 2.0
    found = [f for f in check_data(batches, clinic.hand) if f.status != "OK"]
    assert [(f.what, f.status) for f in found[:1]] == [("blank crops", status)]


@pytest.mark.parametrize(("seed", "p_drop_depth"), [(0, 0.4), (1, 1.0), (2, 0.0)])
def test_healthy(seed: int, p_drop_depth: float, clinic: Clinic) -> None:
    """A false alarm teaches people to ignore the next one; and what is looked at must not change."""
    batches = clinic.batches(f"seed={seed}", f"dataset.p_drop_depth={p_drop_depth}")
    before = [{name: value.clone() for name, value in vars(batch).items()} for batch in batches]
    for count in (1, 2, 3):
        found = check_data(batches[:count], clinic.hand)
        assert names(found) == [], [f.line() for f in found if f.status != "OK"]
    for batch, kept in zip(batches, before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in vars(batch).items())


def test_healthy_without_augmentation_parameters_or_a_joint(clinic: Clinic) -> None:
    """Validation batches, frames without MANO parameters and hands with a joint that has no label."""
    batches = clinic.batches(split="val")
    bare = [dataclasses.replace(b, mano_valid=torch.zeros_like(b.mano_valid)) for b in batches]
    partly = [
        dataclasses.replace(b, joints_conf=b.joints_conf.index_fill(1, torch.tensor([7]), 0)) for b in batches
    ]
    for some_batches in (batches, bare, partly, [some(batches[0], torch.tensor([0]))]):
        assert names(check_data(some_batches, clinic.hand)) == []


def test_the_augmentations_roll_is_read_with_its_sign() -> None:
    """Taking a roll off the labels and adding it send to other lines."""
    k, box = np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]]), np.array([380.0, 60, 520, 190])

    def turn(roll: float) -> Tensor:
        camera = crop_camera(k, box, (128, 128), 1.6, Augmentation(roll_rad=roll))
        return torch.from_numpy(camera.rot_crop_from_img)[None]

    for roll in (-2.9, -0.4, 1.6):
        batch: Any = SimpleNamespace(rot_crop_from_img=turn(roll))
        torch.testing.assert_close(rolls(batch, 1.0) @ turn(0.0), turn(roll), atol=1e-6, rtol=0)
