"""Errors of hands per sample: MPJPE and PA-MPJPE of joints, MPVPE and PA-MPVPE of meshes.

Legend: N samples, J joints, P points, V vertices. Inputs are metres, tensors or arrays of any float type on
any device; all arithmetic is float64 on the CPU in chunks of fixed size, so numbers do not depend on who
computes them. A row that holds a non-finite number is nan, never a number; an average over it is nan.

The similarity behind PA is the least-squares one with det R = +1. It is unique unless the prediction is a
mirror image whose two smallest spreads are equal; then the rotations that fit equally well in the
least-squares sense may differ in mean distance, and the row is that of one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.errors import ShapeError
from src.evaluation.official import official_ho3d
from src.evaluation.statistics import Points, Rows, check_pair, chunks, mean
from src.geometry.procrustes import fit_similarity
from src.hand.joints import OPENPOSE21

__all__ = ["Points", "Rows", "mean", "mesh_rows", "mpjpe_mm", "official_ho3d", "pa_mpjpe_mm", "usable_rows"]

_MM_PER_M = 1000.0
_MESH_CHUNK = 64
_WRIST = OPENPOSE21.index("wrist")


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
    return _millimetres([_mean_distance(_from_wrist(p), _from_wrist(t)) for p, t in chunks(pred_m, target_m)])


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
    return _millimetres(
        [_aligned_distance(pred, target, reflection=reflection) for pred, target in chunks(pred_m, target_m)]
    )


def mesh_rows(
    pred_vertices_m: Points, target_vertices_m: Points, pred_wrist_m: Points, target_wrist_m: Points
) -> dict[str, Rows]:
    """Mean distance of corresponding vertices: with both wrists at the origin, and after the best similarity.

    Args:
        pred_vertices_m: (N, V, 3) metres, any frame.
        target_vertices_m: (N, V, 3), same frame and vertices.
        pred_wrist_m: (N, 3) the wrist joint of the prediction, same frame.
        target_wrist_m: (N, 3).

    Returns:
        `mpvpe_mm` and `pa_mpvpe_mm` (det R = +1), each (N,) float64 mm; nan where a row holds a non-finite
        number.

    Raises:
        ShapeError: shapes are not these.
    """
    count = check_pair(pred_vertices_m, target_vertices_m)
    pred_wrist, target_wrist = _wrists(pred_wrist_m, count), _wrists(target_wrist_m, count)
    relative, aligned = [], []
    for start, (pred, target) in enumerate(chunks(pred_vertices_m, target_vertices_m, _MESH_CHUNK)):
        rows = slice(start * _MESH_CHUNK, (start + 1) * _MESH_CHUNK)
        relative.append(_mean_distance(pred - pred_wrist[rows], target - target_wrist[rows]))
        aligned.append(_aligned_distance(pred, target, reflection=False))
    return {"mpvpe_mm": _millimetres(relative), "pa_mpvpe_mm": _millimetres(aligned)}


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


def _wrists(wrist_m: Points, count: int) -> Tensor:
    """(N, 1, 3) float64 on the CPU."""
    if tuple(wrist_m.shape) != (count, 3):
        raise ShapeError(f"mesh_rows: a wrist has shape {tuple(wrist_m.shape)}, want {(count, 3)}")
    return torch.as_tensor(wrist_m).detach().to("cpu", torch.float64)[:, None]


def _from_wrist(points: Tensor) -> Tensor:
    return points - points[:, _WRIST : _WRIST + 1]


def _aligned_distance(pred: Tensor, target: Tensor, *, reflection: bool) -> Tensor:
    """(n,) mean distance after the best similarity."""
    return _mean_distance(fit_similarity(pred, target, reflection=reflection).apply(pred), target)


def _mean_distance(a: Tensor, b: Tensor) -> Tensor:
    """(n,) mean over points of the distance; nan for a row that is not finite."""
    distance = torch.linalg.vector_norm(a - b, dim=-1).mean(-1)
    return torch.where(torch.isfinite(distance), distance, torch.nan)


def _millimetres(parts: Sequence[Tensor]) -> Rows:
    """(N,) mm of chunks of metres."""
    return np.concatenate([part.numpy() for part in parts]) * _MM_PER_M
