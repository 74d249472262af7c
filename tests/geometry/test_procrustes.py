"""Alignment: the PA metric and the closed-form start pose stand on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from src.errors import ShapeError
from src.geometry.procrustes import fit_rotation, fit_similarity


def sets(count: int = 40, joints: int = 21, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, joints, 3)) * 0.05)


def similar(x: torch.Tensor, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    rotation = torch.from_numpy(Rotation.random(len(x), rng=rng).as_matrix())
    scale = torch.from_numpy(rng.uniform(0.2, 5, len(x)))
    shift = torch.from_numpy(rng.normal(size=(len(x), 3)))
    return scale[:, None, None] * x @ rotation.transpose(1, 2) + shift[:, None], rotation, scale, shift


def test_a_similarity_is_found_exactly() -> None:
    """A similar hand has PA 0, wherever, however large and however turned it is."""
    x = sets()
    y, rotation, scale, shift = similar(x)
    fit = fit_similarity(x, y)
    assert (fit.rotation - rotation).abs().max() < 1e-12
    assert (fit.scale - scale).abs().max() < 1e-12
    assert (fit.translation - shift).abs().max() < 1e-12
    assert (fit.apply(x) - y).abs().max() < 1e-12


def test_no_other_similarity_is_better() -> None:
    """With noise the fit is a minimum: small changes of any part make it worse."""
    x = sets()
    y, *_ = similar(x)
    y = y + sets(seed=3) * 0.3
    fit = fit_similarity(x, y)
    best = (fit.apply(x) - y).square().sum((1, 2))
    rng = np.random.default_rng(4)
    for _ in range(10):
        turn = torch.from_numpy(Rotation.from_rotvec(rng.normal(size=(len(x), 3)) * 0.02).as_matrix())
        scale = fit.scale * torch.from_numpy(rng.uniform(0.98, 1.02, len(x)))
        shift = fit.translation + torch.from_numpy(rng.normal(size=(len(x), 3)) * 0.002)
        other = scale[:, None, None] * x @ (turn @ fit.rotation).transpose(1, 2) + shift[:, None]
        assert bool(((other - y).square().sum((1, 2)) >= best - 1e-15).all())


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


def test_far_away_and_single_precision_inputs() -> None:
    """100 m of offset and float32 input cost nothing that shows in a millimetre."""
    x = sets()
    y, *_ = similar(x)
    fit = fit_similarity(x + 100, y - 100)
    assert (fit.apply(x + 100) - (y - 100)).abs().max() < 1e-9
    assert fit_similarity(x.float(), y.float()).scale.dtype == torch.float64


def test_a_bad_row_is_nan_and_alone() -> None:
    """One nan joint spoils its own row only, and is never turned into a number."""
    x, y = sets(), sets(seed=2)
    good = fit_similarity(x, y)
    x[3, 4, 1] = torch.nan
    fit = fit_similarity(x, y)
    assert fit.valid.tolist() == [i != 3 for i in range(len(x))]
    assert bool(torch.isnan(fit.apply(x)[3]).all())
    keep = fit.valid
    assert torch.equal(fit.rotation[keep], good.rotation[keep])


def test_the_best_rotation_of_mirrored_sets_is_found() -> None:
    """Votes of a bad network may be mirrored: the best rotation of those, not the worst one."""
    # Nearly as wide as high as deep: there the best and the worst one are closest to each other.
    x = torch.linalg.qr(sets(200)).Q * torch.tensor([1.0, 0.98, 0.96], dtype=torch.float64)
    y = -x @ torch.from_numpy(Rotation.random(200, rng=np.random.default_rng(0)).as_matrix()).transpose(1, 2)
    rotation = fit_rotation(x, y)
    assert (torch.linalg.det(rotation) - 1).abs().max() < 1e-12
    for k in range(len(x)):
        _, best = Rotation.align_vectors(y[k].numpy(), x[k].numpy())
        error = float((x[k] @ rotation[k].T - y[k]).norm())
        assert error == pytest.approx(best, rel=1e-9), (
            f"set {k}: {error:.4f}, the best rotation leaves {best:.4f}"
        )


def test_rotation_about_the_origin_with_weights() -> None:
    """A joint of weight 0 does not pull the wrist's rotation."""
    x = sets()
    rotation = torch.from_numpy(Rotation.random(len(x), rng=np.random.default_rng(0)).as_matrix())
    y = x @ rotation.transpose(1, 2)
    y[:, 0] += 1.0
    weights = torch.ones(21, dtype=torch.float64)
    weights[0] = 0
    assert (fit_rotation(x, y, weights) - rotation).abs().max() < 1e-12
    assert (fit_rotation(x, y) - rotation).abs().max() > 1e-3


def test_wrong_shapes_are_named() -> None:
    """Two sets of different sizes have no correspondence."""
    with pytest.raises(ShapeError, match=r"\(2, 21, 3\) and \(2, 20, 3\)"):
        fit_similarity(torch.zeros(2, 21, 3), torch.zeros(2, 20, 3))
    with pytest.raises(ShapeError):
        fit_rotation(torch.zeros(21, 3), torch.zeros(21, 3))
