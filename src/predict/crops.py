"""Frames and boxes -> the crops that a network reads, by the very functions that training uses.

A left hand is shown as the right hand that a mirror makes of it: the picture, its depth, its camera and the
box are mirrored before the crop is made, so a mirrored picture gives the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataloader.crop.camera import (
    HAND_SIDE_M,
    MIN_OVERLAP,
    CropCamera,
    Window,
    covered_share,
    crop_camera,
)
from dataloader.crop.cut import cut_depth, cut_rgb, view_arrays
from src.errors import DataError
from src.predict.frame import Frame, HandBox
from src.schema import DEPTH_UNIT_M

_SIZINGS = 2
"""Times that a box is sized: depth is read in its middle, and a better size reads it better."""
_LOOK = (64, 64)
"""(H, W) of the crop in which depth is read for that."""
_FARTHEST = np.iinfo(np.uint16).max


def raw_crops(
    asked: Sequence[tuple[Frame, HandBox]], image_size: tuple[int, int], box_scale: float
) -> dict[str, Tensor]:
    """`src.predict.graph.RAW_INPUTS` of some hands.

    Args:
        asked: B frames with a box in each; pictures may differ in size.
        image_size: (H, W) of a crop.
        box_scale: side of the square crop over the box's longer side.

    Raises:
        DataError: a box is not finite, too small, or shows too little of its picture; names the frame.
    """
    rgb = np.empty((len(asked), *image_size, 3), np.uint8)
    depth = np.zeros((len(asked), *image_size), np.uint16)
    cameras: list[CropCamera] = []
    z_ref: list[float | None] = []
    for i, (frame, given) in enumerate(asked):
        box = given
        if box.left:
            frame, box = mirrored_frame(frame), mirrored_box(box, frame.rgb.shape[1])
        camera = crop_camera(frame.intrinsics_px, box_to_show(frame, box, box_scale), image_size, box_scale)
        _require_overlap(frame, given, camera)
        cut_rgb(_Pixels(frame), camera, rgb[i])
        z_ref.append(None)
        if frame.depth_m is not None:
            depth[i], z_ref[i] = cut_depth(_Pixels(frame), camera)
        cameras.append(camera)
    arrays = {
        "rgb_u8": rgb,
        "depth_m": depth.astype(np.float32) * np.float32(DEPTH_UNIT_M),
        **view_arrays(cameras, z_ref, [frame.depth_m is not None for frame, _ in asked]),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class _Pixels:
    """A frame as crops are cut from it."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self.size: tuple[int, int] = frame.rgb.shape[:2]
        """(H, W)."""

    def rgb(self, window: Window) -> NDArray[np.uint8]:
        """(h, w, 3) RGB pixels of a window."""
        return np.ascontiguousarray(self._frame.rgb[window.y0 : window.y1, window.x0 : window.x1])

    def depth(self, window: Window) -> NDArray[np.uint16]:
        """(h, w) depth of a window, units of DEPTH_UNIT_M."""
        assert self._frame.depth_m is not None
        return depth_units(self._frame.depth_m[window.y0 : window.y1, window.x0 : window.x1])


def _require_overlap(frame: Frame, box: HandBox, camera: CropCamera) -> None:
    """DataError: the crop shows too little of the picture."""
    height, width = frame.rgb.shape[:2]
    if (share := covered_share(camera, (height, width))) < MIN_OVERLAP:
        raise DataError(
            f"{frame.name}: the box {np.round(box.box_px, 1).tolist()} px lies outside the picture of "
            f"{width} x {height}, which covers {share:.1%} of its crop. "
            "Boxes are x0, y0, x1, y1 in pixels of the picture"
        )


def box_to_show(frame: Frame, box: HandBox, box_scale: float) -> NDArray[np.float64]:
    """(4,) box that a hand's crop is made of, pixels.

    Finders and people draw boxes of 0.7 to 1.5 times a hand's side, and a network that is shown another zoom
    turns the wrist another way. So where a box is not exact and depth is measured in it, its side becomes
    that of an average hand at that depth; its centre stays (records/2026-11-29-boxes.md).

    Raises:
        DataError: the box is not finite or too small; names the frame.
    """
    shown = np.array(box.box_px, np.float64)
    k = frame.intrinsics_px
    for sizing in range(1 + _SIZINGS):
        try:
            camera = crop_camera(k, shown, _LOOK, box_scale)
        except DataError as error:
            raise DataError(f"{frame.name}: {error}") from None
        last = box.exact or frame.depth_m is None or sizing == _SIZINGS
        if last or covered_share(camera, frame.rgb.shape[:2]) < MIN_OVERLAP:
            break
        _, z_ref = cut_depth(_Pixels(frame), camera)
        if z_ref is None:
            break
        side = HAND_SIDE_M * np.sqrt(k[0, 0] * k[1, 1]) / z_ref
        middle, half = (shown[:2] + shown[2:]) / 2, (shown[2:] - shown[:2]) / 2
        half *= side / (2 * half.max())
        shown = np.concatenate([middle - half, middle + half])
    return shown


def depth_units(depth_m: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Metres -> units of DEPTH_UNIT_M, as HO3D stores them; 0 where nothing was measured.

    What is not finite or not in front of the camera was not measured; what is beyond 8 m stays there.
    """
    with np.errstate(invalid="ignore"):
        units = np.rint(depth_m / np.float32(DEPTH_UNIT_M))
    return np.where(np.isfinite(units), units, 0).clip(0, _FARTHEST).astype(np.uint16)


def mirrored_frame(frame: Frame) -> Frame:
    """What the camera's mirror image would have taken: picture, depth and K."""
    k = frame.intrinsics_px.copy()
    k[0, 1], k[0, 2] = -k[0, 1], frame.rgb.shape[1] - 1 - k[0, 2]
    depth_m = None if frame.depth_m is None else frame.depth_m[:, ::-1]
    return Frame(frame.name, frame.rgb[:, ::-1], depth_m, k)


def mirrored_box(box: HandBox, width: int) -> HandBox:
    """The box in the mirrored picture, `width` pixels wide; it is of the other hand there."""
    x0, y0, x1, y1 = box.box_px
    return dataclasses.replace(box, box_px=(width - 1 - x1, y0, width - 1 - x0, y1), left=not box.left)
