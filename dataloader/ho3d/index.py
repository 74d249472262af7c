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
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataloader.ho3d.label_checks import find_faults, truth_faults
from dataloader.ho3d.labels import hands_of
from dataloader.ho3d.layout import (
    FrameList,
    file_stamp,
    folder_stamp,
    frame_name,
    frame_path,
    read_list,
)
from dataloader.ho3d.meta import META_DTYPE, ListName, read_meta
from dataloader.ho3d.truth import read_joints, truth_digest
from dataloader.ho3d.unusable import Fault, FrameError, Reason, UnusableFrames
from dataloader.pictures.decode import picture_size
from src.config import DERIVED_FOLDER, DatasetConfig
from src.errors import DataError
from src.geometry.rotation import rotation_from_aa
from src.hand.joints import HO3D21
from src.runtime.files.derived import Derived, Store
from src.runtime.files.disk import atomic_write
from src.runtime.log import get_logger
from src.runtime.machine import worker_count
from src.runtime.progress import progress

if TYPE_CHECKING:
    from src.hand.mano import ManoLayer

_PACKED: dict[str, tuple[Any, ...]] = {
    "pose_aa": ("rotations", "<f4", (16, 3, 3)),
    "rgb_hw": ("picture_hw", "<u2", (2,)),
}
INDEX_DTYPE = np.dtype(
    [
        _PACKED.get(field, (field, META_DTYPE[field]))
        for field in META_DTYPE.names or ()
        if field != "depth_hw"
    ]
)
"""One row: META_DTYPE with rotation matrices for axis-angle, so that no sample has to convert them, and the
(H, W) that its picture and its depth have.
"""

FORMAT = 6
"""Raised whenever INDEX_DTYPE or the meaning of a field changes."""

_CHUNK = 250
_ROTATION_CHUNK = 4096
_ROWS, _TRUTH, _LISTING = "rows.npy", "truth.npy", "unusable.txt"
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
    """An opened index; a copy in another process maps the very same arrays."""

    data: DatasetConfig
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
    def truth_gl_m(self) -> NDArray[np.float64] | None:
        """(N, 21, 3) HO3D21, OpenGL axes, metres, likewise: the official joints, if there are any."""
        return self.derived.array(_TRUTH, np.float64, (len(HO3D21), 3)) if self.truth_sha256 else None

    @property
    def truth_sha256(self) -> str | None:
        """Hex digest of the text of the official joints."""
        digest: str | None = self.derived.fingerprint["truth_sha256"]
        return digest

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

    def frame_id(self, row: int) -> str:
        """`train/ABF10/0042`."""
        record = self.rows[row]
        return f"{self.name}/{self.sequences[int(record['sequence'])]}/{frame_name(int(record['frame']))}"

    def path(self, row: int, kind: str) -> Path:
        """The file of a row's rgb, depth or meta."""
        return frame_path(self.data, self.frame_id(row), kind)

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped arrays, which would be copied whole."""
        return {"data": self.data, "name": self.name, "derived": self.derived}


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
        DataError: what `read_list` raises; more unusable frames than dataset.max_unusable;
            official ground truth of other frames; no place to write.
    """
    frames = read_list(config, name)
    store = index_store(config, name)
    evaluation = name == "evaluation"
    fingerprint = {
        "format": FORMAT,
        "version": config.version,
        "list_sha256": frames.sha256,
        "annotations": file_stamp(config, frames, ["meta"]),
        "pictures": folder_stamp(config, frames, ["rgb", "depth"]),
        # The evaluation list has no parameters to decode.
        "hand": None if evaluation else hand.fingerprint,
        "truth_sha256": truth_digest(config) if evaluation else None,
    }

    def make(folder: Path) -> dict[str, Any]:
        if any(store.all()):
            _log.info(f"HO3D index: what stands in {store.place} does not fit the data; making it anew.")
        return _make(config, frames, hand, folder, show_progress)

    def find(say: bool) -> Derived | None:
        """One whose unusable frames have not been mended since."""
        found = store.find(fingerprint, say=say)
        if found is None or found.facts["unusable"] == _picture_stamp(config, _unusable(name, found).faults):
            return found
        found.close()
        return None

    derived = store.ensure(fingerprint, make, find=find)
    _unusable(name, derived).require(config, derived.path(_LISTING))
    return AnnotationIndex(config, name, derived)


def index_store(config: DatasetConfig, name: ListName) -> Store:
    """Where the index of a list is kept."""
    place, stem = config.root_dir / DERIVED_FOLDER, str(name)
    if config.index_dir is not None:
        place, stem = config.index_dir, f"{name}-{root_digest(config)}"
    return Store(place, stem, "HO3D index", keep=_KEPT, facts=_FACTS)


