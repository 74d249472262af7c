"""Packed annotation index: every listed frame's labels in one memory-mapped array, built once.

Reading 83,325 pickles takes tens of seconds, mapping the array takes none, and all processes share its pages.
Records hold what the files say (`dataloader/meta.py`): OpenGL axes, HO3D order, metres. The index stands in
`<root>/.utnet`, or in dataset.index_dir, as a .json (what it was made from) that names its .npy. It is made
anew when the list file, a folder's content, the release or the format changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataloader.layout import FrameList, check_files, folder_stamp, frame_name, frame_path, read_list
from dataloader.meta import META_DTYPE, ListName, read_meta
from dataloader.truth import read_evaluation_joints, truth_digest
from src.config import DatasetConfig
from src.errors import DataError
from src.geometry.rotation import rotation_from_aa
from src.runtime.files import atomic_write
from src.runtime.lock import file_lock
from src.runtime.log import get_logger
from src.runtime.progress import progress

INDEX_DTYPE = np.dtype(
    [
        ("rotations", "<f4", (16, 3, 3)) if field == "pose_aa" else (field, META_DTYPE[field])
        for field in META_DTYPE.names or ()
    ]
)
"""One row: META_DTYPE with rotation matrices for axis-angle, so that no sample has to convert them."""

FORMAT = 1
"""Raised whenever INDEX_DTYPE or the meaning of a field changes."""

_CHUNK = 250
_ROTATION_CHUNK = 4096
_SMALL = 2000
"""Below so many frames a process pool costs more than it saves."""
_log = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class AnnotationIndex:
    """An opened index."""

    name: ListName
    rows: NDArray[np.void]
    """(N,) records of INDEX_DTYPE, memory-mapped read-only, in the order of the list."""
    sequences: tuple[str, ...]
    """Names by the number in `sequence`."""
    sha256: str
    """Hex digest of which frames it holds."""
    left_out: int
    """Listed frames whose annotation was unreadable, as dataset.max_unreadable allowed."""

    def sequence_frame(self, row: int) -> tuple[str, int]:
        """Sequence name and frame number of a row."""
        record = self.rows[row]
        return self.sequences[int(record["sequence"])], int(record["frame"])

    def frame_id(self, row: int) -> str:
        """`train/ABF10/0042`."""
        sequence, frame = self.sequence_frame(row)
        return f"{self.name}/{sequence}/{frame_name(frame)}"


def ensure_index(config: DatasetConfig, name: ListName, *, show_progress: bool = True) -> Path:
    """Path of an up-to-date index, built if need be by one process while others wait.

    Args:
        config: root, release, where the index goes, worker processes, tolerance.
        name: train or evaluation.
        show_progress: draw a progress bar while building.

    Returns:
        path of the .json.

    Raises:
        DataError: what `read_list` and `check_files` raise; too many unreadable annotations; no place to
            write.
    """
    frames = read_list(config, name)
    wanted = _fingerprint(config, frames)
    path = _index_path(config, name)
    if _is_current(path, wanted):
        return path
    with file_lock(path.with_suffix(".lock"), "HO3D index"):
        if not _is_current(path, wanted):  # another process may have built it meanwhile
            if path.exists():
                _log.info(f"HO3D index: {path} does not fit the data any more; building it anew.")
            _build(config, frames, wanted, path, show_progress)
    return path


def open_index(path: Path, name: ListName) -> AnnotationIndex:
    """Memory-map an index that `ensure_index` made.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        rows = np.load(path.parent / info["array"], mmap_mode="r")
        sequences, digest, left_out = tuple(info["sequences"]), info["sha256"], len(info["left_out"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"HO3D index: {path} is missing or damaged ({error}). Delete it; it is built anew."
        ) from error
    if rows.dtype != INDEX_DTYPE or rows.shape != (info["fingerprint"]["listed"] - left_out,):
        raise DataError(f"HO3D index: {path} does not fit its array. Delete it; it is built anew.")
    return AnnotationIndex(name, rows, sequences, digest, left_out)


def _index_path(config: DatasetConfig, name: ListName) -> Path:
    """Where the index of a list stands; a shared index_dir may serve several data sets."""
    if config.index_dir is None:
        return config.root_dir / ".utnet" / f"{name}.json"
    root = hashlib.sha256(str(config.root_dir.resolve()).encode()).hexdigest()[:8]
    return config.index_dir / f"{name}-{root}.json"


def _fingerprint(config: DatasetConfig, frames: FrameList) -> dict[str, Any]:
    """Everything that an index depends on."""
    return {
        "format": FORMAT,
        "version": config.version,
        "listed": len(frames.frames),
        "list_sha256": frames.sha256,
        "folders_sha256": folder_stamp(config, frames),
        "truth_sha256": truth_digest(config) if frames.name == "evaluation" else None,
        # A tolerance that is lowered must be checked again.
        "max_unreadable": config.max_unreadable if frames.name == "train" else 0,
    }


def _is_current(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether a readable index with this fingerprint stands at `path`."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        return bool(info["fingerprint"] == wanted) and (path.parent / info["array"]).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _build(
    config: DatasetConfig, frames: FrameList, fingerprint: dict[str, Any], path: Path, show: bool
) -> None:
    """Read all annotations and write the index: the array first, then the .json that names it."""
    check_files(config, frames)
    rows, failures = _read_all(config, frames, show)
    _check_failures(failures, frames, fingerprint["max_unreadable"])
    if frames.name == "evaluation":
        joints = read_evaluation_joints(config, rows["joints"][:, 0])
        if joints is not None:
            rows["joints"], rows["joints_known"] = joints, True
    packed = _pack(np.delete(rows, [row for row, _ in failures]))
    left_out = [f"{frames.frames[row][0]}/{frame_name(frames.frames[row][1])}" for row, _ in failures]
    digest = hashlib.sha256(json.dumps([frames.name, frames.sha256, left_out]).encode()).hexdigest()
    array = f"{path.stem}-{hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()[:12]}.npy"
    info = {
        "array": array,
        "fingerprint": fingerprint,
        "sha256": digest,
        "sequences": list(frames.sequences),
        "left_out": left_out,
    }
    with atomic_write(path.parent / array) as file:
        np.save(file, packed)
    with atomic_write(path) as file:
        file.write(json.dumps(info, indent=1).encode())
    for old in path.parent.glob(f"{path.stem}-????????????.npy"):
        if old.name != array:
            old.unlink(missing_ok=True)
    _log.info(f"HO3D index: {len(packed):,} frames of {len(frames.sequences)} sequences written to {path}.")


def _pack(rows: NDArray[np.void]) -> NDArray[np.void]:
    """Records of META_DTYPE -> records of INDEX_DTYPE."""
    packed = np.zeros(len(rows), INDEX_DTYPE)
    for field in META_DTYPE.names or ():
        if field != "pose_aa":
            packed[field] = rows[field]
    for start in range(0, len(rows), _ROTATION_CHUNK):
        part = slice(start, start + _ROTATION_CHUNK)
        aa = torch.from_numpy(rows["pose_aa"][part].astype(np.float64))
        packed["rotations"][part] = rotation_from_aa(aa).numpy()
    return packed


def _read_all(
    config: DatasetConfig, frames: FrameList, show: bool
) -> tuple[NDArray[np.void], list[tuple[int, str]]]:
    """Records of all listed frames in list order, and (row, reason) of those that are unreadable."""
    starts = range(0, len(frames.frames), _CHUNK)
    number = {sequence: k for k, sequence in enumerate(frames.sequences)}
    jobs = [(config, frames.name, frames.frames[s : s + _CHUNK], s, number) for s in starts]
    rows = np.zeros(len(frames.frames), META_DTYPE)
    failures: list[tuple[int, str]] = []
    with contextlib.ExitStack() as stack:
        if config.index_workers == 1 or len(frames.frames) < _SMALL:
            results: Iterator[Any] = map(_read_chunk, jobs)
        else:
            # fork: a worker only reads files with numpy, and would import torch for seconds otherwise.
            pool = ProcessPoolExecutor(config.index_workers, mp_context=multiprocessing.get_context("fork"))
            results = stack.enter_context(pool).map(_read_chunk, jobs)
        bar = progress(results, total=len(jobs), desc=f"HO3D index ({frames.name})", enabled=show)
        for start, (chunk, bad) in zip(starts, bar, strict=True):
            rows[start : start + len(chunk)] = chunk
            failures += bad
    return rows, failures


def _read_chunk(job: tuple[Any, ...]) -> tuple[NDArray[np.void], list[tuple[int, str]]]:
    """Records of a run of frames; runs in a pool process."""
    config, name, frames, start, number = job
    rows = np.zeros(len(frames), META_DTYPE)
    failures: list[tuple[int, str]] = []
    for i, (sequence, frame) in enumerate(frames):
        path = frame_path(config.root_dir, name, sequence, frame, "meta", config.version)
        try:
            rows[i] = read_meta(path, name)
        except DataError as error:
            failures.append((start + i, str(error)))
        rows[i]["sequence"], rows[i]["frame"] = number[sequence], frame
    return rows, failures


def _check_failures(failures: list[tuple[int, str]], frames: FrameList, allowed: int) -> None:
    """Count unreadable annotations against what the user allowed.

    The evaluation list allows none: its rows are the rows of a submission.
    """
    if not failures:
        return
    row, reason = failures[0]
    what = (
        f"HO3D index: {len(failures):,} of {len(frames.frames):,} frames unreadable "
        f"(first: {reason.removesuffix('.')})."
    )
    if len(failures) <= allowed:
        _log.warning(f"{what} They are left out, as dataset.max_unreadable={allowed} allows.")
        return
    mend = f"Re-extract {frames.frames[row][0]}"
    if frames.name == "train":
        mend += f", or set dataset.max_unreadable={len(failures)} to go on"
    raise DataError(f"{what} {mend}.")
