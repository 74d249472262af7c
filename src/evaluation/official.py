"""The official HO3D scores, frame by frame, under the official names.

Legend: N frames, P points, V vertices; n frames of a chunk. Inputs are metres, of any float type and device;
arithmetic is float64. Every official score is a mean over frames of a number of the frame: also the area
under the curve of correct points, because each point adds a step function of its own error to the curve and
the area is linear in it. So frames can be scored anywhere and averaged once.

Degenerate frames, as the official script has them: a prediction without extent stays at the centroid of the
ground truth after the Procrustes alignment (both norms carry 1e-8); a prediction whose wrist and middle
knuckle coincide is not divided by that length before it is multiplied by the true one. Where the optimal
rotation is not unique (points in a plane or on a line) every choice gives the same distances. A frame with a
non-finite number is nan here; the script stops there, in scipy's rotation fit. Meshes of another topology,
which the script aligns by the joints and scores with F alone, are refused here.

Source: Hampali et al., HOnnotate (CVPR 2020), evaluation protocol; Zimmermann et al., FreiHAND (ICCV 2019),
F-scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import cumulative_trapezoid
from scipy.spatial import KDTree

from src.errors import DataError, ShapeError
from src.evaluation.statistics import Points, Rows, chunks, mean
from src.hand.joints import HO3D21

Array = NDArray[np.float64]

PCK_THRESHOLDS_M: Array = np.linspace(0.0, 0.05, 100)
"""Distances at which HO3D's share of correct points is taken."""
F_THRESHOLDS_M: dict[str, float] = {"5": 0.005, "15": 0.015}
"""F-scores by the name they carry."""
MESH_SCORES = (
    *("mesh_mean3d", "mesh_auc3d", "mesh_al_mean3d", "mesh_al_auc3d"),
    *("f_score_5", "f_score_15", "f_al_score_5", "f_al_score_15"),
)
"""Names of the scores of meshes, in their order."""

_CM_PER_M = 100.0
_WRIST, _KNUCKLE = HO3D21.index("wrist"), HO3D21.index("middle_1")
_NORM_EPS = 1e-8
"""Added to both Frobenius norms in the official alignment; part of its definition."""
_MESH_CHUNK = 64
"""Frames with meshes computed at a time."""


def official_unit(score: str) -> str:
    """`cm` or `1` of an official score.

    Raises:
        DataError: no score is called so.
    """
    for ending, unit in (("_mean3d", "cm"), ("_auc3d", "1"), *((f"_{name}", "1") for name in F_THRESHOLDS_M)):
        if score.endswith(ending):
            return unit
    raise DataError(f"nobody says in what unit {score!r} is")


def official_joint_rows(pred_joints_m: Points, target_joints_m: Points) -> dict[str, Rows]:
    """Official scores of the joints, one number a frame.

    Args:
        pred_joints_m: (N, 21, 3) metres, HO3D order, axes as in a submission.
        target_joints_m: (N, 21, 3) metres, HO3D order, same axes.

    Returns:
        name -> (N,) float64; `*_mean3d` in cm, `*_auc3d` between 0 and 1. `xyz_`: absolute;
        `xyz_scale_trans_al_`: scale from the bone wrist - middle knuckle, wrists together;
        `xyz_procrustes_al_`: best similarity, mirror images allowed. nan where a frame is not finite.

    Raises:
        ShapeError: shapes differ or are not (N, 21, 3).
    """
    if tuple(pred_joints_m.shape[1:]) != (len(HO3D21), 3):
        raise ShapeError(f"official scores: joints have shape {tuple(pred_joints_m.shape)}, want (N, 21, 3)")
    return _joined([_joint_chunk(p.numpy(), t.numpy()) for p, t in chunks(pred_joints_m, target_joints_m)])


