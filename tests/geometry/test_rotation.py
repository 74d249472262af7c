"""Rotations: one convention for 6D, exact derivatives at 0 and pi, right at every angle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from src.geometry.rotation import (
    largest_row,
    quaternion_form,
    rotation_about_z,
    rotation_between,
    rotation_from_6d,
    rotation_from_aa,
    rotation_from_quaternion,
    sixd_from_rotation,
)


def random_rotations(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(Rotation.random(count, rng=np.random.default_rng(seed)).as_matrix())


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-5, 1e-3, 0.5, 3.1, np.pi - 1e-4, np.pi - 1e-6, np.pi])
def test_axis_angle_agrees_with_scipy_and_its_gradient_is_right(angle: float) -> None:
    """Labels come as axis-angle; a zero or exploding gradient at rest stops a hand from ever bending."""
    aa = np.array([[0.0, 0.6, 0.8], [0, 0, 1], [-0.96, 0, 0.28]]) * angle
    given = torch.from_numpy(aa).requires_grad_()
    wanted = torch.from_numpy(Rotation.from_rotvec(aa).as_matrix())
    assert (rotation_from_aa(given) - wanted).abs().max() < 1e-12
    assert torch.autograd.gradcheck(rotation_from_aa, (given,), atol=1e-6)


def test_6d_is_two_columns_there_and_back() -> None:
    """Written by rows and read by columns, the round trip was off by 1.5."""
    rotations = random_rotations(50)
    sixd = sixd_from_rotation(rotations)
    assert torch.equal(sixd[:, :3], rotations[:, :, 0])
    assert (rotation_from_6d(sixd) - rotations).abs().max() < 1e-12
    scaled = torch.cat([3 * sixd[:, :3], 0.2 * sixd[:, 3:] + sixd[:, :3]], 1)
    assert (rotation_from_6d(scaled) - rotations).abs().max() < 1e-12


def test_rotation_between_takes_the_shortest_way() -> None:
    """The swing of a bone must not add a twist."""
    a, b = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 200, 3)))
    turn = rotation_between(a, b)
    unit = torch.nn.functional.normalize
    assert (turn @ unit(a, dim=-1)[..., None] - unit(b, dim=-1)[..., None]).abs().max() < 1e-9
    angle = torch.arccos((unit(a, dim=-1) * unit(b, dim=-1)).sum(-1).clamp(-1, 1))
    assert np.abs(Rotation.from_matrix(turn.numpy()).magnitude() - angle.numpy()).max() < 1e-6
    assert torch.equal(rotation_between(0 * a, b), torch.eye(3).double().expand(200, 3, 3)), "of no length"


@pytest.mark.parametrize("degrees", [177.0, 179.0, 179.9, 180.0])
def test_rotation_between_almost_opposite_directions(degrees: float) -> None:
    """Half a turn where a little less is due leaves a bone up to 3 degrees from where it was seen."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    a = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    size = a.norm(dim=1, keepdim=True)
    b = torch.stack([angle.sin().expand(2), *(angle.cos() * a[:, 1:] / size).T], 1)
    turn = rotation_between(a, b)
    assert ((turn @ a[..., None])[..., 0] - size * b).abs().max() < 1e-9
    assert (torch.linalg.det(turn) - 1).abs().max() < 1e-10


def test_quaternions_are_w_x_y_z_and_come_back() -> None:
    """Another order of the four, or the inverse turn, gives a rotation too, and the wrong one."""
    rotations = random_rotations(50)
    quaternions = torch.from_numpy(Rotation.from_matrix(rotations.numpy()).as_quat(scalar_first=True))
    assert (rotation_from_quaternion(quaternions) - rotations).abs().max() < 1e-14
    assert (rotation_from_quaternion(largest_row(quaternion_form(rotations))) - rotations).abs().max() < 1e-14
    # q^T (I + K) q = 1 + trace(R(q)^T M), of any matrix.
    matrices = torch.randn(50, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    form = torch.einsum("bi,bij,bj->b", quaternions, quaternion_form(matrices), quaternions)
    torch.testing.assert_close(form, 1 + (rotations * matrices).sum((1, 2)), rtol=0, atol=1e-13)


def test_about_z_turns_x_towards_y() -> None:
    """The sign of the roll: picture and labels must turn the same way."""
    quarter = rotation_about_z(torch.tensor(torch.pi / 2, dtype=torch.float64))
    assert (quarter[:, 0] - torch.tensor([0.0, 1.0, 0.0])).abs().max() < 1e-15
