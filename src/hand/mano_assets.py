"""Hand model files: read without chumpy and checked.

`load_hand_asset` reads `MANO_RIGHT.pkl` (licensed, supplied by the user) or the stand-in, which has the
same format. That takes 30 ms: what comes out is not kept anywhere.
Legend: 778 vertices, 1538 faces, 16 joints (MANO16 order), 10 shape and 135 pose directions. Unit: metres;
frame: the model's own rest frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from src.errors import AssetError
from src.hand.joints import MANO16, MANO_PARENTS
from src.runtime.files import safe_pickle
from src.runtime.files.disk import read_plain
from src.runtime.files.safe_pickle import (
    MANO_GLOBALS,
    MOST_BYTES,
    ChRecord,
    CscMatrixRecord,
    Record,
    SelectRecord,
)

Array = NDArray[np.float64]
Index = NDArray[np.int64]

STANDIN_KEY = "utnet_standin_version"
"""Key in a file's dictionary that marks the stand-in."""

_LARGEST = 1e6
"""No number of a hand model is larger; the largest are numbers of vertices."""
_WHERE_TO_GET = (
    "Register at https://mano.is.tue.mpg.de, download the models and put MANO_RIGHT.pkl at "
    "data/mano/MANO_RIGHT.pkl (or set mano.model_path). Without it, config/demo.yaml runs on the stand-in "
    "hand that `make demo` and `python -m dataloader.synthetic.hand --out PATH` write."
)


@dataclass(frozen=True)
class HandAsset:
    """A right hand model as plain arrays."""

    v_template: Array
    """(778, 3) rest vertices, m."""
    faces: Index
    """(1538, 3) vertex numbers, counter-clockwise seen from outside."""
    shapedirs: Array
    """(778, 3, 10) m per unit of beta."""
    posedirs: Array
    """(778, 3, 135) m per entry of R - I of the 15 finger joints, row-major."""
    lbs_weights: Array
    """(778, 16) skinning weights."""
    joint_regressor: Array
    """(16, 778) rest joints from rest vertices, dense."""
    parents: Index
    """(16,) parent of each joint, -1 for the wrist."""
    hands_mean: Array
    """(45,) axis-angle mean pose; unused where flat_hand_mean is true."""
    is_standin: bool
    """The procedural hand, not MANO."""
    fingerprint: str
    """First 16 hex digits of the SHA-256 over all arrays: which hand a checkpoint was trained with."""


_FIELDS: dict[str, tuple[str, tuple[int, ...]]] = {
    "v_template": ("v_template", (778, 3)),
    "faces": ("f", (1538, 3)),
    "shapedirs": ("shapedirs", (778, 3, 10)),
    "posedirs": ("posedirs", (778, 3, 135)),
    "lbs_weights": ("weights", (778, 16)),
    "joint_regressor": ("J_regressor", (16, 778)),
    "parents": ("kintree_table", (2, 16)),
    "hands_mean": ("hands_mean", (45,)),
}
"""Field of `HandAsset` -> MANO's key and its shape in a file."""


def load_hand_asset(path: Path | str) -> HandAsset:
    """Read a right-hand model in MANO's pickle format.

    Args:
        path: `MANO_RIGHT.pkl` or the stand-in.

    Returns:
        HandAsset, float64.

    Raises:
        AssetError: missing, unsafe, truncated, of a wrong shape, or a left hand.
    """
    try:
        content = read_plain(Path(path), MOST_BYTES)
    except OSError as reason:
        missing = isinstance(reason, FileNotFoundError)
        said = "there is no such file" if missing else f"cannot be read ({reason.strerror})"
        raise AssetError(f"hand model {path}: {said}. {_WHERE_TO_GET}") from reason
    return hand_from_bytes(content, f"hand model {path}")


def hand_from_bytes(content: bytes, where: str) -> HandAsset:
    """`load_hand_asset` of a file's content; `where` is what messages call it."""
    fields = safe_pickle.loads(content, allow=MANO_GLOBALS, where=where)
    if not isinstance(fields, dict):
        raise AssetError(f"{where}: holds a {type(fields).__name__}, want MANO's dictionary. {_WHERE_TO_GET}")
    missing = [key for key, _ in _FIELDS.values() if key not in fields]
    if missing:
        raise AssetError(
            f"{where}: fields {missing} are missing; want a MANO right-hand model. {_WHERE_TO_GET}"
        )
    arrays = {name: _checked(name, fields[key], where) for name, (key, _) in _FIELDS.items()}
    # The wrist's parent is -1 as an unsigned number.
    parents = arrays["parents"][0]
    arrays["parents"] = np.where((parents < 0) | (parents >= len(MANO16)), -1, parents)
    _check_hand(arrays, where)
    return HandAsset(**arrays, is_standin=STANDIN_KEY in fields, fingerprint=_fingerprint(arrays))


def banner(asset: HandAsset) -> str | None:
    """The lines to show at start-up when `asset` is the stand-in; None for MANO."""
    if not asset.is_standin:
        return None
    return (
        "STAND-IN HAND in use: a procedural hand in MANO's format, not MANO.\n"
        "  Numbers of this run cannot be compared with published ones. " + _WHERE_TO_GET
    )


