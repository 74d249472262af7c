"""HO3D's official files: the submission that is written, the ground truth that is read.

Legend: N frames in the order of evaluation.txt. Outside: HO3D's joint order, OpenGL axes (x right, y up, the
hand at z < 0), metres. Inside: `OPENPOSE21`, OpenCV axes, image camera, metres. This door converts.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from src.errors import DataError, ShapeError
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.runtime.files import atomic_write

Array = NDArray[np.floating]

_NUM_VERTICES = 778
_AXES = np.array([1.0, -1.0, -1.0])
"""OpenCV <-> OpenGL: y and z change sign; its own inverse."""
_DECIMALS = 8
"""Digits after the point: 10 nm."""
_CHUNK = 256
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_FARTHEST_M = 10.0
"""A hand farther than this is in another unit."""
_SHORTEST_M, _LONGEST_M = 0.02, 0.5
"""Bounds of the distance from the wrist to the middle fingertip in metres, closed fists included."""


def to_official(joints_cam_m: Array, vertices_cam_m: Array) -> tuple[Array, Array]:
    """Our joints and vertices as HO3D writes them.

    Args:
        joints_cam_m: (N, 21, 3) `OPENPOSE21`, OpenCV image camera, metres.
        vertices_cam_m: (N, 778, 3) OpenCV image camera, metres.

    Returns:
        (N, 21, 3) HO3D order and (N, 778, 3), OpenGL, metres, float64.
    """
    order = list(permutation(OPENPOSE21, HO3D21))
    return np.asarray(joints_cam_m, np.float64)[:, order] * _AXES, np.asarray(
        vertices_cam_m, np.float64
    ) * _AXES


def from_official(xyz: Array, verts: Array) -> tuple[Array, Array]:
    """Inverse of `to_official`."""
    order = list(permutation(HO3D21, OPENPOSE21))
    return np.asarray(xyz, np.float64)[:, order] * _AXES, np.asarray(verts, np.float64) * _AXES


def write_submission(
    folder: Path, joints_cam_m: Array, vertices_cam_m: Array, *, num_frames: int | None = None
) -> Path:
    """Write pred.json and pred.zip (pred.json alone, flat) and check them by reading them back.

    Args:
        folder: where both go.
        joints_cam_m: (N, 21, 3) `OPENPOSE21`, OpenCV image camera, metres, order of evaluation.txt.
        vertices_cam_m: (N, 778, 3) OpenCV image camera, metres.
        num_frames: lines of evaluation.txt; None: as many as given.

    Returns:
        path of the zip.

    Raises:
        DataError: the predictions fail `check_submission` (nothing is written then), or what was read back
            differs.
    """
    xyz, verts = to_official(joints_cam_m, vertices_cam_m)
    check_submission(xyz, verts, num_frames=len(xyz) if num_frames is None else num_frames)
    json_path, zip_path = Path(folder) / "pred.json", Path(folder) / "pred.zip"
    with atomic_write(json_path) as file:
        _write_json(file, xyz, verts)
    with atomic_write(zip_path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo("pred.json", _ZIP_DATE)  # a fixed date: equal predictions, equal bytes
        entry.compress_type = zipfile.ZIP_DEFLATED
        with json_path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
            while block := source.read(1 << 20):
                target.write(block)
    again_joints, again_vertices = read_submission(zip_path)
    worst = max(
        float(np.abs(again_joints - joints_cam_m).max(initial=0.0)),
        float(np.abs(again_vertices - vertices_cam_m).max(initial=0.0)),
    )
    if not worst <= 10.0**-_DECIMALS:
        raise DataError(
            f"{zip_path}: read back, it differs from the predictions by {worst:g} m; do not submit it"
        )
    return zip_path


def read_submission(path: Path) -> tuple[Array, Array]:
    """Read a pred.zip or pred.json into our conventions.

    Args:
        path: the file.

    Returns:
        (N, 21, 3) `OPENPOSE21` and (N, 778, 3), OpenCV image camera, metres, float64.

    Raises:
        DataError: not a submission: no pred.json at the top of the zip, not two lists, wrong shapes.
    """
    path = Path(path)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            if archive.namelist() != ["pred.json"]:
                raise DataError(f"{path}: holds {archive.namelist()}, want pred.json alone, in no folder")
            content = _parse(archive.read("pred.json"), path)
    else:
        content = _parse(path.read_bytes(), path)
    if not isinstance(content, list) or len(content) != 2:
        raise DataError(f"{path}: want a list of two lists, joints and vertices")
    xyz = _array(content[0], len(HO3D21), f"{path} (joints)")
    verts = _array(content[1], _NUM_VERTICES, f"{path} (vertices)")
    return from_official(xyz, verts)


def check_submission(xyz: Array, verts: Array, *, num_frames: int) -> None:
    """Refuse predictions that the official evaluation would misread.

    Args:
        xyz: (N, 21, 3) HO3D order, OpenGL, metres.
        verts: (N, 778, 3) OpenGL, metres.
        num_frames: rows wanted.

    Raises:
        ShapeError: shapes are not these.
        DataError: a wrong count, a number that is not finite, hands behind the camera, or another unit.
    """
    for name, points, count in (("joints", xyz, len(HO3D21)), ("vertices", verts, _NUM_VERTICES)):
        if points.ndim != 3 or points.shape[1:] != (count, 3):
            raise ShapeError(f"submission: {name} have shape {points.shape}, want (N, {count}, 3)")
        if len(points) != num_frames:
            raise DataError(
                f"submission: {len(points)} rows of {name} for {num_frames} frames of evaluation.txt"
            )
        _refuse(~np.isfinite(points), name, "not finite")
        _refuse(points[..., 2:] >= 0.0, name, "at or behind the camera (OpenGL z >= 0)")
        _refuse(
            np.abs(points) > _FARTHEST_M, name, f"farther than {_FARTHEST_M:g} m: another unit than metres?"
        )
    tip, wrist = HO3D21.index("middle_4"), HO3D21.index("wrist")
    length = np.linalg.norm(xyz[:, tip] - xyz[:, wrist], axis=-1)
    if len(length) and not _SHORTEST_M <= float(np.median(length)) <= _LONGEST_M:
        raise DataError(
            f"submission: wrist to middle fingertip is {float(np.median(length)):g} in the median frame, "
            f"want {_SHORTEST_M:g} to {_LONGEST_M:g} m: another unit or joint order"
        )


def load_official_ground_truth(root: Path) -> tuple[Array, Array]:
    """Read evaluation_xyz.json and evaluation_verts.json of a HO3D folder into our conventions.

    Args:
        root: HO3D's folder.

    Returns:
        (N, 21, 3) joints in `OPENPOSE21` and (N, 778, 3) vertices, OpenCV image camera, metres, float64; rows
        in the order of evaluation.txt.

    Raises:
        DataError: a file is missing or not what it should be.
    """
    paths = [Path(root) / "evaluation_xyz.json", Path(root) / "evaluation_verts.json"]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{root}: {' and '.join(missing)} missing, so HO3D's evaluation split cannot be scored here. The "
            "ground truth is public since November 2024: get it from the HO-3D page linked at "
            "https://github.com/shreyashampali/ho3d and put it beside evaluation.txt. Predictions can still "
            "be exported for the official evaluation without it."
        )
    xyz = _array(_parse(paths[0].read_bytes(), paths[0]), len(HO3D21), str(paths[0]))
    verts = _array(_parse(paths[1].read_bytes(), paths[1]), _NUM_VERTICES, str(paths[1]))
    if len(xyz) != len(verts):
        raise DataError(f"{root}: {len(xyz)} rows in {paths[0].name}, {len(verts)} in {paths[1].name}")
    return from_official(xyz, verts)


def _parse(content: bytes, path: Path) -> Any:
    """Content of a JSON file."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}; is the file complete?") from error


