"""Coarse head: joints to rotations, wrist codes, votes."""

import dataclasses

import pytest
import torch

from src.geometry.camera import project
from src.geometry.rotation import rotation_from_aa, sixd_from_rotation
from src.hand.joints import MANO16, OPENPOSE21
from src.models.heads import CoarseHead, RestSkeleton, rotations_from_joints, wrist_from_code
from src.models.layers import pooling_matrix
from src.models.readout import DenseReadout, Readout
from tests.models.scene import hand_model, make_batch


def test_true_joints_give_back_the_hand():
    """Rotations in closed form are the network's first guess: a swapped finger or a row-wise matrix ruins it.

    A hand whose shape depends on its pose moves the tips a little: up to 1 mm; the stand-in's hardly moves.
    """
    mano = hand_model()
    batch = make_batch(64, seed=5, noise=True)
    rest = RestSkeleton(mano)
    wrist, local = rotations_from_joints(batch.joints_root_m, rest(batch.betas))
    out = mano(wrist, local, batch.betas, torch.zeros(64, 3))
    error = (out.joints_m - out.joints_m[:, :1] - batch.joints_root_m).norm(dim=-1) * 1000
    assert error.mean() < 1.0
    assert error.mean(dim=0).max() < 4.0
    assert torch.allclose(torch.linalg.det(local), torch.ones(64, 15), atol=1e-4)


@pytest.mark.parametrize("name", MANO16[1:])
def test_a_bent_joint_bends_that_joint(name):
    """Lesson 3: rotations found for one finger and given to another."""
    mano = hand_model()
    pose = torch.eye(3).repeat(1, 15, 1, 1)
    index = MANO16.index(name) - 1
    # About an axis across the bone, or there is nothing to see.
    rest = RestSkeleton(mano)
    finger, k = name.rsplit("_", 1)
    bone = rest.mean[OPENPOSE21.index(f"{finger}_{int(k) + 1}")] - rest.mean[OPENPOSE21.index(name)]
    axis = torch.linalg.cross(bone, torch.tensor([0.3, 1.0, 0.2]))
    pose[0, index] = rotation_from_aa(0.6 * axis / axis.norm())
    out = mano(torch.eye(3)[None], pose, torch.zeros(1, 10), torch.zeros(1, 3))
    _, local = rotations_from_joints(out.joints_m - out.joints_m[:, :1], rest(torch.zeros(1, 10)))
    turned = (local[0] - torch.eye(3)).flatten(1).norm(dim=1)
    assert int(turned.argmax()) == index
    assert (local[0, index] - pose[0, index]).abs().max() < 0.1


def test_closed_form_keeps_nan_and_has_no_gradient():
    """A nan must reach the loss, where all ranks stop; a gradient of the fit is nan at equal points."""
    joints = make_batch(2, noise=True).joints_root_m.clone().requires_grad_()
    rest = RestSkeleton(hand_model())(torch.zeros(2, 10))
    wrist, local = rotations_from_joints(joints, rest)
    assert not wrist.requires_grad
    assert not local.requires_grad
    broken = joints.detach().clone()
    broken[1] = torch.nan
    wrist, local = rotations_from_joints(broken, rest)
    assert torch.isnan(wrist[1]).all()
    assert torch.isnan(local[1]).all()
    assert torch.isfinite(wrist[0]).all()


def test_residual_rotations_are_read_as_they_are_written():
    """Lesson 16: 6D written by rows and read by columns; a residual that names columns must turn by them."""
    torch.manual_seed(0)
    mano = hand_model()
    rest = RestSkeleton(mano)
    head = CoarseHead(16, 8, rest)
    turn = rotation_from_aa(torch.tensor([0.3, -0.4, 0.2]))
    wanted = torch.cat([turn[:, 0], turn[:, 1]]) - torch.tensor([1.0, 0, 0, 0, 1, 0])
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.pose_summary.bias[:6] = wanted
        head.trust.bias.fill_(50.0)
    batch = make_batch(1, noise=True)
    readout = Readout(torch.zeros(1, 8), batch.joints_root_m, batch.joints_unit, torch.zeros(1, 21, 4, 4))
    state = head(readout, torch.zeros(1, 19, 16))
    wrist, local = rotations_from_joints(batch.joints_root_m, rest(torch.zeros(1, 10)))
    torch.testing.assert_close(state.global_orient, wrist @ turn, atol=1e-5, rtol=0)
    torch.testing.assert_close(state.hand_pose, local, atol=1e-5, rtol=0)


