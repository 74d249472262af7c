"""The public ground truth of HO3D's evaluation split: two JSON files at the root of the release.

`evaluation_xyz.json`: N x 21 x 3 joints in HO3D's order, `evaluation_verts.json`: N x 778 x 3 vertices; rows
in the order of evaluation.txt, OpenGL axes, metres, as in a submission. The joints become part of the
annotation index; the vertices, about 1 GB of text, are turned once into an array beside it
(`src/runtime/files/derived.py`). Both keep float64, the precision in which the text is read: scores are those
of the text itself.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.config import DatasetConfig
from src.errors import DataError
from src.hand.joints import FINGERS, HO3D21, TIP_VERTICES, permutation
from src.runtime.files.derived import Derived, Store
from src.runtime.files.disk import atomic_write
from src.runtime.files.json_rows import point_rows
from src.runtime.log import get_logger
from src.runtime.progress import progress

FILE = "evaluation_xyz.json"
VERTICES_FILE = "evaluation_verts.json"
NUM_VERTICES = 778
PUBLISHED = (
    "public since November 2024, on the HO-3D page linked at https://github.com/shreyashampali/ho3d; put it "
    "beside evaluation.txt"
)
FORMAT = 5
"""Raised whenever the vertices' meaning, or what they were checked for, changes."""

_WRIST_TOLERANCE_M = 0.005
"""The metas hold the same wrist; a difference this large is another frame, axis or unit, not rounding."""
_TIP_TOLERANCE_M = 0.01
"""The tips are vertices of the mesh; other choices of vertex are up to 6 mm away, other frames more."""
_FARTHEST_M = 0.03
"""Either of them in any one frame: farther is a row of another frame. The vertices of a mesh also lie nearer
than this to the joints, in the mean: a hand's at 10 to 15 mm.
"""
_VERTICES = "vertices.npy"
_ORDER_TOLERANCE_M = 0.003
"""By how much a right order may look longer than another one."""
_LINKS = (
    *(("wrist", f"{finger}_1") for finger in FINGERS),
    *((f"{finger}_{k}", f"{finger}_{k + 1}") for finger in FINGERS for k in (1, 2, 3)),
    *((f"{a}_1", f"{b}_1") for a, b in itertools.pairwise(FINGERS)),
    ("wrist", "thumb_1"),  # twice: it tells the thumb's side of the row from the other
)
_log = get_logger(__name__)


def truth_digest(config: DatasetConfig) -> str | None:
    """Hex digest of the joints' file; None where there is no ground truth."""
    path = config.root_dir / FILE
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def missing_truth(config: DatasetConfig) -> str | None:
    """What of the ground truth a release lacks and where it is published; None if nothing."""
    missing = [name for name in (FILE, VERTICES_FILE) if not (config.root_dir / name).is_file()]
    return f"{config.root_dir} lacks {' and '.join(missing)} ({PUBLISHED})" if missing else None


def read_joints(config: DatasetConfig, wrists_m: NDArray[np.float32]) -> NDArray[np.float64] | None:
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
    joints = np.stack(list(_rows(path, len(wrists_m), len(HO3D21), show=False)))
    _require_near(
        np.linalg.norm(joints[:, 0] - wrists_m, axis=1),
        _WRIST_TOLERANCE_M,
        f"{path}: its wrists are",
        "from those of the annotations. It belongs to another release or another order of evaluation.txt.",
    )
    require_ho3d_order(joints, str(path))
    return joints