def _write_json(file: BinaryIO, xyz: Array, verts: Array) -> None:
    """[joints, vertices] as JSON, a few frames at a time: as Python objects all would take gigabytes."""
    file.write(b"[")
    for separator, points in ((b"", xyz), (b", ", verts)):
        file.write(separator + b"[")
        for start in range(0, len(points), _CHUNK):
            rows = np.round(points[start : start + _CHUNK], _DECIMALS).tolist()
            file.write((b", " if start else b"") + json.dumps(rows)[1:-1].encode())
        file.write(b"]")
    file.write(b"]")


def _array(rows: Any, count: int, where: str) -> Array:
    """(N, count, 3) float64, or an error that names the first row that has another shape."""
    if not isinstance(rows, list):
        raise DataError(f"{where}: want a list of frames, got {type(rows).__name__}")
    if not rows:
        return np.empty((0, count, 3), np.float64)
    array = np.empty((len(rows), count, 3), np.float64)
    for index, row in enumerate(rows):
        try:
            points = np.asarray(row, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: row {index} is not {count} points of 3 numbers: {error}") from error
        if points.shape != (count, 3):
            raise DataError(f"{where}: row {index} has shape {points.shape}, want ({count}, 3)")
        array[index] = points
    return array


def _refuse(bad: NDArray[np.bool_], name: str, what: str) -> None:
    """Raise if any frame has a bad number."""
    frames = np.flatnonzero(bad.any(axis=(1, 2)))
    if frames.size:
        raise DataError(f"submission: {name} of {frames.size} frames are {what} (first: row {frames[0]})")
