"""What a network that learned nothing would score: beside every metric, on the very rows that are scored.

Legend: N validation rows, M training rows, J joints. Metres in, mm out; image camera throughout, because each
sample's crop camera turns its wrist.

- **zero pose**: every joint at the wrist.
- **mean pose**: the hand model with the mean articulation and shape of the training set, and for MPJPE with
  its mean wrist rotation (PA-MPJPE takes any rotation back). A mean rotation is the rotation nearest to the
  mean of the matrices; a mean shape the mean of the betas.
- **nearest training pose**: `src.evaluation.baselines.nearest_pose`, PA-MPJPE only.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from src.errors import DataError
from src.evaluation import metrics
from src.evaluation.baselines.nearest_pose import nearest_pose_mm
from src.geometry.procrustes import fit_rotation
from src.hand.joints import OPENPOSE21
from src.hand.mano import ManoLayer
from src.runtime.files.derived import Store
from src.runtime.files.disk import atomic_write
from src.runtime.log import get_logger
from src.schema import HandLabels, LabelTable

VERSION = 1
"""Raised whenever a number changes for the same labels: older caches are then not read."""

NAMES = ("zero_mpjpe_mm", "zero_pa_mm", "mean_pose_mpjpe_mm", "mean_pose_pa_mm", "nearest_pose_pa_mm")
"""What `BaselineRows.rows` holds."""

_FILE = "rows.npy"
_KEPT = 8
"""Unused ones that stay: each split, and each way to divide, has its own."""
_log = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class BaselineRows:
    """Each predictor's score on each row of a split."""

    rows: Mapping[str, NDArray[np.float64]]
    """name of `NAMES` -> (N,) mm; nan where the ground truth is incomplete."""
    usable: NDArray[np.bool_]
    """(N,) rows that are scored."""

    def scores(self) -> dict[str, float]:
        """Name -> mean over the scored rows in mm; nan if there is none."""
        return {name: metrics.mean(rows[self.usable]) for name, rows in self.rows.items()}


def compute_baselines(
    train: LabelTable, val: LabelTable, hand: ManoLayer, *, show_progress: bool = False
) -> BaselineRows:
    """Score the predictors on a split; 8,332 rows against 74,993 training rows take about a minute.

    Training rows without finite MANO parameters and all joints are left out, and their count is logged.

    Args:
        train: what the predictors know, M rows.
        val: what is scored, N rows; of these only the joints are read.
        hand: decodes the mean pose.
        show_progress: draw a bar when it takes long.

    Raises:
        DataError: no training row with finite MANO parameters.
    """
    known = _known_rows(train)
    usable = metrics.usable_rows(val.joints_cam_m, val.joints_conf)
    truth = val.joints_cam_m[usable].astype(np.float64)
    zero = np.zeros_like(truth)
    mean_pose = np.broadcast_to(mean_pose_m(train, known, hand), truth.shape).copy()
    scores = {
        "zero_mpjpe_mm": metrics.mpjpe_mm(zero, truth),
        "zero_pa_mm": metrics.pa_mpjpe_mm(zero, truth),
        "mean_pose_mpjpe_mm": metrics.mpjpe_mm(mean_pose, truth),
        "mean_pose_pa_mm": metrics.pa_mpjpe_mm(mean_pose, truth),
        "nearest_pose_pa_mm": nearest_pose_mm(train.joints_cam_m[known], truth, show_progress=show_progress),
    }
    rows = np.full((len(NAMES), len(usable)), np.nan)
    rows[:, usable] = [scores[name] for name in NAMES]
    return BaselineRows(dict(zip(NAMES, rows, strict=True)), usable)


