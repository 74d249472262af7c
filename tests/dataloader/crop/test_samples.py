"""Pose, shape, joints and pixels of a sample describe one hand, whatever was done to the sample."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dataloader.batches.samplers import SampleKey
from dataloader.crop import cut
from dataloader.crop.augment import Augmentation, Augmenter
from dataloader.crop.prepare import prepare
from dataloader.ho3d_dataset import HO3DDataset
from dataloader.pictures import decode
from src.config import AugmentationConfig
from src.geometry.camera import project
from src.hand.mano import ManoLayer
from src.hand.upright import MIDDLE_KNUCKLE, turned, upright_roll
from src.schema import HandBatch
from tests.dataloader.posed import write_posed_hands
from tests.dataloader.tree import dataset_of, run_config

DRAWS = 1000


@pytest.fixture(scope="module")
def dataset(standin: ManoLayer, tmp_path_factory: pytest.TempPathFactory) -> HO3DDataset:
    """18 posed hands, labelled as HO3D does: forward kinematics in OpenGL axes, HO3D's order."""
    root = tmp_path_factory.mktemp("posed")
    write_posed_hands(root, standin, 20)
    return dataset_of(run_config(root, split={"val_percent": 10}), "train", standin)


@pytest.fixture
def draws(dataset: HO3DDataset, monkeypatch: pytest.MonkeyPatch) -> HandBatch:
    """1000 augmented samples; their pictures do not matter and are not decoded."""
    blank = np.zeros((480, 640, 3), np.uint8)
    monkeypatch.setattr(decode, "read_rgb", lambda path: blank)
    monkeypatch.setattr(cut, "warp_rgb", lambda *_: None)
    small = dataclasses.replace(dataset, modality="rgb", image_size=(16, 16))
    return prepare(small.batch([SampleKey(i % len(dataset), i // len(dataset)) for i in range(DRAWS)]))


def test_parameters_give_the_augmented_joints(standin: ManoLayer, draws: HandBatch) -> None:
    """The first version turned the picture only: labels were up to 119 mm wrong (lesson 4)."""
    with torch.no_grad():
        posed = standin(draws.global_orient, draws.hand_pose, draws.betas, draws.translation_m)
    error_mm = (posed.joints_m - draws.joints_cam_m).norm(dim=-1) * 1000
    assert error_mm.shape == (DRAWS, 21)
    assert float(error_mm.max()) < 0.01
    assert float((draws.root_cam_m - draws.joints_cam_m[:, 0]).norm(dim=-1).max()) * 1000 < 0.01


def test_joints_project_where_the_picture_goes(dataset: HO3DDataset, draws: HandBatch) -> None:
    """project(joints, K_crop) and the warped projections of the picture agree < 0.5 px (lesson 4).

    A share of joints inside the crop below 0.9 is the sign of flipped axes or a wrong box.
    """
    joints = torch.from_numpy(dataset.frames.labels().joints_cam_m)[draws.sample_index]
    in_picture = project(joints, draws.intrinsics_img_px)
    moved = project(F.pad(in_picture, (0, 1), value=1.0), draws.crop_from_img)
    error = (moved - draws.joints_crop_px).norm(dim=-1)
    assert float(error.max()) < 0.5 * 16 / 256  # crops of 16 px here, 256 px in a run
    rolls = torch.atan2(draws.rot_crop_from_img[:, 1, 0], draws.rot_crop_from_img[:, 0, 0])
    assert float(rolls.min()) < -3
    assert float(rolls.max()) > 3
    inside = (draws.joints_unit.abs() <= 0.5).all(-1).float()
    assert float(inside.mean()) > 0.97
    assert float(inside.mean(1).min()) > 0.7


def test_a_network_that_looks_twice_is_taught_upright_hands(
    dataset: HO3DDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second look is at upright hands and its first at any: most crops are the one, the others the other,
    and labels turn with them. A hand without a labelled knuckle has no direction.
    """
    monkeypatch.setattr(decode, "read_rgb", lambda path: np.zeros((480, 640, 3), np.uint8))
    monkeypatch.setattr(cut, "warp_rgb", lambda *_: None)
    assert dataset.augmenter is not None
    assert not dataset.augmenter.second_look
    twice = dataclasses.replace(dataset.augmenter, second_look=True)
    small = dataclasses.replace(dataset, modality="rgb", image_size=(16, 16), augmenter=twice)
    keys = [SampleKey(i % len(dataset), i // len(dataset)) for i in range(DRAWS)]
    draws = prepare(small.batch(keys))
    askew = torch.rad2deg(upright_roll(draws.joints_root_m))
    askew = (askew + 180) % 360 - 180
    drawn = [twice.draw(key.epoch, key.index) for key in keys]
    upright = torch.tensor([change.upright_rad is not None for change in drawn])
    assert 0.65 < float(upright.float().mean()) < 0.75
    farther = torch.rad2deg(torch.tensor([change.upright_rad or 0.0 for change in drawn]))
    off = (askew + farther + 180) % 360 - 180
    assert off[upright].abs().max() < 0.1
    assert all(change.roll_rad == 0 for change in drawn if change.upright_rad is not None), "first looks are"
    assert 25 < float(askew[upright].abs().max()) < 30.1
    assert 2 < float(askew[upright].abs().median()) < 6
    assert float(askew[~upright].std()) > 60
    joints = torch.from_numpy(dataset.frames.labels().joints_cam_m)[draws.sample_index]
    rotation = draws.rot_crop_from_img
    assert torch.allclose(joints @ rotation.mT, draws.joints_cam_m, atol=1e-5)
    moved = project(F.pad(project(joints, draws.intrinsics_img_px), (0, 1), value=1.0), draws.crop_from_img)
    assert (moved - draws.joints_crop_px).norm(dim=-1).max() < 0.5 * 16 / 256
    labels = small.frames.labels()
    conf = labels.joints_conf.copy()
    conf[:, MIDDLE_KNUCKLE] = 0
    nobody = dataclasses.replace(labels, joints_conf=conf)
    k = next(i for i, key in enumerate(keys) if key.epoch == 0 and upright[i])
    rgb, depth = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint16)
    level = small._camera(k, labels, k, drawn[k], (480, 640))
    assert small._crop(keys[k], nobody, k, rgb, depth).camera.crop_from_img.tolist() == (
        level.crop_from_img.tolist()
    )


def test_an_upright_crop_shows_what_a_second_look_shows(dataset: HO3DDataset) -> None:
    """A second look turns the crop of the first, corners and blur and all: a network that was taught with
    pictures in its corners took black ones for something, and erred by up to 40 % more.
    """
    assert dataset.augmenter is not None
    quiet = dataclasses.replace(dataset.augmenter, config=AugmentationConfig(p_occluder=0.0, colour=0.0))
    twice = dataclasses.replace(quiet, second_look=True)
    small = dataclasses.replace(dataset, modality="rgbd", image_size=(48, 32), augmenter=twice)
    keys = [SampleKey(i % len(dataset), i // len(dataset)) for i in range(60)]
    seen = prepare(small.batch(keys))
    drawn = [twice.draw(key.epoch, key.index) for key in keys]

    class Level(Augmenter):
        def draw(self, epoch: int, sample_index: int) -> Augmentation:
            return dataclasses.replace(twice.draw(epoch, sample_index), upright_rad=None)

    first = prepare(dataclasses.replace(small, augmenter=Level(quiet.config, 0, 0)).batch(keys))
    roll = upright_roll(first.joints_root_m) + torch.tensor([change.upright_rad or 0.0 for change in drawn])
    again = turned(first, roll)
    rows = torch.tensor([change.upright_rad is not None for change in drawn])
    assert rows.sum() > 30
    assert torch.allclose(seen.rot_crop_from_img[rows], again.rot_crop_from_img[rows], atol=1e-5)
    assert torch.equal(seen.z_ref_m, first.z_ref_m)
    assert (seen.rgb - again.rgb)[rows].abs().max() < 0.15  # of OpenCV's 32nds of a pixel
    black = (again.depth_valid == 0) & (again.rgb == again.rgb[:, :, :1, :1]).all(1, keepdim=True)
    assert not seen.depth_valid[rows][black[rows]].any()
    assert ((seen.depth - again.depth)[rows].abs() > 0.01).float().mean() < 0.02
    assert again.depth_valid[rows].mean() > 0.1


def test_the_configuration_decides_who_is_taught_upright_hands(standin: ManoLayer, tmp_path: Path) -> None:
    """Upright crops that nobody asked for, or that a network that looks twice never sees."""
    write_posed_hands(tmp_path, standin, 20)
    for asked in (True, False):
        config = run_config(tmp_path, split={"val_percent": 10}, model={"second_look": asked})
        augmenter = dataset_of(config, "train", standin).augmenter
        assert augmenter is not None
        assert augmenter.second_look == asked
        assert dataset_of(config, "val", standin).augmenter is None
