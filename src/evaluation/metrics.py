"""Errors of hands: MPJPE and PA-MPJPE per sample, and the official HO3D set.

Legend: N samples, J joints, P points, V vertices. Inputs are metres, tensors or arrays of any float type on
any device; all arithmetic is float64 on the CPU in chunks of fixed size, so numbers do not depend on who
computes them. A row that holds a non-finite number is nan, never a number; an average over it is nan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.spatial import cKDTree
from torch import Tensor

from src.errors import ShapeError
from src.geometry.procrustes import fit_similarity
from src.hand.joints import HO3D21, OPENPOSE21

Points = Tensor | NDArray[np.floating]
"""(N, P, 3) points in metres."""
Rows = NDArray[np.float64]

_MM_PER_M = 1000.0
_CM_PER_M = 100.0
_CHUNK = 2048
_WRIST = OPENPOSE21.index("wrist")

PCK_THRESHOLDS_M: NDArray[np.float64] = np.linspace(0.0, 0.05, 100)
"""Distances at which HO3D's share of correct points is taken."""
F_THRESHOLDS_M: dict[str, float] = {"5": 0.005, "15": 0.015}
"""F-scores by the name they carry."""
_F_KINDS = ("f_score", "f_al_score")
_NORM_EPS = 1e-8
"""Added to both Frobenius norms in the official alignment; part of its definition."""


def mpjpe_mm(pred_m: Points, target_m: Points) -> Rows:
    """Mean distance of corresponding joints after both wrists are put at the origin.

    Args:
        pred_m: (N, 21, 3) metres, any frame, `OPENPOSE21`.
        target_m: (N, 21, 3), same frame and order.

    Returns:
        (N,) float64 mm; nan where a row holds a non-finite number.

    Raises:
        ShapeError: shapes differ or are not (N, J, 3).
    """

    def relative_error(pred: Tensor, target: Tensor) -> Tensor:
        return _mean_distance(_from_wrist(pred), _from_wrist(target))

    return _per_chunk(pred_m, target_m, relative_error) * _MM_PER_M


def pa_mpjpe_mm(pred_m: Points, target_m: Points, reflection: bool = False) -> Rows:
    """Mean distance of corresponding joints after the best similarity of the prediction.

    Args:
        pred_m: (N, 21, 3) metres, any frame.
        target_m: (N, 21, 3) metres, any frame, same joint order.
        reflection: allow mirror images, as HO3D's official evaluation does; a mirrored hand then scores 0.

    Returns:
        (N,) float64 mm; nan where a row holds a non-finite number. A prediction without extent scores the
        mean distance of the target to its centroid.

    Raises:
        ShapeError: shapes differ or are not (N, J, 3).

    Source: Umeyama 1991.
    """

    def aligned_error(pred: Tensor, target: Tensor) -> Tensor:
        return _mean_distance(fit_similarity(pred, target, reflection=reflection).apply(pred), target)

    return _per_chunk(pred_m, target_m, aligned_error) * _MM_PER_M


def usable_rows(target_m: Points, conf: Points) -> NDArray[np.bool_]:
    """Rows whose ground truth is complete: every joint finite and with a weight above 0.

    Args:
        target_m: (N, J, 3).
        conf: (N, J).

    Returns:
        (N,) bool. The others (a label of the wrist alone, say) have no MPJPE over all joints.
    """
    target, weight = torch.as_tensor(target_m), torch.as_tensor(conf)
    complete = torch.isfinite(target).all(-1) & torch.isfinite(weight) & (weight > 0)
    return complete.all(-1).numpy(force=True)


def mean(rows: Rows) -> float:
    """Mean that does not depend on the order of summation: fsum / N; nan for no rows or a non-finite one."""
    if len(rows) == 0 or not np.isfinite(rows).all():
        return math.nan
    return math.fsum(rows.tolist()) / len(rows)