def official_mesh_rows(pred_vertices_m: Points, target_vertices_m: Points) -> dict[str, Rows]:
    """Official scores of the meshes, one number a frame.

    Args:
        pred_vertices_m: (N, V, 3) metres, axes as in a submission.
        target_vertices_m: (N, V, 3) metres, same vertices and axes.

    Returns:
        name of `MESH_SCORES` -> (N,) float64; `mesh_` absolute and `mesh_al_` after the best similarity,
        mirror images allowed, as for joints; `f_score_5`, `f_score_15`, `f_al_score_5`, `f_al_score_15`:
        harmonic mean of precision and recall at 5 and 15 mm. nan where a frame is not finite.

    Raises:
        ShapeError: shapes differ or are not (N, V, 3).
    """
    pairs = chunks(pred_vertices_m, target_vertices_m, _MESH_CHUNK)
    return _joined([_mesh_chunk(pred.numpy(), target.numpy()) for pred, target in pairs])


def official_ho3d(
    pred_joints_m: Points,
    target_joints_m: Points,
    pred_vertices_m: Points | None = None,
    target_vertices_m: Points | None = None,
) -> dict[str, float]:
    """The official HO3D scores: means of `official_joint_rows` and `official_mesh_rows`.

    Args:
        pred_joints_m: (N, 21, 3) metres, HO3D order, axes as in a submission.
        target_joints_m: (N, 21, 3) metres, HO3D order, same axes.
        pred_vertices_m: (N, V, 3) metres; None leaves the mesh scores out.
        target_vertices_m: (N, V, 3) metres.

    Returns:
        `*_mean3d` in cm, as in the official scores.txt; `*_auc3d` and `f_*` between 0 and 1; nan where a
        frame of the family (joints, mesh) is not finite, or N = 0. Sums are exact, so the order of frames
        does not matter; the script's own rounding differs from it in the last bits.

    Raises:
        ShapeError: shapes differ, are not (N, P, 3), joints are not 21, or only one mesh is given.
    """
    if (pred_vertices_m is None) != (target_vertices_m is None):
        raise ShapeError("official_ho3d needs vertices of both prediction and ground truth, or of none")
    rows = official_joint_rows(pred_joints_m, target_joints_m)
    if pred_vertices_m is not None and target_vertices_m is not None:
        if len(pred_vertices_m) != len(pred_joints_m):
            raise ShapeError(f"official_ho3d: {len(pred_joints_m)} hands, {len(pred_vertices_m)} meshes")
        rows |= official_mesh_rows(pred_vertices_m, target_vertices_m)
    return {name: mean(values) for name, values in rows.items()}


def _joint_chunk(pred: Array, target: Array) -> dict[str, Rows]:
    """`official_joint_rows` of (n, 21, 3)."""
    finite, pred, target = _finite_rows(pred, target)
    families = {
        "xyz": pred,
        "xyz_scale_trans_al": _scale_and_translate(pred, target),
        "xyz_procrustes_al": _align(pred, target),
    }
    rows: dict[str, Rows] = {}
    for name, points in families.items():
        rows |= _distance_rows(name, _lengths(points - target))
    return {name: np.where(finite, values, np.nan) for name, values in rows.items()}


def _mesh_chunk(pred: Array, target: Array) -> dict[str, Rows]:
    """`official_mesh_rows` of (n, V, 3)."""
    finite, pred, target = _finite_rows(pred, target)
    aligned = _align(pred, target)
    rows = _distance_rows("mesh", _lengths(pred - target))
    rows |= _distance_rows("mesh_al", _lengths(aligned - target))
    for kind, moved in (("f_score", pred), ("f_al_score", aligned)):
        rows |= {f"{kind}_{name}": column for name, column in _f_rows(moved, target).items()}
    return {name: np.where(finite, values, np.nan) for name, values in rows.items()}


def _finite_rows(pred: Array, target: Array) -> tuple[NDArray[np.bool_], Array, Array]:
    """Which rows are finite, and both sets with zeros in place of the others."""
    finite = np.asarray((np.isfinite(pred) & np.isfinite(target)).all(axis=(1, 2)), dtype=np.bool_)
    keep = finite[:, None, None]
    return finite, np.where(keep, pred, 0.0), np.where(keep, target, 0.0)