@pytest.mark.parametrize("joint", [0, 7])
def test_local_rotation_without_trust_in_the_votes_is_the_learned_one(joint):
    """Uncertain votes bend fingers too far: a joint told not to trust them must lose all of their swing."""
    torch.manual_seed(0)
    rest = RestSkeleton(hand_model())
    head = CoarseHead(16, 8, rest)
    turn = rotation_from_aa(torch.tensor([0.3, -0.4, 0.2]))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        first = 6 * (1 + joint)
        head.pose_summary.bias[first : first + 6] = sixd_from_rotation(turn) - head.identity
        head.trust.bias.fill_(50.0)
        head.trust.bias[joint] = -50.0
    batch = make_batch(1, noise=True)
    readout = Readout(torch.zeros(1, 8), batch.joints_root_m, batch.joints_unit, torch.zeros(1, 21, 4, 4))
    pose = head(readout, torch.zeros(1, 19, 16)).hand_pose
    _, swing = rotations_from_joints(batch.joints_root_m, rest(torch.zeros(1, 10)))
    others = [k for k in range(15) if k != joint]
    torch.testing.assert_close(pose[:, joint], turn[None], atol=1e-5, rtol=0)
    torch.testing.assert_close(pose[:, others], swing[:, others], atol=1e-5, rtol=0)


def test_wrist_code_zero_is_the_middle_at_the_reference_depth():
    """Lesson 8: a wrist off by 4/3 on pictures that are not square."""
    batch = make_batch(2, 64, 96, noise=True)
    code = torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 0.4]])
    wrist = wrist_from_code(code, batch.intrinsics_crop_px, batch.z_ref_m, (64, 96))
    pixels = project(wrist[:, None], batch.intrinsics_crop_px)[:, 0]
    torch.testing.assert_close(pixels, torch.tensor([[48.0, 32.0], [72.0, 16.0]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(wrist[:, 2], batch.z_ref_m * torch.tensor([0.0, 0.1]).exp())


def make_readout(size: tuple[int, int]) -> DenseReadout:
    """A read-out whose joint 7 votes where channel 0 of the map is high."""
    grid = (size[0] // 16, size[1] // 16)
    readout = DenseReadout(grid, size, width=4, fine=4, hidden=8, rest_joints_m=torch.zeros(21, 3))
    with torch.no_grad():
        readout.votes.weight.zero_()
        readout.votes.weight[7, 0] = 1.0
        readout.joints.weight.zero_()
    return readout


def test_a_vote_lands_on_its_cell():
    """A vote must point at its cell's pixels, on crops that are not square too, and mean metres there."""
    size = (48, 80)
    batch = make_batch(1, *size, noise=True)
    fine = torch.zeros(1, 4, 12, 20)
    fine[0, 0, 5, 13] = 50.0
    out = make_readout(size)(torch.zeros(1, 15, 4), fine, batch)
    # Row 5, column 13: the mean of pixels 20..23 and 52..55.
    torch.testing.assert_close(out.joints_unit[0, 7], torch.tensor([53.5 / 80, 21.5 / 48]) - 0.5)
    # The other joints vote evenly: for the middle of all cells.
    middle = torch.tensor([39.5 / 80, 23.5 / 48]) - 0.5
    torch.testing.assert_close(out.joints_unit[0, 3], middle)
    focal = batch.intrinsics_crop_px[0].diagonal()[:2]
    wanted = torch.tensor([14.0, -2.0]) / focal * batch.z_ref_m
    torch.testing.assert_close(out.joints_root_m[0, 7, :2], wanted, atol=1e-6, rtol=1e-4)


def test_votes_read_the_depth_under_them():
    """The depth of a joint comes from where it is seen, and unmeasured pixels must not count as zero."""
    size = (64, 64)
    batch = make_batch(1, *size, noise=True)
    valid = torch.ones(1, 1, 64, 64)
    valid[..., 20:22, :] = 0.0
    batch = dataclasses.replace(batch, depth=torch.full((1, 1, 64, 64), 0.4) * valid, depth_valid=valid)
    readout = make_readout(size)
    with torch.no_grad():
        readout.joints_depth.weight[7, 7] = 1.0
    fine = torch.zeros(1, 4, 16, 16)
    fine[0, 0, 5, 3] = 50.0
    out = readout(torch.zeros(1, 16, 4), fine, batch)
    assert float(out.joints_root_m[0, 7, 2].detach()) == pytest.approx(0.4 * 0.15, abs=1e-5)


def test_pooling_is_a_mean_of_areas():
    """A read-out that forgets a row of tokens, or counts one twice, sees another picture."""
    for cells, count in ((8, 8), (8, 16), (8, 12), (8, 3)):
        matrix = pooling_matrix(cells, count)
        torch.testing.assert_close(matrix.sum(dim=1), torch.ones(cells))
        torch.testing.assert_close(matrix.sum(dim=0), torch.full((count,), cells / count))
    assert torch.equal(pooling_matrix(8, 8), torch.eye(8))
