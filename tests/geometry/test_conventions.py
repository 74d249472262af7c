"""Which way round: quaternions, angles between rotations, weights; against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from src.geometry.procrustes import fit_rotation
from src.geometry.rotation import (
    aa_from_rotation,
    geodesic_angle,
    quaternion_from_rotation,
    rotation_from_aa,
)

TURNS = Rotation.random(50, rng=np.random.default_rng(0))


def test_quaternions_are_w_x_y_z() -> None:
    """scipy has the real part last; q and -q are one rotation."""
    got = quaternion_from_rotation(torch.from_numpy(TURNS.as_matrix())).numpy()
    expected = TURNS.as_quat()[:, [3, 0, 1, 2]]
    expected *= np.sign((got * expected).sum(1, keepdims=True))
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_the_angle_between_two_rotations_is_that_of_the_turn_from_one_to_the_other() -> None:
    """Not that of their product: two equal rotations are 0 apart."""
    other = Rotation.random(50, rng=np.random.default_rng(1))
    a, b = (torch.from_numpy(turn.as_matrix()) for turn in (TURNS, other))
    np.testing.assert_allclose(geodesic_angle(a, b), (TURNS.inv() * other).magnitude(), atol=1e-9)
    assert float(geodesic_angle(a, a).max()) < 1e-7


@pytest.mark.parametrize("angle", [np.pi - 0.001, np.pi - 1e-6, np.pi, 0.3, 0.1, 0.01, 1e-3, 1e-8])
def test_axis_and_angle_come_back_at_any_angle(angle: float) -> None:
    """Through acos, labels near half a turn were 86 mm off, and near none they lost half their digits."""
    axis = np.array([[0.6, 0.0, 0.8], [-0.48, 0.6, 0.64], [1.0, 0.0, 0.0]])
    matrix = torch.from_numpy(Rotation.from_rotvec(angle * axis).as_matrix())
    back = aa_from_rotation(matrix)
    np.testing.assert_allclose(back.norm(dim=-1), angle, rtol=1e-8)
    gap = (rotation_from_aa(back) - matrix).abs().max()
    assert float(gap) < 1e-9, f"elements of the matrix at {angle} rad"
    assert float((rotation_from_aa(torch.from_numpy(angle * axis)) - matrix).abs().max()) < 1e-12


def test_a_weight_is_linear() -> None:
    """A point of weight 3 pulls like three points at its place."""
    rng = np.random.default_rng(2)
    source, target = (torch.from_numpy(rng.normal(size=(4, 6, 3))) for _ in range(2))
    weights = torch.ones(6, dtype=torch.float64)
    weights[2] = 3.0
    thrice = [torch.cat([p, p[:, 2:3], p[:, 2:3]], dim=1) for p in (source, target)]
    torch.testing.assert_close(fit_rotation(source, target, weights), fit_rotation(*thrice))
