"""Alignment: the PA metric and the closed-form start pose stand on it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from src.geometry.procrustes import fit_rotation, fit_similarity
from src.geometry.rotation import rotation_from_aa


def sets(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(40, 21, 3)) * 0.05)


def similar(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sets turned, scaled and moved; the turns; the scales."""
    rng = np.random.default_rng(1)
    rotation = torch.from_numpy(Rotation.random(len(x), rng=rng).as_matrix())
    scale = torch.from_numpy(rng.uniform(0.2, 5, len(x)))
    shift = torch.from_numpy(rng.normal(size=(len(x), 3)))
    return scale[:, None, None] * x @ rotation.transpose(1, 2) + shift[:, None], rotation, scale


@pytest.mark.parametrize("away", [0.0, 100.0])
def test_a_similarity_is_found_exactly(away: float) -> None:
    """A similar hand has PA 0, wherever, however large and however turned it is, also 100 m away."""
    x = sets()
    y, rotation, scale = similar(x)
    fit = fit_similarity(x + away, y - away)
    assert (fit.rotation - rotation).abs().max() < 1e-12
    assert (fit.scale - scale).abs().max() < 1e-11
    assert (fit.apply(x + away) - (y - away)).abs().max() < 1e-9
    assert fit_similarity(x.float(), y.float()).scale.dtype == torch.float64


def test_no_other_similarity_is_better() -> None:
    """With noise the fit is a minimum: small changes of any part make it worse."""
    x = sets()
    y = similar(x)[0] + sets(seed=3) * 0.3
    fit = fit_similarity(x, y)
    best = (fit.apply(x) - y).square().sum((1, 2))
    rng = np.random.default_rng(4)
    scale, turn, shift = (torch.from_numpy(rng.normal(size=(len(x), *shape))) for shape in ((), (3,), (3,)))
    for other in (
        dataclasses.replace(fit, scale=fit.scale * (1 + 0.01 * scale)),
        dataclasses.replace(fit, rotation=rotation_from_aa(0.02 * turn) @ fit.rotation),
        dataclasses.replace(fit, translation=fit.translation + 0.002 * shift),
    ):
        assert bool(((other.apply(x) - y).square().sum((1, 2)) >= best - 1e-15).all())


def test_a_mirrored_hand_is_not_aligned_unless_asked() -> None:
    """With reflections a left hand scores 0 against a right one; ours must not."""
    x = sets()
    mirrored = x * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    assert (torch.linalg.det(fit_similarity(x, mirrored).rotation) - 1).abs().max() < 1e-12
    assert (fit_similarity(x, mirrored).apply(x) - mirrored).norm(dim=-1).mean() > 0.01
    assert (fit_similarity(x, mirrored, reflection=True).apply(x) - mirrored).abs().max() < 1e-12


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_points_on_a_point_line_or_plane_stay_finite(rank: int) -> None:
    """A collapsed prediction gets a score, not a nan: all joints equal maps to the target's centroid."""
    x = sets()
    x[..., rank:] = 0.3
    y = sets(seed=5)
    for reflection in (False, True):
        fit = fit_similarity(x, y, reflection=reflection)
        assert bool(torch.isfinite(fit.apply(x)).all())
        assert bool(fit.valid.all())
    if rank == 0:
        assert (fit.apply(x) - y.mean(1, keepdim=True)).abs().max() < 1e-12


def test_a_bad_row_is_nan_and_alone() -> None:
    """A nan or an infinite joint spoils its own row only, in score and loss, and never becomes a number."""
    x, y = sets(), sets(seed=2)
    good, good_turn = fit_similarity(x, y).rotation, fit_rotation(x, y)
    x[3, 4, 1], x[7, 0, 0] = torch.nan, torch.inf
    fit, turn = fit_similarity(x, y), fit_rotation(x, y)
    assert (~fit.valid).nonzero().flatten().tolist() == [3, 7]
    for bad in (fit.apply(x), fit.rotation, turn, fit.translation[:, None], fit.scale[:, None, None]):
        assert torch.isnan(bad).all(-1).all(-1).tolist() == (~fit.valid).tolist()
    assert torch.equal(fit.rotation[fit.valid], good[fit.valid])
    assert torch.equal(turn[fit.valid], good_turn[fit.valid])
    assert not fit_rotation(x.requires_grad_(), y).requires_grad


