"""HO3D's submission files: written, checked, read back.

Legend: N frames in the order of evaluation.txt. Outside: HO3D's joint order, OpenGL axes (x right, y up, the
hand at z < 0), metres. Inside: `OPENPOSE21`, OpenCV axes, image camera, metres, float32. This door converts.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from src.errors import DataError, ShapeError
from src.hand.joints import HO3D21, OPENPOSE21, TIP_VERTICES, permutation
from src.runtime.files.disk import atomic_write
from src.runtime.files.json_rows import Readable, json_rows, parse_points

Array = NDArray[np.floating]
Float32 = NDArray[np.float32]

NUM_VERTICES = 778
_AXES = np.array([1.0, -1.0, -1.0])
"""OpenCV <-> OpenGL: y and z change sign; its own inverse."""
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_ZIP_LEVEL = 1
"""Digits hardly compress: the highest level saves a tenth and takes five times as long."""
_FARTHEST_M = 10.0
"""A hand farther than this is in another unit."""
_SHORTEST_M, _LONGEST_M = 0.04, 0.6
"""Bounds of the diagonal of a hand's box in metres, closed fists and spread fingers included."""
_TIP_TOLERANCE_M = 0.005
"""Largest median distance of a fingertip from its vertex; neighbouring tips are 15 mm and more apart."""
_TIP_FARTHEST_M = 0.03
"""The same in any one frame."""
_ORDER_TOLERANCE_M = 0.01
"""A joint lies within 10 mm of what the regressor takes from its mesh, however the fingers are bent: joints
nearer to each other than that may look exchanged."""
_CHUNK = 1024


@dataclass(frozen=True)
class Submission:
    """What `write_submission` wrote."""

    zip_path: Path
    """The file to upload: pred.json alone, in no folder."""
    json_path: Path
    """The same content, not compressed."""
    num_frames: int
    """N."""
    zip_bytes: int
    """Size of the zip."""
    json_bytes: int
    """Size of the JSON."""
    checks: tuple[str, ...]
    """One sentence for each check that it passed."""


def to_official(joints_cam_m: Array, vertices_cam_m: Array) -> tuple[Array, Array]:
    """Our joints and vertices as HO3D writes them.

    Args:
        joints_cam_m: (N, 21, 3) `OPENPOSE21`, OpenCV image camera, metres.
        vertices_cam_m: (N, 778, 3) OpenCV image camera, metres.

    Returns:
        (N, 21, 3) HO3D order and (N, 778, 3), OpenGL, metres, float64.
    """
    return joints_to_official(joints_cam_m), points_to_official(vertices_cam_m)


def joints_to_official(joints_cam_m: Array) -> Array:
    """(N, 21, 3) `OPENPOSE21`, OpenCV image camera -> HO3D order, OpenGL; metres, float64."""
    return points_to_official(np.asarray(joints_cam_m)[:, list(permutation(OPENPOSE21, HO3D21))])


def points_to_official(points_cam_m: Array) -> Array:
    """(N, P, 3) OpenCV image camera -> OpenGL; metres, float64."""
    points: Array = np.asarray(points_cam_m, np.float64) * _AXES
    return points


def from_official(xyz: Array, verts: Array) -> tuple[Array, Array]:
    """Inverse of `to_official`."""
    order = list(permutation(HO3D21, OPENPOSE21))
    return np.asarray(xyz, np.float64)[:, order] * _AXES, np.asarray(verts, np.float64) * _AXES


