"""The public ground truth of HO3D's evaluation split: `evaluation_xyz.json` at the root of the release.

21 joints per frame in the order of evaluation.txt; HO3D joint order, OpenGL axes, metres, as in a submission.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

from src.config import DatasetConfig
from src.errors import DataError

FILE = "evaluation_xyz.json"
_WRIST_TOLERANCE_M = 0.005
"""The metas hold the same wrist; a difference this large is another frame, axis or unit, not rounding."""


def truth_digest(config: DatasetConfig) -> str | None:
    """Hex digest of the file's content; None where there is no ground truth."""
    path = config.root_dir / FILE
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def read_evaluation_joints(
    config: DatasetConfig, wrists_m: NDArray[np.float32]
) -> NDArray[np.float32] | None:
    """Labelled joints of the evaluation split, checked against the wrists of the annotations.

    Args:
        config: where the data set stands.
        wrists_m: (N, 3) wrists from the metas, OpenGL, list order.

    Returns:
        (N, 21, 3) HO3D21 order, OpenGL, metres; None where the file is absent.

    Raises:
        DataError: not N x 21 x 3 finite numbers, or wrists that are not those of the annotations.
    """
    path = config.root_dir / FILE
    if not path.is_file():
        return None
    try:
        joints = np.asarray(json.loads(path.read_bytes()), dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: ground truth is not a list of N x 21 x 3 numbers ({error}).") from error
    want = (len(wrists_m), 21, 3)
    if joints.shape != want or not np.isfinite(joints).all():
        raise DataError(
            f"{path}: ground truth has shape {joints.shape}, want {want}, all finite. Download it again."
        )
    gap = np.linalg.norm(joints[:, 0] - wrists_m, axis=1)
    worst = float(np.percentile(gap, 99))
    if worst > _WRIST_TOLERANCE_M:
        raise DataError(
            f"{path}: its wrists are {worst * 1000:.0f} mm (99th percentile) from those of the annotations. "
            "It belongs to another release or another order of evaluation.txt."
        )
    return joints.astype(np.float32)