def mean_pose_m(train: LabelTable, known: NDArray[np.bool_], hand: ManoLayer) -> NDArray[np.float64]:
    """The mean hand of some training rows in their mean wrist rotation.

    Args:
        train: M rows.
        known: (M,) rows to take the mean of, at least one.
        hand: decodes it.

    Returns:
        (21, 3) metres, wrist at the origin, image camera's axes, `OPENPOSE21`.
    """
    orient = torch.from_numpy(train.global_orient[known]).mean(0, dtype=torch.float64)
    pose = torch.from_numpy(train.hand_pose[known]).mean(0, dtype=torch.float64)
    betas = torch.from_numpy(train.betas[known]).mean(0, dtype=torch.float64)
    mean_rotations = torch.cat([orient[None], pose])
    # Turning the unit vectors onto a matrix's columns, with least squares, gives the rotation nearest to it.
    axes = torch.eye(3, dtype=torch.float64).expand(len(mean_rotations), 3, 3)
    rotations = fit_rotation(axes, mean_rotations.transpose(1, 2)).to(hand.v_template.device)
    shape = betas[None].to(rotations.device)
    with torch.no_grad():
        decoded = hand(rotations[None, 0], rotations[None, 1:], shape, torch.zeros_like(rotations[:1, 0]))
    joints: NDArray[np.float64] = decoded.joints_m[0].numpy(force=True)
    joints -= joints[OPENPOSE21.index("wrist")].copy()
    return joints


def cached_baselines(
    train: LabelTable,
    val: LabelTable,
    hand: ManoLayer,
    *,
    cache_dir: Path | None,
    show_progress: bool = False,
) -> BaselineRows:
    """`compute_baselines`, computed once for the same labels and hand model.

    Args:
        train: as there.
        val: as there.
        hand: as there.
        cache_dir: where they are kept (`src/runtime/files/derived.py`); None keeps none. A folder that cannot
            be written is said in the log and does no harm.
        show_progress: as there.

    Raises:
        DataError: as there.
    """
    wanted = {"version": VERSION, "sha256": fingerprint(train, val, hand)}
    usable = metrics.usable_rows(val.joints_cam_m, val.joints_conf)
    store = None if cache_dir is None else Store(cache_dir, "baselines", "Baselines", keep=_KEPT)
    if store is not None and (kept := store.find(wanted, say=True)) is not None:
        rows = np.array(kept.array(_FILE, np.float64, (len(usable),)))
        return BaselineRows(dict(zip(NAMES, rows, strict=True)), usable)
    began = time.monotonic()
    result = compute_baselines(train, val, hand, show_progress=show_progress)
    took = f"{int(usable.sum()):,} rows in {time.monotonic() - began:.1f} s"
    if store is None:
        _log.info(f"Baselines: {took}.")
        return result

    def make(folder: Path) -> dict[str, Any]:
        with atomic_write(folder / _FILE) as file:
            np.save(file, np.stack([result.rows[name] for name in NAMES]))
        return {}

    reason = store.offer(wanted, make)
    _log.info(f"Baselines: {took}{'.' if reason is None else f'; not kept: {reason}.'}")
    return result


def fingerprint(train: LabelTable, val: LabelTable, hand: ManoLayer) -> str:
    """Hex SHA-256 of all that the baselines depend on: labels, not names of splits, and the hand model.

    A list keeps its name when its annotations or its ground truth are replaced.
    """
    digest = hashlib.sha256(f"{hand.fingerprint}:{len(train.betas)}:{len(val.betas)}".encode())
    arrays = [getattr(train, field.name) for field in fields(HandLabels)]
    for array in (*arrays, val.joints_cam_m, val.joints_conf):
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def _known_rows(train: LabelTable) -> NDArray[np.bool_]:
    """(M,) training rows with finite MANO parameters and all joints; the others are counted in the log."""
    known = train.mano_valid & metrics.usable_rows(train.joints_cam_m, train.joints_conf)
    for part in (train.global_orient, train.hand_pose, train.betas):
        known = known & np.isfinite(part).reshape(len(part), -1).all(axis=1)
    left_out = int((~known).sum())
    if left_out == len(known):
        raise DataError(
            f"baselines: none of {len(known):,} training rows has finite MANO parameters and all joints; "
            "mean pose and nearest training pose need them. Train on a list with hand labels (train.txt)."
        )
    if left_out:
        _log.warning(
            f"Baselines: {left_out:,} of {len(known):,} training rows left out (first: row "
            f"{int(np.flatnonzero(~known)[0])}): no finite MANO parameters, or joints missing"
        )
    return known