def write_submission(
    folder: Path,
    joints_cam_m: Array,
    vertices_cam_m: Array,
    joint_regressor: Array,
    *,
    num_frames: int | None = None,
    frames: Sequence[str] | None = None,
    overwrite: bool = True,
) -> Submission:
    """Write pred.json and pred.zip (pred.json alone, flat) and check them by reading the zip back.

    Each number has the nine digits that give its float32 back. The file holds no frame names, so a wrong
    order of frames cannot be seen in it: `frames` are kept beside it.

    Args:
        folder: where all files go.
        joints_cam_m: (N, 21, 3) `OPENPOSE21`, OpenCV image camera, metres, order of evaluation.txt; taken as
            float32.
        vertices_cam_m: (N, 778, 3) OpenCV image camera, metres; taken as float32.
        joint_regressor: (16, 778) of the hand model; the joints' order is judged by it.
        num_frames: lines of evaluation.txt; None: as many as given.
        frames: N names `<sequence>/<frame>` of the rows, written to pred_frames.txt; None: not known.
        overwrite: replace a pred.zip that stands there; else refuse.

    Returns:
        where the files are, their sizes, and what was checked.

    Raises:
        DataError: the predictions fail a check of `submission_checks` (nothing is written then); a pred.zip
            is in the way; or what was read back differs (there is no pred.zip then).
        ShapeError: shapes are not these.
    """
    folder = Path(folder)
    json_path, zip_path = folder / "pred.json", folder / "pred.zip"
    require_free(folder, overwrite)
    joints, vertices = np.asarray(joints_cam_m, np.float32), np.asarray(vertices_cam_m, np.float32)
    count = len(joints) if num_frames is None else num_frames
    checks = list(submission_checks(joints, vertices, joint_regressor, num_frames=count))
    if frames is not None:
        checks.append(_check_frames(frames, count))
        with atomic_write(folder / "pred_frames.txt") as file:
            file.write(os.fsencode("".join(f"{name}\n" for name in frames)))
    zip_path.unlink(missing_ok=True)  # it would no longer be the zip of pred.json
    with atomic_write(json_path) as file:
        _write_json(file, joints, vertices)
    unchecked = folder / "pred.unchecked.zip"
    try:
        with atomic_write(unchecked) as file:
            _write_zip(file, json_path)
        checks.append(_check_read_back(unchecked, joints, vertices))
        unchecked.replace(zip_path)
    finally:
        unchecked.unlink(missing_ok=True)
    sizes = zip_path.stat().st_size, json_path.stat().st_size
    return Submission(zip_path, json_path, count, *sizes, tuple(checks))


