"""How the crop cache stores pixels. Legend: h w of the window held; `kind` is dataset.cache_format.

raw: the pixels, row by row. compact: RGB as the smallest JPEG of a short ladder that keeps MIN_PSNR_DB
against the decoded picture (PNG where none does), depth deflated, which is lossless.
"""

from __future__ import annotations

import zlib
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from src.errors import DataError

MIN_PSNR_DB = 42.0
"""Least fidelity of a compact RGB window."""

_HALF, _FULL = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
_LADDER = ((92, _HALF), (94, _HALF), (95, _HALF), (96, _HALF), (97, _HALF), (98, _FULL), (100, _FULL))
_DEFLATE_LEVEL = 6  # also decodes faster than level 1: it leaves less to read


def encode_rgb(pixels: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """(h, w, 3) RGB -> bytes."""
    if kind == "raw" or pixels.size == 0:
        return np.ascontiguousarray(pixels).reshape(-1)
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    for quality, sampling in _LADDER:
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
        ok, data = cv2.imencode(".jpg", bgr, options)
        assert ok
        shown = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if shown is not None and cv2.PSNR(shown, bgr) >= MIN_PSNR_DB:
            return np.asarray(data, np.uint8).reshape(-1)
    return np.asarray(cv2.imencode(".png", bgr)[1], np.uint8).reshape(-1)


def encode_depth(depth: NDArray[np.uint16], kind: str) -> NDArray[np.uint8]:
    """(h, w) depth -> bytes; lossless."""
    plain = np.ascontiguousarray(depth, "<u2").reshape(-1).view(np.uint8)
    if kind == "raw":
        return plain
    return np.frombuffer(zlib.compress(plain.data, _DEFLATE_LEVEL), np.uint8)


def decode_rgb(data: NDArray[np.uint8], shape: tuple[int, int], kind: str) -> NDArray[np.uint8]:
    """Bytes -> (h, w, 3) RGB; a view where nothing is compressed.

    Raises:
        DataError: they do not decode to that.
    """
    if kind == "raw" or data.size == 0:
        return _shaped(data, (*shape, 3))
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise DataError("stored RGB cannot be decoded")
    return np.asarray(_shaped(picture, (*shape, 3)), np.uint8)


def decode_depth(data: NDArray[np.uint8], shape: tuple[int, int], kind: str) -> NDArray[np.uint16]:
    """Bytes -> (h, w) depth; a view where nothing is compressed. As `decode_rgb`."""
    if kind == "raw":
        return _shaped(data.view("<u2"), shape)
    try:
        plain = zlib.decompress(data.data, bufsize=max(1, 2 * shape[0] * shape[1]))
    except zlib.error as error:
        raise DataError(f"stored depth cannot be decoded ({error})") from error
    return _shaped(np.frombuffer(plain, "<u2"), shape)


def _shaped(pixels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """`pixels` in the shape that the table says."""
    if pixels.size != int(np.prod(shape)):
        raise DataError(f"stored pixels: {pixels.size:,}, want {shape}")
    return pixels.reshape(shape)
