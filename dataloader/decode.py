"""Picture files to arrays: RGB, and HO3D's 16-bit depth packed into an 8-bit PNG.

A file that is missing, cut short or of the wrong kind is a `DataError` that names it: decoders otherwise fill
what they miss with grey and go on.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.crop import Window
from src.errors import DataError

_END_MARKERS = {".jpg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}
_TAIL_BYTES = 64
_HEAD_BYTES = 1 << 16
_TABLES, _SCAN = 0xDB, 0xDA
"""JPEG's markers of quantisation tables and of the first pixels."""
_MEND = "Re-extract its sequence, or take the frame out of the list file."


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB picture.

    Raises:
        DataError: missing, unreadable or cut short.
    """
    # The stored pixels belong to camMat; an orientation tag must not turn them.
    return np.asarray(_decode(path, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION), np.uint8)


def read_depth_bytes(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) depth picture as stored, channels B, G, R; see `combine_depth`.

    Raises:
        DataError: missing, unreadable, cut short, or not three channels of 8 bit.
    """
    picture = _decode(path, cv2.IMREAD_UNCHANGED)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise DataError(f"{path}: HO3D depth is a PNG of three 8-bit channels, got {picture.shape}. {_MEND}")
    return picture


def read_depth_beside(path: Path, picture_size: tuple[int, int]) -> NDArray[np.uint8]:
    """`read_depth_bytes` of the depth that belongs to a picture of (H, W).

    Raises:
        DataError: as `read_depth_bytes`, or another size.
    """
    depth = read_depth_bytes(path)
    if depth.shape[:2] != tuple(picture_size):
        raise DataError(
            f"{path}: depth is {depth.shape[:2]}, its picture {tuple(picture_size)}; HO3D aligns them."
        )
    return depth


def combine_depth(picture: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """(..., 3) bytes B, G, R -> (...) depth = R + 256 G in units of DEPTH_UNIT_M; 0 = not measured.

    The bytes are digits of one number: combine them before warping, and cast before shifting.
    """
    high = picture[..., 1].astype(np.uint16) << np.uint16(8)
    return high | picture[..., 2]


class PictureFrame:
    """One frame of a data set, decoded: the picture at once, its depth when it is asked for.

    Raises:
        DataError: as `read_rgb`.
    """

    def __init__(self, rgb_path: Path, depth_path: Path) -> None:
        self._rgb_path, self._depth_path = rgb_path, depth_path
        self._picture = read_rgb(rgb_path)
        self.size: tuple[int, int] = (self._picture.shape[0], self._picture.shape[1])
        """(H, W) of the whole picture."""

    @property
    def jpeg_quality(self) -> int | None:
        """Quality (1-100) at which the picture's file was written; None for a PNG or tables of its own."""
        with self._rgb_path.open("rb") as file:
            return jpeg_quality(file.read(_HEAD_BYTES))

    def clip(self, rectangle: Sequence[int]) -> Window:
        """The part of x0, y0, x1, y1 inside the picture; empty (0 wide or high) where there is none."""
        height, width = self.size
        x0, y0 = min(max(rectangle[0], 0), width), min(max(rectangle[1], 0), height)
        return Window(x0, y0, max(x0, min(rectangle[2], width)), max(y0, min(rectangle[3], height)))

    def rgb(self, window: Window) -> NDArray[np.uint8]:
        """(h, w, 3) RGB pixels of a window."""
        return self._picture[window.y0 : window.y1, window.x0 : window.x1]

    def depth(self, window: Window) -> NDArray[np.uint16]:
        """(h, w) depth of a window, units of DEPTH_UNIT_M, 0 = not measured.

        Raises:
            DataError: as `read_depth_beside`.
        """
        picture = read_depth_beside(self._depth_path, self.size)
        return combine_depth(picture[window.y0 : window.y1, window.x0 : window.x1])


def jpeg_quality(data: bytes) -> int | None:
    """Quality (1-100) of a JPEG by its luminance table, as OpenCV writes it at that quality; None: no such.

    Args:
        data: the file, or as much of it as holds its tables.
    """
    table = _luminance_table(data)
    return None if table is None else _qualities().get(table)


@functools.cache
def _qualities() -> dict[bytes, int]:
    """Quality by luminance table; the highest where several write the same."""
    grey = np.zeros((8, 8), np.uint8)
    made = {q: cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, q])[1].tobytes() for q in range(1, 101)}
    return {table: q for q, data in made.items() if (table := _luminance_table(data)) is not None}


def _luminance_table(data: bytes) -> bytes | None:
    """The 64 numbers of quantisation table 0 (8 bits each), in the file's order."""
    at = 2
    if data[:at] != b"\xff\xd8":
        return None
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _TABLES and data[at + 4] == 0:
            table = data[at + 5 : at + 5 + 64]
            return table if len(table) == 64 else None
        if marker == _SCAN:
            return None
        at += 2 + size
    return None


def _decode(path: Path, flags: int) -> NDArray[Any]:
    """Read and decode one file, refusing one that ends before its end marker."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: picture cannot be read ({error.strerror}). {_MEND}") from error
    marker = _END_MARKERS.get(path.suffix)
    if marker is not None and marker not in data[-_TAIL_BYTES:]:
        raise DataError(
            f"{path}: picture is cut short or not a {path.suffix} file ({len(data):,} bytes). {_MEND}"
        )
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if picture is None:
        raise DataError(f"{path}: picture cannot be decoded ({len(data):,} bytes). {_MEND}")
    return picture
