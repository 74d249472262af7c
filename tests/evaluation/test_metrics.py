"""MPJPE and PA-MPJPE on inputs whose answer is known, and the official set against a plain scipy loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from src.errors import ShapeError
from src.evaluation.metrics import f_scores_of, mean, mpjpe_mm, official_ho3d, pa_mpjpe_mm, usable_rows
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


def test_a_perfect_prediction_scores_nothing():
    """A metric with an offset of its own would hide the last millimetre of progress."""
    truth = hands(50)
    assert mpjpe_mm(truth, truth).max() < EXACT_MM
    assert pa_mpjpe_mm(truth, truth).max() < EXACT_MM


def test_pa_forgives_a_similarity_and_mpjpe_does_not():
    """A PA of 0 survives wrong axes and units; the relative error beside it must show them."""
    truth = hands(50)
    pred = moved(truth)
    assert pa_mpjpe_mm(pred, truth).max() < EXACT_MM
    assert mpjpe_mm(pred, truth).min() > 1.0


def test_a_prediction_without_extent_is_finite():
    """A collapsed network must score badly, not crash the validation or turn it into nan."""
    truth = hands(5)
    pred = np.full_like(truth, 0.3)
    expected = np.linalg.norm(truth - truth.mean(1, keepdims=True), axis=-1).mean(1) * 1000.0
    np.testing.assert_allclose(pa_mpjpe_mm(pred, truth), expected, rtol=1e-12)
    np.testing.assert_allclose(pa_mpjpe_mm(np.zeros_like(truth), truth), expected, rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
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


def test_metres_as_millimetres_are_a_thousandfold_off():
    """A unit error must stay visible in full; a metric that guesses units would hide it."""
    truth, pred = hands(20), hands(20, seed=2)
    for metric in (mpjpe_mm, pa_mpjpe_mm):
        np.testing.assert_allclose(
            metric(1000.0 * pred, 1000.0 * truth), 1000.0 * metric(pred, truth), rtol=1e-11
        )
    np.testing.assert_allclose(mpjpe_mm(pred, truth)[0], _distance_by_hand(pred[0], truth[0]), rtol=1e-12)


def test_a_far_camera_changes_nothing():
    """Scores must not depend on where the origin of the world is."""
    truth, pred = hands(20), hands(20, seed=2)
    far = np.array([100.0, -100.0, 100.0])
    for metric in (mpjpe_mm, pa_mpjpe_mm):
        assert np.abs(metric(pred + far, truth + far) - metric(pred, truth)).max() < EXACT_MM


def test_pa_matches_scipys_rotation_fit():
    """PA-MPJPE is compared with papers; it must be the proper-rotation Procrustes error and nothing else."""
    truth, pred = hands(40), hands(40, seed=2)
    expected = [_pa_by_scipy(p, t) for p, t in zip(pred, truth, strict=True)]
    np.testing.assert_allclose(pa_mpjpe_mm(pred, truth), expected, rtol=1e-9)


def test_a_mirrored_hand_is_wrong_unless_mirrors_are_asked_for():
    """A left hand is not a right hand; only the official definition overlooks it."""
    truth = hands(20)
    mirrored = moved(truth * np.array([-1.0, 1.0, 1.0]))
    assert pa_mpjpe_mm(mirrored, truth).min() > 5.0
    assert pa_mpjpe_mm(mirrored, truth, reflection=True).max() < EXACT_MM


@pytest.mark.parametrize("dimensions", [1, 2])
def test_flat_hands_align_exactly(dimensions):
    """Coplanar and collinear joints (a hand seen edge-on in a stand-in) have singular covariances."""
    truth = hands(10)
    truth[..., dimensions:] = 0.6
    assert pa_mpjpe_mm(moved(truth), truth).max() < 1e-6  # the lost axis costs half of the digits


def test_equal_spread_along_all_axes_aligns_exactly():
    """Ties of singular values leave the SVD free to choose; the error may not depend on its choice."""
    octahedron = np.concatenate([np.eye(3), -np.eye(3)])[None] * 0.05
    assert pa_mpjpe_mm(moved(octahedron), octahedron).max() < EXACT_MM


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 10.0))
def test_pa_does_not_see_where_the_prediction_stands(seed, scale):
    """The alignment is the best of all, so moving the prediction first cannot change what is left."""
    truth, pred = hands(3, seed=seed), hands(3, seed=seed + 1)
    before = pa_mpjpe_mm(pred, truth)
    np.testing.assert_allclose(pa_mpjpe_mm(scale * moved(pred, seed), truth), before, rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_errors_ignore_the_order_of_joints_and_samples(seed):
    """Only correspondence matters: a permutation of both sides must leave each sample's error as it is."""
    truth, pred = hands(4, seed=seed), hands(4, seed=seed + 1)
    order = np.concatenate([[0], 1 + stream(seed, "order").permutation(20)])
    np.testing.assert_allclose(mpjpe_mm(pred[:, order], truth[:, order]), mpjpe_mm(pred, truth), rtol=1e-12)
    np.testing.assert_allclose(
        pa_mpjpe_mm(pred[:, order], truth[:, order]), pa_mpjpe_mm(pred, truth), rtol=1e-9
    )
    assert np.array_equal(pa_mpjpe_mm(pred[::-1].copy(), truth[::-1].copy()), pa_mpjpe_mm(pred, truth)[::-1])