def official_ho3d(
    pred_joints_m: Points,
    target_joints_m: Points,
    pred_vertices_m: Points | None = None,
    target_vertices_m: Points | None = None,
) -> dict[str, float]:
    """The official HO3D scores under their own names.

    Args:
        pred_joints_m: (N, 21, 3) metres, HO3D order, axes as in a submission.
        target_joints_m: (N, 21, 3) metres, HO3D order, same axes.
        pred_vertices_m: (N, V, 3) metres; None leaves the mesh scores out.
        target_vertices_m: (N, V, 3) metres.

    Returns:
        `*_mean3d` in cm, as in the official scores.txt; `*_auc3d` and `f_*` between 0 and 1. `xyz_`: joints,
        absolute; `xyz_scale_trans_al_`: scale from the wrist-to-middle-knuckle bone, wrists together;
        `xyz_procrustes_al_`: best similarity, mirror images allowed; `mesh_`, `mesh_al_`: vertices, absolute
        and after their own best similarity; `f_score_5` ...: harmonic mean of precision and recall at 5 mm.
        All nan where a prediction of the family is not finite, or N = 0.

    Raises:
        ShapeError: shapes differ, are not (N, P, 3), joints are not 21, or only one mesh is given.

    Source: Hampali et al., HOnnotate (CVPR 2020), evaluation protocol; Zimmermann et al., FreiHAND (ICCV
    2019), F-scores.
    """
    if (pred_vertices_m is None) != (target_vertices_m is None):
        raise ShapeError("official_ho3d needs vertices of both prediction and ground truth, or of none")
    if tuple(pred_joints_m.shape[1:]) != (len(HO3D21), 3):
        raise ShapeError(f"official_ho3d: joints have shape {tuple(pred_joints_m.shape)}, want (N, 21, 3)")
    absolute, scaled, aligned = _Distances(), _Distances(), _Distances()
    for pred, target in _chunks(pred_joints_m, target_joints_m):
        absolute.add(pred, target)
        scaled.add(_scale_and_translate(pred, target), target)
        aligned.add(_align_official(pred, target), target)
    scores = {
        **absolute.scores("xyz"),
        **scaled.scores("xyz_scale_trans_al"),
        **aligned.scores("xyz_procrustes_al"),
    }
    if pred_vertices_m is None or target_vertices_m is None:
        return scores
    return scores | _official_mesh(pred_vertices_m, target_vertices_m)


def _official_mesh(pred_m: Points, target_m: Points) -> dict[str, float]:
    """The mesh's part of `official_ho3d`."""
    absolute, aligned = _Distances(), _Distances()
    f_rows: dict[str, list[float]] = {f"{kind}_{name}": [] for name in F_THRESHOLDS_M for kind in _F_KINDS}
    for pred, target in _chunks(pred_m, target_m):
        turned = _align_official(pred, target)
        absolute.add(pred, target)
        aligned.add(turned, target)
        for kind, points in zip(_F_KINDS, (pred, turned), strict=True):
            for row in range(len(points)):
                for name, value in f_scores_of(points[row].numpy(), target[row].numpy()).items():
                    f_rows[f"{kind}_{name}"].append(value)
    f_scores = {name: mean(np.array(rows, dtype=np.float64)) for name, rows in f_rows.items()}
    return {**absolute.scores("mesh"), **aligned.scores("mesh_al"), **f_scores}


def f_scores_of(pred_m: NDArray[np.float64], target_m: NDArray[np.float64]) -> dict[str, float]:
    """Harmonic mean of precision and recall of two point sets, for each threshold of `F_THRESHOLDS_M`.

    Args:
        pred_m: (V, 3) metres.
        target_m: (V', 3) metres, same frame.

    Returns:
        name of the threshold -> score in [0, 1]; a point counts if its nearest neighbour in the other set is
        closer than the threshold (equal is not closer). nan if a set holds a non-finite number.
    """
    if not (np.isfinite(pred_m).all() and np.isfinite(target_m).all()):
        return dict.fromkeys(F_THRESHOLDS_M, math.nan)
    reach = 2.0 * max(F_THRESHOLDS_M.values())  # farther neighbours count for no threshold: the search stops
    to_target, _ = cKDTree(target_m).query(pred_m, distance_upper_bound=reach)
    to_pred, _ = cKDTree(pred_m).query(target_m, distance_upper_bound=reach)
    scores = {}
    for name, limit in F_THRESHOLDS_M.items():
        precision, recall = float(np.mean(to_target < limit)), float(np.mean(to_pred < limit))
        total = precision + recall
        scores[name] = 2.0 * precision * recall / total if total > 0.0 else 0.0
    return scores


