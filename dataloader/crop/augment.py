"""What is done to a training sample, drawn once as one frozen object and applied to everything together.

The geometric part (roll, scale, shift) goes into the crop camera, so picture, depth, joints, pose and
intrinsics follow by construction. The rest changes pixels only. Everything is drawn from (seed, epoch,
sample_index): the same for any number of workers or ranks, and whether or not depth is shown.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass, field
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from src.config import AugmentationConfig
from src.runtime.seed import stream
from src.schema import DEPTH_UNIT_M

Modality = Literal["train", "rgbd", "rgb"]
"""train: depth dropped at random; rgbd: always shown; rgb: never shown."""

SIDES = (0.7, 1.5)
"""Smallest and largest factor on the side of the hand's box."""
MAX_SHIFT = 0.2
"""Crop centre moved by up to this share of the hand's box side, in x and in y.

Detectors, depth and predictions of the frame before draw boxes that differ so much from those around labelled
joints (records/2026-11-29-boxes.md): what scores well must have seen the spread. Most boxes are near the
labels all the same: offsets are cubes of uniform numbers, half of them below an eighth.
"""
P_HOLES = 0.5
"""Probability that patches of depth are removed, as a sensor loses them on dark and slanted skin."""
DEPTH_NOISE_M = 0.002
"""Standard deviation of the noise on each depth value, metres: a depth sensor's at arm's length."""

_LUMA = np.array([0.299, 0.587, 0.114])
_MAX_OCCLUDERS = 3
_MAX_HOLES = 4
_CORNERS = 12
"""Corners of a painted or removed shape."""
_NOISE_NUMBERS = 1 << 20
_ANGLES = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
_EYE = np.eye(3)


@dataclass(frozen=True, eq=False)
class Patch:
    """A star-shaped polygon in fractions of the crop, [-0.5, 0.5]."""

    corners_unit: NDArray[np.float64]
    """(K, 2) x, y."""
    colour: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """RGB in 0..255 of an occluder; unused by a hole."""
    nearer_m: float = 0.0
    """How far an occluder stands in front of what the crop's centre shows; unused by a hole."""


@dataclass(frozen=True, eq=False)
class Augmentation:
    """Everything random about one training sample."""

    roll_rad: float = 0.0
    """Turn about the crop camera's axis, x towards y."""
    scale: float = 1.0
    """Factor on the side of the box."""
    shift: tuple[float, float] = (0.0, 0.0)
    """Displacement of the box's centre in box sides, x and y of the picture."""
    colour_affine: NDArray[np.float32] = field(default_factory=lambda: np.eye(3, 4, dtype=np.float32))
    """(3, 4) rgb' = A [r, g, b, 1] on [0, 1]. Applied on the device."""
    occluders: tuple[Patch, ...] = ()
    """Shapes painted over the picture and put in front of the depth."""
    holes: tuple[Patch, ...] = ()
    """Shapes in which depth is removed."""
    noise_seed: int | None = None
    """Where the numbers of the noise on depth begin in a table of them; None: no noise."""
    upright_rad: float | None = None
    """The finished crop is turned until the labelled hand points up, and so much farther; None: it is not."""


UPRIGHT_SHARE = 0.7
"""Of the training crops of a network that looks twice; its first looks see the others."""

UPRIGHT_DEG = 30.0
"""Farthest that they are turned from upright. As first looks err, most are near: cubes of uniform numbers."""

UNCHANGED = Augmentation()
"""What validation sees."""


@dataclass(frozen=True)
class Augmenter:
    """Draws what is done to the training samples of a run."""

    config: AugmentationConfig
    seed: int
    """The run's seed."""
    second_look: bool = False
    """Most crops are turned upright, for a network that looks twice (`model.second_look`)."""

    def draw(self, epoch: int, sample_index: int) -> Augmentation:
        """The augmentation of one sample in one epoch; see `draw`."""
        change = draw(self.config, self.seed, epoch, sample_index)
        if not self.second_look:
            return change
        rng = stream(self.seed, "upright", epoch, sample_index)
        if rng.random() >= UPRIGHT_SHARE:
            return change
        return dataclasses.replace(
            change, roll_rad=0.0, upright_rad=math.radians(UPRIGHT_DEG) * rng.uniform(-1, 1) ** 3
        )


def draw(config: AugmentationConfig, seed: int, epoch: int, sample_index: int) -> Augmentation:
    """The augmentation of one training sample in one epoch.

    Args:
        config: ranges.
        seed: the run's seed.
        epoch: pass over the training split.
        sample_index: row of the split.
    """
    rng = stream(seed, "augment", epoch, sample_index)
    roll = math.radians(config.roll_deg) * rng.uniform(-1, 1)
    low, high = np.log(SIDES)
    scale = math.exp((low + high) / 2 + (high - low) / 2 * rng.uniform(-1, 1) ** 3)
    shift = MAX_SHIFT * rng.uniform(-1, 1, 2) ** 3
    colour = _colour_matrix(config.colour, rng)
    count = int(rng.integers(1, _MAX_OCCLUDERS + 1)) if rng.random() < config.p_occluder else 0
    occluders = tuple(_occluder(rng) for _ in range(count))
    count = int(rng.integers(1, _MAX_HOLES + 1)) if rng.random() < P_HOLES else 0
    holes = tuple(Patch(_star(rng, 0.03, 0.12)) for _ in range(count))
    place = (float(shift[0]), float(shift[1]))
    return Augmentation(
        float(roll), float(scale), place, colour, occluders, holes, noise_seed=int(rng.integers(2**63))
    )


