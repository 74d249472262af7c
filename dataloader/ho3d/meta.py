"""One HO3D annotation file -> one record, exactly as the file says: OpenGL axes, HO3D joint order, metres.

Nothing is converted here; `dataloader/ho3d/labels.py` is the door where conventions change, and
`dataloader/ho3d/label_checks.py` asks what the numbers mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from src.errors import DataError
from src.runtime.files import safe_pickle

ListName = Literal["train", "evaluation"]

META_DTYPE = np.dtype(
    [
        ("sequence", "<u2"),  # number in the index's table of sequence names
        ("frame", "<i4"),  # number that the file is named by
        ("joints_known", "?"),  # all 21 joints are labelled, else only the wrist
        ("mano_valid", "?"),  # pose, betas and translation are labelled
        ("cam_mat", "<f4", (3, 3)),
        ("joints", "<f4", (21, 3)),  # HO3D21, OpenGL, metres; NaN where not labelled
        ("pose_aa", "<f4", (16, 3)),  # MANO16 axis-angle, wrist in OpenGL
        ("betas", "<f4", (10,)),
        ("trans", "<f4", (3,)),  # hand translation, OpenGL, metres
        ("box", "<f4", (4,)),  # handBoundingBox x0, y0, x1, y1; NaN in train
        ("rgb_hw", "<i4", (2,)),  # (H, W) of the picture; 0, 0 where it cannot be read
        ("depth_hw", "<i4", (2,)),  # of its depth
    ]
)
"""One frame as its files have it; the index holds the same with `pose_aa` turned into rotation matrices."""


MOST_BYTES = 1 << 18
"""Longest annotation that is read; HO3D's have 2 to 6 kB."""

LARGEST = 1e6
"""No label is larger, in metres, radians, pixels or standard deviations; its squares fit any arithmetic."""


def read_meta(path: Path, name: ListName) -> NDArray[np.void]:
    """Read one annotation.

    Args:
        path: the .pkl file.
        name: train: joints and MANO parameters must be there; evaluation: the wrist and its box.

    Returns:
        () record of META_DTYPE; what the file does not say, `sequence`, `frame` and sizes, left 0.

    Raises:
        DataError: missing, unsafe, or a value that is None, no real numbers, of the wrong size, not finite or
            larger than LARGEST.
    """
    meta = safe_pickle.load(
        path,
        allow=safe_pickle.META_GLOBALS,
        what="HO3D annotation",
        most_bytes=MOST_BYTES,
        error=DataError,
    )
    if not isinstance(meta, dict):
        raise DataError(f"{path}: annotation is a {type(meta).__name__}, want a dict")
    record = np.zeros((), META_DTYPE)
    record["cam_mat"] = _numbers(meta, "camMat", (3, 3), path)
    if name == "train":
        record["joints"] = _numbers(meta, "handJoints3D", (21, 3), path)
        record["pose_aa"] = _numbers(meta, "handPose", (48,), path).reshape(16, 3)
        record["betas"] = _numbers(meta, "handBeta", (10,), path)
        record["trans"] = _numbers(meta, "handTrans", (3,), path)
        record["box"] = np.nan
        record["joints_known"] = record["mano_valid"] = True
    else:
        record["joints"] = np.nan
        record["joints"][0] = _numbers(meta, "handJoints3D", (3,), path)
        record["box"] = _numbers(meta, "handBoundingBox", (4,), path)
    return record


def _numbers(meta: dict[Any, Any], key: str, shape: tuple[int, ...], path: Path) -> NDArray[np.float64]:
    """One annotation value as finite float64 of the wanted shape."""
    value = meta.get(key)
    if value is None:
        raise DataError(f"{path}: {key} is {'None' if key in meta else 'missing'}")
    want = int(np.prod(shape))
    array = value if isinstance(value, np.ndarray) else np.asarray(_leaves(value, want))
    if array.dtype.kind not in "iuf":  # a complex number or a text would be turned into one without a word
        raise DataError(f"{path}: {key} does not hold numbers")
    if array.size != want:
        raise DataError(f"{path}: {key} has shape {array.shape}, want {shape}")
    numbers = array.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise DataError(f"{path}: {key} is not finite")
    if (largest := float(np.abs(numbers).max())) > LARGEST:
        raise DataError(f"{path}: {key} reaches {largest:g}, want at most {LARGEST:g}")
    return numbers.reshape(shape)


def _leaves(value: object, most: int, depth: int = 3) -> list[Any]:
    """Numbers of a number or of nested lists, few more than `most`; None for anything else.

    NumPy would follow lists that hold one another into any size.
    """
    if isinstance(value, np.ndarray) and value.size <= most:
        return list(value.ravel())
    if not isinstance(value, list | tuple):
        return [value if type(value) in (int, float) or isinstance(value, np.number) else None]
    found: list[Any] = []
    for item in value[: most + 1] if depth else [None]:
        found += _leaves(item, most, depth - 1)
        if len(found) > most:
            break
    return found
