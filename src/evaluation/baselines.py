"""What a network that saw nothing would score: constant predictions, on the very rows that are scored.

Legend: N samples. A metric says little until it stands beside these: the PA-MPJPE of a mean hand looks
respectable.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from src.errors import DataError, ShapeError
from src.evaluation import metrics
from src.hand.joints import OPENPOSE21

_WRIST = OPENPOSE21.index("wrist")


def constant_baselines(
    train_joints_m: NDArray[np.floating],
    train_global_orient: NDArray[np.floating],
    val_joints_m: NDArray[np.floating],
    val_usable: NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """Scores of the zero pose and of the mean pose on a split.

    The zero pose puts every joint at the wrist. The mean pose is the mean of the wrist-relative training
    joints for MPJPE, and for PA-MPJPE the mean training hand after each wrist rotation is taken back: the
    similarity gives the rotation anyway, so only articulation and shape count.

    Args:
        train_joints_m: (N_train, 21, 3) metres, `OPENPOSE21`, the frame of `train_global_orient`.
        train_global_orient: (N_train, 3, 3) wrist rotations.
        val_joints_m: (N, 21, 3) metres, same camera as the training joints, for MPJPE.
        val_usable: (N,) rows that are scored; None: all.

    Returns:
        `zero_mpjpe_mm`, `zero_pa_mm`, `mean_pose_mpjpe_mm`, `mean_pose_pa_mm`; nan if nothing is scored.

    Raises:
        ShapeError: shapes are not these.
        DataError: no training pose, or one that is not finite.
    """
    _check(train_joints_m, train_global_orient, val_joints_m)
    target = np.asarray(val_joints_m, dtype=np.float64)
    if val_usable is not None:
        target = target[val_usable]
    mean_relative, mean_canonical = mean_poses(train_joints_m, train_global_orient)
    predictors = {
        "zero": (np.zeros_like(mean_relative), np.zeros_like(mean_relative)),
        "mean_pose": (mean_relative, mean_canonical),
    }
    scores: dict[str, float] = {}
    for name, (for_mpjpe, for_pa) in predictors.items():
        constant = np.broadcast_to(for_mpjpe, target.shape).copy()
        scores[f"{name}_mpjpe_mm"] = metrics.mean(metrics.mpjpe_mm(constant, target))
        constant = np.broadcast_to(for_pa, target.shape).copy()
        scores[f"{name}_pa_mm"] = metrics.mean(metrics.pa_mpjpe_mm(constant, target))
    return scores


def mean_poses(
    joints_m: NDArray[np.floating], global_orient: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean wrist-relative joints as they are, and after each wrist rotation is taken back.

    Args:
        joints_m: (N, 21, 3) metres, `OPENPOSE21`.
        global_orient: (N, 3, 3) wrist rotations in the same frame.

    Returns:
        (21, 3) and (21, 3), metres, float64.
    """
    relative = np.asarray(joints_m, dtype=np.float64)
    relative = relative - relative[:, _WRIST : _WRIST + 1]
    canonical = relative @ np.asarray(global_orient, dtype=np.float64)  # rows: x^T R = (R^T x)^T
    return relative.mean(0), canonical.mean(0)


def _check(train: NDArray[np.floating], orient: NDArray[np.floating], val: NDArray[np.floating]) -> None:
    """Shapes and finiteness of what the means are taken from."""
    joints = (len(OPENPOSE21), 3)
    if train.shape[1:] != joints or val.shape[1:] != joints or orient.shape != (len(train), 3, 3):
        raise ShapeError(
            f"baselines need (N_train, 21, 3), (N_train, 3, 3) and (N, 21, 3), "
            f"got {train.shape}, {orient.shape} and {val.shape}"
        )
    if len(train) == 0:
        raise DataError("baselines: the training split has no pose to take a mean of")
    bad = ~(np.isfinite(train).all(axis=(1, 2)) & np.isfinite(orient).all(axis=(1, 2)))
    if bad.any():
        raise DataError(
            f"baselines: {int(bad.sum())} of {len(train)} training poses are not finite "
            f"(first: row {int(np.flatnonzero(bad)[0])}); leave them out"
        )
