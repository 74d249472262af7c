"""Size of a picture from its header alone: one open, one short read, nothing is decoded.

What a header says is not yet a whole picture: that is the decoder's verdict (`decode.py`).
Sources: ITU-T T.81 annex B (JPEG's markers), PNG specification section 11.2 (IHDR).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from dataloader.ho3d.unusable import FrameError, Reason

PictureKind = Literal["rgb", "depth"]

_BLOCK = 4096
"""Bytes per read: most headers fit, and one page is what a disk hands over anyway."""
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_IHDR = b"\x00\x00\x00\rIHDR"
_PNG_HEAD = len(_PNG) + len(_IHDR) + 10
"""PNG up to width, height, bit depth and colour type."""
_RGB, _PALETTE = 2, 3
"""PNG's colour types that are decoded to three channels."""
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
"""JPEG's markers that stand alone."""
_FRAME_STARTS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""SOF0 to SOF15; the three others are tables and a reserved marker."""
_ENDS = frozenset({0xD8, 0xD9, 0xDA})
"""Another start, the end, or the first pixels: no frame was announced."""

_SEGMENTS = 10_000
"""JPEG's segments and filling bytes in front of a size; a colour profile takes a few hundred."""

MOST_PIXELS = 1 << 24
"""Of a picture that is decoded: 4096 x 4096, fifty times HO3D's. A header of a few bytes may say any size."""

Read = Callable[[int], bytes]
"""Up to _BLOCK bytes of a file from an offset; none behind its end."""


def picture_size(path: Path, kind: PictureKind) -> tuple[int, int]:
    """Size of a colour or depth picture.

    Args:
        path: a .jpg or .png file.
        kind: depth must be a PNG that is decoded to three 8-bit channels.

    Returns:
        (H, W) in pixels.

    Raises:
        FrameError: missing, empty, another format than its name says, or no size in it, or one
            above MOST_PIXELS.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would be waited for
    except OSError as error:
        raise _absent(path, kind, error) from error
    try:
        head = os.pread(file, _BLOCK, 0)
        if not head:
            raise FrameError(Reason.EMPTY, f"{path}: {kind} is empty (0 bytes)")
        if path.suffix == ".png":
            return _png_size(head, path, kind)
        return _jpeg_size(head, lambda at: os.pread(file, _BLOCK, at), path)
    except OSError as error:
        raise FrameError(Reason.FORMAT, f"{path}: {kind} cannot be read ({error.strerror})") from error
    finally:
        os.close(file)


def _absent(path: Path, kind: PictureKind, error: OSError) -> FrameError:
    """What to say of a file that cannot be opened."""
    if not isinstance(error, FileNotFoundError):
        return FrameError(Reason.FORMAT, f"{path}: {kind} cannot be opened ({error.strerror})")
    other = path.with_suffix({".jpg": ".png", ".png": ".jpg"}[path.suffix])
    if kind == "rgb" and other.exists():
        return FrameError(Reason.RELEASE, f"{path} is missing, but {other.name} stands there")
    return FrameError(Reason.MISSING, f"{path} is missing")


def _png_size(head: bytes, path: Path, kind: PictureKind) -> tuple[int, int]:
    """(H, W) from IHDR, which is always the first chunk."""
    if not head.startswith(_PNG):
        raise FrameError(Reason.FORMAT, f"{path}: no PNG, it begins with {head[:8].hex(' ')}")
    if not head.startswith(_PNG + _IHDR) or len(head) < _PNG_HEAD:
        raise FrameError(Reason.FORMAT, f"{path}: PNG without a size")
    width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    bits, colour = head[24], head[25]
    if kind == "depth" and (bits, colour) != (8, _RGB) and colour != _PALETTE:
        raise FrameError(
            Reason.FORMAT,
            f"{path}: depth has {bits} bits and colour type {colour}, want a PNG of three 8-bit channels",
        )
    return _modest(height, width, path)


def _jpeg_size(block: bytes, read: Read, path: Path) -> tuple[int, int]:
    """(H, W) from the first start of frame; segments in front of it (EXIF, ICC) may be of any length."""
    if not block.startswith(_JPEG):
        raise FrameError(Reason.FORMAT, f"{path}: no JPEG, it begins with {block[:8].hex(' ')}")
    begin, at = 0, 2  # `block` holds the file's bytes from `begin` on
    for _ in range(_SEGMENTS):
        if at + 9 > begin + len(block):
            begin, block = at, read(at)
        segment = block[at - begin : at - begin + 9]
        if len(segment) < 9 or segment[0] != 0xFF or segment[1] in _ENDS:
            break
        marker = segment[1]
        if marker in _FRAME_STARTS:
            height, width = int.from_bytes(segment[5:7], "big"), int.from_bytes(segment[7:9], "big")
            return _modest(height, width, path)
        if marker == 0xFF:  # filling in front of a marker
            at += 1
        else:
            at += 2 if marker in _WITHOUT_LENGTH else 2 + max(2, int.from_bytes(segment[2:4], "big"))
    raise FrameError(Reason.FORMAT, f"{path}: JPEG without a size")


def _modest(height: int, width: int, path: Path) -> tuple[int, int]:
    if not 0 < height * width <= MOST_PIXELS:
        raise FrameError(
            Reason.FORMAT, f"{path}: its header says {width} x {height} pixels, want 1 to {MOST_PIXELS:,}"
        )
    return height, width
