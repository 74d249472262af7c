"""The public ground truth of HO3D's evaluation split: two JSON files at the root of the release.

`evaluation_xyz.json`: N x 21 x 3 joints in HO3D's order, `evaluation_verts.json`: N x 778 x 3 vertices; rows
in the order of evaluation.txt, OpenGL axes, metres, as in a submission. The second is about 1 GB of text, so
both are turned once into memory-mapped arrays beside the annotation index (`src/runtime/files/derived.py`),
which all processes share. They keep float64, the precision in which the text is read: scores are those of the
text itself (376 MB at N = 20,137).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from src.config import DatasetConfig
from src.errors import DataError
from src.hand.joints import FINGERS, HO3D21, TIP_VERTICES
from src.runtime.files.derived import Derived, Store
from src.runtime.files.disk import atomic_write
from src.runtime.files.json_rows import Readable, point_rows
from src.runtime.log import get_logger
from src.runtime.progress import progress

FILE = "evaluation_xyz.json"
VERTICES_FILE = "evaluation_verts.json"
NUM_VERTICES = 778
PUBLISHED = (
    "public since November 2024, on the HO-3D page linked at https://github.com/shreyashampali/ho3d; put it "
    "beside evaluation.txt"
)
FORMAT = 4
"""Raised whenever the arrays' meaning, or what they were checked for, changes."""