def root_digest(config: DatasetConfig) -> str:
    """8 hex digits of a data set's place: a folder may hold what is derived from several of them."""
    return hashlib.sha256(os.fsencode(config.root_dir.resolve())).hexdigest()[:8]


def _unusable(name: ListName, derived: Derived) -> UnusableFrames:
    """What an index has left out."""
    return UnusableFrames.from_facts(name, derived.facts["listed"], derived.facts["faults"])


def _picture_stamp(config: DatasetConfig, names: Iterable[str]) -> str:
    """Hex digest of sizes and times of the pictures of frames such as `train/MC1/0007`.

    Pictures are stamped by their folders, which one that is mended in place does not change: whoever mends an
    unusable frame must not hear of it again.
    """
    states: list[tuple[int, int, int] | None] = []
    for name in names:
        for kind in ("rgb", "depth"):
            path = frame_path(config, name, kind)
            status = path.stat() if path.exists() else None
            states.append(status and (status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()


def _make(
    config: DatasetConfig, frames: FrameList, hand: ManoLayer, folder: Path, show: bool
) -> dict[str, Any]:
    """Read and check all frames; write the array of the usable ones and the reasons of the others."""
    records, met = _read_all(config, frames, show)
    faults = find_faults(frames.name, records, met, hand)
    truth = None if frames.name == "train" or faults else read_joints(config, records["joints"][:, 0])
    if truth is not None:
        records["joints"], records["joints_known"] = truth, True
        faults = truth_faults(records["sequence"], truth)
        with atomic_write(folder / _TRUTH) as file:
            np.save(file, truth)
    unusable = UnusableFrames.of(frames, faults)
    packed = _pack(np.delete(records, sorted(faults)))
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


def _pack(rows: NDArray[np.void]) -> NDArray[np.void]:
    """Records of META_DTYPE -> records of INDEX_DTYPE."""
    packed = np.zeros(len(rows), INDEX_DTYPE)
    for field in set(INDEX_DTYPE.names or ()) & set(META_DTYPE.names or ()):
        packed[field] = rows[field]
    packed["picture_hw"] = rows["rgb_hw"]
    for start in range(0, len(rows), _ROTATION_CHUNK):
        part = slice(start, start + _ROTATION_CHUNK)
        aa = torch.from_numpy(rows["pose_aa"][part].astype(np.float64))
        packed["rotations"][part] = rotation_from_aa(aa).numpy()
    return packed


_Found = tuple[NDArray[np.void], list[tuple[int, Fault]]]
"""(n,) of META_DTYPE, anything where a fault was met; row in the list and fault, of a row perhaps several."""


def _read_all(config: DatasetConfig, frames: FrameList, show: bool) -> _Found:
    """All listed frames, in list order."""
    number = {sequence: k for k, sequence in enumerate(frames.sequences)}
    starts = range(0, len(frames.frames), _CHUNK)
    jobs = [(config, frames.name, frames.frames[s : s + _CHUNK], s, number) for s in starts]
    workers = worker_count()
    with contextlib.ExitStack() as stack:
        results: Iterator[_Found] = map(_read_chunk, jobs)
        if workers > 1 and len(frames.frames) >= _SMALL:
            # fork: a worker only reads files with numpy, and would import torch for seconds otherwise.
            pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))
            results = stack.enter_context(pool).map(_read_chunk, jobs)
        title = f"HO3D index ({frames.name})"
        records, faults = zip(*progress(results, total=len(jobs), desc=title, enabled=show), strict=True)
    return np.concatenate(records), [fault for part in faults for fault in part]


def _read_chunk(job: tuple[Any, ...]) -> _Found:
    """A run of frames; runs in a pool process."""
    config, name, frames, start, number = job
    records, faults = np.zeros(len(frames), META_DTYPE), []
    for i, (sequence, frame) in enumerate(frames):
        where = f"{name}/{sequence}/{frame_name(frame)}"
        for into, read, kind in (
            (records, functools.partial(read_meta, name=name), "meta"),
            (records["rgb_hw"], functools.partial(picture_size, kind="rgb"), "rgb"),
            (records["depth_hw"], functools.partial(picture_size, kind="depth"), "depth"),
        ):
            try:
                into[i] = read(frame_path(config, where, kind))
            except FrameError as error:
                faults.append((start + i, error.fault))
            except DataError as error:
                faults.append((start + i, Fault(Reason.ANNOTATION, str(error))))
        records[i]["sequence"], records[i]["frame"] = number[sequence], frame
    return records, faults
