"""The coarse head by its conventions: where its wrist starts, which query says what, in whose frame."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from src.geometry.camera import project
from src.geometry.rotation import rotation_from_aa
from src.models.heads import CoarseHead, HandDecoder, HandState, RestSkeleton
from src.models.readout import Readout
from src.schema import HandBatch
from tests.models.scene import hand_model, make_batch

QUERIES = 19
"""16 rotations, shape, camera, intrinsics."""


def head_of(*, learned: bool) -> CoarseHead:
    """A head that adds nothing to what was voted, or one with random weights."""
    torch.manual_seed(0)
    head = CoarseHead(16, 8, RestSkeleton(hand_model()))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0.0, 0.3) if learned else parameter.zero_()
    return head


def readout_of(batch: HandBatch, summary: float = 0.0) -> Readout:
    """Votes that are the labels."""
    size = batch.size
    return Readout(
        torch.full((size, 8), summary), batch.joints_root_m, batch.joints_unit, torch.zeros(size, 21, 4, 4)
    )


def test_the_wrist_starts_where_it_was_voted() -> None:
    """Before anything is learned the wrist projects onto its own vote, at the reference depth, on a crop that
    is not square. A start without the code's step of a quarter lies four times nearer to the middle.
    """
    batch = make_batch(2, 64, 96, seed=1, noise=True)
    unit = batch.joints_unit.clone()
    unit[:, 0] = torch.tensor([[0.25, -0.4], [-0.125, 0.3]])
    readout = dataclasses.replace(readout_of(batch), joints_unit=unit)
    state = head_of(learned=False)(readout, torch.zeros(2, QUERIES, 16))
    hand = HandDecoder(hand_model(), (64, 96))(state, batch.intrinsics_crop_px, batch.z_ref_m)
    pixels = project(hand.root_cam_m[:, None], batch.intrinsics_crop_px)[:, 0]
    wanted = torch.tensor([[0.75 * 96, 0.1 * 64], [0.375 * 96, 0.8 * 64]])
    torch.testing.assert_close(pixels, wanted, atol=1e-3, rtol=0)
    torch.testing.assert_close(hand.root_cam_m[:, 2], batch.z_ref_m)


def test_each_query_says_its_own_part() -> None:
    """Query j turns rotation j, 16 gives the shape, the last two the wrist: one taken for another learns
    slower and nobody sees why.
    """
    batch = make_batch(1, noise=True)
    queries = torch.randn(1, QUERIES, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    state = head_of(learned=True)(readout_of(batch, summary=0.5), queries)
    parts = {"global_orient": state.global_orient, "betas": state.betas, "wrist": state.wrist_code}
    parts |= {f"rotation {j + 1}": state.hand_pose[:, j] for j in range(15)}
    heard = {}
    for name, part in parts.items():
        (gradient,) = torch.autograd.grad(part.square().sum(), queries, retain_graph=True)
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
    queries = torch.randn(3, QUERIES, 16, generator=torch.Generator().manual_seed(1))
    turned = dataclasses.replace(readout, joints_root_m=batch.joints_root_m @ turn.T)
    before, after = head(readout, queries), head(turned, queries)
    torch.testing.assert_close(after.global_orient, turn @ before.global_orient, atol=1e-4, rtol=0)
    torch.testing.assert_close(after.hand_pose, before.hand_pose, atol=1e-4, rtol=0)


def test_votes_are_not_taught_by_what_is_built_on_them() -> None:
    """The wrist's start and the rotations take the votes as they are: their own terms teach the votes."""
    batch = make_batch(1, noise=True)
    unit, joints = batch.joints_unit.clone().requires_grad_(), batch.joints_root_m.clone().requires_grad_()
    readout = dataclasses.replace(readout_of(batch), joints_unit=unit, joints_root_m=joints)
    state = head_of(learned=True)(readout, torch.ones(1, QUERIES, 16))
    total = state.wrist_code.sum() + state.global_orient.sum() + state.hand_pose.sum() + state.betas.sum()
    found = torch.autograd.grad(total, (unit, joints), allow_unused=True)
    assert [g is None or float(g.abs().max()) for g in found] == [True, True], "gradient of (places, joints)"


