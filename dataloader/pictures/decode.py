"""Picture files to arrays: RGB, and HO3D's 16-bit depth packed into an 8-bit PNG.

A file that is missing, damaged or of the wrong kind is a `DataError` that names it: decoders left to
themselves fill what they miss with grey and go on. Bytes behind a picture's end are no damage.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from dataloader.crop.camera import Window
from dataloader.pictures.jpeg_file import JPEG_START, require_no_holes
from dataloader.pictures.picture_header import MOST_PIXELS
from src.errors import DataError
from src.runtime.files.disk import read_plain

_PNG_START = b"\x89PNG\r\n\x1a\n"
_MOST_BYTES = 1 << 26
"""Longest picture file that is read."""
_MOST_WORK = 1 << 28
"""Pixels times scans of a JPEG: ten scans are usual, hundreds are an attack."""
_CHUNKS = 50_000
"""Chunks of a PNG that are looked at: 64 MB in those of 8 kB are as many as 8,000."""
_SCAN = b"\xff\xda"
_PNG_SIZE = struct.Struct(">II")
"""Width and height, at byte 16 of a PNG."""
_CHUNK, _CHECKSUM = struct.Struct(">I4s"), struct.Struct(">I")
"""Around a PNG's chunk: size and kind, then the checksum of kind and content."""
_MEND = "Re-extract its sequence, or take the frame out of the list file."


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB picture of a JPEG or PNG.

    Raises:
        DataError: missing, unreadable or damaged.
    """
    return _decode(path, _decode_rgb)


def read_depth_bytes(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) depth picture as stored, channels B, G, R; see `combine_depth`.

    Raises:
        DataError: missing, unreadable, damaged, or not a PNG of three channels of 8 bit.
    """
    picture = _decode(path, _decode_depth)
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


def _decode(path: Path, decoder: Callable[[bytes], NDArray[Any]]) -> NDArray[Any]:
    """What `decoder` makes of a file, whole, or an error that names the file."""
    try:
        data = read_plain(path, _MOST_BYTES)
    except OSError as error:
        raise DataError(f"{path}: picture cannot be read ({error.strerror}). {_MEND}") from error
    try:
        return decoder(data)
    except (ValueError, cv2.error) as error:
        raise DataError(f"{path}: picture is not whole: {error} ({len(data):,} bytes). {_MEND}") from error


def _decode_rgb(data: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of a JPEG or PNG."""
    if data.startswith(JPEG_START):
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        _require_modest(height, width, data.count(_SCAN))
        picture = np.asarray(simplejpeg.decode_jpeg(data, "RGB"), np.uint8)
        require_no_holes(data)
        return picture
    # The stored pixels belong to camMat; an orientation tag must not turn them.
    return np.asarray(_decode_png(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION), np.uint8)


def _decode_depth(data: bytes) -> NDArray[Any]:
    """The channels of a PNG as they are stored."""
    return _decode_png(data, cv2.IMREAD_UNCHANGED)


def _decode_png(data: bytes, flags: int) -> NDArray[Any]:
    """A PNG whose checksums hold: all of them are looked at before OpenCV trusts a length."""
    end = _png_end(data)
    _require_modest(*reversed(_PNG_SIZE.unpack_from(data, 16)))
    picture = cv2.imdecode(np.frombuffer(data, np.uint8, end), flags)
    if picture is None:
        raise ValueError("its compressed rows are not whole")
    return picture


def _require_modest(height: int, width: int, scans: int = 1) -> None:
    """ValueError: decoding would take memory or time that no picture of a data set is worth."""
    if height * width > MOST_PIXELS or height * width * scans > _MOST_WORK:
        times = f" in {scans:,} scans" if scans > 1 else ""
        raise ValueError(
            f"its header says {width} x {height} pixels{times}, at most {MOST_PIXELS:,} are read"
        )


def _png_end(data: bytes) -> int:
    """Number of bytes up to the end of a PNG's last chunk; ValueError: it is not whole."""
    if not data.startswith(_PNG_START) or data[12:16] != b"IHDR":
        raise ValueError(f"it begins with {data[:8]!r}, which no PNG does")
    view, at = memoryview(data), len(_PNG_START)
    for _ in range(_CHUNKS):
        if at + 12 > len(data):
            break
        size, kind = _CHUNK.unpack_from(data, at)
        stop: int = at + 8 + size
        if stop + 4 > len(data):
            break
        if zlib.crc32(view[at + 4 : stop]) != _CHECKSUM.unpack_from(data, stop)[0]:
            raise ValueError(f"the checksum of its chunk {kind!r} at byte {at:,} is wrong")
        at = stop + 4
        if kind == b"IEND":
            return at
    raise ValueError(f"it ends in the chunk at byte {at:,}")
