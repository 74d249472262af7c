"""Drawing hands on crops: the pictures that a validation leaves behind.

Pictures are (H, W, 3) uint8 RGB; joints are pixels of the picture in OPENPOSE21 order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from src.errors import ShapeError
from src.hand.joints import FINGERS, OPENPOSE21, OPENPOSE_BONES
from src.runtime.files.disk import atomic_write
from src.schema import IMAGENET_MEAN, IMAGENET_STD

_FINGER_RGB = dict(
    zip(FINGERS, ((230, 60, 60), (235, 160, 30), (60, 190, 70), (50, 140, 240), (190, 80, 220)), strict=True)
)
_PART_BITS = 3
"""Lines are placed to an eighth of a pixel."""
_FAR_PX = 1 << 20
"""Farther away, a joint is drawn here: OpenCV wants numbers of 32 bits."""


def picture_from_network(rgb: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(3, H, W) ImageNet-normalised network input -> (H, W, 3) uint8 RGB."""
    picture = rgb.transpose(1, 2, 0) * np.array(IMAGENET_STD, np.float32) + np.array(
        IMAGENET_MEAN, np.float32
    )
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
    canvas = resized(picture, scale)
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


def captioned(picture: NDArray[np.uint8], lines: Sequence[str]) -> NDArray[np.uint8]:
    """A picture below lines of text; OpenCV's letters are ASCII, others become `?`."""
    bar = np.full((6 + 22 * len(lines), picture.shape[1], 3), 24, np.uint8)
    for k, text in enumerate(lines):
        plain = text.encode("ascii", "replace").decode()
        place = (6, 18 + 22 * k)
        cv2.putText(bar, plain, place, cv2.FONT_HERSHEY_SIMPLEX, 0.55, (240, 240, 240), 1, cv2.LINE_AA)
    return np.vstack([bar, picture])


def resized(picture: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """A picture `scale` times as large, or small, smoothly; for 1 a copy."""
    if scale == 1:
        return np.array(picture)
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    return np.asarray(
        cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
    )


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


def encoded(picture: NDArray[np.uint8], ending: str, quality: int = 95) -> bytes:
    """An RGB picture as the bytes of a file; `quality` is that of a JPEG.

    Raises:
        ShapeError: OpenCV cannot write it as `ending`.
    """
    done, data = cv2.imencode(ending, picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ShapeError(f"a picture of shape {picture.shape} cannot be encoded as {ending}")
    return data.tobytes()


def read_picture(path: Path) -> NDArray[np.uint8] | None:
    """A picture that `write_picture` wrote, RGB; None where there is none that can be read."""
    picture = cv2.imread(os.fspath(path), cv2.IMREAD_COLOR) if path.is_file() else None
    return None if picture is None else np.ascontiguousarray(picture[..., ::-1], np.uint8)


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write an RGB picture as PNG or JPEG by the name's ending, whole or not at all."""
    data = encoded(picture, path.suffix)
    with atomic_write(path) as file:
        file.write(data)
