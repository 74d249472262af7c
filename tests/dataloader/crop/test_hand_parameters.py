"""Pose, shape and joints of a sample describe one hand, whatever was done to the sample."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dataloader import ho3d_dataset
from dataloader.batches.samplers import SampleKey
from dataloader.build import build_dataset
from dataloader.ho3d_dataset import HO3DDataset
from dataloader.pictures import decode
from src.geometry.camera import project
from src.hand.mano import ManoLayer
from src.schema import HandBatch
from tests.dataloader.posed import write_posed_hands
from tests.dataloader.tree import run_config

DRAWS = 1000


@pytest.fixture(scope="module")
def dataset(standin: ManoLayer, tmp_path_factory: pytest.TempPathFactory) -> HO3DDataset:
    """18 posed hands, labelled as HO3D does: forward kinematics in OpenGL axes, HO3D's order."""
    root = tmp_path_factory.mktemp("posed")
    write_posed_hands(root, standin, 20)
    return build_dataset(run_config(root, split={"val_percent": 10}), "train", standin, show_progress=False)


@pytest.fixture
def draws(dataset: HO3DDataset, monkeypatch: pytest.MonkeyPatch) -> HandBatch:
    """1000 augmented samples; their pictures do not matter and are not decoded."""
    blank = np.zeros((480, 640, 3), np.uint8)
    monkeypatch.setattr(decode, "read_rgb", lambda path: blank)
    monkeypatch.setattr(ho3d_dataset, "warp_rgb", lambda *_: None)
    small = dataclasses.replace(dataset, modality="rgb", image_size=(16, 16))
    keys = [SampleKey(i % len(dataset), i // len(dataset)) for i in range(DRAWS)]
    return ho3d_dataset.prepare(small.batch(keys))


def test_parameters_give_the_augmented_joints(standin: ManoLayer, draws: HandBatch) -> None:
    """The first version turned the picture only: labels were up to 119 mm wrong (lesson 4)."""
    with torch.no_grad():
        posed = standin(draws.global_orient, draws.hand_pose, draws.betas, draws.translation_m)
    error_mm = (posed.joints_m - draws.joints_cam_m).norm(dim=-1) * 1000
    assert error_mm.shape == (DRAWS, 21)
    assert float(error_mm.max()) < 0.01
    assert float((draws.root_cam_m - draws.joints_cam_m[:, 0]).norm(dim=-1).max()) * 1000 < 0.01


def test_wrist_rotations_stay_rotations(draws: HandBatch) -> None:
    """A mirrored hand has rotation matrices of determinant -1 and scores 0 in the official PA."""
    assert torch.allclose(torch.linalg.det(draws.global_orient), torch.ones(DRAWS), atol=1e-5)
    assert torch.allclose(torch.linalg.det(draws.hand_pose), torch.ones(DRAWS, 15), atol=1e-5)
    assert torch.allclose(torch.linalg.det(draws.rot_crop_from_img), torch.ones(DRAWS), atol=1e-5)


def test_joints_project_where_the_picture_goes(dataset: HO3DDataset, draws: HandBatch) -> None:
    """project(joints, K_crop) and the warped projections of the picture agree < 0.5 px (lesson 4)."""
    joints = torch.from_numpy(dataset.frames.labels().joints_cam_m)[draws.sample_index]
    in_picture = project(joints, draws.intrinsics_img_px)
    moved = project(F.pad(in_picture, (0, 1), value=1.0), draws.crop_from_img)
    error = (moved - draws.joints_crop_px).norm(dim=-1)
    assert float(error.max()) < 0.5 * 16 / 256  # crops of 16 px here, 256 px in a run
    rolls = torch.atan2(draws.rot_crop_from_img[:, 1, 0], draws.rot_crop_from_img[:, 0, 0])
    assert float(rolls.min()) < -3
    assert float(rolls.max()) > 3


def test_bone_lengths_are_kept(dataset: HO3DDataset, draws: HandBatch) -> None:
    """Roll, scale and shift of the crop must not stretch the hand in space."""
    joints = torch.from_numpy(dataset.frames.labels().joints_cam_m)[draws.sample_index]
    before, after = torch.cdist(joints, joints), torch.cdist(draws.joints_cam_m, draws.joints_cam_m)
    assert torch.allclose(before, after, atol=2e-5)  # float32 differences of points 0.7 m away


def test_nearly_all_joints_are_inside_the_crop(draws: HandBatch) -> None:
    """A share below 0.9 is the sign of flipped axes or a wrong box."""
    inside = (draws.joints_unit.abs() <= 0.5).all(-1).float()
    assert float(inside.mean()) > 0.97
    assert float(inside.mean(1).min()) > 0.7
