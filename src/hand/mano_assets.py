"""Hand model files: read without chumpy, checked, and converted once to plain arrays.

`load_hand_asset` reads `MANO_RIGHT.pkl` (licensed, supplied by the user) or the stand-in, which has the
same format.
Legend: 778 vertices, 1538 faces, 16 joints (MANO16 order), 10 shape and 135 pose directions. Unit: metres;
frame: the model's own rest frame.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.errors import AssetError
from src.hand.joints import MANO16, MANO_PARENTS
from src.runtime.files import safe_pickle
from src.runtime.files.derived import Derived, Store
from src.runtime.files.disk import atomic_write, read_plain
from src.runtime.files.safe_pickle import (
    MANO_GLOBALS,
    MOST_BYTES,
    ChRecord,
    CscMatrixRecord,
    Record,
    SelectRecord,
)
from src.runtime.log import get_logger

Array = NDArray[np.float64]
Index = NDArray[np.int64]

STANDIN_KEY = "utnet_standin_version"
"""Key in a file's dictionary that marks the stand-in."""

_LARGEST = 1e6
"""No number of a hand model is larger; the largest are numbers of vertices."""
_CACHE_FORMAT = 2
_KEPT = 2
"""Arrays of other files in the same folder that stay."""
_WHERE_TO_GET = (
    "Register at https://mano.is.tue.mpg.de, download the models and put MANO_RIGHT.pkl at "
    "data/mano/MANO_RIGHT.pkl (or set mano.model_path). Without it, config/demo.yaml runs on the stand-in "
    "hand that `make demo` and `python -m dataloader.synthetic.hand --out PATH` write."
)
_log = get_logger(__name__)


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


_SHAPES: dict[str, tuple[int, ...]] = {
    "v_template": (778, 3),
    "faces": (1538, 3),
    "shapedirs": (778, 3, 10),
    "posedirs": (778, 3, 135),
    "lbs_weights": (778, 16),
    "joint_regressor": (16, 778),
    "parents": (16,),
    "hands_mean": (45,),
}
_FILE_KEYS = {
    "v_template": "v_template",
    "faces": "f",
    "shapedirs": "shapedirs",
    "posedirs": "posedirs",
    "lbs_weights": "weights",
    "joint_regressor": "J_regressor",
    "hands_mean": "hands_mean",
}


def load_hand_asset(path: Path | str) -> HandAsset:
    """Read a right-hand model in MANO's pickle format.

    The converted arrays are kept beside the file, in `.utnet`, where the folder can be written
    (`src/runtime/files/derived.py`); those of another content are never read.

    Args:
        path: `MANO_RIGHT.pkl` or the stand-in.

    Returns:
        HandAsset, float64.

    Raises:
        AssetError: missing, unsafe, truncated, of a wrong shape, or a left hand.
    """
    path = Path(path)
    try:
        content = read_plain(path, MOST_BYTES)
    except FileNotFoundError as reason:
        raise AssetError(f"hand model {path}: there is no such file. {_WHERE_TO_GET}") from reason
    except OSError as reason:
        raise AssetError(
            f"hand model {path}: cannot be read ({reason.strerror}). {_WHERE_TO_GET}"
        ) from reason
    store = Store(path.parent / ".utnet", "hand", "hand model", keep=_KEPT, facts={"is_standin": bool})
    wanted = {"format": _CACHE_FORMAT, "file_sha256": hashlib.sha256(content).hexdigest()}
    if (kept := store.find(wanted, say=True)) is not None:
        return _kept_asset(kept)
    asset = _from_pickle(content, f"hand model {path}")
    if (lost := store.offer(wanted, functools.partial(_keep, asset))) is not None:
        _log.info(f"hand model {path}: its arrays are not kept ({lost}); it is converted at each start")
    return asset


def banner(asset: HandAsset) -> str | None:
    """The lines to show at start-up when `asset` is the stand-in; None for MANO."""
    if not asset.is_standin:
        return None
    return (
        "STAND-IN HAND in use: a procedural hand in MANO's format, not MANO.\n"
        "  Numbers of this run cannot be compared with published ones. " + _WHERE_TO_GET
    )


def make_asset(fields: Mapping[str, Any], *, is_standin: bool, where: str) -> HandAsset:
    """Check and convert the dictionary of a model file.

    Args:
        fields: MANO's own keys (`v_template`, `f`, `weights`, `J_regressor`, ...); `Record`s are resolved.
        is_standin: whether the file is the stand-in.
        where: for messages.

    Raises:
        AssetError: a field is missing, of a wrong shape or not finite, the tree is not MANO's, or a left
        hand.
    """
    missing = [key for key in (*_FILE_KEYS.values(), "kintree_table") if key not in fields]
    if is_standin:
        missing = [key for key in missing if key != "kintree_table"]
    if missing:
        raise AssetError(
            f"{where}: fields {missing} are missing; want a MANO right-hand model. {_WHERE_TO_GET}"
        )
    arrays = {name: _plain(fields[key], f"{where}: field {key}") for name, key in _FILE_KEYS.items()}
    if "kintree_table" in fields:
        arrays["parents"] = _parents(_plain(fields["kintree_table"], f"{where}: field kintree_table"), where)
    else:
        arrays["parents"] = np.array(MANO_PARENTS)
    return _checked(arrays, is_standin=is_standin, where=where)


