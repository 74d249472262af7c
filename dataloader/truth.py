"""The public ground truth of HO3D's evaluation split: two JSON files at the root of the release.

`evaluation_xyz.json`: N x 21 x 3 joints in HO3D's order, `evaluation_verts.json`: N x 778 x 3 vertices; rows
in the order of evaluation.txt, OpenGL axes, metres, as in a submission. The second is about 1 GB of text, so
both are turned once into memory-mapped arrays beside the annotation index, which all processes share. They
keep float64, the precision in which the text is read: scores are those of the text itself (376 MB at
N = 20,137).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dataloader.joint_order import require_ho3d_order
from src.config import DatasetConfig
from src.errors import DataError
from src.hand.joints import HO3D21, TIP_VERTICES
from src.runtime.files import atomic_write
from src.runtime.json_rows import Readable, point_rows
from src.runtime.lock import file_lock
from src.runtime.log import get_logger
from src.runtime.progress import progress

FILE = "evaluation_xyz.json"
VERTICES_FILE = "evaluation_verts.json"
NUM_VERTICES = 778
PUBLISHED = (
    "public since November 2024, on the HO-3D page linked at https://github.com/shreyashampali/ho3d; put it "
    "beside evaluation.txt"
)
FORMAT = 2
"""Raised whenever the arrays' meaning, or what they were checked for, changes."""

_WRIST_TOLERANCE_M = 0.005
"""The metas hold the same wrist; a difference this large is another frame, axis or unit, not rounding."""
_TIP_TOLERANCE_M = 0.01
"""The tips are vertices of the mesh; other choices of vertex are up to 6 mm away, other frames more."""
_FARTHEST_M = 0.03
"""Either of them in any one frame: farther is a row of another frame."""
_log = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class EvaluationTruth:
    """Ground truth of the evaluation split as the files have it, memory-mapped read-only."""

    joints_gl_m: NDArray[np.float64]
    """(N, 21, 3) HO3D21, OpenGL axes, metres."""
    vertices_gl_m: NDArray[np.float64] | None
    """(N, 778, 3) OpenGL axes, metres; None where `evaluation_verts.json` is absent."""
    sha256: str
    """Hex digest of the text of the files that are there."""


def truth_digest(config: DatasetConfig) -> str | None:
    """Hex digest of the joints' file; None where there is no ground truth."""
    path = config.root_dir / FILE
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def missing_truth(root: Path) -> list[str]:
    """Names of the ground truth files that a release lacks."""
    return [name for name in (FILE, VERTICES_FILE) if not (root / name).is_file()]


def read_evaluation_joints(
    config: DatasetConfig, wrists_m: NDArray[np.float32]
) -> NDArray[np.float64] | None:
    """Labelled joints of the evaluation split, checked against the wrists of the annotations.

    Args:
        config: where the data set stands.
        wrists_m: (N, 3) wrists from the metas, OpenGL, list order.

    Returns:
        (N, 21, 3) HO3D21 order, OpenGL, metres, as precise as the text; None where the file is absent.

    Raises:
        DataError: not N x 21 x 3 finite numbers, wrists that are not those of the annotations, or joints in
            another order.
    """
    path = config.root_dir / FILE
    if not path.is_file():
        return None
    joints = np.empty((len(wrists_m), len(HO3D21), 3), np.float64)
    with path.open("rb") as file:
        for row, points in enumerate(_checked_rows(file, path, *joints.shape[:2])):
            joints[row] = points
    _require_near(
        np.linalg.norm(joints[:, 0] - wrists_m, axis=1),
        _WRIST_TOLERANCE_M,
        f"{path}: its wrists are",
        "from those of the annotations. It belongs to another release or another order of evaluation.txt.",
    )
    require_ho3d_order(joints, str(path))
    return joints


def open_truth(
    config: DatasetConfig,
    index_path: Path,
    frames_sha256: str,
    wrists_m: NDArray[np.float32],
    *,
    show_progress: bool = True,
) -> EvaluationTruth | None:
    """Ground truth of the evaluation split; its arrays are built if need be by one process while others wait.

    Args:
        config: where the data set stands.
        index_path: the annotation index; the arrays are put beside it.
        frames_sha256: which frames the index holds.
        wrists_m: (N, 3) wrists from the metas, OpenGL, list order.
        show_progress: draw a progress bar while building.

    Returns:
        joints, and vertices where their file is there; None without joints.

    Raises:
        DataError: a file is damaged, of another count or of another release; no place to write.
    """
    if not (config.root_dir / FILE).is_file():
        return None
    wanted = _fingerprint(config, frames_sha256)
    path = index_path.with_name(f"{index_path.stem}-truth.json")
    truth = _open_current(path, wanted)
    if truth is not None:
        return truth
    with file_lock(path.with_suffix(".lock"), "HO3D ground truth"):
        if _open_current(path, wanted) is None:  # another process may have built it meanwhile
            _build(config, path, wanted, wrists_m, show_progress)
    truth = _open_current(path, wanted)
    if truth is None:
        raise DataError(f"HO3D ground truth: {path} was removed while it was opened. Start again.")
    return truth


