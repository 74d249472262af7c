"""How the crop cache stores pixels. Legend: h w of the window held; `kind` is dataset.cache_format.

raw: the pixels, row by row. compact: what no crop can see is made cheap. RGB is the first JPEG of a ladder
that keeps MIN_PSNR_DB against the decoded picture (PNG where none does). The ladder begins with the quality
of the picture's own file: in windows that are cut along JPEG's blocks its numbers come out almost as they
went in, at half the bytes and twenty decibels above what they cost elsewhere. Depth, lossless: values by
their rank among those that occur, where few do; of that the differences to the row above, in every BAND-th
row to the left, in one signed byte, with larger ones in a list; compressed by Zstandard, which decodes in a
quarter of deflate's time.
"""

from __future__ import annotations

import functools
from typing import Any

import cv2
import numpy as np
import zstandard
from numpy.typing import NDArray

from src.errors import DataError

MIN_PSNR_DB = 42.0
"""Least fidelity of a compact RGB window."""

_HALF, _FULL = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
_LADDER = ((92, _HALF), (94, _HALF), (95, _HALF), (96, _HALF), (97, _HALF), (98, _FULL), (100, _FULL))
BLOCK_PX = 16
"""Side of what a JPEG of half colour resolution encodes by itself."""
BAND = 16
"""Rows of depth that are decoded together; all bands take their steps at once."""
_LEVEL = 9
_HEAD = np.dtype("<u4")
_MOST_VALUES = 1 << 16
_ELSEWHERE = np.int8(-128)
"""Stands for a difference that is in the list."""
EVERYTHING = (slice(None), slice(None))
"""All rows and columns."""