@dataclass
class _Distances:
    """Distances of one family of points, summed up chunk by chunk."""

    row_means: list[float] = field(default_factory=list)
    within: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(PCK_THRESHOLDS_M), np.int64))
    points: int = 0

    def add(self, pred: Tensor, target: Tensor) -> None:
        """Take in (n, P, 3) float64 metres of both."""
        distance = _lengths(pred - target)
        self.row_means += distance.mean(-1).tolist()
        flat = distance.numpy().ravel()
        # A distance d is within threshold t when d <= t: it counts from the first t that is not below d.
        first = np.searchsorted(PCK_THRESHOLDS_M, flat, side="left")
        counts = np.bincount(first, minlength=len(PCK_THRESHOLDS_M) + 1)[: len(PCK_THRESHOLDS_M)]
        self.within += np.cumsum(counts)
        self.points += flat.size

    def scores(self, name: str) -> dict[str, float]:
        """Mean distance in cm, and area under the share of points within each threshold."""
        average = mean(np.array(self.row_means, dtype=np.float64)) * _CM_PER_M
        auc = math.nan
        if not math.isnan(average):
            auc = float(trapezoid(self.within / self.points, PCK_THRESHOLDS_M) / PCK_THRESHOLDS_M[-1])
        return {f"{name}_mean3d": average, f"{name}_auc3d": auc}


def _scale_and_translate(pred: Tensor, target: Tensor) -> Tensor:
    """(n, 21, 3) HO3D order: bone wrist - middle knuckle scaled to the target's length, wrists together."""
    wrist, knuckle = HO3D21.index("wrist"), HO3D21.index("middle_1")
    origin = pred[:, wrist : wrist + 1]
    length = _lengths(pred[:, knuckle] - pred[:, wrist])
    wanted = _lengths(target[:, knuckle] - target[:, wrist])
    return (pred - origin) * (wanted / length)[:, None, None] + target[:, wrist : wrist + 1]


def _align_official(pred: Tensor, target: Tensor) -> Tensor:
    """(n, P, 3): best similarity with mirror images allowed, and with the official guard on both norms."""
    fit = fit_similarity(pred, target, reflection=True)
    centre_pred, centre_target = pred.mean(1, keepdim=True), target.mean(1, keepdim=True)
    turned = (pred - centre_pred) @ fit.rotation.transpose(1, 2)
    gain = (turned * (target - centre_target)).sum((1, 2))
    norm = _lengths(turned.flatten(1)) + _NORM_EPS
    return turned * (gain / norm.square())[:, None, None] + centre_target


def _from_wrist(points: Tensor) -> Tensor:
    return points - points[:, _WRIST : _WRIST + 1]


def _lengths(vectors: Tensor) -> Tensor:
    """Euclidean length along the last axis."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return lengths


def _mean_distance(a: Tensor, b: Tensor) -> Tensor:
    """(n,) mean over points of the distance; nan for a row that is not finite."""
    distance = _lengths(a - b).mean(-1)
    return torch.where(torch.isfinite(distance), distance, torch.nan)


def _per_chunk(pred_m: Points, target_m: Points, function: Callable[[Tensor, Tensor], Tensor]) -> Rows:
    parts = [function(pred, target).numpy() for pred, target in _chunks(pred_m, target_m)]
    return np.concatenate(parts) if parts else np.empty(0, np.float64)


def _chunks(pred_m: Points, target_m: Points) -> Iterator[tuple[Tensor, Tensor]]:
    """Float64 CPU chunks of both; shapes are checked at once."""
    pred, target = torch.as_tensor(pred_m), torch.as_tensor(target_m)
    if pred.shape != target.shape or pred.ndim != 3 or pred.shape[-1] != 3 or pred.shape[1] < 1:
        raise ShapeError(
            f"metrics need two (N, P, 3) arrays of one shape, "
            f"got {tuple(pred.shape)} and {tuple(target.shape)}"
        )
    for start in range(0, pred.shape[0], _CHUNK):
        rows = slice(start, start + _CHUNK)
        yield pred[rows].detach().to("cpu", torch.float64), target[rows].detach().to("cpu", torch.float64)