def test_half_precision_is_widened_before_anything_is_computed():
    """A bf16 network must be scored in float64: bf16 arithmetic on 0.6 m has steps of 4 mm."""
    truth, pred = torch.tensor(hands(9)), torch.tensor(hands(9, seed=2)).bfloat16()
    assert np.array_equal(mpjpe_mm(pred, truth), mpjpe_mm(pred.double().numpy(), truth.numpy()))
    assert mpjpe_mm(pred, truth.float()).dtype == np.float64


def test_more_rows_than_a_chunk_and_none():
    """Chunks are an implementation's business: their border may not show."""
    truth, pred = hands(2051), hands(2051, seed=2)
    rows = pa_mpjpe_mm(pred, truth)
    assert np.array_equal(rows[2040:], pa_mpjpe_mm(pred[2040:], truth[2040:]))
    assert mpjpe_mm(truth[:0], truth[:0]).shape == (0,)
    assert math.isnan(mean(rows[:0]))


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

    Made once with numpy and scipy alone, sample by sample (`_distance_by_hand`, `_pa_by_scipy`), on
    `make_samples(8332, seed=0)`.
    """
    samples = make_samples(8332, seed=0)
    assert mean(mpjpe_mm(samples.pred, samples.target)) == pytest.approx(GOLDEN_MPJPE_MM, rel=1e-12)
    assert mean(pa_mpjpe_mm(samples.pred, samples.target)) == pytest.approx(GOLDEN_PA_MM, rel=1e-12)
    pred, target = samples.pred.double().numpy(), samples.target.double().numpy()
    every = slice(None, None, 400)
    expected = [_pa_by_scipy(p, t) for p, t in zip(pred[every], target[every], strict=True)]
    np.testing.assert_allclose(pa_mpjpe_mm(pred[every], target[every]), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["random", "close", "mirrored", "flat"])
def test_official_scores_equal_a_plain_loop(kind):
    """The scores stand beside other people's numbers: they must be HO3D's own definitions, joint and mesh."""
    random = stream(5, "official", kind)
    truth, mesh = hands(6), hands(6, seed=3, joints=200)
    pred = {
        "random": hands(6, seed=4),
        "close": truth + random.normal(0.0, 0.004, truth.shape),
        "mirrored": truth * [-1.0, 1.0, 1.0],
        "flat": truth * [1.0, 1.0, 0.0] + [0.0, 0.0, 0.6],
    }[kind]
    pred_mesh = mesh + random.normal(0.0, 0.006, mesh.shape) + [0.004, 0.0, 0.0]
    ours = official_ho3d(pred, truth, pred_mesh, mesh)
    reference = _official_by_loop(pred, truth, pred_mesh, mesh)
    assert sorted(ours) == sorted(reference)
    for name, value in reference.items():
        # 1e-9 m is 1e-7 cm; shares and F-scores are counts and must be exact
        assert ours[name] == pytest.approx(value, abs=1e-7 if name.endswith("mean3d") else 1e-12), name


def test_official_scores_of_a_mirrored_hand():
    """Known weakness of the official alignment; whoever reads a 0 must see the absolute error beside it."""
    truth = hands(4)
    scores = official_ho3d(truth * [-1.0, 1.0, 1.0], truth)
    assert scores["xyz_procrustes_al_mean3d"] < 1e-6
    assert scores["xyz_mean3d"] > 1.0


def test_official_lengths_are_centimetres():
    """scores.txt is in cm: 30 mm off everywhere is 3.0, and 40 % of the range is left under the curve."""
    truth = hands(4)
    scores = official_ho3d(truth + np.array([0.03, 0.0, 0.0]), truth)
    assert scores["xyz_mean3d"] == pytest.approx(3.0, rel=1e-9)
    assert scores["xyz_auc3d"] == pytest.approx(0.4, abs=0.01)
    assert scores["xyz_scale_trans_al_mean3d"] < 1e-9


def test_official_scores_of_a_nan_are_nan():
    """A non-finite prediction may not count as a finite score, nor lower the mesh's."""
    truth, mesh = hands(3), hands(3, joints=50)
    pred = truth.copy()
    pred[1, 2, 0] = np.nan
    scores = official_ho3d(pred, truth, mesh, mesh)
    assert all(math.isnan(v) for name, v in scores.items() if name.startswith("xyz"))
    assert scores["f_score_5"] == 1.0
    assert scores["mesh_mean3d"] == 0.0
    assert math.isnan(official_ho3d(truth, truth, mesh * np.nan, mesh)["f_al_score_15"])


