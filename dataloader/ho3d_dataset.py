"""HO3D on disk -> batches in UTNet's conventions: the way of a sample, from its key to its pixels and labels.

Legend: B samples, J 21 joints, H W crop. Metres, radians, pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dataloader.batches.samplers import SampleKey
from dataloader.cache.crop_cache import CachedFrame, CropCache
from dataloader.crop.augment import (
    UNCHANGED,
    Augmentation,
    Augmenter,
    Modality,
    show_depth,
)
from dataloader.crop.camera import (
    MIN_OVERLAP,
    CropCamera,
    covered_share,
    crop_camera,
    rolled,
)
from dataloader.crop.cut import cut_depth, cut_rgb, turn_pixels, view_arrays
from dataloader.crop.prepare import prepare
from dataloader.ho3d.frames import SplitFrames
from dataloader.ho3d.labels import Labels, in_crop_camera
from dataloader.pictures.decode import PictureFrame
from src.errors import ConfigError, DataError
from src.hand.upright import MIDDLE_KNUCKLE, WRIST, upright_roll
from src.schema import HandSample, RawBatch


class _Crop(NamedTuple):
    """What is known of a crop beside its pixels and labels."""

    camera: CropCamera
    colour_affine: NDArray[np.float32]
    z_ref_m: float | None
    depth_present: bool


@dataclass(frozen=True, eq=False)
class HO3DDataset:
    """One split of HO3D, v2 or v3; an item is a `HandSample`."""

    frames: SplitFrames
    """Which frames, and their labels."""
    image_size: tuple[int, int]
    """(H, W) of a crop."""
    box_scale: float
    """Side of the square crop over the longer side of the hand's box."""
    modality: Modality
    """Whether depth is shown."""
    p_drop_depth: float
    """Probability that a training sample is shown without depth."""
    seed: int
    """The run's seed."""
    augmenter: Augmenter | None
    """None: samples look as validation samples do."""
    cache: CropCache | None
    """Decoded pixels; None: every picture is decoded each time."""
    boxes_px: NDArray[np.float64] | None = None
    """(N, 4) see `with_boxes`; None: the labels' boxes."""

    def view(self, *, modality: Modality, augmented: bool) -> HO3DDataset:
        """The same frames, shown otherwise: with or without depth, with or without augmentation.

        Raises:
            ConfigError: there is no augmentation to show them with.
        """
        if augmented and self.augmenter is None:
            raise ConfigError(
                f"HO3D {self.frames.split.name}: samples cannot be augmented: it is no training split, or "
                "augmentation.enabled is false"
            )
        return dataclasses.replace(self, modality=modality, augmenter=self.augmenter if augmented else None)

    def with_boxes(self, boxes_px: NDArray[np.float64]) -> HO3DDataset:
        """The same frames, cut out at other boxes.

        Where there is none the label's box stays and the label goes: the sample is predicted and collected as
        any other, and not scored.

        Args:
            boxes_px: (N, 4) x0, y0, x1, y1 in the pictures; nan where there is none.
        """
        return dataclasses.replace(self, boxes_px=boxes_px, cache=None)  # it holds what is around the labels

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> HandSample:
        """Sample `index` as the network sees it; a training sample as epoch 0 shows it.

        Raises:
            DataError: a picture is missing, unreadable or contradicts its annotation.
        """
        return prepare(self.batch([SampleKey(index)])).row(0)

    def batch(self, keys: Sequence[SampleKey]) -> RawBatch:
        """Some samples as a loader process makes them; equal for equal (seed, epoch, index), whoever asks.

        Raises:
            DataError: as `__getitem__`.
        """
        for key in keys:
            if not 0 <= key.index < len(self):
                raise IndexError(f"sample {key.index} of {len(self)}")
        samples = np.array([key.index for key in keys], np.int64)
        labels, (height, width) = self._labels(samples), self.image_size
        rgb = np.empty((len(keys), height, width, 3), np.uint8)
        depth = np.zeros((len(keys), height, width), np.uint16)
        crops = [self._crop(key, labels, i, rgb[i], depth[i]) for i, key in enumerate(keys)]
        cameras = [crop.camera for crop in crops]
        arrays = {
            "sample_index": samples,
            "rgb_u8": rgb,
            "depth_u16": depth,
            "colour_affine": np.stack([crop.colour_affine for crop in crops]),
            "intrinsics_img_px": labels.intrinsics_img_px,
            "crop_from_img": np.array([camera.crop_from_img for camera in cameras], np.float32),
            **view_arrays(cameras, [crop.z_ref_m for crop in crops], [crop.depth_present for crop in crops]),
            **in_crop_camera(labels, self.frames.rest_root_m[samples], cameras),
        }
        return RawBatch(**{name: torch.from_numpy(array) for name, array in arrays.items()})

    def _labels(self, samples: NDArray[np.int64]) -> Labels:
        """Labels of some samples with the boxes that their crops are made at."""
        labels = self.frames.labels(samples)
        if self.boxes_px is None:
            return labels
        boxes = self.boxes_px[samples]
        there = np.isfinite(boxes).all(1, keepdims=True)
        conf = np.where(there, labels.joints_conf, np.float32(0))
        return dataclasses.replace(labels, box_px=np.where(there, boxes, labels.box_px), joints_conf=conf)

    def _crop(
        self,
        key: SampleKey,
        labels: Labels,
        place: int,
        rgb: NDArray[np.uint8],
        depth: NDArray[np.uint16],
    ) -> _Crop:
        """Write the pixels of the sample at this place of the labels into `rgb` and `depth`, zeros.

        Depth that is not shown is not read.
        """
        change = UNCHANGED if self.augmenter is None else self.augmenter.draw(key.epoch, key.index)
        shown = show_depth(self.modality, self.p_drop_depth, self.seed, key.epoch, key.index)
        frame = self._open(key.index)
        camera = self._camera(key.index, labels, place, change, frame.size)
        cut_rgb(frame, camera, rgb, change)
        z_ref = None
        if shown:
            depth[:], z_ref = cut_depth(frame, camera, change)
        if change.upright_rad is not None and labels.joints_conf[place, [WRIST, MIDDLE_KNUCKLE]].all():
            # A second look turns the crop of the first, blurred and with empty corners: so does this.
            hand = torch.from_numpy(labels.joints_cam_m[place] @ camera.rot_crop_from_img.T)
            roll = change.upright_rad + float(upright_roll(hand[None]))
            camera = rolled(camera, roll)
            for pixels in (rgb, depth):
                turn_pixels(pixels, roll)
        return _Crop(camera, change.colour_affine, z_ref, shown)

    def _open(self, sample: int) -> CachedFrame | PictureFrame:
        """The pixels of a sample, which have the size (H, W) that they had when the index was made."""
        path = self.frames.path(sample, "rgb")
        row = int(self.frames.split.rows[sample])
        frame: CachedFrame | PictureFrame
        if self.cache is not None:
            frame = self.cache.frame(row, str(path))
        else:
            frame = PictureFrame(path, self.frames.path(sample, "depth"))
        height, width = self.frames.index.rows["picture_hw"][row].tolist()
        if frame.size != (height, width):
            raise DataError(
                f"{path}: picture is {frame.size[1]} x {frame.size[0]}, and was {width} x {height} when its "
                "labels were checked: it was replaced since. Put it back; if the new pictures are meant, "
                "touch the folder that they are in, and all labels are checked against them."
            )
        return frame

    def _camera(
        self,
        sample: int,
        labels: Labels,
        place: int,
        change: Augmentation,
        picture_size: tuple[int, int],
    ) -> CropCamera:
        """The crop camera of a sample; without roll, scale and shift for a hand at the edge they would lose.

        Raises:
            DataError: it shows nothing of the picture either, which the index would have refused.
        """
        k_img, box_px = labels.intrinsics_img_px[place].astype(np.float64), labels.box_px[place]
        for moved in (change, UNCHANGED):
            camera = crop_camera(k_img, box_px, self.image_size, self.box_scale, moved)
            share = covered_share(camera, picture_size)
            if share >= MIN_OVERLAP:
                return camera
        raise DataError(
            f"{self.frames.frame_id(sample)}: empty crop, the picture of {picture_size[1]} x "
            f"{picture_size[0]} covers {share:.1%} of it. Lower dataset.box_scale, now {self.box_scale:g}."
        )
