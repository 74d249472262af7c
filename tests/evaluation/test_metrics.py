"""MPJPE, PA-MPJPE and the errors of meshes on inputs whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from src.errors import ShapeError
from src.evaluation.metrics import mean, mesh_rows, mpjpe_mm, pa_mpjpe_mm, usable_rows
from src.runtime.seed import stream
from test_distributed_eval import make_samples

EXACT_MM = 1e-9
"""Rounding of float64 on a hand of 0.1 m is 1e-14 mm; the alignment multiplies it by the SVD's condition."""


GOLDEN_MPJPE_MM = 42.900576194355054
GOLDEN_PA_MM = 27.94466984411586


def hands(count: int, seed: int = 0, joints: int = 21) -> np.ndarray:
    """(count, joints, 3) metres, about 0.6 m in front of the camera."""
    random = stream(seed, "hands")
    return random.normal(0.0, 0.05, (count, joints, 3)) + np.array([0.1, -0.05, 0.6])


def moved(points: np.ndarray, seed: int = 1) -> np.ndarray:
    """Each row turned, scaled and shifted in its own way."""
    random = stream(seed, "moves")
    turn = Rotation.random(len(points), rng=random).as_matrix()
    scale = random.uniform(0.5, 2.0, (len(points), 1, 1))
    return scale * points @ turn.transpose(0, 2, 1) + random.normal(0.0, 0.3, (len(points), 1, 3))


def test_pa_forgives_a_similarity_and_mpjpe_does_not():
    """A PA of 0 survives wrong axes and units; the relative error beside it must show them. Coplanar and
    collinear joints (a hand seen edge-on in a stand-in) have singular covariances.
    """
    for dimensions, rounding in ((3, EXACT_MM), (2, 1e-6), (1, 1e-6)):  # a lost axis costs half of the digits
        truth = hands(50)
        truth[..., dimensions:] = 0.6
        assert mpjpe_mm(truth, truth).max() < EXACT_MM
        assert pa_mpjpe_mm(moved(truth), truth).max() < rounding
        assert mpjpe_mm(moved(truth), truth).min() > 1.0


