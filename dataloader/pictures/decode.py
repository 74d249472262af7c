"""Picture files: their sizes, and their pixels: RGB, and HO3D's 16-bit depth packed into an 8-bit PNG.

A file that is missing, damaged or of the wrong kind is a `DataError` that names it: decoders left to
themselves fill what they miss with grey and go on. Bytes behind a picture's end are no damage.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from dataloader.crop.camera import Window
from dataloader.ho3d.unusable import FrameError, Reason
from dataloader.pictures.formats import (
    is_jpeg,
    jpeg_size,
    png_end,
    png_size,
    require_no_holes,
)
from src.errors import DataError
from src.runtime.files.disk import open_plain, read_plain

PictureKind = Literal["rgb", "depth"]

_BLOCK = 4096
"""Bytes that are read for a size: most headers fit, and one page is what a disk hands over anyway."""
_MOST_BYTES = 1 << 26
"""Longest picture file that is read."""
_MEND = "Re-extract its sequence, or take the frame out of the list file."


def picture_size(path: Path, kind: PictureKind) -> tuple[int, int]:
    """Size of a colour or depth picture from its header alone: whether it is whole only its decoder says.

    Args:
        path: a .jpg or .png file.
        kind: depth must be a PNG that is decoded to three 8-bit channels.

    Returns:
        (H, W) in pixels.

    Raises:
        FrameError: missing, empty, another format than its name says, no size in it, or a huge one.
    """
    try:
        with open_plain(path) as file:
            head = file.read(_BLOCK)
            if not head:
                raise FrameError(Reason.EMPTY, f"{path}: {kind} is empty (0 bytes)")
            if path.suffix == ".png":
                return png_size(head, is_depth=kind == "depth")
            try:
                return jpeg_size(head)
            except ValueError:  # a camera's notes may stand before it, of any length
                return jpeg_size(head + file.read(_MOST_BYTES))
    except FileNotFoundError as error:
        other = path.with_suffix({".jpg": ".png", ".png": ".jpg"}[path.suffix])
        if kind == "rgb" and other.exists():
            text = f"{path} is missing, but {other.name} stands there"
            raise FrameError(Reason.RELEASE, text) from error
        raise FrameError(Reason.MISSING, f"{path} is missing") from error
    except OSError as error:
        raise FrameError(Reason.FORMAT, f"{path}: {kind} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise FrameError(Reason.FORMAT, f"{path}: {error}") from error


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
    return _decode(path, _decode_depth)


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
            DataError: as `read_depth_bytes`, or it has not the size of the picture.
        """
        picture = read_depth_bytes(self._depth_path)
        if picture.shape[:2] != self.size:
            raise DataError(
                f"{self._depth_path}: depth is {picture.shape[:2]}, its picture {self.size}; HO3D aligns "
                "them."
            )
        return combine_depth(picture[window.y0 : window.y1, window.x0 : window.x1])


def _decode(path: Path, decoder: Callable[[bytes], NDArray[Any]]) -> NDArray[Any]:
    """What `decoder` makes of a file, whole, or an error that names the file."""
    try:
        return decoder(read_plain(path, _MOST_BYTES))
    except (OSError, ValueError, cv2.error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: picture cannot be read: {why}. {_MEND}") from error


def _decode_rgb(data: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of a JPEG or PNG."""
    if is_jpeg(data):
        jpeg_size(data)
        picture = np.asarray(simplejpeg.decode_jpeg(data, "RGB"), np.uint8)
        require_no_holes(data)
        return picture
    png_size(data, is_depth=False)
    # The stored pixels belong to camMat; an orientation tag must not turn them.
    return _decode_png(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def _decode_depth(data: bytes) -> NDArray[np.uint8]:
    """The channels of a PNG as they are stored, without a transparent colour."""
    png_size(data, is_depth=True)
    return _decode_png(data, cv2.IMREAD_UNCHANGED)[..., :3]


def _decode_png(data: bytes, flags: int) -> NDArray[np.uint8]:
    """A PNG whose checksums hold: all of them are looked at before OpenCV trusts a length."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8, png_end(data)), flags)
    if picture is None:
        raise ValueError("its compressed rows are not whole")
    return np.asarray(picture, np.uint8)
