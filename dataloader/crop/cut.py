"""A crop's pixels, cut out of whatever holds a picture: a data set's file, the crop cache, a user's frame.

Legend: B crops, H W crop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.crop.augment import UNCHANGED, Augmentation, disturb_depth, paint_rgb
from dataloader.crop.camera import (
    CropCamera,
    Window,
    footprint,
    warp_depth,
    warp_rgb,
    z_ref_from_box,
    z_ref_from_depth,
)


class Pixels(Protocol):
    """A picture with its depth."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the whole picture."""

    def rgb(self, window: Window) -> NDArray[np.uint8]:
        """(h, w, 3) RGB pixels of a window."""

    def depth(self, window: Window) -> NDArray[np.uint16]:
        """(h, w) depth of a window, units of DEPTH_UNIT_M, 0 = not measured."""


def cut_rgb(
    pixels: Pixels, camera: CropCamera, out: NDArray[np.uint8], change: Augmentation = UNCHANGED
) -> None:
    """Write the (H, W, 3) crop of a picture into `out`."""
    window = footprint(camera, pixels.size)
    warp_rgb(pixels.rgb(window), camera, window, out)
    paint_rgb(out, change)


def cut_depth(
    pixels: Pixels, camera: CropCamera, change: Augmentation = UNCHANGED
) -> tuple[NDArray[np.uint16], float | None]:
    """(H, W) crop of a depth picture, and the reference depth in it, m; None where nothing was measured."""
    window = footprint(camera, pixels.size)
    depth = disturb_depth(warp_depth(pixels.depth(window), camera, window), change)
    return depth, z_ref_from_depth(depth, camera)


def turn_pixels(pixels: NDArray[Any], roll_rad: float) -> None:
    """Turn an (H, W, 3) RGB or (H, W) depth crop as its rolled camera sees it, in place; 0 in the corners.

    Colours are mixed and depths are not, as in `src.hand.upright.turned`.
    """
    height, width = pixels.shape[:2]
    c, s = math.cos(roll_rad), math.sin(roll_rad)
    x, y = width / 2, height / 2
    turn = np.array([[c, -s, x - c * x + s * y], [s, c, y - s * x - c * y]])
    flags = cv2.INTER_LINEAR if pixels.ndim == 3 else cv2.INTER_NEAREST
    pixels[:] = cv2.warpAffine(pixels, turn, (width, height), flags=flags, borderValue=0)


def view_arrays(
    cameras: Sequence[CropCamera], z_ref_m: Sequence[float | None], depth_present: Sequence[bool]
) -> dict[str, NDArray[Any]]:
    """The fields of `CropView` of B crops; a reference depth that is None is that of the box."""
    known = [z_ref_from_box(c) if z is None else z for c, z in zip(cameras, z_ref_m, strict=True)]
    return {
        "intrinsics_crop_px": np.array([camera.intrinsics_px for camera in cameras], np.float32),
        "rot_crop_from_img": np.array([camera.rot_crop_from_img for camera in cameras], np.float32),
        "z_ref_m": np.array(known, np.float32),
        "depth_present": np.array(depth_present, bool),
    }
