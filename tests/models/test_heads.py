"""The read-out and the coarse hand by their conventions: which query says what, in whose unit and frame."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from src.geometry.camera import project
from src.geometry.rotation import rotation_from_aa, sixd_from_rotation
from src.hand.joints import MANO16, OPENPOSE21
from src.models.heads import CoarseHead, HandDecoder, HandState, RestSkeleton, rotations_from_joints
from src.models.layers import pooling_matrix
from src.models.readout import DenseReadout, Readout
from src.models.vit import PRESETS
from src.schema import HandBatch
from tests.models.scene import hand_model, make_batch

SIZES = dataclasses.replace(PRESETS["tiny"], width=16, readout_width=8, map_channels=(8, 8, 4))
QUERIES = 19
"""16 rotations, shape, camera, intrinsics."""
TURN = rotation_from_aa(torch.tensor([0.3, -0.4, 0.2]))
REST = RestSkeleton(hand_model())
FLAT = torch.eye(3).expand(1, 15, 3, 3)


def head_of(*, learned: bool = False) -> CoarseHead:
    """A head that adds nothing to what was voted, or one with random weights."""
    torch.manual_seed(0)
    head = CoarseHead(SIZES, REST)
    for parameter in head.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter) * learned
    return head


def readout_of(batch: HandBatch, summary: float = 0.0) -> Readout:
    """Votes that are the labels."""
    said, logits = torch.full((batch.size, 8), summary), torch.zeros(batch.size, 21, 4, 4)
    return Readout(said, batch.joints_root_m, batch.joints_unit, logits)


def queries_of(size: int) -> Tensor:
    return torch.randn(size, QUERIES, 16, generator=torch.Generator().manual_seed(1))


def joints_of(orient: Tensor, pose: Tensor, betas: Tensor) -> Tensor:
    """(B, 21, 3) wrist-relative joints."""
    joints = hand_model()(orient, pose, betas, torch.zeros(len(betas), 3)).joints_m
    return joints - joints[:, :1]


def test_true_joints_give_back_the_hand() -> None:
    """Rotations in closed form are the first guess: a swapped finger (lesson 3) or a transpose ruins it.

    A hand whose shape depends on its pose moves the tips a little: up to 1 mm; the stand-in's hardly moves.
    """
    batch = make_batch(64, seed=5, noise=True)
    wrist, local = rotations_from_joints(batch.joints_root_m, REST(batch.betas))
    error = (joints_of(wrist, local, batch.betas) - batch.joints_root_m).norm(dim=-1) * 1000
    assert error.mean() < 1.0
    assert error.mean(dim=0).max() < 4.0
    assert torch.allclose(torch.linalg.det(local), torch.ones(64, 15), atol=1e-4)


def test_closed_form_keeps_nan_and_has_no_gradient() -> None:
    """A nan must reach the loss, where all ranks stop; a gradient of the fit is nan at equal points."""
    joints = make_batch(2, noise=True).joints_root_m.clone()
    joints[1] = torch.nan
    wrist, local = rotations_from_joints(joints.requires_grad_(), REST(torch.zeros(2, 10)))
    assert [wrist.requires_grad, local.requires_grad] == [False, False]
    assert torch.isnan(torch.cat([wrist[1:], local[1]])).all()
    assert torch.isfinite(wrist[0]).all()


@torch.no_grad()
def test_learned_rotations_are_read_as_they_are_written() -> None:
    """Lesson 16: 6D written by rows and read by columns; a residual that names columns must turn by them. A
    finger that is told not to trust the votes has the learned rotation alone, the others that of the votes.
    """
    head, batch, joint = head_of(), make_batch(1, noise=True), 7
    for index in (0, 1 + joint):
        head.pose_summary.bias[6 * index : 6 * index + 6] = sixd_from_rotation(TURN) - head.identity
    head.trust.bias.fill_(50.0)
    head.trust.bias[joint] = -50.0
    state = head(readout_of(batch), torch.zeros(1, QUERIES, 16))
    wrist, swing = rotations_from_joints(batch.joints_root_m, REST(torch.zeros(1, 10)))
    swing[:, joint] = TURN
    torch.testing.assert_close(state.global_orient, wrist @ TURN, atol=1e-5, rtol=0)
    torch.testing.assert_close(state.hand_pose, swing, atol=1e-5, rtol=0)


def test_a_wrist_code_is_a_place_in_the_crop_and_a_factor_on_depth() -> None:
    """Lesson 8: a wrist off by 4/3 on pictures that are not square. Before anything is learned the wrist
    projects onto its own vote, at the reference depth.
    """
    batch, decoder = make_batch(2, 64, 96, noise=True), HandDecoder(hand_model(), (64, 96))
    batch.joints_unit[:, 0] = torch.tensor([[0.25, -0.4], [-0.125, 0.3]])
    voted = head_of()(readout_of(batch), torch.zeros(2, QUERIES, 16))
    code = torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 0.4]])
    for state, places, depths in (
        (dataclasses.replace(voted, wrist_code=code), [[48.0, 32.0], [72.0, 16.0]], [0.0, 0.1]),
        (voted, [[0.75 * 96, 0.1 * 64], [0.375 * 96, 0.8 * 64]], [0.0, 0.0]),
    ):
        wrist = decoder(state, batch.intrinsics_crop_px, batch.z_ref_m).root_cam_m
        pixels = project(wrist[:, None], batch.intrinsics_crop_px)[:, 0]
        torch.testing.assert_close(pixels, torch.tensor(places), atol=1e-3, rtol=0)
        torch.testing.assert_close(wrist[:, 2], batch.z_ref_m * torch.tensor(depths).exp())


def test_each_query_says_its_own_part() -> None:
    """Query j turns rotation j, 16 gives the shape, the last two the wrist: one taken for another learns
    slower and nobody sees why.
    """
    queries = queries_of(1).requires_grad_()
    state = head_of(learned=True)(readout_of(make_batch(1, noise=True), summary=0.5), queries)
    parts = {"global_orient": state.global_orient, "betas": state.betas, "wrist": state.wrist_code}
    parts |= {f"rotation {j + 1}": state.hand_pose[:, j] for j in range(15)}
    heard = {}
    for name, part in parts.items():
        said = (part * torch.randn_like(part)).sum()  # a sum of squares of a rotation is 3, whatever it is
        (gradient,) = torch.autograd.grad(said, queries, retain_graph=True)
        heard[name] = gradient.abs().sum(dim=(0, 2)).nonzero().flatten().tolist()
    expected = {"global_orient": [0], "betas": [16], "wrist": [17, 18]}
    assert heard == expected | {f"rotation {j + 1}": [j + 1] for j in range(15)}


def test_votes_are_read_in_the_hands_own_frame() -> None:
    """Turn the voted hand as a whole: its wrist turns with it, and no finger moves. Learned the other way, a
    finger's bend would have to be learned for every orientation.
    """
    batch = make_batch(3, noise=True)
    turn = rotation_from_aa(torch.tensor([0.9, -0.7, 1.3]))
    head, readout = head_of(learned=True), readout_of(batch, summary=0.5)
    turned = dataclasses.replace(readout, joints_root_m=batch.joints_root_m @ turn.T)
    before, after = head(readout, queries_of(3)), head(turned, queries_of(3))
    torch.testing.assert_close(after.global_orient, turn @ before.global_orient, atol=1e-4, rtol=0)
    torch.testing.assert_close(after.hand_pose, before.hand_pose, atol=1e-4, rtol=0)


def test_votes_are_not_taught_by_what_is_built_on_them() -> None:
    """The wrist's start and the rotations take the votes as they are: their own terms teach the votes."""
    batch = make_batch(1, noise=True)
    votes = batch.joints_unit.requires_grad_(), batch.joints_root_m.requires_grad_()
    state = head_of(learned=True)(readout_of(batch), torch.ones(1, QUERIES, 16))
    total = sum(part.sum() for part in vars(state).values())
    found = torch.autograd.grad(total, votes, allow_unused=True)
    assert [g is None or float(g.abs().max()) == 0 for g in found] == [True, True], "of (places, joints)"