def _distance_rows(name: str, distance_m: Array) -> dict[str, Rows]:
    """Mean in cm, and area under the curve of correct points, of (n, P) distances in metres."""
    # A point within d of its place counts at every threshold that is not below d: from the first of them on.
    first = np.searchsorted(PCK_THRESHOLDS_M, distance_m.ravel(), side="left").reshape(distance_m.shape)
    return {
        f"{name}_mean3d": distance_m.mean(-1) * _CM_PER_M,
        f"{name}_auc3d": _AREAS[first].mean(-1),
    }


def _areas() -> Array:
    """(101,) area under the curve of a point that counts from the k-th threshold on, or never."""
    count = len(PCK_THRESHOLDS_M)
    curves = np.arange(count) >= np.arange(count + 1)[:, None]
    areas: Array = cumulative_trapezoid(curves.astype(np.float64), PCK_THRESHOLDS_M, axis=-1)[:, -1]
    areas /= PCK_THRESHOLDS_M[-1]
    return areas


_AREAS = _areas()


def _scale_and_translate(pred: Array, target: Array) -> Array:
    """(n, 21, 3): bone wrist - middle knuckle scaled to the target's length, wrists together."""
    length = _lengths(pred[:, _KNUCKLE] - pred[:, _WRIST])[:, None, None]
    wanted = _lengths(target[:, _KNUCKLE] - target[:, _WRIST])[:, None, None]
    # The official order of operations: with a tiny length, its rounding belongs to the number.
    scaled = pred / np.where(length > 0.0, length, 1.0) * wanted
    return scaled - scaled[:, _WRIST : _WRIST + 1] + target[:, _WRIST : _WRIST + 1]


def _align(pred: Array, target: Array) -> Array:
    """(n, P, 3): best similarity of each prediction, mirror images allowed, with the official norm guard."""
    centre = target.mean(1, keepdims=True)
    source, goal = pred - pred.mean(1, keepdims=True), target - centre
    norm = _norm(goal) + _NORM_EPS
    source = source / (_norm(source) + _NORM_EPS)
    u, singular, vt = np.linalg.svd((goal / norm).transpose(0, 2, 1) @ source)
    turn_and_scale = (u @ vt).transpose(0, 2, 1) * (singular.sum(-1)[:, None, None] * norm)
    aligned: Array = source @ turn_and_scale + centre
    return aligned


def _norm(points: Array) -> Array:
    """(n, 1, 1) Frobenius norm of each (P, 3)."""
    norm: Array = np.sqrt(np.square(points).sum((1, 2), keepdims=True))
    return norm


def _f_rows(pred: Array, target: Array) -> dict[str, Rows]:
    """F of (n, V, 3) meshes at each threshold: a point counts if its nearest other is closer than that."""
    scores = []
    for p, t in zip(pred, target, strict=True):
        recall, precision = _nearest(p, t), _nearest(t, p)
        scores.append(
            [_harmonic((recall < d).mean(), (precision < d).mean()) for d in F_THRESHOLDS_M.values()]
        )
    columns = np.array(scores, dtype=np.float64).reshape(-1, len(F_THRESHOLDS_M)).T
    return dict(zip(F_THRESHOLDS_M, columns, strict=True))


def _nearest(points: Array, others: Array) -> Array:
    """(V,) distance of each point to the nearest of the others."""
    distance: Array = KDTree(others).query(points)[0]
    return distance


def _harmonic(a: float, b: float) -> float:
    return 2.0 * a * b / (a + b) if a + b > 0.0 else 0.0


def _lengths(vectors: Array) -> Array:
    """Euclidean length of (..., 3)."""
    x, y, z = (np.square(vectors[..., axis]) for axis in range(3))
    lengths: Array = np.sqrt(x + y + z)
    return lengths


def _joined(parts: list[dict[str, Rows]]) -> dict[str, Rows]:
    """Rows of all chunks, end to end."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