def _checked(arrays: Mapping[str, NDArray[Any]], *, is_standin: bool, where: str) -> HandAsset:
    """Shapes, ranges, tree and side; then the fingerprint."""
    clean: dict[str, NDArray[Any]] = {}
    for name, want in _SHAPES.items():
        value = arrays[name]
        if value.shape != want:
            raise AssetError(
                f"{where}, field {_FILE_KEYS.get(name, 'kintree_table')}: shape {value.shape}, want {want}."
            )
        if value.dtype.kind not in "fiu":
            raise AssetError(f"{where}: field {name} has dtype {value.dtype}, want numbers.")
        integral = name in ("faces", "parents")
        clean[name] = np.ascontiguousarray(value, dtype=np.int64 if integral else np.float64)
        if not (np.abs(clean[name]) <= _LARGEST).all():
            raise AssetError(
                f"{where}: field {name} holds numbers that are not finite, or above {_LARGEST:g}."
            )
    if clean["faces"].min() < 0 or clean["faces"].max() >= 778:
        raise AssetError(f"{where}: field f names vertices outside 0..777.")
    if tuple(clean["parents"].tolist()) != MANO_PARENTS:
        raise AssetError(
            f"{where}: kinematic tree is {clean['parents'].tolist()}, want {list(MANO_PARENTS)}."
        )
    for name in ("lbs_weights", "joint_regressor"):
        error = float(np.abs(clean[name].sum(1) - 1).max())
        if error > 1e-3:
            raise AssetError(f"{where}: rows of {_FILE_KEYS[name]} sum to 1 +- {error:.3g}, want 1.")
    if _rightness(clean) < 0:
        raise AssetError(f"{where}: this is a left hand; UTNet and HO3D need the right one. {_WHERE_TO_GET}")
    return HandAsset(**clean, is_standin=is_standin, fingerprint=_fingerprint(clean))


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
    for name in _SHAPES:
        value = arrays[name]
        digest.update(f"{name}{value.shape}".encode())
        digest.update(value.astype(value.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


def _from_pickle(content: bytes, where: str) -> HandAsset:
    """Unpickle safely, then check."""
    fields = safe_pickle.loads(content, allow=MANO_GLOBALS, where=where)
    if not isinstance(fields, dict):
        raise AssetError(f"{where}: holds a {type(fields).__name__}, want MANO's dictionary. {_WHERE_TO_GET}")
    return make_asset(fields, is_standin=STANDIN_KEY in fields, where=where)


def _parents(table: NDArray[Any], where: str) -> Index:
    """(16,) parents from the first row of kintree_table, whose wrist has -1 as an unsigned number."""
    if table.shape != (2, 16) or table.dtype.kind not in "fiu":
        raise AssetError(f"{where}: field kintree_table has shape {table.shape}, want (2, 16).")
    parents = table[0].astype(np.int64)
    parents[(parents < 0) | (parents >= 16)] = -1
    return np.asarray(parents)


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
    starts = np.asarray(fields["indptr"], dtype=np.int64)
    if starts.shape != (columns + 1,):
        raise ValueError(f"{starts.shape} column starts for {columns} columns")
    entries = np.asarray(fields["data"], np.float64)
    if starts[0] != 0 or starts[-1] != entries.size or (np.diff(starts) < 0).any():
        raise ValueError(f"column starts up to {starts.max():,} for {entries.size:,} entries")
    out = np.zeros((rows, columns))
    column = np.repeat(np.arange(columns), np.diff(starts))
    np.add.at(out, (np.asarray(fields["indices"], dtype=np.int64), column), entries)
    return out


def _kept_asset(kept: Derived) -> HandAsset:
    """The converted arrays, checked as those of a file are."""
    arrays = {name: np.array(kept.array(f"{name}.npy", shape=shape[1:])) for name, shape in _SHAPES.items()}
    return _checked(arrays, is_standin=kept.facts["is_standin"], where=f"{kept.folder}")


def _keep(asset: HandAsset, folder: Path) -> dict[str, Any]:
    """Write the converted arrays."""
    for name in _SHAPES:
        with atomic_write(folder / f"{name}.npy") as file:
            np.save(file, getattr(asset, name))
    return {"is_standin": asset.is_standin}
