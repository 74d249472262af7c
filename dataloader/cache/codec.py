"""How the crop cache stores pixels, by `dataset.cache_format`. Legend: h w of the window that is held.

raw: the pixels, row by row. compact: RGB is the first JPEG of a ladder that keeps MIN_PSNR_DB. Its windows
are cut along JPEG's blocks: there the numbers of a picture that was a JPEG come out almost as they went in,
at two thirds of the bytes. Depth, lossless: differences to the row above, in every BAND-th row to the left,
so that all bands are decoded at once; first their low bytes, then their high ones, which hardly ever differ;
compressed by Zstandard, which decodes in a quarter of deflate's time.
"""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg
import zstandard
from numpy.typing import NDArray

MIN_PSNR_DB = 42.0
"""Least fidelity of a compact RGB window."""
BLOCK_PX = 16
"""Side of what a JPEG of half colour resolution encodes by itself."""

_LADDER = ((92, "420"), (95, "420"), (97, "420"), (98, "444"), (100, "444"))
"""Quality and colour resolution; the last one keeps 45 dB of pure noise."""
_BAND = 16
_LEVEL = 9
_MIDDLE = np.uint16(128)
"""Added to differences: between -128 and 127 their high byte is 0."""
_BYTE = np.uint16(8)
_DECOMPRESSOR = zstandard.ZstdDecompressor()
"""One for the process: making one takes as long as using it."""

Cut = tuple[slice, slice]
"""Rows and columns."""


def pack_rgb(pixels: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """(h, w, 3) RGB -> (bytes,) of a raw or compact cache."""
    pixels = np.ascontiguousarray(pixels)
    if kind == "raw" or pixels.size == 0:
        return pixels.reshape(-1)
    for quality, sampling in _LADDER:
        data = simplejpeg.encode_jpeg(pixels, quality, "RGB", sampling, fastdct=False)
        if cv2.PSNR(simplejpeg.decode_jpeg(data, "RGB"), pixels) >= MIN_PSNR_DB:
            break
    return np.frombuffer(data, np.uint8)


def pack_depth(depth: NDArray[np.uint16], kind: str) -> NDArray[np.uint8]:
    """(h, w) depth -> (bytes,) of a raw or compact cache."""
    if kind == "raw":
        return np.ascontiguousarray(depth, "<u2").reshape(-1).view(np.uint8)
    steps = np.diff(depth, axis=0, prepend=np.uint16(0))  # modulo 2^16
    steps[::_BAND] = np.diff(depth[::_BAND], axis=1, prepend=np.uint16(0))
    steps += _MIDDLE
    planes = steps.astype(np.uint8).tobytes() + (steps >> _BYTE).astype(np.uint8).tobytes()
    return np.frombuffer(zstandard.ZstdCompressor(level=_LEVEL).compress(planes), np.uint8)


def unpack_rgb(data: NDArray[np.uint8], kind: str, shape: tuple[int, int], cut: Cut) -> NDArray[np.uint8]:
    """The rows and columns of `cut` of (h, w, 3) RGB; a view where nothing is compressed.

    Raises:
        ValueError: the bytes do not decode to that shape.
    """
    if kind == "compact" and data.size:
        data = simplejpeg.decode_jpeg(data, "RGB")
    return data.reshape(*shape, 3)[cut]


def unpack_depth(data: NDArray[np.uint8], kind: str, shape: tuple[int, int], cut: Cut) -> NDArray[np.uint16]:
    """The rows and columns of `cut` of (h, w) depth; as `unpack_rgb`."""
    if kind == "raw":
        return data.view("<u2").reshape(shape)[cut]
    try:
        if zstandard.frame_content_size(data.data) != 2 * shape[0] * shape[1]:  # so much memory it would take
            raise ValueError(f"not two bytes for each of {shape}")
        low, high = np.frombuffer(_DECOMPRESSOR.decompress(data.data), np.uint8).reshape(2, *shape)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    rows, columns = cut
    first = rows.start // _BAND * _BAND
    around = slice(first, rows.stop), slice(0, columns.stop)
    depth = high[around].astype(np.uint16)
    depth <<= _BYTE
    depth += low[around]
    depth -= _MIDDLE
    heads = depth[::_BAND]
    np.cumsum(heads, axis=1, dtype=np.uint16, out=heads)
    for k in range(1, min(_BAND, len(depth))):
        here = depth[k::_BAND]
        here += depth[k - 1 :: _BAND][: len(here)]
    return depth[rows.start - first :, columns]
