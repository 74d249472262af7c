"""HO3D's submission files: checked, written, and compared with what was written.

Legend: N frames in the order of evaluation.txt. Outside: HO3D's joint order, OpenGL axes (x right, y up, the
hand at z < 0), metres. Inside: `OPENPOSE21`, OpenCV axes, image camera, metres, float32. This door converts.
"""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from src.errors import DataError, ShapeError
from src.hand.joints import HO3D21, OPENPOSE21, TIP_VERTICES, permutation
from src.runtime.files.disk import atomic_write

Array = NDArray[np.floating]
Float32 = NDArray[np.float32]

NUM_VERTICES = 778
_AXES = np.array([1.0, -1.0, -1.0])
"""OpenCV <-> OpenGL: y and z change sign; its own inverse."""
_TO_OFFICIAL = list(permutation(OPENPOSE21, HO3D21))
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_ZIP_LEVEL = 1
"""Digits hardly compress: the highest level saves a tenth and takes five times as long."""
_FARTHEST_M = 10.0
"""A hand farther than this is in another unit."""
_SHORTEST_M, _LONGEST_M = 0.04, 0.6
"""Bounds of the diagonal of a hand's box in metres, closed fists and spread fingers included."""
_TIP_TOLERANCE_M, _JOINT_TOLERANCE_M = 0.005, 0.012
"""Largest median distance of a joint from where its mesh has it: a fingertip is a vertex; other joints are
regressed from vertices that move with both bones, up to 11 mm off however the fingers are bent. Joints of
one hand are 18 mm and more apart in most frames."""
_FARTHEST_JOINT_M = 0.03
"""The same in any one frame."""
_CHUNK = 1024


def joints_to_official(joints_cam_m: Array) -> Array:
    """(N, 21, 3) `OPENPOSE21`, OpenCV image camera -> HO3D order, OpenGL; metres, float64."""
    return points_to_official(np.asarray(joints_cam_m)[:, _TO_OFFICIAL])


def points_to_official(points_cam_m: Array) -> Array:
    """(N, P, 3) OpenCV image camera -> OpenGL; metres, float64."""
    points: Array = np.asarray(points_cam_m, np.float64) * _AXES
    return points


def write_submission(
    folder: Path,
    joints_cam_m: Float32,
    vertices_cam_m: Float32,
    joint_regressor: Array,
    *,
    frames: Sequence[str],
    overwrite: bool,
) -> list[str]:
    """Write pred.json and pred.zip (pred.json alone, flat) and compare the zip with the predictions.

    Each number has the nine digits that give its float32 back. The file holds no frame names, so a wrong
    order of frames cannot be seen in it: `frames` are kept beside it, in pred_frames.txt.

    Args:
        folder: where all files go.
        joints_cam_m: (N, 21, 3) `OPENPOSE21`, OpenCV image camera, metres, order of evaluation.txt.
        vertices_cam_m: (N, 778, 3) OpenCV image camera, metres.
        joint_regressor: (16, 778) of the hand model; the joints' order is judged by it.
        frames: a name `<sequence>/<frame>` for each line of evaluation.txt.
        overwrite: replace a pred.zip that stands there; else refuse.

    Returns:
        one sentence for each check that was passed.

    Raises:
        DataError: the predictions fail a check of `submission_checks` (nothing is written then); a pred.zip
            is in the way; or what was read back differs (there is no pred.zip then).
        ShapeError: shapes are not these.
    """
    require_free(folder, overwrite)
    checks = submission_checks(joints_cam_m, vertices_cam_m, joint_regressor, num_frames=len(frames))
    json_path, zip_path = folder / "pred.json", folder / "pred.zip"
    with atomic_write(folder / "pred_frames.txt") as file:
        file.write(os.fsencode("".join(f"{name}\n" for name in frames)))
    zip_path.unlink(missing_ok=True)  # it would no longer be the zip of pred.json
    with atomic_write(json_path) as file:
        for text in _json_parts(joints_cam_m, vertices_cam_m):
            file.write(text)
    with atomic_write(zip_path) as file:
        _write_zip(file, json_path)
        file.flush()
        checks.append(_check_read_back(Path(file.name), zip_path, joints_cam_m, vertices_cam_m))
    return checks


