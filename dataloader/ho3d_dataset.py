"""HO3D on disk -> samples in UTNet's conventions, which labels.py makes of HO3D's.

Legend: N rows, J 21 joints, H W crop. Metres, radians, pixels.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dataloader.batches.collate import collate
from dataloader.batches.modality import Modality, show_depth
from dataloader.batches.samplers import SampleKey
from dataloader.cache.build import ensure_cache
from dataloader.cache.crop_cache import CachedFrame, CropCache
from dataloader.crop.augment import UNCHANGED, Augmentation, disturb_depth, draw, in_epoch, paint_rgb, widest
from dataloader.crop.camera import (
    MIN_OVERLAP,
    CropCamera,
    covered_share,
    crop_camera,
    footprint,
    warp_depth,
    warp_rgb,
    z_ref_from_box,
    z_ref_from_depth,
)
from dataloader.crop.prepare import prepare
from dataloader.crop.turned_view import turn, turned_crop, view_about
from dataloader.ho3d.index import AnnotationIndex, index_store, open_index
from dataloader.ho3d.labels import CV_FROM_GL, TO_OPENPOSE, Labels, assemble, convert, hands_of, rest_roots
from dataloader.ho3d.layout import frame_path
from dataloader.ho3d.meta import ListName
from dataloader.ho3d.split import Split, SplitName, divide, motion_of, read_held_out, whole_list
from dataloader.ho3d.truth import PUBLISHED, EvaluationTruth, missing_truth, open_truth
from dataloader.pictures.decode import PictureFrame
from src.config import RunConfig
from src.errors import ConfigError, DataError
from src.schema import HandSample, RawSample

if TYPE_CHECKING:
    from src.hand.mano import ManoLayer


class HO3DDataset:
    """One split of HO3D, v2 or v3.

    Args:
        config: root, release, split, crop, augmentation and seeds.
        split: train or val (both from train.txt), or evaluation.
        hand: what the labels were made with; it is not kept.
        index: of the split's list, where it is open already, for another split; None opens it.

    Raises:
        DataError: what `open_index` raises, or an impossible division.
    """

    def __init__(
        self,
        config: RunConfig,
        split: SplitName,
        hand: ManoLayer,
        *,
        index: AnnotationIndex | None = None,
        show_progress: bool = True,
    ) -> None:
        if split not in ("train", "val", "evaluation"):
            raise ConfigError(f"dataset split: got {split!r}, want train, val or evaluation")
        name: ListName = "evaluation" if split == "evaluation" else "train"
        self.config = config
        self._name: ListName = name
        if index is None or index.name != name:
            index = open_index(config.dataset, name, hand, show_progress=show_progress)
        self.index: AnnotationIndex = index
        self.split: Split = self._divide(split)
        self.modality: Modality = "train" if split == "train" else "rgbd"
        self.augmented = split == "train" and config.augmentation.enabled
        self._rest_root_m = rest_roots(hand, self.index.rows["betas"][self.split.rows])
        self._truth = self._open_truth(show_progress)
        if self._truth is not None:
            self.split = self.split.scored_by(self._truth.sha256)
        elif split == "val":
            labels = np.ascontiguousarray(self.index.rows[self.split.rows])
            self.split = self.split.scored_by(hashlib.sha256(labels.tobytes()).hexdigest())
        self._cache = self._open_cache(show_progress)

    def view(self, *, modality: Modality, augmented: bool) -> HO3DDataset:
        """The same frames, shown otherwise: with or without depth, with or without augmentation."""
        other = copy.copy(self)
        other.modality, other.augmented = modality, augmented
        return other

    def __len__(self) -> int:
        return len(self.split.rows)

    def __getitem__(self, index: int) -> HandSample:
        """Sample `index` as the network sees it; a training sample as epoch 0 shows it.

        Raises:
            DataError: a picture is missing, unreadable or contradicts its annotation.
        """
        return prepare(collate([self.raw(SampleKey(index))])).row(0)

    def raw(self, key: SampleKey) -> RawSample:
        """`raws` of one key."""
        return self.raws([key])[0]

    def raws(self, keys: Sequence[SampleKey]) -> list[RawSample]:
        """What a loader process makes of some frames; equal for equal (seed, epoch, index), whoever asks.

        Their labels are converted together: for each frame by itself that takes as long as its pixels, which
        stand one after another in one array, where `collate` finds them.

        Raises:
            DataError: as `__getitem__`.
        """
        for key in keys:
            if not 0 <= key.index < len(self):
                raise IndexError(f"sample {key.index} of {len(self)}")
        labels = self.labels(np.array([key.index for key in keys], np.int64))
        height, width = self.config.model.image_size
        rgb = np.empty((len(keys), height, width, 3), np.uint8)
        depth = np.empty((len(keys), height, width), np.uint16)
        return [self._raw(key, labels.row(k), rgb[k], depth[k]) for k, key in enumerate(keys)]

    def _change(self, key: SampleKey) -> Augmentation:
        """What is done to a sample."""
        if not self.augmented:
            return UNCHANGED
        ranges = in_epoch(self.config.augmentation, key.epoch, self.config.training.num_epochs)
        return draw(ranges, self.config.seed, key.epoch, key.index)

    def _raw(
        self, key: SampleKey, labels: Labels, rgb: NDArray[np.uint8], depth: NDArray[np.uint16]
    ) -> RawSample:
        """One frame with its labels, a row of them; its pixels are written into `rgb` and `depth`."""
        seed = self.config.seed
        shown = show_depth(self.modality, self.config.dataset.p_drop_depth, seed, key.epoch, key.index)
        change = self._change(key)
        labels, camera = self._pixels(key.index, labels, change, shown, rgb, depth)
        z_ref = z_ref_from_depth(depth, camera) if shown else None
        if z_ref is None:
            z_ref = z_ref_from_box(camera)
        return assemble(
            key.index, camera, change, shown, rgb, depth, z_ref, labels, self._rest_root_m[key.index]
        )

    def frame_id(self, index: int) -> str:
        """`train/ABF10/0042`: list, sequence and frame of a sample."""
        return self.index.frame_id(int(self.split.rows[index]))

    def frames(self) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
        """Sequence name (N,) and frame number (N,) of every sample."""
        rows = self.index.rows
        sequence, frame = rows["sequence"][self.split.rows], rows["frame"][self.split.rows]
        return np.array(self.index.sequences, np.str_)[sequence], frame.astype(np.int64)

    def labels(self, part: slice | NDArray[np.int64] = slice(None)) -> Labels:
        """Labels of some samples, of all unless told, in the image camera; no picture is decoded."""
        return convert(self.index.rows[self.split.rows[part]], self._rest_root_m[part])

    @property
    def split_id(self) -> str:
        """Which frames, and of what is scored which labels: files keep it, ranks compare it."""
        return self.split.id

    @property
    def split_line(self) -> str:
        """By which split a score was made, for the line beside it."""
        data, split = self.config.dataset, self.split
        return f"HO3D {data.version} {split.name}, {split.kind} (split {split.id[:12]})"

    @property
    def has_truth(self) -> bool:
        """Every sample has all its joints labelled."""
        return bool(self.index.rows["joints_known"][self.split.rows].all())

    def require_truth(self) -> None:
        """Refuse to score what cannot be scored.

        Raises:
            DataError: joints without labels: HO3D's evaluation split without its public ground truth.
        """
        if not self.has_truth:
            raise DataError(
                f"HO3D {self.split.name}: only the wrist is labelled, so nothing can be scored: "
                f"{self.missing_truth()}. Without it, validate with validation.split=val; predictions can "
                "still be exported: python -m src.tools.export_submission."
            )

    def truth_joints(self, sample_index: NDArray[np.int64] | None = None) -> NDArray[np.float64] | None:
        """Joints of the official ground truth, as precise as its text; the labels of items are float32.

        Args:
            sample_index: (B,) rows of the split; None: all, in its order.

        Returns:
            (B, J, 3) OPENPOSE21, image camera (OpenCV), metres; None on a split of the training list, or
            where `evaluation_xyz.json` is absent.
        """
        if self._truth is None:
            return None
        return self._truth.joints_gl_m[self._truth_rows(sample_index)][:, TO_OPENPOSE] * CV_FROM_GL

    def truth_vertices(self, sample_index: NDArray[np.int64] | None = None) -> NDArray[np.float64] | None:
        """Meshes of the official ground truth, memory-mapped: only the rows asked for are read.

        Args:
            sample_index: (B,) rows of the split; None: all, in its order.

        Returns:
            (B, 778, 3) image camera (OpenCV), metres, float64; None on a split of the training list, or where
            `evaluation_verts.json` is absent.
        """
        if self._truth is None or self._truth.vertices_gl_m is None:
            return None
        return self._truth.vertices_gl_m[self._truth_rows(sample_index)] * CV_FROM_GL

    def missing_truth(self) -> str | None:
        """What of the official ground truth is missing and where it is published; None if nothing is."""
        missing = missing_truth(self.config.dataset.root_dir) if self._name == "evaluation" else []
        if not missing:
            return None
        return f"{self.config.dataset.root_dir} lacks {' and '.join(missing)} ({PUBLISHED})"

    def describe(self) -> str:
        """One line for the log: split, numbers of frames, sequences and motions, how it was divided."""
        used = np.unique(self.index.rows["sequence"][self.split.rows])
        motions = {motion_of(self.index.sequences[int(k)]) for k in used}
        left_out = f"; {self.index.left_out:,} unusable frames left out" if self.index.left_out else ""
        return (
            f"HO3D {self.config.dataset.version} {self.split.name}: {len(self):,} frames, "
            f"{len(used)} sequences, {len(motions)} motions "
            f"({self.split.note}{left_out}; split {self.split.id[:12]})"
        )

    def _open_truth(self, show_progress: bool) -> EvaluationTruth | None:
        """None on a split of the training list, and where there is no ground truth."""
        if self._name != "evaluation":
            return None
        data, index = self.config.dataset, index_store(self.config.dataset, self._name)
        return open_truth(
            data,
            dataclasses.replace(
                index, name=f"{index.name}-truth", what="HO3D ground truth", keep=0, facts={}
            ),
            self.index.sha256,
            self.index.rows["joints"][:, 0],
            show_progress=show_progress,
        )

    def _open_cache(self, show_progress: bool) -> CropCache | None:
        """The crop cache, written if need be; None where dataset.cache is off."""
        if self.config.dataset.cache == "off":
            return None
        index = self.index
        return ensure_cache(self.config, index, lambda: hands_of(index.rows), show_progress=show_progress)

    def _truth_rows(self, sample_index: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Rows of the ground truth's arrays."""
        return self.split.rows if sample_index is None else self.split.rows[np.asarray(sample_index)]

    def _divide(self, split: SplitName) -> Split:
        """Rows of the index that belong to this split."""
        if split == "evaluation":
            return whole_list(len(self.index.rows), self.index.sha256)
        rows, sequences = self.index.rows["sequence"], self.index.sequences
        named = self.config.split.held_out_list
        names = None if named is None else read_held_out(self.config.dataset.root_dir / named)
        return divide(split, self.config.split, rows, sequences, self.index.sha256, names)

    def _path(self, index: int, kind: str) -> Path:
        """One file of a sample."""
        sequence, frame = self.index.sequence_frame(int(self.split.rows[index]))
        data = self.config.dataset
        return frame_path(data.root_dir, self._name, sequence, frame, kind, data.version)

    def _camera(self, index: int, labels: Labels, change: Augmentation) -> CropCamera:
        """The crop camera of a sample."""
        intrinsics = labels.intrinsics_img_px[0].astype(np.float64)
        height, width = self.config.model.image_size
        try:
            return crop_camera(
                intrinsics, labels.box_px[0], (height, width), self.config.dataset.box_scale, change
            )
        except DataError as error:
            raise DataError(f"{self.frame_id(index)}: {error}") from error

    def _unmoved(self, index: int, labels: Labels, picture_size: tuple[int, int]) -> CropCamera:
        """The crop camera without roll, scale and shift, for a hand at the edge that they would lose.

        Raises:
            DataError: it shows nothing of the picture either, which the index would have refused.
        """
        camera = self._camera(index, labels, UNCHANGED)
        share = covered_share(camera, picture_size)
        if share < MIN_OVERLAP:
            raise DataError(
                f"{self.frame_id(index)}: empty crop, the picture of {picture_size[1]} x {picture_size[0]} "
                f"covers {share:.1%} of it. Lower dataset.box_scale, now {self.config.dataset.box_scale:g}."
            )
        return camera

    def _pixels(
        self,
        index: int,
        labels: Labels,
        change: Augmentation,
        shown: bool,
        rgb: NDArray[np.uint8],
        depth: NDArray[np.uint16],
    ) -> tuple[Labels, CropCamera]:
        """Write picture and depth of the crop; its labels, turned if the scene is, and its camera.

        Depth that is not shown is not read, unless it turns the scene.
        """
        path = self._path(index, "rgb")
        frame: CachedFrame | PictureFrame
        if self._cache is not None:
            frame = self._cache.frame(int(self.split.rows[index]), str(path))
        else:
            frame = PictureFrame(path, self._path(index, "depth"))
        self._require_size(index, path, frame.size)
        turned = self._turned(index, frame, labels, change, rgb, depth) if any(change.view_rad) else None
        if turned is not None:
            labels, camera = turned
        else:
            camera = self._camera(index, labels, change)
            if covered_share(camera, frame.size) < MIN_OVERLAP:
                camera = self._unmoved(index, labels, frame.size)
            window = footprint(camera, frame.size)
            warp_rgb(frame.rgb(window), camera, window, rgb)
            if shown:
                depth[:] = warp_depth(frame.depth(window), camera, window)
        paint_rgb(rgb, change)
        depth[:] = disturb_depth(depth, change) if shown else 0
        return labels, camera

    def _require_size(self, index: int, path: Path, size: tuple[int, int]) -> None:
        """A picture has the size (H, W) that it had when the index was made: K and labels belong to that."""
        want = self.index.rows["picture_hw"][self.split.rows[index]]
        if size != (want[0], want[1]):
            raise DataError(
                f"{path}: picture is {size[1]} x {size[0]}, and was {want[1]} x {want[0]} when its labels "
                "were checked: it was replaced since. Put it back; if the new pictures are meant, touch the "
                "folder that they are in, and all labels are checked against them."
            )

    def _turned(
        self,
        index: int,
        frame: CachedFrame | PictureFrame,
        labels: Labels,
        change: Augmentation,
        rgb: NDArray[np.uint8],
        depth: NDArray[np.uint16],
    ) -> tuple[Labels, CropCamera] | None:
        """As `_pixels`, of the scene turned about the hand; None where `turned_crop` is."""
        source = self._camera(index, labels, widest(change, self.config.augmentation))
        if covered_share(source, frame.size) < MIN_OVERLAP:
            return None
        window = footprint(source, frame.size)
        view = view_about(labels, change.view_rad)
        labels = turn(labels, view)
        camera = self._camera(index, labels, change)
        made = turned_crop(frame.rgb(window), frame.depth(window), window, source, camera, view)
        if made is None:
            return None
        rgb[:], depth[:] = made
        return labels, camera
