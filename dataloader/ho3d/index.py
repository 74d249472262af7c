"""Packed annotation index: every listed frame's labels in one memory-mapped array, made and checked once.

Reading 83,325 pickles takes tens of seconds, mapping the array takes none, and all processes share its pages.
Records hold what the files say (`dataloader/ho3d/meta.py`): OpenGL axes, HO3D order, metres. The index stands
in `<root>/.utnet`, or in dataset.index_dir (`src/runtime/files/derived.py`). It is made anew when the list,
an annotation, the pictures' folders, the hand model, the release or the format changed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dataloader.ho3d.label_checks import find_faults, truth_faults
from dataloader.ho3d.labels import hands_of
from dataloader.ho3d.layout import (
    KINDS,
    FrameList,
    file_stamp,
    folder_stamp,
    frame_name,
    frame_path,
    read_list,
    require_count,
)
from dataloader.ho3d.meta import META_DTYPE, ListName, read_meta
from dataloader.ho3d.truth import read_evaluation_joints, truth_digest
from dataloader.ho3d.unusable import Fault, FrameError, Reason, UnusableFrames
from dataloader.pictures.decode import picture_size
from src.config import DERIVED_FOLDER, DatasetConfig
from src.errors import DataError
from src.geometry.rotation import rotation_from_aa
from src.runtime.files.derived import Derived, Store
from src.runtime.files.disk import atomic_write
from src.runtime.log import get_logger
from src.runtime.machine import worker_count
from src.runtime.progress import progress

if TYPE_CHECKING:
    from src.hand.mano import ManoLayer

INDEX_DTYPE = np.dtype(
    [
        ("rotations", "<f4", (16, 3, 3)) if field == "pose_aa" else (field, META_DTYPE[field])
        for field in META_DTYPE.names or ()
    ]
    + [("picture_hw", "<u2", (2,))]
)
"""One row: META_DTYPE with rotation matrices for axis-angle, so that no sample has to convert them, and the
(H, W) that its picture and its depth have.
"""

FORMAT = 5
"""Raised whenever INDEX_DTYPE or the meaning of a field changes."""

_CHUNK = 250
_ROTATION_CHUNK = 4096
_ROWS, _LISTING = "rows.npy", "unusable.txt"
_KEPT = 2
"""Unused indices that stay: two hand models, tried in turn, each need their own."""
_FACTS = {
    "listed": int,
    "faults": list,
    "sequences": list,
    **dict.fromkeys(("unusable", "frames_sha256", "labels_sha256", "hands_sha256"), str),
}
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
        return self.derived.array(_ROWS, INDEX_DTYPE, ())

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
        config: root, release, where the index goes, tolerance.
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

    def unusable(found: Derived) -> UnusableFrames:
        return UnusableFrames.from_facts(name, found.facts["listed"], found.facts["faults"])

    def find(say: bool) -> Derived | None:
        found = store.find(fingerprint, say=say)
        if found is None or found.facts["unusable"] == _picture_stamp(config, unusable(found).faults):
            return found
        found.close()
        return None

    derived = store.ensure(fingerprint, make, find=find)
    require_count(config, frames, derived.facts["listed"])
    unusable(derived).require(config, derived.path(_LISTING))
    return AnnotationIndex(name, derived)


def index_store(config: DatasetConfig, name: ListName) -> Store:
    """Where the index of a list is kept."""
    if config.index_dir is None:
        return Store(config.root_dir / DERIVED_FOLDER, name, "HO3D index", keep=_KEPT, facts=_FACTS)
    stem = f"{name}-{root_digest(config)}"
    return Store(config.index_dir, stem, "HO3D index", keep=_KEPT, facts=_FACTS)


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


def _picture_stamp(config: DatasetConfig, names: Iterable[str]) -> str:
    """Hex digest of sizes and times of the pictures of frames such as `train/MC1/0007`.

    Pictures are stamped by their folders, which one that is mended in place does not change: whoever mends an
    unusable frame must not hear of it again.
    """
    states: list[tuple[int, int, int] | None] = []
    for name in names:
        listed, sequence, frame = name.split("/")
        for kind in ("rgb", "depth"):
            path = frame_path(config.root_dir, listed, sequence, int(frame), kind, config.version)
            try:
                status = path.stat()
            except OSError:
                states.append(None)
            else:
                states.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def _make(
    config: DatasetConfig, frames: FrameList, hand: ManoLayer, folder: Path, show: bool
) -> dict[str, Any]:
    """Read and check all frames; write the array of the usable ones and the reasons of the others."""
    found = _read_all(config, frames, show)
    faults = find_faults(frames.name, found.records, found.rgb_hw, found.depth_hw, found.faults, hand)
    if frames.name == "evaluation" and not faults:
        joints = read_evaluation_joints(config, found.records["joints"][:, 0])
        if joints is not None:
            found.records["joints"], found.records["joints_known"] = joints, True
            faults = truth_faults(found.records["sequence"], joints)
    unusable = UnusableFrames.of(frames, faults)
    rows = np.delete(found.records, sorted(faults))
    packed = _pack(rows, np.delete(found.rgb_hw, sorted(faults), axis=0))
    left_out = [name.removeprefix(f"{frames.name}/") for name in unusable.faults]
    digest = hashlib.sha256(json.dumps([frames.name, frames.sha256, left_out]).encode()).hexdigest()
    with atomic_write(folder / _ROWS) as file:
        np.save(file, packed)
    unusable.write(folder / _LISTING)
    _log.info(
        f"HO3D index: {len(packed):,} frames of {len(frames.sequences)} sequences written to {folder.parent}."
    )
    return {
        "listed": len(frames.frames),
        "faults": unusable.to_facts(),
        "unusable": _picture_stamp(config, unusable.faults),
        "sequences": list(frames.sequences),
        "frames_sha256": digest,
        "labels_sha256": hashlib.sha256(packed.tobytes()).hexdigest(),
        "hands_sha256": hashlib.sha256(b"".join(part.tobytes() for part in hands_of(packed))).hexdigest(),
    }


def _pack(rows: NDArray[np.void], picture_hw: NDArray[np.int32]) -> NDArray[np.void]:
    """Records of META_DTYPE and (n, 2) sizes of pictures -> records of INDEX_DTYPE."""
    packed = np.zeros(len(rows), INDEX_DTYPE)
    packed["picture_hw"] = picture_hw
    for field in META_DTYPE.names or ():
        if field != "pose_aa":
            packed[field] = rows[field]
    for start in range(0, len(rows), _ROTATION_CHUNK):
        part = slice(start, start + _ROTATION_CHUNK)
        aa = torch.from_numpy(rows["pose_aa"][part].astype(np.float64))
        packed["rotations"][part] = rotation_from_aa(aa).numpy()
    return packed


class _Found(NamedTuple):
    """What a run of frames says of itself."""

    records: NDArray[np.void]
    """(n,) of META_DTYPE; anything where a fault was met."""
    rgb_hw: NDArray[np.int32]
    """(n, 2) sizes of the pictures; 0, 0 where a fault was met."""
    depth_hw: NDArray[np.int32]
    """(n, 2) of their depths."""
    faults: list[tuple[int, Fault]]
    """Row in the list, and what was met; several of a row may be there."""


def _read_all(config: DatasetConfig, frames: FrameList, show: bool) -> _Found:
    """All listed frames, in list order."""
    starts = range(0, len(frames.frames), _CHUNK)
    number = {sequence: k for k, sequence in enumerate(frames.sequences)}
    jobs = [(config, frames.name, frames.frames[s : s + _CHUNK], s, number) for s in starts]
    with contextlib.ExitStack() as stack:
        workers = worker_count()
        if workers == 1 or len(frames.frames) < _SMALL:
            results: Iterator[_Found] = map(_read_chunk, jobs)
        else:
            # fork: a worker only reads files with numpy, and would import torch for seconds otherwise.
            pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))
            results = stack.enter_context(pool).map(_read_chunk, jobs)
        title = f"HO3D index ({frames.name})"
        chunks = list(progress(results, total=len(jobs), desc=title, enabled=show))
    records, rgb_hw, depth_hw = (np.concatenate(parts) for parts in list(zip(*chunks, strict=True))[:3])
    return _Found(records, rgb_hw, depth_hw, [fault for chunk in chunks for fault in chunk.faults])


def _read_chunk(job: tuple[Any, ...]) -> _Found:
    """A run of frames; runs in a pool process."""
    config, name, frames, start, number = job
    rgb_hw, depth_hw = np.zeros((2, len(frames), 2), np.int32)
    found = _Found(np.zeros(len(frames), META_DTYPE), rgb_hw, depth_hw, [])
    for i, (sequence, frame) in enumerate(frames):
        rgb, depth, meta = (
            frame_path(config.root_dir, name, sequence, frame, kind, config.version) for kind in KINDS
        )
        readers: tuple[tuple[NDArray[Any], Callable[[], Any]], ...] = (
            (found.records, functools.partial(read_meta, meta, name)),
            (found.rgb_hw, functools.partial(picture_size, rgb, "rgb")),
            (found.depth_hw, functools.partial(picture_size, depth, "depth")),
        )
        for into, read in readers:
            try:
                into[i] = read()
            except FrameError as error:
                found.faults.append((start + i, error.fault))
            except DataError as error:
                found.faults.append((start + i, Fault(Reason.ANNOTATION, str(error))))
        found.records[i]["sequence"], found.records[i]["frame"] = number[sequence], frame
    return found