@torch.no_grad()
def test_rotations_are_those_of_the_hand_whose_shape_is_predicted() -> None:
    """A hand of another shape has other bones: fitted to the mean hand's, its decoded joints are off."""
    batch, gaps = make_batch(8, seed=4, noise=True), []
    betas = 2.5 * torch.randn(8, 10, generator=torch.Generator().manual_seed(2))
    joints = joints_of(batch.global_orient, batch.hand_pose, betas)
    head = head_of()
    head.trust.bias.fill_(50.0)
    readout = dataclasses.replace(readout_of(batch), summary=torch.eye(8), joints_root_m=joints)
    for shape in (betas, torch.zeros_like(betas)):
        head.betas_summary.weight[:] = shape.T
        state = head(readout, torch.zeros(8, QUERIES, 16))
        torch.testing.assert_close(state.betas, shape)
        made = joints_of(state.global_orient, state.hand_pose, betas)
        gaps.append(float((made - joints).norm(dim=-1).mean()) * 1000)
    assert gaps[0] < 0.5 * gaps[1], f"mean mm by the hand's own shape and by the mean hand's: {gaps}"


@pytest.mark.parametrize("short_of_pi", [1e-3, 0.0])
def test_a_hand_turned_by_half_a_turn_is_decoded_where_it_is(short_of_pi: float) -> None:
    """Rotations stay matrices from the heads to the mesh. By way of axis and angle, with acos, a hand whose
    wrist is turned by pi - 0.001 was decoded 86 mm off, and a finger as far as it is long.
    """
    axes = torch.tensor([[0.6, 0.0, 0.8], [-0.48, 0.6, 0.64], [0.0, 1.0, 0.0]], dtype=torch.float64)
    turn = rotation_from_aa((math.pi - short_of_pi) * axes)
    batch, decoder = make_batch(3, 64, 96, noise=True), HandDecoder(hand_model(), (64, 96))
    eye, flat = torch.eye(3).expand(3, 3, 3), FLAT.repeat(3, 1, 1, 1)

    def decoded(orient: Tensor, pose: Tensor) -> Tensor:
        """(3, 799, 3) joints and mesh, wrist-relative, millimetres."""
        state = HandState(orient, pose, torch.zeros(3, 10), torch.zeros(3, 3))
        hand = decoder(state, batch.intrinsics_crop_px, batch.z_ref_m)
        return 1000 * torch.cat([hand.joints_root_m, hand.vertices_root_m], dim=1).double()

    still = decoded(eye, flat)
    wrist = decoded(turn.float(), flat) - still @ turn.mT
    assert float(wrist.abs().max()) < 0.01, "mm off where the wrist is turned"
    # What hangs on the second joint of the middle finger turns about it as a whole.
    second, third = OPENPOSE21.index("middle_2"), OPENPOSE21.index("middle_3")
    flat[:, MANO16.index("middle_2") - 1] = turn.float()
    bent = decoded(eye, flat)
    bone = still[:, third, None] - still[:, second, None]
    finger = bent[:, third, None] - bent[:, second, None] - bone @ turn.mT
    assert float(finger.abs().max()) < 0.01, "mm off where a finger is bent"