def _fingerprint(config: DatasetConfig, frames_sha256: str) -> dict[str, Any]:
    """What the arrays depend on; of the large file its size and time, so that opening does not read it."""
    vertices = config.root_dir / VERTICES_FILE
    status = vertices.stat() if vertices.is_file() else None
    return {
        "format": FORMAT,
        "frames_sha256": frames_sha256,
        "joints_sha256": truth_digest(config),
        "vertices_size": status and status.st_size,
        "vertices_mtime_ns": status and status.st_mtime_ns,
    }


def _open_current(path: Path, wanted: dict[str, Any]) -> EvaluationTruth | None:
    """The arrays that `path` names, if they stand there whole and were made from what is `wanted`."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        if info["fingerprint"] != wanted:
            return None
        joints = np.load(path.parent / info["joints"], mmap_mode="r")
        vertices = info["vertices"] and np.load(path.parent / info["vertices"], mmap_mode="r")
        texts = (wanted["joints_sha256"], info["vertices_sha256"] if info["vertices"] else None)
        digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return EvaluationTruth(joints, vertices, digest)


def _build(
    config: DatasetConfig, path: Path, wanted: dict[str, Any], wrists_m: NDArray[np.float32], show: bool
) -> None:
    """Write the arrays, then the .json that names them."""
    joints = read_evaluation_joints(config, wrists_m)
    if joints is None:
        raise DataError(f"{config.root_dir / FILE} was removed while it was read. Put it back.")
    mark = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]
    info: dict[str, Any] = {
        "fingerprint": wanted,
        "joints": f"{path.stem}-joints-{mark}.npy",
        "vertices": None,
    }
    with atomic_write(path.parent / info["joints"]) as file:
        np.save(file, joints)
    if wanted["vertices_size"] is not None:
        info["vertices"] = f"{path.stem}-vertices-{mark}.npy"
        info["vertices_sha256"] = _build_vertices(config, path.parent / info["vertices"], joints, show)
    with atomic_write(path) as file:
        file.write(json.dumps(info, indent=1).encode())
    for old in path.parent.glob(f"{path.stem}-*.npy"):
        if old.name not in (info["joints"], info["vertices"]):
            old.unlink(missing_ok=True)
    _log.info(f"HO3D ground truth: {len(joints):,} frames written to {path}.")


def _build_vertices(config: DatasetConfig, array: Path, joints: NDArray[np.float64], show: bool) -> str:
    """Turn the vertices' file into an array, a row at a time; hex digest of what was read."""
    path = config.root_dir / VERTICES_FILE
    tips = [HO3D21.index(name) for name in TIP_VERTICES]
    tip_vertices = list(TIP_VERTICES.values())
    gaps = np.empty((len(joints), len(tips)), np.float64)
    with path.open("rb") as raw, atomic_write(array) as out:
        source = _Digest(raw)
        header = {"descr": "<f8", "fortran_order": False, "shape": (len(joints), NUM_VERTICES, 3)}
        np.lib.format.write_array_header_1_0(out, header)
        rows = _checked_rows(source, path, len(joints), NUM_VERTICES)
        for row, points in enumerate(
            progress(rows, total=len(joints), desc=f"HO3D {path.name}", enabled=show)
        ):
            out.write(points.astype("<f8", copy=False).tobytes())
            gaps[row] = np.linalg.norm(points[tip_vertices] - joints[row, tips], axis=-1)
        _require_near(
            gaps.max(axis=1) if len(gaps) else np.empty(0),
            _TIP_TOLERANCE_M,
            f"{path}: its fingertips are",
            f"from those of {FILE}. The two files belong to different releases; download both again, or "
            "remove this one to score joints alone.",
        )
    return source.digest.hexdigest()


class _Digest:
    """A file that keeps the digest of what was read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes."""
        block = self.file.read(size)
        self.digest.update(block)
        return block


def _checked_rows(file: Readable, path: Path, count: int, points: int) -> Iterator[NDArray[np.float64]]:
    """(points, 3) of each row, finite; exactly `count` rows."""
    row = -1
    for row, values in enumerate(point_rows(file, points, str(path))):
        if not np.isfinite(values).all():
            raise DataError(f"{path}: row {row} holds a number that is not finite. Download it again.")
        if row < count:
            yield values
    if row + 1 != count:
        raise DataError(
            f"{path}: {row + 1:,} rows for the {count:,} frames of evaluation.txt. It belongs to another "
            "release, or the download was cut short."
        )


def _require_near(gaps_m: NDArray[np.float64], tolerance_m: float, what: str, whence: str) -> None:
    """Raise if a hundredth of the rows is off by more than the tolerance, or any one grossly."""
    if not gaps_m.size:
        return
    usual = float(np.percentile(gaps_m, 99))
    if usual > tolerance_m:
        raise DataError(f"{what} {usual * 1000:.0f} mm (99th percentile) {whence}")
    gross = np.flatnonzero(gaps_m > _FARTHEST_M)
    if gross.size:
        worst = float(gaps_m.max()) * 1000
        raise DataError(f"{what} up to {worst:.0f} mm in {gross.size} rows (first: row {gross[0]}) {whence}")
