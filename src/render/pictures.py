"""Drawing hands on crops: the pictures that a validation leaves behind.

Pictures are (H, W, 3) uint8 RGB; joints are pixels of the picture in OPENPOSE21 order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from src.errors import ShapeError
from src.hand.joints import FINGERS, OPENPOSE21, OPENPOSE_BONES
from src.runtime.files.disk import atomic_write

_FINGER_RGB = dict(
    zip(FINGERS, ((230, 60, 60), (235, 160, 30), (60, 190, 70), (50, 140, 240), (190, 80, 220)), strict=True)
)
_PART_BITS = 3
"""Lines are placed to an eighth of a pixel."""
_FAR_PX = 1 << 20
"""Farther away, a joint is drawn here: OpenCV wants numbers of 32 bits."""
_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def picture_from_network(rgb: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(3, H, W) ImageNet-normalised network input -> (H, W, 3) uint8 RGB."""
    picture = rgb.transpose(1, 2, 0) * _IMAGENET_STD + _IMAGENET_MEAN
    return np.ascontiguousarray((picture * 255).round().clip(0, 255).astype(np.uint8))


def draw_skeleton(
    picture: NDArray[np.uint8],
    joints_px: NDArray[np.floating],
    *,
    scale: int = 1,
    thickness: int | None = None,
) -> NDArray[np.uint8]:
    """Draw 20 bones and 21 joints onto a copy of a picture, enlarged `scale` times.

    Args:
        picture: (H, W, 3) uint8 RGB.
        joints_px: (21, 2) pixels of `picture`, OPENPOSE21; a joint that is not finite is left out.
        scale: whole enlargement, so that lines do not hide a small crop.
        thickness: of bones, in pixels of the result; None: half of `scale`, at least 1.

    Raises:
        ShapeError: not 21 joints, or not an RGB picture.
    """
    if joints_px.shape != (len(OPENPOSE21), 2) or picture.ndim != 3 or picture.shape[2] != 3:
        raise ShapeError(
            f"draw_skeleton needs (H, W, 3) and (21, 2), got {picture.shape} and {joints_px.shape}"
        )
    height, width = picture.shape[:2]
    canvas = np.array(picture)
    if scale > 1:
        enlarged = cv2.resize(canvas, (width * scale, height * scale), interpolation=cv2.INTER_CUBIC)
        canvas = np.asarray(enlarged, np.uint8)
    # Pixel centres: crop pixel p is drawn at (p + 0.5) * scale - 0.5.
    places = ((joints_px + 0.5) * scale - 0.5).clip(-_FAR_PX, _FAR_PX)
    part = 1 << _PART_BITS  # OpenCV's parts of a pixel
    points = [(round(x * part), round(y * part)) for x, y in np.nan_to_num(places).tolist()]
    usable = np.isfinite(joints_px).all(1)
    thickness = thickness or max(1, scale // 2)
    for parent, child in OPENPOSE_BONES:
        if usable[parent] and usable[child]:
            shade = _FINGER_RGB[OPENPOSE21[child].partition("_")[0]]
            cv2.line(canvas, points[parent], points[child], shade, thickness, cv2.LINE_AA, _PART_BITS)
    for joint in np.flatnonzero(usable):
        cv2.circle(canvas, points[joint], thickness * part, (255, 255, 255), -1, cv2.LINE_AA, _PART_BITS)
    return canvas


def truth_and_prediction(
    picture: NDArray[np.uint8],
    truth_px: NDArray[np.floating],
    prediction_px: NDArray[np.floating],
    caption: str,
) -> NDArray[np.uint8]:
    """One tile, the crop twice as large.

    The truth drawn on the left copy of a crop, the prediction on the right one, a caption above.
    """
    pair = np.hstack([draw_skeleton(picture, joints, scale=2) for joints in (truth_px, prediction_px)])
    bar = np.full((18, pair.shape[1], 3), 24, np.uint8)
    cv2.putText(bar, caption, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (240, 240, 240), 1, cv2.LINE_AA)
    return np.vstack([bar, pair])


def grid(tiles: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Tiles of one size in rows of `columns`, the last row filled with grey.

    Raises:
        ShapeError: no tile, or tiles of several sizes.
    """
    if not tiles or any(t.shape != tiles[0].shape for t in tiles):
        raise ShapeError(f"grid needs tiles of one size, got {sorted({t.shape for t in tiles})}")
    blank = np.full_like(tiles[0], 64)
    padded = [*tiles, *[blank] * (-len(tiles) % columns)]
    return np.vstack([np.hstack(padded[i : i + columns]) for i in range(0, len(padded), columns)])


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture as PNG or JPEG by the name's ending, whole or not at all."""
    done, data = cv2.imencode(path.suffix, picture[..., ::-1])
    if not done:
        raise ShapeError(f"a picture of shape {picture.shape} cannot be encoded as {path.suffix}")
    with atomic_write(path) as file:
        file.write(data.tobytes())