def test_a_prediction_without_extent_is_finite():
    """A collapsed network must score badly, not crash the validation or turn it into nan."""
    truth = hands(5)
    pred = np.full_like(truth, 0.3)
    expected = np.linalg.norm(truth - truth.mean(1, keepdims=True), axis=-1).mean(1) * 1000.0
    np.testing.assert_allclose(pa_mpjpe_mm(pred, truth), expected, rtol=1e-12)
    np.testing.assert_allclose(pa_mpjpe_mm(np.zeros_like(truth), truth), expected, rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("metric", [mpjpe_mm, pa_mpjpe_mm])
def test_one_bad_row_is_nan_and_touches_no_other(metric, bad):
    """NaN turned into zero once reported a normal-looking 65 mm for a network that was all NaN."""
    truth, pred = hands(6), hands(6, seed=2)
    expected = metric(pred, truth)
    pred[3, 20, 1] = bad
    rows = metric(pred, truth)
    assert np.isnan(rows[3])
    assert np.array_equal(np.delete(rows, 3), np.delete(expected, 3))
    assert math.isnan(mean(rows))
    assert np.isnan(metric(np.full_like(pred, bad), truth)).all()
    narrow = torch.tensor(pred).bfloat16()  # a half-precision network overflows to inf
    assert np.isnan(metric(narrow, truth)).tolist() == [False, False, False, True, False, False]


def test_units_and_the_origin_stay_visible():
    """A metric that guesses units would hide a unit error; scores must not depend on the world's origin."""
    truth, pred = hands(20), hands(20, seed=2)
    far = np.array([100.0, -100.0, 100.0])
    for metric in (mpjpe_mm, pa_mpjpe_mm):
        rows = metric(pred, truth)
        np.testing.assert_allclose(metric(1000.0 * pred, 1000.0 * truth), 1000.0 * rows, rtol=1e-11)
        assert np.abs(metric(pred + far, truth + far) - rows).max() < EXACT_MM


@pytest.mark.parametrize("kind", ["far", "close", "mirrored", "coplanar", "tied"])
def test_pa_matches_scipys_rotation_fit(kind):
    """PA-MPJPE is compared with papers; it must be the proper-rotation Procrustes error and nothing else."""
    truth = hands(10)
    if kind == "tied":  # two spreads are equal
        corners = np.concatenate([np.diag([1.0, 1.0, 0.5]), -np.diag([1.0, 1.0, 0.5])]) * 0.05
        truth = np.broadcast_to(corners, (10, 6, 3)).copy()
    noise = stream(8, "noise").normal(0.0, 0.005, truth.shape)
    pred = {
        "far": hands(10, seed=2, joints=truth.shape[1]),
        "close": truth + noise,
        "mirrored": truth * [-1.0, 1.0, 1.0] + noise,
        "coplanar": truth * [1.0, 1.0, 0.0] + [0.0, 0.0, 0.6],
        "tied": truth + noise,
    }[kind]
    expected = [_pa_by_scipy(p, t) for p, t in zip(pred, truth, strict=True)]
    np.testing.assert_allclose(pa_mpjpe_mm(moved(pred), truth), expected, rtol=1e-8)


def test_a_mirrored_hand_is_wrong_unless_mirrors_are_asked_for():
    """A left hand is not a right hand; only the official definition overlooks it."""
    truth = hands(20)
    mirrored = moved(truth * np.array([-1.0, 1.0, 1.0]))
    assert pa_mpjpe_mm(mirrored, truth).min() > 5.0
    assert pa_mpjpe_mm(mirrored, truth, reflection=True).max() < EXACT_MM


def test_shapes_are_checked():
    """(N, 21, 3) against (21, 3) would broadcast into a plausible number."""
    truth = hands(3)
    for pred in (truth[0], truth[:2], truth[..., :2], truth[:, :20]):
        with pytest.raises(ShapeError):
            mpjpe_mm(pred, truth)


def test_incomplete_labels_are_not_usable():
    """A label of the wrist alone has a wrist-relative error of 0: it must not be scored."""
    truth, conf = hands(5), np.ones((5, 21))
    conf[1] = 0.0
    conf[2, 1:] = 0.0
    conf[3, 4] = np.nan
    truth[4, 7, 2] = np.nan
    assert usable_rows(truth, conf).tolist() == [True, False, False, False, False]


def test_golden_numbers_of_8332_samples():
    """The numbers of a fixed validation may not drift with a library, a machine or a rewrite.

    Made once with numpy and scipy alone, sample by sample, on `make_samples(8332, seed=0)`.
    """
    samples = make_samples(8332, seed=0)
    assert mean(mpjpe_mm(samples.pred, samples.target)) == pytest.approx(GOLDEN_MPJPE_MM, rel=1e-12)
    assert mean(pa_mpjpe_mm(samples.pred, samples.target)) == pytest.approx(GOLDEN_PA_MM, rel=1e-12)


def test_meshes_are_scored_from_the_wrist_and_after_the_best_similarity():
    """The wrist of a mesh is no vertex: each mesh must be moved by its own joint, and PA must not be."""
    mesh, wrist = hands(70, joints=90), hands(70, seed=3)[:, 0]
    shift = np.array([0.1, -0.2, 0.3])
    rows = mesh_rows(mesh + shift, mesh, wrist + shift + np.array([0.003, 0.0, 0.004]), wrist)
    np.testing.assert_allclose(rows["mpvpe_mm"], 5.0, rtol=1e-12)
    assert rows["pa_mpvpe_mm"].max() < EXACT_MM
    pred = hands(70, seed=4, joints=90)
    pred_wrist = wrist + stream(5, "wrists").normal(0.0, 0.05, wrist.shape)
    rows = mesh_rows(pred, mesh, pred_wrist, wrist)
    assert np.array_equal(rows["pa_mpvpe_mm"], pa_mpjpe_mm(pred, mesh))
    one = mesh_rows(torch.tensor(pred[65:66]), mesh[65:66], pred_wrist[65:66], wrist[65:66])
    assert all(np.array_equal(one[name], rows[name][65:66]) for name in rows)


def test_a_bad_mesh_or_wrist_is_nan_in_its_row_alone():
    """One exploded vertex among 778 must show, and only in its own sample."""
    mesh, wrist = hands(5, joints=40), hands(5, seed=3)[:, 0]
    pred, pred_wrist = mesh + 0.01, wrist.copy()
    pred[1, 39, 2], pred_wrist[3, 0] = np.inf, np.nan
    rows = mesh_rows(pred, mesh, pred_wrist, wrist)
    assert np.isnan(rows["mpvpe_mm"]).tolist() == [False, True, False, True, False]
    assert np.isnan(rows["pa_mpvpe_mm"]).tolist() == [False, True, False, False, False]
    assert mesh_rows(mesh[:0], mesh[:0], wrist[:0], wrist[:0])["mpvpe_mm"].shape == (0,)
    with pytest.raises(ShapeError, match="wrist"):
        mesh_rows(mesh, mesh, wrist[:4], wrist)


def _pa_by_scipy(pred: np.ndarray, target: np.ndarray) -> float:
    """PA-MPJPE of one sample in mm with scipy's proper rotation fit."""
    p, t = pred - pred.mean(0), target - target.mean(0)
    turned = Rotation.align_vectors(t, p)[0].apply(p)
    scale = (turned * t).sum() / (p * p).sum()
    return float(np.linalg.norm(scale * turned - t, axis=1).mean() * 1e3)