def covariances(spreads: tuple[float, ...], count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices with these singular values (the last with the sign of the determinant), and the best turns."""
    rng = np.random.default_rng(7)
    u, v = (torch.from_numpy(Rotation.random(count, rng=rng).as_matrix()) for _ in range(2))
    v = v.transpose(1, 2)
    return u @ torch.diag(torch.tensor(spreads, dtype=torch.float64)) @ v, u @ v


def turn_of(covariance: torch.Tensor) -> torch.Tensor:
    """`fit_rotation` of three points whose covariance this is."""
    return fit_rotation(torch.eye(3, dtype=torch.float64).expand_as(covariance), covariance.transpose(1, 2))


@pytest.mark.parametrize(
    ("spreads", "limit_rad"),
    [
        ((1.0, 0.5, 0.1), 1e-12),
        ((1.0, 0.5, 0.0), 1e-12),  # a flat palm
        ((1.0, 0.98, -0.96), 1e-12),  # where the best and the worst turn of a mirrored hand are closest
        ((1.0, 1e-4, 0.0), 1e-10),  # nearly a line
        ((1.0, 0.5, -0.49999999), 1e-5),  # nearly two answers
        ((1.0, 0.0, -1e-20), None),  # fingers on one line, or a mirrored fan: several turns are as good
        ((1.0, 0.5, -0.5), None),
        ((1.0, 1.0, -1.0), None),
        ((0.0, 0.0, 0.0), None),
    ],
)
def test_the_best_turn_is_found(spreads: tuple[float, ...], limit_rad: float | None) -> None:
    """The start pose must not depend on how it is found, but for rounding over the gap of the best turns; at
    the start of training it is one of several, and never nan or a reflection.
    """
    covariance, best = covariances(spreads)
    turn = turn_of(covariance)
    assert (turn @ turn.transpose(1, 2) - torch.eye(3)).abs().max() < 1e-12
    assert (torch.linalg.det(turn) - 1).abs().max() < 1e-12
    assert ((turn * covariance).sum((1, 2)) - sum(spreads)).abs().max() < 1e-12, "nothing better exists"
    if limit_rad is not None:
        # |A - B| = 2 sqrt(2) sin(angle / 2), without an acos that rounds.
        apart = (turn - best).square().sum((1, 2)).sqrt() / 8**0.5
        assert float(2 * torch.asin(apart).max()) < limit_rad
    if not any(spreads):
        assert torch.equal(turn, torch.eye(3, dtype=torch.float64).expand_as(turn))


@given(
    seed=st.integers(0, 2**32 - 1),
    joints=st.integers(2, 21),
    flat=st.sampled_from([(1, 1, 1), (1, 1, 0), (1, 0.1, 1e-3)]),
    exponent=st.integers(-150, 150),
)
@settings(max_examples=60, deadline=None)
def test_any_size_and_shape_fits_as_scipy_says(
    seed: int, joints: int, flat: tuple[float, ...], exponent: int
) -> None:
    """Points of any unit, planar or few: the same turn as scipy's, and no size overflows."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(joints, 3)) * flat
    y = x @ Rotation.random(rng=rng).as_matrix().T + 0.1 * rng.normal(size=x.shape)
    want = Rotation.align_vectors(y, x)[0].as_matrix()
    covariance = y.T @ x
    first, second, third = np.linalg.svd(covariance)[1]
    gap = (second + np.sign(np.linalg.det(covariance)) * third) / first
    size = 10.0**exponent
    sets = [torch.from_numpy(points[None] * size) for points in (x, y)]
    turn = fit_rotation(*sets)
    assert (turn[0] - torch.from_numpy(want)).abs().max() < 1e-13 / gap
