"""The frames of one split: which they are, their files, their labels, and their official ground truth."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dataloader.ho3d.index import AnnotationIndex, index_store, open_index
from dataloader.ho3d.labels import CV_FROM_GL, TO_OPENPOSE, Labels, convert, rest_roots
from dataloader.ho3d.meta import ListName
from dataloader.ho3d.split import Split, SplitName, divide, read_held_out, whole_list
from dataloader.ho3d.truth import Vertices, missing_truth, open_vertices
from src.config import DatasetConfig, SplitConfig
from src.errors import ConfigError, DataError
from src.schema import motion_of

if TYPE_CHECKING:
    from src.hand.mano import ManoLayer


@dataclass(frozen=True, eq=False)
class SplitFrames:
    """Frames of a split, as many as `len`; sample i is row `split.rows[i]` of the index."""

    index: AnnotationIndex
    split: Split
    vertices: Vertices | None
    """Official meshes; None on a split of the training list, or where their file is absent."""
    rest_root_m: NDArray[np.float32]
    """(N, 3) wrist J0(betas) of each sample's hand at rest, MANO's frame, metres."""

    def __len__(self) -> int:
        return len(self.split.rows)

    def frame_id(self, sample: int) -> str:
        """`train/ABF10/0042`: list, sequence and frame of a sample."""
        return self.index.frame_id(int(self.split.rows[sample]))

    def names(self) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
        """Sequence name (N,) and frame number (N,) of every sample."""
        rows = self.index.rows
        sequence, frame = rows["sequence"][self.split.rows], rows["frame"][self.split.rows]
        return np.array(self.index.sequences, np.str_)[sequence], frame.astype(np.int64)

    def path(self, sample: int, kind: str) -> Path:
        """The file of a sample's rgb, depth or meta."""
        return self.index.path(int(self.split.rows[sample]), kind)

    def labels(self, part: slice | NDArray[np.int64] = slice(None)) -> Labels:
        """Labels of some samples, of all unless told, in the image camera; no picture is decoded."""
        return convert(self.index.rows[self.split.rows[part]], self.rest_root_m[part])

    @property
    def split_line(self) -> str:
        """By which split a score was made, for the line beside it."""
        split = self.split
        return f"HO3D {self.index.data.version} {split.name}, {split.kind} (split {split.id[:12]})"

    def describe(self) -> str:
        """One line for the log: split, numbers of frames, sequences and motions, how it was divided."""
        sequences = set(self.names()[0].tolist())
        left_out = f"; {self.index.left_out:,} unusable frames left out" if self.index.left_out else ""
        return (
            f"HO3D {self.index.data.version} {self.split.name}: {len(self):,} frames, {len(sequences)} "
            f"sequences, {len(set(map(motion_of, sequences)))} motions ({self.split.note}{left_out}; split "
            f"{self.split.id[:12]})"
        )

    def require_truth(self) -> None:
        """Refuse to score what cannot be scored.

        Raises:
            DataError: joints without labels: HO3D's evaluation split without its public ground truth.
        """
        if not self.index.rows["joints_known"][self.split.rows].all():
            raise DataError(
                f"HO3D {self.split.name}: only the wrist is labelled, so nothing can be scored: "
                f"{self.missing_truth()}. Without it, validate with validation.split=val; predictions can "
                "still be exported: python -m src.tools.export_submission."
            )

    def missing_truth(self) -> str | None:
        """What of the official ground truth is missing and where it is published; None if nothing is."""
        return missing_truth(self.index.data) if self.index.name == "evaluation" else None

    def truth_joints(self, sample_index: NDArray[np.int64] | None = None) -> NDArray[np.float64] | None:
        """Joints of the official ground truth, as precise as its text; the labels of items are float32.

        Args:
            sample_index: (B,) samples of the split; None: all, in its order.

        Returns:
            (B, J, 3) OPENPOSE21, image camera (OpenCV), metres; None on a split of the training list, or
            where `evaluation_xyz.json` is absent.
        """
        if self.index.truth_gl_m is None:
            return None
        return self.index.truth_gl_m[self._rows(sample_index)][:, TO_OPENPOSE] * CV_FROM_GL

    def truth_vertices(self, sample_index: NDArray[np.int64] | None = None) -> NDArray[np.float64] | None:
        """Meshes of the official ground truth, memory-mapped: only the rows asked for are read.

        Args:
            sample_index: as `truth_joints`.

        Returns:
            (B, 778, 3) image camera (OpenCV), metres, float64; None on a split of the training list, or where
            `evaluation_verts.json` is absent.
        """
        return None if self.vertices is None else self.vertices.gl_m[self._rows(sample_index)] * CV_FROM_GL

    def _rows(self, sample_index: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Rows of the index."""
        return self.split.rows if sample_index is None else self.split.rows[sample_index]


def open_frames(
    data: DatasetConfig,
    division: SplitConfig,
    split: SplitName,
    hand: ManoLayer,
    *,
    index: AnnotationIndex | None = None,
    show_progress: bool = True,
) -> SplitFrames:
    """The frames of a split.

    Args:
        data: root and release.
        division: how the training list is divided.
        split: train or val (both from train.txt), or evaluation.
        hand: what the labels were made with; it is not kept.
        index: of the split's list, where it is open already, for another split; None opens it.
        show_progress: draw a bar while the index is made.

    Raises:
        ConfigError: no such split.
        DataError: what `open_index` and `open_vertices` raise, or an impossible division.
    """
    if split not in ("train", "val", "evaluation"):
        raise ConfigError(f"dataset split: got {split!r}, want train, val or evaluation")
    name: ListName = "evaluation" if split == "evaluation" else "train"
    if index is None or index.name != name:
        index = open_index(data, name, hand, show_progress=show_progress)
    vertices = None
    if split == "evaluation":
        part = whole_list(len(index.rows), index.sha256)
        if index.truth_gl_m is not None:
            vertices = _open_vertices(index, show_progress)
            texts = [index.truth_sha256, vertices and vertices.sha256]
            part = part.scored_by(hashlib.sha256(json.dumps(texts).encode()).hexdigest())
    else:
        named = division.held_out_list
        names = None if named is None else read_held_out(data.root_dir / named)
        part = divide(split, division, index.rows["sequence"], index.sequences, index.sha256, names)
        if split == "val":
            labels = np.ascontiguousarray(index.rows[part.rows])
            part = part.scored_by(hashlib.sha256(labels.tobytes()).hexdigest())
    return SplitFrames(index, part, vertices, rest_roots(hand, index.rows["betas"][part.rows]))


def _open_vertices(index: AnnotationIndex, show_progress: bool) -> Vertices | None:
    """Official meshes, beside the index whose frames they belong to."""
    assert index.truth_gl_m is not None
    store = index_store(index.data, index.name)
    store = dataclasses.replace(store, name=f"{store.name}-truth", what="HO3D ground truth", keep=0, facts={})
    made_from = {"frames_sha256": index.sha256, "joints_sha256": index.truth_sha256}
    return open_vertices(index.data, store, made_from, index.truth_gl_m, show_progress=show_progress)
