"""How far the augmented crops of a frame can reach: what the crop cache must hold of its picture.

A crop is a cone of rays around the jittered centre of the hand's box. `reach` bounds the pixels of all
crops that the augmentation's ranges allow; `dataloader/crop/camera.py: footprint` gives those of one crop.
Legend: N frames. Pixels as everywhere: centres have whole numbers.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from dataloader.crop.augment import MAX_SHIFT, SIDES
from dataloader.crop.camera import FOOTPRINT_MARGIN_PX, turn_to_axis
from dataloader.ho3d.meta import ListName
from src.config import RunConfig

Array = NDArray[np.float64]

MARGIN_PX = FOOTPRINT_MARGIN_PX + 1
"""Pixels around the outermost outline: the footprint's own, and one for the spacing of the shifts below."""

_ROLL_STEP_RAD = math.pi / 24
_SHIFTS = (-1.0, 0.0, 1.0)
_FARTHEST_PX = 10**6
"""Window of a crop that may be anywhere, either way."""


@dataclass(frozen=True)
class Geometry:
    """The ranges that decide how far crops reach."""

    half_height: float
    """Half of the crop's height over the longer side of the hand's box, at the largest scale."""
    half_width: float
    """Half of its width, likewise."""
    roll_deg: float
    """Largest roll either way."""
    shift: float
    """Largest displacement of the centre in box sides, in x and in y."""

    def covers(self, other: Geometry) -> bool:
        """Whether no crop of `other` reaches farther than the crops of this geometry."""
        return all(own >= wanted for own, wanted in zip(astuple(self), astuple(other), strict=True))


def geometry_of(config: RunConfig, name: ListName) -> Geometry:
    """What the crops of a list need: the evaluation list is never augmented."""
    change = config.augmentation
    moved = change.enabled and name == "train"
    height, width = config.model.image_size
    side = config.dataset.box_scale * (max(SIDES) if moved else 1.0) / 2
    return Geometry(
        half_height=side * height / min(height, width),
        half_width=side * width / min(height, width),
        roll_deg=change.roll_deg if moved else 0.0,
        shift=MAX_SHIFT if moved else 0.0,
    )


def reach(intrinsics_px: Array, boxes_px: Array, geometry: Geometry) -> NDArray[np.int64]:
    """Whole picture pixels that the crops of each frame may depend on, not yet clipped to the picture.

    Args:
        intrinsics_px: (N, 3, 3) K of the pictures.
        boxes_px: (N, 4) x0, y0, x1, y1 of the hands.
        geometry: the ranges.

    Returns:
        (N, 4) x0, y0, x1, y1, half open, MARGIN_PX around the outlines; the largest rectangle where a crop
        reaches behind the camera.
    """
    side = (boxes_px[:, 2:] - boxes_px[:, :2]).max(1)
    middle = (boxes_px[:, :2] + boxes_px[:, 2:]) / 2
    inverse = np.linalg.inv(intrinsics_px)
    focal = np.sqrt(intrinsics_px[:, 0, 0] * intrinsics_px[:, 1, 1])
    outline = _outline(geometry)
    low, high = np.full((2, len(boxes_px), 2), [[[np.inf]], [[-np.inf]]])
    for shift in {(x * geometry.shift, y * geometry.shift) for x in _SHIFTS for y in _SHIFTS}:
        centre = middle + side[:, None] * np.array(shift)
        ray = np.einsum("nij,nj->ni", inverse, np.concatenate([centre, np.ones((len(centre), 1))], 1))
        ray /= np.linalg.norm(ray, axis=1, keepdims=True)
        tangent = outline * (side * ray[:, 2] / focal)[:, None, None]
        directions = np.concatenate([tangent, np.ones((*tangent.shape[:2], 1))], 2)
        # Rows times a rotation are columns times its inverse: from the crop camera into the image camera.
        points = (
            directions @ np.array(turn_to_axis(ray.T)).transpose(2, 0, 1) @ intrinsics_px.transpose(0, 2, 1)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = points[..., :2] / points[..., 2:]
        behind = np.any(points[..., 2] <= 0, axis=1, keepdims=True)
        low = np.minimum(low, np.where(behind, -_FARTHEST_PX, pixels.min(1)))
        high = np.maximum(high, np.where(behind, _FARTHEST_PX, pixels.max(1)))
    window = np.concatenate([np.floor(low) - MARGIN_PX, np.ceil(high) + MARGIN_PX + 1], 1)
    return np.asarray(np.clip(window, -_FARTHEST_PX, _FARTHEST_PX), np.int64)


def _outline(geometry: Geometry) -> Array:
    """(K, 2) points whose convex hull holds the crop's outline at every roll; unit: sides of the box."""
    half = np.array([geometry.half_width, geometry.half_height])
    corners: Array = half * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    roll = math.radians(geometry.roll_deg)
    steps = max(1, math.ceil(2 * roll / _ROLL_STEP_RAD))
    turns = np.linspace(-roll, roll, steps + 1)
    # A corner moves on an arc; the chord between two steps, moved out this far, lies outside it.
    outwards = 1 / math.cos(roll / steps)
    rotations = np.array([[np.cos(turns), -np.sin(turns)], [np.sin(turns), np.cos(turns)]])
    turned = [corners * outwards @ rotations[..., k].T for k in range(steps + 1)]
    return np.asarray(np.concatenate(turned))