def _checked(name: str, value: object, where: str) -> NDArray[Any]:
    """A field of a file as an array of its shape: float64, or int64 where it holds numbers of things."""
    key, want = _FIELDS[name]
    array = _plain(value, f"{where}: field {key}")
    if array.shape != want:
        raise AssetError(f"{where}: field {key} has shape {array.shape}, want {want}.")
    if array.dtype.kind not in "fiu":
        raise AssetError(f"{where}: field {key} has dtype {array.dtype}, want numbers.")
    if name == "parents":
        return array.astype(np.int64)
    array = np.ascontiguousarray(array, dtype=np.int64 if name == "faces" else np.float64)
    if not (np.abs(array) <= _LARGEST).all():
        raise AssetError(f"{where}: field {key} holds numbers that are not finite, or above {_LARGEST:g}.")
    return array


def _check_hand(arrays: Mapping[str, NDArray[Any]], where: str) -> None:
    """Raise unless the arrays go together and are a right hand."""
    if arrays["faces"].min() < 0 or arrays["faces"].max() >= 778:
        raise AssetError(f"{where}: field f names vertices outside 0..777.")
    parents = arrays["parents"].tolist()
    if tuple(parents) != MANO_PARENTS:
        raise AssetError(f"{where}: kinematic tree is {parents}, want {list(MANO_PARENTS)}.")
    for name in ("lbs_weights", "joint_regressor"):
        error = float(np.abs(arrays[name].sum(1) - 1).max())
        if error > 1e-3:
            raise AssetError(f"{where}: rows of {_FIELDS[name][0]} sum to 1 +- {error:.3g}, want 1.")
    if _rightness(arrays) < 0:
        raise AssetError(f"{where}: this is a left hand; UTNet and HO3D need the right one. {_WHERE_TO_GET}")


def _rightness(arrays: Mapping[str, NDArray[Any]]) -> float:
    """Positive for a right hand, negative for its mirror image.

    0.77 for the stand-in, 0.33 if its mean pose is flat.

    The cross product of index and pinky metacarpals points out of a right hand's palm. Two things lie on that
    side: the thumb's end joint, and where the fingers go when the mean pose bends them.
    """
    joints = arrays["joint_regressor"] @ arrays["v_template"]
    of = {name: joints[i] - joints[0] for i, name in enumerate(MANO16)}
    palm = np.cross(of["index_1"], of["pinky_1"])
    palm = palm / max(float(np.linalg.norm(palm)), 1e-12)
    thumb = float(of["thumb_3"] @ palm) / max(float(np.linalg.norm(of["thumb_3"])), 1e-12)
    mean = arrays["hands_mean"].reshape(15, 3)
    bends = []
    for i, name in enumerate(MANO16[1:], start=1):
        finger, k = name.split("_")
        if finger != "thumb" and k != "3":
            bone = joints[i + 1] - joints[i]
            bends.append(float(np.cross(mean[i - 1], bone) @ palm) / max(float(np.linalg.norm(bone)), 1e-12))
    return thumb + float(np.mean(bends))


def _fingerprint(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names, shapes and little-endian bytes of all arrays, 16 hex digits."""
    digest = hashlib.sha256()
    for name in _FIELDS:
        value = arrays[name]
        digest.update(f"{name}{value.shape}".encode())
        digest.update(value.astype(value.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


def _plain(value: object, where: str) -> NDArray[Any]:
    """An array from an array or from a record of chumpy or scipy.

    chumpy's `Ch` holds its value in `x`; `Select` means entries `idxs` of the flattened `a`.
    """
    kind = type(value).__name__
    if not isinstance(value, np.ndarray | Record):
        raise AssetError(f"{where} is a {kind}, want an array.")
    try:
        return _array_of(value)
    except KeyError as reason:
        raise AssetError(f"{where}: {kind} lacks {reason}.") from reason
    except (ValueError, IndexError, TypeError, OverflowError, RecursionError) as reason:
        raise AssetError(f"{where}: {kind} contradicts itself ({reason}).") from reason


def _array_of(value: object) -> NDArray[Any]:
    """`_plain` without its error; records may hold records."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, ChRecord):
        return _array_of(value.fields["x"])
    if isinstance(value, SelectRecord):
        fields = value.fields
        chosen = _array_of(fields["a"]).ravel()[np.asarray(_array_of(fields["idxs"]), dtype=np.int64)]
        shape = fields.get("preferred_shape")
        return chosen if shape is None else chosen.reshape([int(n) for n in shape])
    if isinstance(value, CscMatrixRecord):
        return _dense(value.fields)
    raise TypeError(f"a {type(value).__name__} inside")


def _dense(fields: Mapping[str, Any]) -> Array:
    """Dense matrix from compressed columns; repeated entries add up."""
    rows, columns = (int(n) for n in fields.get("shape", fields.get("_shape", ())))
    if not (0 < rows <= 1000 and 0 < columns <= 1000):
        raise ValueError(f"shape {(rows, columns)}")
    parts = tuple(np.asarray(fields[name]) for name in ("data", "indices", "indptr"))
    matrix = sparse.csc_matrix(parts, shape=(rows, columns), dtype=np.float64)
    matrix.check_format(full_check=True)
    return np.asarray(matrix.toarray())