def encode_rgb(
    pixels: NDArray[np.uint8],
    kind: str,
    quality: int | None = None,
    seen: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Pixels -> bytes.

    Args:
        pixels: (h, w, 3) RGB.
        kind: raw or compact.
        quality: 1-100, of the JPEG they come from, if they do.
        seen: (h, w) pixels that anyone will ask for; None: all. Compact blocks without any come back plain.
    """
    if kind == "raw" or pixels.size == 0:
        return np.ascontiguousarray(pixels).reshape(-1)
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    if seen is None or not seen.any():
        seen = np.ones(pixels.shape[:2], np.bool_)
    wanted = bgr[seen]  # what is made plain has no error and must not count
    kept = _blocks(seen)
    bgr[~kept] = bgr[kept].mean(0).astype(np.uint8)
    own = () if quality is None else ((quality, _HALF), (quality, _FULL))
    for step, sampling in (*own, *_LADDER):
        options = [cv2.IMWRITE_JPEG_QUALITY, step, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
        ok, data = cv2.imencode(".jpg", bgr, [*options, cv2.IMWRITE_JPEG_OPTIMIZE, 1])
        assert ok
        shown = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if shown is not None and cv2.PSNR(shown[seen], wanted) >= MIN_PSNR_DB:
            return np.asarray(data, np.uint8).reshape(-1)
    return np.asarray(cv2.imencode(".png", bgr)[1], np.uint8).reshape(-1)


def _blocks(seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(h, w) whether a pixel's JPEG block holds one that is seen; blocks begin in the corner."""
    height, width = seen.shape
    padded = np.zeros([-(-side // BLOCK_PX) * BLOCK_PX for side in seen.shape], np.bool_)
    padded[:height, :width] = seen
    blocks = padded.reshape(padded.shape[0] // BLOCK_PX, BLOCK_PX, -1, BLOCK_PX).any(axis=(1, 3))
    return np.repeat(np.repeat(blocks, BLOCK_PX, axis=0), BLOCK_PX, axis=1)[:height, :width]


def encode_depth(
    depth: NDArray[np.uint16], kind: str, seen: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """(h, w) depth -> bytes; lossless in the pixels that are seen, the others as in `encode_rgb`."""
    if kind == "raw":
        return np.ascontiguousarray(depth, "<u2").reshape(-1).view(np.uint8)
    if seen is not None and seen.any():
        depth = _carried_on(depth, seen)
    values, rank = np.unique(depth, return_inverse=True)
    if depth.size and 2 * len(values) < int(values[-1]) - int(values[0]):
        numbers = rank.reshape(depth.shape).astype(np.uint16)
    else:
        numbers, values = depth, values[:0]
    step = np.diff(numbers, axis=0, prepend=np.uint16(0)).astype(np.uint16)  # modulo 2^16
    step[::BAND] = np.diff(numbers[::BAND], axis=1, prepend=np.uint16(0))
    signed = step.view(np.int16)
    small = signed.astype(np.int8)
    large = (small != signed) | (small == _ELSEWHERE)
    small[large] = _ELSEWHERE
    plain = [values.astype("<u2"), step[large].astype("<u2"), small]
    head = np.array([len(values), int(large.sum())], _HEAD)
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(b"".join(part.tobytes() for part in plain))
    return np.frombuffer(head.tobytes() + packed, np.uint8)


def _carried_on(depth: NDArray[np.uint16], seen: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Each column's first and last seen value up to its ends, so that no differences are left there.

    In between everything is kept: what crops see of a column has no gaps.
    """
    rows = np.arange(len(depth))
    first, last = seen.argmax(axis=0), len(depth) - 1 - seen[::-1].argmax(axis=0)
    carried = np.take_along_axis(depth, np.clip(rows[:, None], first, last), axis=0)
    columns = np.flatnonzero(seen.any(axis=0))
    carried[:, : columns[0]], carried[:, columns[-1] + 1 :] = 0, 0
    return carried


def decode_rgb(
    data: NDArray[np.uint8], shape: tuple[int, int], kind: str, cut: tuple[slice, slice] = EVERYTHING
) -> NDArray[np.uint8]:
    """Bytes -> (h, w, 3) RGB, or the rows and columns of `cut`; a view where nothing is compressed.

    Raises:
        DataError: they do not decode to that.
    """
    if kind == "raw" or data.size == 0:
        return _shaped(data, (*shape, 3))[cut]
    try:
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        picture = None
    if picture is None:
        raise DataError("stored RGB cannot be decoded")
    return np.asarray(_shaped(picture, (*shape, 3))[cut], np.uint8)


def decode_depth(
    data: NDArray[np.uint8], shape: tuple[int, int], kind: str, cut: tuple[slice, slice] = EVERYTHING
) -> NDArray[np.uint16]:
    """Bytes -> (h, w) depth, or the rows and columns of `cut`; a view where nothing is compressed.

    As `decode_rgb`.
    """
    if kind == "raw":
        if data.size % 2:
            raise DataError(f"stored depth: {data.size:,} bytes, want two a pixel")
        return _shaped(data.view("<u2"), shape)[cut]
    head_bytes = 2 * _HEAD.itemsize
    try:
        num_values, num_large = np.frombuffer(data[:head_bytes], _HEAD, 2).tolist()
        size = 2 * (num_values + num_large) + shape[0] * shape[1]
        if zstandard.frame_content_size(data[head_bytes:].data) != size or num_values > _MOST_VALUES:
            raise ValueError(f"not {size:,} bytes by its own head")
        plain = _decompressor().decompress(data[head_bytes:].data)
    except (zstandard.ZstdError, ValueError) as error:
        raise DataError(f"stored depth cannot be decoded ({error})") from error
    if len(plain) != size:
        raise DataError(f"stored depth: {len(plain):,} bytes, want {size:,}")
    small = np.frombuffer(plain, np.int8, offset=2 * (num_values + num_large))
    rows, columns = (slice(*part.indices(side)) for part, side in zip(cut, shape, strict=True))
    first = rows.start // BAND * BAND
    step = small.reshape(shape)[first : rows.stop, : columns.stop].astype(np.int16)
    places = np.flatnonzero(small == _ELSEWHERE)
    if len(places) != num_large:
        raise DataError(f"stored depth: {len(places):,} large steps, want {num_large:,}")
    row, column = np.divmod(places, shape[1])
    inside = (row >= first) & (row < rows.stop) & (column < columns.stop)
    large = np.frombuffer(plain, "<i2", num_large, 2 * num_values)
    step[row[inside] - first, column[inside]] = large[inside]
    numbers = step.view(np.uint16)
    heads = numbers[::BAND]
    np.cumsum(heads, axis=1, dtype=np.uint16, out=heads)
    for k in range(1, min(BAND, len(numbers))):
        here = numbers[k::BAND]
        here += numbers[k - 1 :: BAND][: len(here)]
    numbers = numbers[rows.start - first :, columns]
    if not num_values:
        return numbers
    try:
        return np.frombuffer(plain, "<u2", num_values).take(numbers)
    except IndexError as error:
        raise DataError(f"stored depth: a rank among {num_values:,} values is too high") from error


@functools.cache
def _decompressor() -> zstandard.ZstdDecompressor:
    """One for the process: making one takes as long as using it."""
    return zstandard.ZstdDecompressor()


def _shaped(pixels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """`pixels` in the shape that the table says."""
    if pixels.size != int(np.prod(shape)):
        raise DataError(f"stored pixels: {pixels.size:,}, want {shape}")
    return pixels.reshape(shape)