def show_depth(modality: Modality, p_drop: float, seed: int, epoch: int, sample_index: int) -> bool:
    """Whether a sample's depth is shown to the network, decided before any file is opened.

    A depth picture that is not shown is never read: it is 80 % of the decoding time.

    Args:
        modality: how the loader shows depth.
        p_drop: probability that a training sample is shown without depth.
        seed: the run's seed.
        epoch: pass over the training split.
        sample_index: row of the split.
    """
    if modality != "train":
        return modality == "rgbd"
    return bool(stream(seed, "modality", epoch, sample_index).random() >= p_drop)


def paint_rgb(rgb: NDArray[np.uint8], augmentation: Augmentation) -> None:
    """Paint the occluders over an (H, W, 3) RGB crop, in place."""
    for patch in augmentation.occluders:
        cv2.fillPoly(rgb, [_pixels(patch, rgb.shape[:2])], patch.colour, lineType=cv2.LINE_AA)


def disturb_depth(depth: NDArray[np.uint16], augmentation: Augmentation) -> NDArray[np.uint16]:
    """Occluders in front, holes and noise.

    Args:
        depth: (H, W) crop in units of DEPTH_UNIT_M, 0 = not measured; not changed.
        augmentation: what to do.

    Returns:
        (H, W) uint16; values that were not measured stay 0 except under an occluder.
    """
    if augmentation is UNCHANGED:
        return depth
    out = depth.copy()
    if augmentation.occluders:
        rows, columns = depth.shape[0] // 4, depth.shape[1] // 4
        measured = depth[rows:-rows:2, columns:-columns:2]
        measured = measured[measured > 0]
        front = float(np.partition(measured, len(measured) // 2)[len(measured) // 2]) if measured.size else 0
        for patch in augmentation.occluders if measured.size else ():
            value = max(1, round(front - patch.nearer_m / DEPTH_UNIT_M))
            cv2.fillPoly(out, [_pixels(patch, out.shape)], (value,))
    for patch in augmentation.holes:
        cv2.fillPoly(out, [_pixels(patch, out.shape)], (0,))
    return out if augmentation.noise_seed is None else _add_noise(out, augmentation.noise_seed)


def _add_noise(depth: NDArray[np.uint16], seed: int) -> NDArray[np.uint16]:
    """Gaussian noise on measured values: a stretch, chosen by a seed, of numbers drawn once."""
    table = _noise_table(depth.size)
    start = seed % (len(table) - depth.size + 1)
    noise = table[start : start + depth.size].reshape(depth.shape)
    noisy = np.asarray(cv2.add(depth, noise, dtype=cv2.CV_16U), np.uint16)  # saturates
    noisy |= noisy == 0  # what was measured stays measured
    noisy *= depth > 0
    return noisy


@functools.lru_cache(maxsize=4)
def _noise_table(at_least: int) -> NDArray[np.int16]:
    """Normal deviates in whole units of DEPTH_UNIT_M, more than `at_least`.

    Drawing them for each sample would take longer than resampling its picture.
    """
    normal = stream(0, "depth noise").standard_normal(_NOISE_NUMBERS + at_least, dtype=np.float32)
    return np.asarray(np.rint(normal * np.float32(DEPTH_NOISE_M / DEPTH_UNIT_M)), np.int16)


def _colour_matrix(strength: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """(3, 4) saturation, then white balance and contrast about mid-grey, then brightness."""
    brightness, contrast, saturation = strength * rng.uniform(-1, 1, 3)
    balance = 1 + 0.5 * strength * rng.uniform(-1, 1, 3)
    mix = (1 + saturation) * _EYE - saturation * _LUMA
    colour = np.empty((3, 4), np.float32)
    colour[:, :3] = (1 + contrast) * balance[:, None] * mix
    colour[:, 3] = 0.5 * brightness - 0.5 * contrast
    return colour


def _occluder(rng: np.random.Generator) -> Patch:
    """One shape of a random plain colour, a few centimetres in front of the hand."""
    corners = _star(rng, 0.06, 0.2)
    red, green, blue = rng.uniform(0, 255, 3)
    return Patch(corners, (float(red), float(green), float(blue)), float(rng.uniform(0.02, 0.12)))


def _star(rng: np.random.Generator, smallest: float, largest: float) -> NDArray[np.float64]:
    """(K, 2) corners of a lopsided blob: an ellipse whose radius varies from corner to corner."""
    centre = rng.uniform(-0.45, 0.45, 2)
    radii = rng.uniform(smallest, largest, 2)
    angle = _ANGLES + rng.uniform(0, 2 * np.pi)
    reach = rng.uniform(0.6, 1.0, _CORNERS)
    corners = np.empty((_CORNERS, 2))
    np.cos(angle, out=corners[:, 0])
    np.sin(angle, out=corners[:, 1])
    return np.asarray(centre + corners * radii * reach[:, None])


def _pixels(patch: Patch, size: tuple[int, ...]) -> NDArray[np.int32]:
    """Corners in whole pixels of a crop of `size` (H, W)."""
    return np.rint((patch.corners_unit + 0.5) * (size[1], size[0])).astype(np.int32)