def require_free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds a submission, unless it may be replaced.

    Raises:
        DataError: pred.zip is there.
    """
    if not overwrite and (folder / "pred.zip").exists():
        raise DataError(
            f"{folder / 'pred.zip'} is there already. Name another folder, or overwrite it (--overwrite)"
        )


def read_submission(path: Path, *, exact: bool = False) -> tuple[Array, Array]:
    """Read a pred.zip or pred.json into our conventions.

    Args:
        path: the file.
        exact: round to float32, which gives back the very predictions that `write_submission` took; else the
            text as it stands, which is what the official evaluation reads (less than 1e-9 m away).

    Returns:
        (N, 21, 3) `OPENPOSE21` and (N, 778, 3), OpenCV image camera, metres, float64.

    Raises:
        DataError: not a submission: no pred.json at the top of the zip, not two lists, wrong shapes.
    """
    points: tuple[list[Array], list[Array]] = ([], [])
    for number, values in _read_rows(Path(path)):
        points[number].append(values.astype(np.float32) if exact else values)
    if len(points[0]) != len(points[1]):
        raise DataError(f"{path}: {len(points[0])} rows of joints, {len(points[1])} of vertices")
    xyz = np.array(points[0]).reshape(-1, len(HO3D21), 3)
    return from_official(xyz, np.array(points[1]).reshape(-1, NUM_VERTICES, 3))


def submission_checks(
    joints_cam_m: Array, vertices_cam_m: Array, joint_regressor: Array, *, num_frames: int
) -> Iterator[str]:
    """Refuse predictions that the official evaluation would misread.

    Nothing here asks whether a pose is good or natural: what a network that learnt nothing predicts passes.

    Args:
        joints_cam_m: (N, 21, 3) `OPENPOSE21`, OpenCV image camera, metres.
        vertices_cam_m: (N, 778, 3) OpenCV image camera, metres.
        joint_regressor: (16, 778) of the hand model.
        num_frames: rows wanted.

    Yields:
        a sentence for each check that is passed.

    Raises:
        ShapeError: shapes are not these.
        DataError: a wrong count, a number that is not finite, hands behind the camera, another unit, or
            joints in another order than their mesh says.
    """
    families = (("joints", joints_cam_m, len(OPENPOSE21)), ("vertices", vertices_cam_m, NUM_VERTICES))
    for name, points, size in families:
        if points.ndim != 3 or points.shape[1:] != (size, 3):
            raise ShapeError(f"submission: {name} have shape {points.shape}, want (N, {size}, 3)")
        if len(points) != num_frames:
            raise DataError(
                f"submission: {len(points)} rows of {name} for {num_frames} frames of evaluation.txt"
            )
    yield f"count: {num_frames} rows of 21 joints and of {NUM_VERTICES} vertices"
    for name, points, _ in families:
        _refuse(~np.isfinite(points), name, "not finite")
    yield "finite: every number"
    for name, points, _ in families:
        _refuse(points[..., 2:] <= 0.0, name, "at or behind the camera (OpenGL z >= 0)")
    yield "axes: every point at z < 0 in OpenGL"
    yield _check_unit(joints_cam_m, vertices_cam_m)
    yield _check_tips(joints_cam_m, vertices_cam_m)
    yield _check_order(joints_cam_m, vertices_cam_m, joint_regressor)


def _check_unit(joints: Array, vertices: Array) -> str:
    """Metres: no point far away, and a hand as large as a hand."""
    size = 0.0
    for name, points in (("joints", joints), ("vertices", vertices)):
        _refuse(np.abs(points) > _FARTHEST_M, name, f"farther than {_FARTHEST_M:g} m: another unit?")
        if not len(points):
            continue
        size = float(np.median(np.linalg.norm(np.ptp(points, axis=1), axis=-1)))
        if not _SHORTEST_M <= size <= _LONGEST_M:
            raise DataError(
                f"submission: the {name} of the median frame span {size:g}, want {_SHORTEST_M:g} to "
                f"{_LONGEST_M:g} m: another unit"
            )
    return f"unit: metres (the mesh of the median frame spans {size:.3f} m)"


def _check_tips(joints: Array, vertices: Array) -> str:
    """Joint order at the tips: each is a known vertex of the mesh."""
    worst = 0.0
    for name, vertex in TIP_VERTICES.items():
        gap = np.linalg.norm(joints[:, OPENPOSE21.index(name)] - vertices[:, vertex], axis=-1)
        distance = float(np.median(gap)) if len(gap) else 0.0
        if distance > _TIP_TOLERANCE_M:
            raise DataError(
                f"submission: joint {name} is {distance * 1000:.1f} mm from its vertex {vertex} in the "
                f"median frame, want at most {_TIP_TOLERANCE_M * 1000:g} mm: another joint order"
            )
        far = np.flatnonzero(gap > _TIP_FARTHEST_M)
        if far.size:
            raise DataError(
                f"submission: joint {name} is more than {_TIP_FARTHEST_M * 1000:g} mm from its vertex "
                f"{vertex} in {far.size} frames (first: row {far[0]}): joints and mesh of different frames"
            )
        worst = max(worst, distance)
    return f"order: fingertips lie on their vertices (worst median {worst * 1000:.3f} mm)"


def _check_order(joints: Array, vertices: Array, joint_regressor: Array) -> str:
    """Joint order: of all assignments of joints to the mesh's own joints, theirs is the nearest.

    The mesh's joints are its five tips and what the regressor takes from it. Where a joint turns, the
    vertices around it move with both of its bones, so this holds for any pose.
    """
    order = list(permutation(HO3D21, OPENPOSE21))
    alike = np.zeros((len(OPENPOSE21), len(OPENPOSE21)))
    for start in range(0, len(joints), _CHUNK):
        own = np.asarray(joints[start : start + _CHUNK], np.float64)
        mesh = np.asarray(vertices[start : start + _CHUNK], np.float64)
        tips = mesh[:, list(TIP_VERTICES.values())]
        taken = np.concatenate([joint_regressor @ mesh, tips], axis=1)[:, order]
        alike += np.einsum("nic,njc->ij", own - own[:, :1], taken - own[:, :1]) / len(joints)
    # The sum of squared distances is a constant minus twice the sum of these products.
    best = linear_sum_assignment(alike, maximize=True)[1]
    gain = 2.0 * float(alike[range(len(best)), best].sum() - np.trace(alike))
    if gain > _ORDER_TOLERANCE_M**2:
        wrong = np.flatnonzero(best != np.arange(len(best)))
        named = ", ".join(f"{OPENPOSE21[i]} where it has {OPENPOSE21[best[i]]}" for i in wrong[:3])
        raise DataError(
            f"submission: {len(wrong)} joints lie nearer to others of their mesh ({named}"
            f"{', ...' if len(wrong) > 3 else ''}): another joint order"
        )
    return "order: no other assignment brings the joints nearer to those of their mesh"


def _check_frames(frames: Sequence[str], count: int) -> str:
    """Each row has a frame of its own."""
    if len(frames) != count or len(set(frames)) != count:
        raise DataError(
            f"submission: {len(frames)} frame names, {len(set(frames))} of them distinct, for {count} rows"
        )
    return "frames: one distinct name per row, kept in pred_frames.txt"


def _check_read_back(zip_path: Path, joints: Float32, vertices: Float32) -> str:
    """The zip holds exactly the predictions, row by row: at full size it is gigabytes as Python objects."""
    order = list(permutation(OPENPOSE21, HO3D21))
    wanted = (joints[:, order], vertices)
    axes = _AXES.astype(np.float32)
    found = [0, 0]
    for number, values in _read_rows(zip_path):
        row = found[number]
        if row >= len(joints) or not np.array_equal(values.astype(np.float32), wanted[number][row] * axes):
            name = ("joints", "vertices")[number]
            raise DataError(
                f"{zip_path}: read back, row {row} of {name} differs from the predictions; removed"
            )
        found[number] += 1
    if found != [len(joints), len(joints)]:
        raise DataError(f"{zip_path}: read back, it holds {found} rows, want {len(joints)} each; removed")
    return "read back: pred.zip gives the predictions bit for bit"


def _read_rows(path: Path) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """(0 joints or 1 vertices, points of one frame) of a submission, in the file's order and conventions."""
    if path.suffix != ".zip":
        with path.open("rb") as file:
            yield from _parse_rows(file, path)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.namelist() != ["pred.json"]:
                raise DataError(f"{path}: holds {archive.namelist()}, want pred.json alone, in no folder")
            with archive.open("pred.json") as entry:
                yield from _parse_rows(entry, path)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path}: not a whole zip: {error}. Write it again") from error