@torch.no_grad()
def test_rotations_are_those_of_the_hand_whose_shape_is_predicted() -> None:
    """A hand of another shape has other bones: fitted to the mean hand's, its decoded joints are off."""
    mano, gaps = hand_model(), []
    batch = make_batch(8, seed=4, noise=True)
    betas = 2.5 * torch.randn(8, 10, generator=torch.Generator().manual_seed(2))
    out = mano(batch.global_orient, batch.hand_pose, betas, torch.zeros(8, 3))
    joints = out.joints_m - out.joints_m[:, :1]
    head = head_of(learned=False)
    head.trust.bias.fill_(50.0)
    for shape in (betas, torch.zeros_like(betas)):
        head.betas_summary.weight[:, :8] = shape.T
        readout = dataclasses.replace(readout_of(batch), summary=torch.eye(8), joints_root_m=joints)
        state = head(readout, torch.zeros(8, QUERIES, 16))
        torch.testing.assert_close(state.betas, shape)
        made = mano(state.global_orient, state.hand_pose, betas, torch.zeros(8, 3)).joints_m
        gaps.append(float((made - made[:, :1] - joints).norm(dim=-1).mean()) * 1000)
    assert gaps[0] < 0.5 * gaps[1], f"mean mm by the hand's own shape and by the mean hand's: {gaps}"


@pytest.mark.parametrize("short_of_pi", [1e-1, 1e-3, 1e-5, 0.0])
def test_a_hand_turned_by_half_a_turn_is_decoded_where_it_is(short_of_pi: float) -> None:
    """Rotations stay matrices from the heads to the mesh. By way of axis and angle, with acos, a hand whose
    wrist is turned by pi - 0.001 was decoded 86 mm off, and a finger as far as it is long.
    """
    mano, angle = hand_model(), math.pi - short_of_pi
    axes = torch.tensor([[0.6, 0.0, 0.8], [-0.48, 0.6, 0.64], [0.0, 1.0, 0.0]], dtype=torch.float64)
    turn = rotation_from_aa(angle * axes)
    eye, zero = torch.eye(3), torch.zeros(3, 10)
    batch = make_batch(3, 64, 96, noise=True)
    decoder = HandDecoder(mano, (64, 96))

    def decoded(orient: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
        """(3, 799, 3) mesh and joints, wrist-relative, millimetres."""
        state = HandState(orient, pose, zero, torch.zeros(3, 3))
        hand = decoder(state, batch.intrinsics_crop_px, batch.z_ref_m)
        return 1000 * torch.cat([hand.vertices_root_m, hand.joints_root_m], dim=1).double()

    flat = eye.expand(3, 15, 3, 3)
    still = decoded(eye.expand(3, 3, 3), flat)
    wrist = decoded(turn.float(), flat) - still @ turn.transpose(1, 2)
    assert float(wrist.abs().max()) < 0.01, f"mm off where the wrist is turned by {angle} rad"
    bent = flat.clone()
    bent[:, 4] = turn.float()
    shown = [part.double() for part in (eye.expand(3, 3, 3), bent, zero, torch.zeros(3, 3))]
    exact = mano(*shown)
    finger = decoded(eye.expand(3, 3, 3), bent)[:, :778] - 1000 * (exact.vertices_m - exact.joints_m[:, :1])
    assert float(finger.abs().max()) < 0.01, f"mm off where a finger is bent by {angle} rad"
    # The layer itself: what hangs on the second joint of the middle finger turns about it as a whole.
    from_joint = exact.joints_m[:, 11:13] - exact.joints_m[:, 10:11]
    rest = mano(*(part.double() for part in (eye.expand(3, 3, 3), flat, zero, torch.zeros(3, 3)))).joints_m
    want = (rest[:, 11:12] - rest[:, 10:11]) @ turn.transpose(1, 2)
    gap = 1000 * (from_joint[:, :1] - want)
    assert float(gap.abs().max()) < 0.01, f"mm off in the hand layer at {angle} rad"