def test_f_score_thresholds_are_strict():
    """`<` and not `<=`: points exactly 5 mm away do not count."""
    target = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    pred = target + np.array([0.005, 0.0, 0.0])
    pred[1, 0] = 1.0  # second point exact, first exactly at the threshold
    assert f_scores_of(pred, target) == {"5": 0.5, "15": 1.0}
    assert f_scores_of(pred + 10.0, target) == {"5": 0.0, "15": 0.0}


def _distance_by_hand(pred: np.ndarray, target: np.ndarray) -> float:
    """MPJPE of one sample in mm, joint by joint."""
    return (
        sum(math.dist(p - pred[0], t - target[0]) for p, t in zip(pred, target, strict=True))
        / len(pred)
        * 1e3
    )


def _pa_by_scipy(pred: np.ndarray, target: np.ndarray) -> float:
    """PA-MPJPE of one sample in mm with scipy's proper rotation fit."""
    p, t = pred - pred.mean(0), target - target.mean(0)
    turned = Rotation.align_vectors(t, p)[0].apply(p)
    scale = (turned * t).sum() / (p * p).sum()
    return float(np.linalg.norm(scale * turned - t, axis=1).mean() * 1e3)


def _official_by_loop(pred, truth, pred_mesh, mesh) -> dict[str, float]:
    """HO3D's scores written out frame by frame with scipy."""

    def aligned(p, t):
        a, b = t - t.mean(0), p - p.mean(0)
        norm_a, norm_b = np.linalg.norm(a) + 1e-8, np.linalg.norm(b) + 1e-8
        turn, gain = orthogonal_procrustes(a / norm_a, b / norm_b)
        return b / norm_b @ turn.T * gain * norm_a + t.mean(0)

    def scaled(p, t):
        return (p - p[0]) * np.linalg.norm(t[4] - t[0]) / np.linalg.norm(p[4] - p[0]) + t[0]

    thresholds = np.linspace(0.0, 0.05, 100)
    scores = {}
    families = {
        "xyz": (pred, truth, lambda p, t: p),
        "xyz_scale_trans_al": (pred, truth, scaled),
        "xyz_procrustes_al": (pred, truth, aligned),
        "mesh": (pred_mesh, mesh, lambda p, t: p),
        "mesh_al": (pred_mesh, mesh, aligned),
    }
    for name, (points, target, change) in families.items():
        distance = np.array(
            [np.linalg.norm(change(p, t) - t, axis=1) for p, t in zip(points, target, strict=True)]
        )
        scores[f"{name}_mean3d"] = distance.mean() * 100.0
        areas = [
            trapezoid([(column <= t).mean() for t in thresholds], thresholds) / 0.05 for column in distance.T
        ]
        scores[f"{name}_auc3d"] = np.mean(areas)
    for kind, change in (("f_score", families["mesh"][2]), ("f_al_score", aligned)):
        for label, limit in (("5", 0.005), ("15", 0.015)):
            rows = []
            for p, t in zip(pred_mesh, mesh, strict=True):
                between = cdist(change(p, t), t)
                precision, recall = (between.min(1) < limit).mean(), (between.min(0) < limit).mean()
                rows.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
            scores[f"{kind}_{label}"] = np.mean(rows)
    return scores
