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
    covered_share,
    crop_camera,
    footprint,
    warp_depth,
    warp_rgb,
    z_ref_from_box,
    z_ref_from_depth,
)
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
    rows = [_crop(frame, box, image_size, box_scale) for frame, box in asked]
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def _crop(
    frame: Frame, box: HandBox, image_size: tuple[int, int], box_scale: float
) -> dict[str, NDArray[np.generic]]:
    """One row of `raw_crops`."""
    if box.left:
        frame, box = mirrored_frame(frame), mirrored_box(box, frame.rgb.shape[1])
    rgb, depth_m, k = frame.rgb, frame.depth_m, frame.intrinsics_px
    box_px = box_to_show(frame, box, box_scale)
    picture_size = (rgb.shape[0], rgb.shape[1])
    camera = crop_camera(k, box_px, image_size, box_scale)
    if (share := covered_share(camera, picture_size)) < MIN_OVERLAP:
        raise DataError(
            f"{frame.name}: the box {np.round(box.box_px, 1).tolist()} px lies outside the picture of "
            f"{picture_size[1]} x {picture_size[0]}, which covers {share:.1%} of its crop. "
            "Boxes are x0, y0, x1, y1 in pixels of the picture"
        )
    window = footprint(camera, picture_size)
    rows, columns = slice(window.y0, window.y1), slice(window.x0, window.x1)
    z_ref, measured = None, np.zeros(image_size, np.uint16)
    if depth_m is not None:
        measured = warp_depth(depth_units(depth_m[rows, columns]), camera, window)
        z_ref = z_ref_from_depth(measured, camera)
    return {
        "rgb_u8": warp_rgb(np.ascontiguousarray(rgb[rows, columns]), camera, window),
        "depth_m": measured.astype(np.float32) * np.float32(DEPTH_UNIT_M),
        "depth_present": np.array(depth_m is not None),
        "intrinsics_crop_px": camera.intrinsics_px.astype(np.float32),
        "rot_crop_from_img": camera.rot_crop_from_img.astype(np.float32),
        "z_ref_m": np.array(z_ref_from_box(camera) if z_ref is None else z_ref, np.float32),
    }


def box_to_show(frame: Frame, box: HandBox, box_scale: float) -> NDArray[np.float64]:
    """(4,) box that a hand's crop is made of, pixels.

    Finders and people draw boxes of 0.7 to 1.5 times a hand's side, and a network that is shown another zoom
    turns the wrist another way. So where a box is not exact and depth is measured in it, its side becomes
    that of an average hand at that depth; its centre stays (records/2026-11-29-boxes.md).

    Raises:
        DataError: the box is not finite or too small; names the frame.
    """
    shown = np.array(box.box_px, np.float64)
    k, depth_m = frame.intrinsics_px, frame.depth_m
    if box.exact or depth_m is None:
        _camera_of(frame, shown, box_scale)
        return shown
    for _ in range(_SIZINGS):
        camera = _camera_of(frame, shown, box_scale)
        window = footprint(camera, frame.rgb.shape[:2])
        if window.x0 >= window.x1 or window.y0 >= window.y1:
            return shown  # outside the picture, which is said elsewhere
        depth = depth_units(depth_m[window.y0 : window.y1, window.x0 : window.x1])
        if (z_ref := z_ref_from_depth(warp_depth(depth, camera, window), camera)) is None:
            return shown
        side = HAND_SIDE_M * np.sqrt(k[0, 0] * k[1, 1]) / z_ref
        middle, half = (shown[:2] + shown[2:]) / 2, (shown[2:] - shown[:2]) / 2
        half *= side / (2 * half.max())
        shown = np.concatenate([middle - half, middle + half])
    return shown


def _camera_of(frame: Frame, box_px: NDArray[np.float64], box_scale: float) -> CropCamera:
    """A small crop's camera, with the frame's name in its error."""
    try:
        return crop_camera(frame.intrinsics_px, box_px, _LOOK, box_scale)
    except DataError as error:
        raise DataError(f"{frame.name}: {error}") from None


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
