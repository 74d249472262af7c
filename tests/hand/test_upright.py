"""A second look is the same camera, rolled: pictures, depth and hands turn by one angle, there and back."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from src.config import ModelConfig
from src.geometry.camera import project
from src.geometry.rotation import rotation_about_z
from src.hand.joints import OPENPOSE21
from src.hand.upright import turned, turned_back, upright_roll
from src.schema import HandBatch, HandEstimate, NetworkInput, Prediction
from tests.models.scene import build, make_batch

SIZE = (128, 96)
"""Not square: rows taken for columns show."""


@pytest.fixture(scope="module")
def batch() -> HandBatch:
    """Hands whose picture says in red and green where it was taken, with depth on its left half alone."""
    batch = make_batch(4, *SIZE)
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    rgb = torch.stack([x, y, 0 * x]).float().expand(4, -1, -1, -1)
    left = (x < SIZE[1] // 2).float().expand(4, 1, -1, -1)
    crop = torch.tensor([[170.0, 0.0, SIZE[1] / 2], [0.0, 170.0, SIZE[0] / 2], [0.0, 0.0, 1.0]]).expand(
        4, 3, 3
    )
    pixels = project(batch.joints_cam_m, crop)
    return dataclasses.replace(
        batch, rgb=rgb, depth=0.5 * left, depth_valid=left, intrinsics_crop_px=crop, joints_crop_px=pixels
    )


ROLLS = torch.tensor([0.3, -2.0, math.pi / 2, 3.0])


def of_labels(batch: HandBatch, turn: Tensor) -> Prediction:
    """The labelled hands, turned by (B, 3, 3), with votes at their joints."""
    rows = turn.mT
    hand = HandEstimate(
        turn @ batch.global_orient,
        batch.hand_pose,
        batch.betas,
        (batch.root_cam_m[:, None] @ rows)[:, 0],
        batch.joints_root_m @ rows,
        batch.joints_root_m.repeat(1, 2, 1) @ rows,
    )
    pixels = project(hand.joints_cam_m, batch.intrinsics_crop_px)
    unit = pixels / torch.tensor([SIZE[1], SIZE[0]]) - 0.5
    cells = torch.stack(torch.meshgrid(torch.arange(24), torch.arange(32), indexing="xy"), dim=-1)
    logits = -0.1 * (4.0 * cells + 1.5 - pixels[:, :, None, None]).square().sum(dim=-1)
    return Prediction(hand, hand, hand.joints_root_m, unit, logits)


def test_pictures_turn_as_the_camera_does(batch: HandBatch) -> None:
    """A crop turned about another point, by another angle or the other way is not what its intrinsics say."""
    seen = turned(batch, ROLLS)
    joints = batch.joints_cam_m @ rotation_about_z(ROLLS).mT
    pixels = project(joints, batch.intrinsics_crop_px)
    inside = ((pixels > 1) & (pixels < torch.tensor([SIZE[1], SIZE[0]]) - 2)).all(dim=-1)
    assert inside.float().mean() > 0.5
    for k, j in inside.nonzero().tolist():
        x, y = pixels[k, j].tolist()
        column, row = int(x), int(y)
        corners = seen.rgb[k, :2, row : row + 2, column : column + 2]
        across, down = x - column, y - row
        there = (corners * torch.tensor([[1 - down], [down]]) * torch.tensor([1 - across, across])).sum(
            (1, 2)
        )
        before = batch.joints_crop_px[k, j]
        assert (there - before).abs().max() < 0.1, (k, OPENPOSE21[j])
        if abs(float(before[0]) - SIZE[1] / 2) > 1.5:
            nearest = seen.depth_valid[k, 0, round(y), round(x)]
            assert float(nearest) == float(before[0] < SIZE[1] / 2)
    assert set(seen.depth_valid.unique().tolist()) == {0.0, 1.0}, "depth is never mixed"
    assert torch.equal(seen.depth, 0.5 * seen.depth_valid)
    in_image = seen.to_image_camera(joints) - batch.to_image_camera(batch.joints_cam_m)
    assert in_image.abs().max() < 1e-6, "of the rolled camera"
    corner = turned(batch, torch.full((4,), math.pi / 4)).rgb[:, :, 0, 0]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(corner * std + mean, torch.zeros(3), atol=1e-5), "black beyond the picture"


def test_hands_turn_back(batch: HandBatch) -> None:
    """A part that is not turned back is a hand with its fingers, its wrist or its mesh elsewhere."""
    there = of_labels(batch, rotation_about_z(ROLLS))
    back = turned_back(there, ROLLS, SIZE)
    want = of_labels(batch, torch.eye(3).expand(4, 3, 3))
    for hand, wanted in ((back.hand, want.hand), (back.coarse, want.coarse)):
        for field in dataclasses.fields(HandEstimate):
            assert torch.allclose(getattr(hand, field.name), getattr(wanted, field.name), atol=1e-5), (
                field.name
            )
    assert torch.allclose(back.vote_joints_root_m, want.vote_joints_root_m, atol=1e-6)
    assert torch.allclose(back.vote_joints_unit, want.vote_joints_unit, atol=1e-5)
    inside = (want.vote_joints_unit.abs() < 0.45).all(dim=-1) & (there.vote_joints_unit.abs() < 0.45).all(
        dim=-1
    )
    assert inside.float().mean() > 0.4
    best, wanted_best = (p.vote_logits.flatten(2).argmax(dim=-1)[inside] for p in (back, want))
    apart = torch.stack([best % 24 - wanted_best % 24, best // 24 - wanted_best // 24])
    assert apart.abs().max() <= 1


def test_an_upright_hand_points_up() -> None:
    """OpenCV's y points down."""
    joints = make_batch(6, noise=True).joints_cam_m
    up = joints @ rotation_about_z(upright_roll(joints)).mT
    along = up[:, OPENPOSE21.index("middle_1")] - up[:, 0]
    assert along[:, 0].abs().max() < 1e-6
    assert (along[:, 1] < 0).all()


def test_the_second_look_is_at_the_upright_hand(batch: HandBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training looks once; a prediction is that of the second look, in the crop that was given."""
    config = ModelConfig(preset="tiny", image_size=SIZE, second_look=True)
    network, seen = build(config), []

    def look(crops: NetworkInput) -> Prediction:
        roll = upright_roll(batch.joints_root_m) if seen else torch.zeros(4)
        seen.append(crops)
        return of_labels(batch, rotation_about_z(roll))

    monkeypatch.setattr(network, "_look", look)
    hand = network.eval()(batch).hand
    assert torch.allclose(hand.joints_cam_m, batch.joints_cam_m, atol=1e-6)
    assert torch.equal(seen[1].rgb, turned(batch, upright_roll(batch.joints_root_m)).rgb)
    assert len(seen) == 2
    seen.clear()
    network.train()(batch)
    assert len(seen) == 1
    network.second_look = False
    network.eval()(batch)
    assert len(seen) == 2