class Vertices:
    """Meshes of the evaluation split as the file has them; a copy in another process maps the same."""

    def __init__(self, derived: Derived) -> None:
        self._derived = derived

    @functools.cached_property
    def gl_m(self) -> NDArray[np.float64]:
        """(N, 778, 3) OpenGL axes, metres, memory-mapped read-only."""
        return self._derived.array(_VERTICES, np.float64, (NUM_VERTICES, 3))

    @property
    def sha256(self) -> str:
        """Hex digest of the file's text."""
        return str(self._derived.facts["vertices_sha256"])

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped array, which would be copied whole."""
        return {"_derived": self._derived}


def open_vertices(
    config: DatasetConfig,
    store: Store,
    made_from: dict[str, Any],
    joints_gl_m: NDArray[np.float64],
    *,
    show_progress: bool = True,
) -> Vertices | None:
    """Meshes of the evaluation split; their array is made if need be by one process while others wait.

    Args:
        config: where the data set stands.
        store: where the array is kept.
        made_from: which frames and joints it belongs to.
        joints_gl_m: (N, 21, 3) HO3D21, OpenGL, metres: of the ground truth, list order.
        show_progress: draw a progress bar while it is made.

    Returns:
        None where `evaluation_verts.json` is absent.

    Raises:
        DataError: the file is damaged, of another count or of another release; no place to write.
    """
    path = config.root_dir / VERTICES_FILE
    if not path.is_file():
        return None
    # Its size and time, so that opening does not read it.
    status = path.stat()
    state = {"format": FORMAT, "size": status.st_size, "times_ns": (status.st_mtime_ns, status.st_ctime_ns)}

    def make(folder: Path) -> dict[str, Any]:
        _write_vertices(path, folder / _VERTICES, joints_gl_m, show_progress)
        _log.info(f"HO3D ground truth: {len(joints_gl_m):,} frames written to {folder.parent}.")
        with path.open("rb") as file:
            return {"vertices_sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    return Vertices(store.ensure(made_from | state, make))


def _write_vertices(path: Path, array: Path, joints: NDArray[np.float64], show: bool) -> None:
    """Turn the vertices' file into an array, a row at a time."""
    tips = [HO3D21.index(name) for name in TIP_VERTICES]
    tip_vertices = list(TIP_VERTICES.values())
    gaps, apart = np.empty(len(joints)), np.empty(len(joints))
    with atomic_write(array) as out:
        header = {"descr": "<f8", "fortran_order": False, "shape": (len(joints), NUM_VERTICES, 3)}
        np.lib.format.write_array_header_1_0(out, header)
        for row, points in enumerate(_rows(path, len(joints), NUM_VERTICES, show)):
            out.write(points.astype("<f8", copy=False).tobytes())
            gaps[row] = np.linalg.norm(points[tip_vertices] - joints[row, tips], axis=-1).max()
            apart[row] = np.linalg.norm(points[:, None] - joints[row], axis=-1).min(1).mean()
        _require_near(
            gaps,
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


def _rows(path: Path, count: int, points: int, show: bool) -> Iterator[NDArray[np.float64]]:
    """(points, 3) of each row, finite; exactly `count` rows."""
    row = -1
    with path.open("rb") as file:
        rows = point_rows(file, points, str(path))
        for row, values in enumerate(progress(rows, total=count, desc=f"HO3D {path.name}", enabled=show)):
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
    between = np.stack(
        [np.linalg.norm(joints_m - joints_m[:, [joint]], axis=-1).mean(0) for joint in range(len(HO3D21))]
    )
    first, second = (np.array([HO3D21.index(link[end]) for link in _LINKS]) for end in (0, 1))
    own = between[first, second].sum()
    gain, what = max((float(own - between[o[first], o[second]].sum()), what) for what, o in _other_orders())
    if gain > _ORDER_TOLERANCE_M:
        raise DataError(
            f"{where}: joints are not in HO3D's order: with {what} the hand's links would be "
            f"{gain * 1000:.0f} mm shorter in the mean over {len(joints_m):,} frames. Use the file that was "
            "published."
        )


def _other_orders() -> Iterator[tuple[str, NDArray[np.int64]]]:
    """(words, indices) of every exchange of two joints and of every order of whole fingers."""
    for a, b in itertools.combinations(range(1, len(HO3D21)), 2):
        order = np.arange(len(HO3D21))
        order[[a, b]] = b, a
        yield f"{HO3D21[a]} and {HO3D21[b]} exchanged", order
    for fingers in itertools.permutations(FINGERS):
        other = dict(zip(FINGERS, fingers, strict=True))
        names = ("wrist", *(f"{other[name[:-2]]}{name[-2:]}" for name in HO3D21[1:]))
        yield f"fingers read as {', '.join(fingers)}", np.array(permutation(HO3D21, names))