_WRIST_TOLERANCE_M = 0.005
"""The metas hold the same wrist; a difference this large is another frame, axis or unit, not rounding."""
_TIP_TOLERANCE_M = 0.01
"""The tips are vertices of the mesh; other choices of vertex are up to 6 mm away, other frames more."""
_FARTHEST_M = 0.03
"""Either of them in any one frame: farther is a row of another frame. The vertices of a mesh also lie nearer
than this to the joints, in the mean: a hand's at 10 to 15 mm.
"""
_JOINTS, _VERTICES = "joints.npy", "vertices.npy"
_ORDER_TOLERANCE_M = 0.003
"""By how much a right order may look longer than another one."""
_LINKS = (
    *(("wrist", f"{finger}_1") for finger in FINGERS),
    *((f"{finger}_{k}", f"{finger}_{k + 1}") for finger in FINGERS for k in (1, 2, 3)),
    *((f"{a}_1", f"{b}_1") for a, b in itertools.pairwise(FINGERS)),
    ("wrist", "thumb_1"),  # twice: it tells the thumb's side of the row from the other
)
_log = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class EvaluationTruth:
    """Ground truth of the evaluation split as the files have it; a copy in another process maps the same."""

    derived: Derived

    @functools.cached_property
    def joints_gl_m(self) -> NDArray[np.float64]:
        """(N, 21, 3) HO3D21, OpenGL axes, metres, memory-mapped read-only."""
        return self.derived.array(_JOINTS, np.float64, (len(HO3D21), 3))

    @functools.cached_property
    def vertices_gl_m(self) -> NDArray[np.float64] | None:
        """(N, 778, 3) OpenGL axes, metres, likewise; None where `evaluation_verts.json` is absent."""
        if not self.derived.facts.get("vertices_sha256"):
            return None
        return self.derived.array(_VERTICES, np.float64, (NUM_VERTICES, 3))

    @property
    def sha256(self) -> str:
        """Hex digest of the text of the files that are there."""
        texts = (self.derived.fingerprint["joints_sha256"], self.derived.facts.get("vertices_sha256"))
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped arrays, which would be copied whole."""
        return {"derived": self.derived}


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
    store: Store,
    frames_sha256: str,
    wrists_m: NDArray[np.float32],
    *,
    show_progress: bool = True,
) -> EvaluationTruth | None:
    """Ground truth of the evaluation split; its arrays are made if need be by one process while others wait.

    Args:
        config: where the data set stands.
        store: where the arrays are kept.
        frames_sha256: which frames the index holds.
        wrists_m: (N, 3) wrists from the metas, OpenGL, list order.
        show_progress: draw a progress bar while they are made.

    Returns:
        joints, and vertices where their file is there; None without joints.

    Raises:
        DataError: a file is damaged, of another count or of another release; no place to write.
    """
    if not (config.root_dir / FILE).is_file():
        return None
    fingerprint = _fingerprint(config, frames_sha256)
    derived = store.ensure(
        fingerprint, lambda folder: _make(config, fingerprint, wrists_m, folder, show_progress)
    )
    return EvaluationTruth(derived)


def _fingerprint(config: DatasetConfig, frames_sha256: str) -> dict[str, Any]:
    """What the arrays depend on; of the large file its size and time, so that opening does not read it."""
    vertices = config.root_dir / VERTICES_FILE
    status = vertices.stat() if vertices.is_file() else None
    return {
        "format": FORMAT,
        "frames_sha256": frames_sha256,
        "joints_sha256": truth_digest(config),
        "vertices_size": status and status.st_size,
        "vertices_times_ns": status and (status.st_mtime_ns, status.st_ctime_ns),
    }


def _make(
    config: DatasetConfig,
    fingerprint: dict[str, Any],
    wrists_m: NDArray[np.float32],
    folder: Path,
    show: bool,
) -> dict[str, Any]:
    """Write the arrays."""
    joints = read_evaluation_joints(config, wrists_m)
    if joints is None:
        raise DataError(f"{config.root_dir / FILE} was removed while it was read. Put it back.")
    with atomic_write(folder / _JOINTS) as file:
        np.save(file, joints)
    vertices = None
    if fingerprint["vertices_size"] is not None:
        vertices = _make_vertices(config, folder / _VERTICES, joints, show)
    _log.info(f"HO3D ground truth: {len(joints):,} frames written to {folder.parent}.")
    return {"vertices_sha256": vertices}


def _make_vertices(config: DatasetConfig, array: Path, joints: NDArray[np.float64], show: bool) -> str:
    """Turn the vertices' file into an array, a row at a time; hex digest of what was read."""
    path = config.root_dir / VERTICES_FILE
    tips = [HO3D21.index(name) for name in TIP_VERTICES]
    tip_vertices = list(TIP_VERTICES.values())
    gaps, apart = np.empty((len(joints), len(tips)), np.float64), np.empty(len(joints), np.float64)
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
            apart[row] = np.linalg.norm(points[:, None] - joints[row], axis=-1).min(1).mean()
        _require_near(
            gaps.max(axis=1) if len(gaps) else np.empty(0),
            _TIP_TOLERANCE_M,
            f"{path}: its fingertips are",
            f"from those of {FILE}. The two files belong to different releases; download both again, or "
            "remove this one to score joints alone.",
        )
        _require_near(
            apart,
            _FARTHEST_M,
            f"{path}: its vertices are",
            f"from the nearest joint of {FILE} in the mean over a mesh. Download it again, or remove it to "
            "score joints alone.",
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


def require_ho3d_order(joints_m: NDArray[np.floating], where: str) -> None:
    """Refuse joints that another order suits better.

    Asked of the distances between them, the mean over many frames: neither the size of a hand nor a hand
    model matters. In the right order the links of a hand are shorter in total than with any two joints or
    any fingers exchanged: bones are short, the knuckles lie side by side in their order, and the thumb's
    root is beside the index finger's and nearest to the wrist.

    Args:
        joints_m: (N, 21, 3) any axes; the first joint is known to be the wrist.
        where: what messages begin with.

    Raises:
        DataError: another order makes the links shorter; says which.
    """
    between = _mean_distances(joints_m)
    first, second = (np.array([HO3D21.index(link[end]) for link in _LINKS]) for end in (0, 1))
    own = between[first, second].sum()
    gain, what = max(
        (float(own - between[order[first], order[second]].sum()), what) for what, order in _other_orders()
    )
    if gain > _ORDER_TOLERANCE_M:
        raise DataError(
            f"{where}: joints are not in HO3D's order: with {what} the hand's links would be "
            f"{gain * 1000:.0f} mm shorter in the mean over {len(joints_m):,} frames. Use the file that was "
            "published."
        )


@functools.cache
def _other_orders() -> list[tuple[str, NDArray[np.int64]]]:
    """(words, indices) of every exchange of two joints and of every order of whole fingers."""
    orders = []
    for a, b in itertools.combinations(range(1, len(HO3D21)), 2):
        order = np.arange(len(HO3D21))
        order[[a, b]] = b, a
        orders.append((f"{HO3D21[a]} and {HO3D21[b]} exchanged", order))
    for fingers in itertools.permutations(FINGERS):
        order = np.arange(len(HO3D21))
        for own, other in zip(FINGERS, fingers, strict=True):
            for k in range(1, 5):
                order[HO3D21.index(f"{own}_{k}")] = HO3D21.index(f"{other}_{k}")
        orders.append((f"fingers read as {', '.join(fingers)}", order))
    return orders


def _mean_distances(joints_m: NDArray[np.floating]) -> NDArray[np.float64]:
    """(J, J) distance of each joint to each, mean over frames; 0 without frames."""
    between = np.zeros((len(HO3D21), len(HO3D21)))
    for joint in range(len(HO3D21) if len(joints_m) else 0):
        apart = joints_m - joints_m[:, joint : joint + 1]
        between[joint] = np.linalg.norm(apart, axis=-1).mean(axis=0)
    return between
