"""Packed annotation index: every listed frame's labels in one memory-mapped array, made and checked once.

Reading 83,325 pickles takes tens of seconds, mapping the array takes none, and all processes share its pages.
Records hold what the files say (`dataloader/meta.py`): OpenGL axes, HO3D order, metres. The index stands in
`<root>/.utnet`, or in dataset.index_dir (`src/runtime/derived.py`). It is made anew when the list, an
annotation, the pictures' folders, the hand model, the release or the format changed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataloader.labels import hands_of
from dataloader.layout import (
    FrameList,
    file_stamp,
    folder_stamp,
    frame_name,
    frame_path,
    read_list,
    require_count,
)
from dataloader.meta import META_DTYPE, ListName, read_meta
from dataloader.truth import read_evaluation_joints, truth_digest
from src.config import DatasetConfig
from src.errors import DataError
from src.geometry.rotation import rotation_from_aa
from src.runtime.derived import Derived, Store
from src.runtime.files import atomic_write
from src.runtime.log import get_logger
from src.runtime.progress import progress

if TYPE_CHECKING:
    from src.hand.mano import ManoLayer

INDEX_DTYPE = np.dtype(
    [
        ("rotations", "<f4", (16, 3, 3)) if field == "pose_aa" else (field, META_DTYPE[field])
        for field in META_DTYPE.names or ()
    ]
)
"""One row: META_DTYPE with rotation matrices for axis-angle, so that no sample has to convert them."""

FORMAT = 2
"""Raised whenever INDEX_DTYPE or the meaning of a field changes."""

_CHUNK = 250
_ROTATION_CHUNK = 4096
_ROWS, _UNUSABLE = "rows.npy", "unusable.json"
_KEPT = 2
"""Unused indices that stay: two hand models, tried in turn, each need their own."""
_SMALL = 2000
"""Below so many frames a process pool costs more than it saves."""
_log = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class AnnotationIndex:
    """An opened index; a copy in another process maps the very same array."""

    name: ListName
    derived: Derived

    @functools.cached_property
    def rows(self) -> NDArray[np.void]:
        """(N,) records of INDEX_DTYPE, memory-mapped read-only: the usable frames in the order of the list.

        Raises:
            DataError: the array was replaced since the index was opened.
        """
        return self.derived.array(_ROWS)

    @functools.cached_property
    def sequences(self) -> tuple[str, ...]:
        """Names by the number in `sequence`."""
        return tuple(self.derived.facts["sequences"])

    @property
    def sha256(self) -> str:
        """Hex digest of which frames it holds."""
        return str(self.derived.facts["frames_sha256"])

    @property
    def labels_sha256(self) -> str:
        """Hex digest of what their labels say."""
        return str(self.derived.facts["labels_sha256"])

    @property
    def hands_sha256(self) -> str:
        """Hex digest of where the hands stand in the pictures: K and boxes."""
        return str(self.derived.facts["hands_sha256"])

    @property
    def left_out(self) -> int:
        """Listed frames that cannot be used, as dataset.max_unusable allowed."""
        return int(self.derived.facts["listed"]) - len(self.rows)

    def sequence_frame(self, row: int) -> tuple[str, int]:
        """Sequence name and frame number of a row."""
        record = self.rows[row]
        return self.sequences[int(record["sequence"])], int(record["frame"])

    def frame_id(self, row: int) -> str:
        """`train/ABF10/0042`."""
        sequence, frame = self.sequence_frame(row)
        return f"{self.name}/{sequence}/{frame_name(frame)}"

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped array, which would be copied whole."""
        return {"name": self.name, "derived": self.derived}


def open_index(
    config: DatasetConfig, name: ListName, hand: ManoLayer, *, show_progress: bool = True
) -> AnnotationIndex:
    """The index of a list, made if need be by one process while others wait.

    Args:
        config: root, release, where the index goes, worker processes, tolerance.
        name: train or evaluation.
        hand: must decode the labels of the training list.
        show_progress: draw a progress bar while it is made.

    Raises:
        DataError: what `read_list` and `require_count` raise; more unusable frames than dataset.max_unusable;
            no place to write.
    """
    frames = read_list(config, name)
    store = index_store(config, name)
    fingerprint = _fingerprint(config, frames, hand)

    def make(folder: Path) -> dict[str, Any]:
        require_count(config, frames, len(frames.frames))
        if any(store.all()):
            _log.info(f"HO3D index: what stands in {store.place} does not fit the data; making it anew.")
        return _make(config, frames, hand, folder, show_progress)

    derived = store.ensure(fingerprint, make)
    assert derived is not None  # it is made in one go
    require_count(config, frames, derived.facts["listed"])
    with derived.open(_UNUSABLE) as file:
        failures = json.load(file)
    _check_failures(failures, frames, config.max_unreadable if name == "train" else 0)
    return AnnotationIndex(name, derived)


def index_store(config: DatasetConfig, name: ListName) -> Store:
    """Where the index of a list is kept."""
    if config.index_dir is None:
        return Store(config.root_dir / ".utnet", name, "HO3D index", keep=_KEPT)
    return Store(config.index_dir, f"{name}-{root_digest(config)}", "HO3D index", keep=_KEPT)


def root_digest(config: DatasetConfig) -> str:
    """8 hex digits of a data set's place: a folder may hold what is derived from several of them."""
    return hashlib.sha256(os.fsencode(config.root_dir.resolve())).hexdigest()[:8]


def _fingerprint(config: DatasetConfig, frames: FrameList, hand: ManoLayer) -> dict[str, Any]:
    """Everything that an index depends on."""
    evaluation = frames.name == "evaluation"
    return {
        "format": FORMAT,
        "version": config.version,
        "list_sha256": frames.sha256,
        "annotations": file_stamp(config, frames, ["meta"]),
        "pictures": folder_stamp(config, frames, ["rgb", "depth"]),
        # The evaluation list has no parameters to decode.
        "hand": None if evaluation else hand.fingerprint,
        "truth_sha256": truth_digest(config) if evaluation else None,
    }


def _make(
    config: DatasetConfig, frames: FrameList, hand: ManoLayer, folder: Path, show: bool
) -> dict[str, Any]:
    """Read and check all annotations; write the array of the usable frames and the names of the others."""
    rows, failures = _read_all(config, frames, show)
    if frames.name == "evaluation" and not failures:
        joints = read_evaluation_joints(config, rows["joints"][:, 0])
        if joints is not None:
            rows["joints"], rows["joints_known"] = joints, True
    packed = _pack(np.delete(rows, [row for row, _ in failures]))
    left_out = [f"{frames.frames[row][0]}/{frame_name(frames.frames[row][1])}" for row, _ in failures]
    digest = hashlib.sha256(json.dumps([frames.name, frames.sha256, left_out]).encode()).hexdigest()
    with atomic_write(folder / _ROWS) as file:
        np.save(file, packed)
    with atomic_write(folder / _UNUSABLE) as file:
        file.write(json.dumps(failures).encode())
    _log.info(
        f"HO3D index: {len(packed):,} frames of {len(frames.sequences)} sequences written to {folder.parent}."
    )
    return {
        "listed": len(frames.frames),
        "sequences": list(frames.sequences),
        "frames_sha256": digest,
        "labels_sha256": hashlib.sha256(packed.tobytes()).hexdigest(),
        "hands_sha256": hashlib.sha256(b"".join(part.tobytes() for part in hands_of(packed))).hexdigest(),
    }


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