def require_free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds a submission, unless it may be replaced.

    Raises:
        DataError: pred.zip is there.
    """
    if not overwrite and (folder / "pred.zip").exists():
        raise DataError(
            f"{folder / 'pred.zip'} is there already. Name another folder, or overwrite it (--overwrite)"
        )


def submission_checks(
    joints_cam_m: Array, vertices_cam_m: Array, joint_regressor: Array, *, num_frames: int
) -> list[str]:
    """Refuse predictions that the official evaluation would misread.

    Nothing here asks whether a pose is good or natural: what a network that learnt nothing predicts passes.

    Args:
        joints_cam_m: (N, 21, 3) `OPENPOSE21`, OpenCV image camera, metres.
        vertices_cam_m: (N, 778, 3) OpenCV image camera, metres.
        joint_regressor: (16, 778) of the hand model.
        num_frames: rows wanted.

    Returns:
        a sentence for each check that was passed.

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
    for name, points, _ in families:
        _refuse(~np.isfinite(points), name, "not finite")
    for name, points, _ in families:
        _refuse(points[..., 2:] <= 0.0, name, "at or behind the camera (OpenGL z >= 0)")
    return [
        f"count: {num_frames} rows of 21 joints and of {NUM_VERTICES} vertices",
        "finite: every number",
        "axes: every point at z < 0 in OpenGL",
        _check_unit(joints_cam_m, vertices_cam_m),
        _check_order(joints_cam_m, vertices_cam_m, joint_regressor),
    ]


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


def _check_order(joints: Array, vertices: Array, joint_regressor: Array) -> str:
    """Joint order: each joint lies where its mesh has it."""
    order = list(permutation(HO3D21, OPENPOSE21))
    gap_m = np.zeros((len(joints), len(OPENPOSE21)))
    for start in range(0, len(joints), _CHUNK):
        mesh = np.asarray(vertices[start : start + _CHUNK], np.float64)
        tips = mesh[:, list(TIP_VERTICES.values())]
        taken = np.concatenate([joint_regressor @ mesh, tips], axis=1)[:, order]
        gap_m[start : start + _CHUNK] = np.linalg.norm(joints[start : start + _CHUNK] - taken, axis=-1)
    worst = 0.0
    for index, name in enumerate(OPENPOSE21):
        most = _TIP_TOLERANCE_M if name in TIP_VERTICES else _JOINT_TOLERANCE_M
        distance = float(np.median(gap_m[:, index])) if len(gap_m) else 0.0
        if distance > most:
            raise DataError(
                f"submission: joint {name} is {distance * 1000:.1f} mm from where its mesh has it in the "
                f"median frame, want at most {most * 1000:g} mm: another joint order"
            )
        far = np.flatnonzero(gap_m[:, index] > _FARTHEST_JOINT_M)
        if far.size:
            raise DataError(
                f"submission: joint {name} is more than {_FARTHEST_JOINT_M * 1000:g} mm from where its mesh "
                f"has it in {far.size} frames (first: row {far[0]}): joints and mesh of different frames"
            )
        worst = max(worst, distance)
    return f"order: joints lie where their meshes have them (worst median {worst * 1000:.3f} mm)"


def _check_read_back(written: Path, zip_path: Path, joints: Float32, vertices: Float32) -> str:
    """The zip holds the text of these very predictions, row by row: at full size it is a gigabyte."""
    try:
        with zipfile.ZipFile(written) as archive, archive.open("pred.json") as entry:
            for number, text in enumerate(_json_parts(joints, vertices)):
                if entry.read(len(text)) != text:
                    raise DataError(f"{zip_path}: read back, part {number} differs from the predictions")
            if entry.read(1):
                raise DataError(f"{zip_path}: read back, it goes on after the predictions")
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise DataError(f"{zip_path}: not a whole zip: {error}. Write it again") from error
    return "read back: pred.zip gives the predictions bit for bit"


def _json_parts(joints: Float32, vertices: Float32) -> Iterator[bytes]:
    """Text of [joints, vertices] in HO3D's conventions, a frame at a time: as Python objects gigabytes."""
    axes = _AXES.astype(np.float32)
    families = ((joints, _TO_OFFICIAL), (vertices, list(range(NUM_VERTICES))))
    for start, (points, order) in zip((b"[[", b"], ["), families, strict=True):
        yield start
        form = _row_format(points.shape[1])
        for index in range(len(points)):
            text = form % tuple((points[index, order] * axes).ravel().tolist())
            yield (b", " if index else b"") + text.encode("ascii")
    yield b"]]"


def _row_format(points: int) -> str:
    """Format of one frame: nine significant digits tell any two float32 apart."""
    return "[" + ", ".join(["[%.9g, %.9g, %.9g]"] * points) + "]"


def _write_zip(file: BinaryIO, json_path: Path) -> None:
    """pred.json alone; a fixed date, so that equal predictions give equal bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=_ZIP_LEVEL) as archive:
        entry = zipfile.ZipInfo("pred.json", _ZIP_DATE)
        entry.compress_type = zipfile.ZIP_DEFLATED
        with json_path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
            shutil.copyfileobj(source, target, 1 << 20)


def _refuse(bad: NDArray[np.bool_], name: str, what: str) -> None:
    """Raise if any frame has a bad number."""
    frames = np.flatnonzero(bad.any(axis=(1, 2)))
    if frames.size:
        raise DataError(f"submission: {name} of {frames.size} frames are {what} (first: row {frames[0]})")