def _parse_rows(file: Readable, path: Path) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Rows of an open pred.json."""
    rows = [0, 0]
    for number, text in json_rows(file, str(path), lists=2):
        if number > 1:
            raise DataError(f"{path}: want a list of two lists, joints and vertices")
        name, size = (("joints", len(HO3D21)), ("vertices", NUM_VERTICES))[number]
        yield number, parse_points(text, size, f"{path}: row {rows[number]} of {name}")
        rows[number] += 1


def _write_json(file: BinaryIO, joints: Float32, vertices: Float32) -> None:
    """[joints, vertices] in HO3D's conventions, a frame at a time: as Python objects gigabytes."""
    axes = _AXES.astype(np.float32)
    families = ((joints, list(permutation(OPENPOSE21, HO3D21))), (vertices, list(range(NUM_VERTICES))))
    for start, (points, order) in zip((b"[[", b"], ["), families, strict=True):
        file.write(start)
        form = _row_format(points.shape[1])
        for index in range(len(points)):
            text = form % tuple((points[index, order] * axes).ravel().tolist())
            file.write((b", " if index else b"") + text.encode("ascii"))
    file.write(b"]]")


def _row_format(points: int) -> str:
    """Format of one frame: nine significant digits tell any two float32 apart."""
    return "[" + ", ".join(["[%.9g, %.9g, %.9g]"] * points) + "]"


def _write_zip(file: BinaryIO, json_path: Path) -> None:
    """pred.json alone; a fixed date, so that equal predictions give equal bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=_ZIP_LEVEL) as archive:
        entry = zipfile.ZipInfo("pred.json", _ZIP_DATE)
        entry.compress_type = zipfile.ZIP_DEFLATED
        with json_path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
            while block := source.read(1 << 20):
                target.write(block)


def _refuse(bad: NDArray[np.bool_], name: str, what: str) -> None:
    """Raise if any frame has a bad number."""
    frames = np.flatnonzero(bad.any(axis=(1, 2)))
    if frames.size:
        raise DataError(f"submission: {name} of {frames.size} frames are {what} (first: row {frames[0]})")