def readout(size: tuple[int, int]) -> DenseReadout:
    """A read-out whose joint 7 votes where channel 0 of the map is high."""
    made = DenseReadout(SIZES, size, torch.zeros(21, 3))
    made.votes.weight.data.zero_()[7, 0] = 1.0
    made.joints.weight.data.zero_()
    return made


def test_a_vote_lands_on_its_cell() -> None:
    """A vote must point at its cell's pixels, on crops that are not square too, and mean metres there."""
    batch, fine = make_batch(1, 48, 80, noise=True), torch.zeros(1, 4, 12, 20)
    fine[0, 0, 5, 13] = 50.0
    out = readout((48, 80))(torch.zeros(1, 15, 16), fine, batch)
    # Row 5, column 13: the mean of pixels 20..23 and 52..55. The other joints vote for the middle of all.
    torch.testing.assert_close(out.joints_unit[0, 7], torch.tensor([53.5 / 80, 21.5 / 48]) - 0.5)
    torch.testing.assert_close(out.joints_unit[0, 3], torch.tensor([39.5 / 80, 23.5 / 48]) - 0.5)
    wanted = torch.tensor([14.0, -2.0]) / batch.intrinsics_crop_px[0].diagonal()[:2] * batch.z_ref_m
    torch.testing.assert_close(out.joints_root_m[0, 7, :2], wanted, atol=1e-6, rtol=1e-4)


def test_votes_read_the_depth_under_them() -> None:
    """The depth of a joint comes from where it is seen, and unmeasured pixels must not count as zero."""
    valid, fine = torch.ones(1, 1, 64, 64), torch.zeros(1, 4, 16, 16)
    valid[..., 20:22, :] = 0.0
    fine[0, 0, 5, 3] = 50.0
    batch = dataclasses.replace(make_batch(1, 64, 64, noise=True), depth=0.4 * valid, depth_valid=valid)
    made = readout((64, 64))
    made.joints_depth.weight.data[7, 7] = 1.0
    out = made(torch.zeros(1, 16, 16), fine, batch)
    assert float(out.joints_root_m[0, 7, 2].detach()) == pytest.approx(0.4 * 0.15, abs=1e-5)


@torch.no_grad()
def test_voted_joints_start_as_the_mean_hand_and_stay_relative_to_the_wrist() -> None:
    """A read-out that says nothing votes for the hand at rest, in metres; one that says something moves the
    wrist never.
    """
    rest, batch = REST.mean + 0.3, make_batch(2, 64, 96, seed=3, noise=True)
    made = DenseReadout(SIZES, (64, 96), rest)
    tokens, fine, joints = torch.randn(2, 24, 16), torch.randn(2, 4, 16, 24), []
    for std in (0.0, 1.0):
        made.votes.weight.normal_(std=std)
        made.joints.weight.normal_(std=std)
        joints.append(made(tokens, fine, batch).joints_root_m)
    torch.testing.assert_close(joints[0], (rest - rest[0]).expand(2, 21, 3), atol=1e-6, rtol=0)
    assert float((joints[1] - joints[0]).abs().max()) > 0.01, "the test wants joints that moved"
    assert torch.equal(joints[1][:, 0], torch.zeros(2, 3))


def test_pooling_is_a_mean_of_areas() -> None:
    """A read-out that forgets a row of tokens, or counts one twice, sees another picture."""
    for cells, count in ((8, 16), (8, 12), (8, 3)):
        matrix = pooling_matrix(cells, count)
        torch.testing.assert_close(matrix.sum(dim=1), torch.ones(cells))
        torch.testing.assert_close(matrix.sum(dim=0), torch.full((count,), cells / count))
    assert torch.equal(pooling_matrix(8, 8), torch.eye(8))
