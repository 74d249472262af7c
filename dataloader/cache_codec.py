"""How the crop cache stores pixels: as they are, or compressed. Legend: h w of the window held."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def encode_rgb(pixels: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """(h, w, 3) RGB -> bytes."""
    return np.ascontiguousarray(pixels).reshape(-1)


def encode_depth(depth: NDArray[np.uint16], kind: str) -> NDArray[np.uint8]:
    """(h, w) depth -> bytes, lossless."""
    return np.ascontiguousarray(depth, np.dtype("<u2")).reshape(-1).view(np.uint8)


def decode_rgb(data: NDArray[np.uint8], shape: tuple[int, int], kind: str) -> NDArray[np.uint8]:
    """Bytes -> (h, w, 3) RGB."""
    return data.reshape(*shape, 3)


def decode_depth(data: NDArray[np.uint8], shape: tuple[int, int], kind: str) -> NDArray[np.uint16]:
    """Bytes -> (h, w) depth."""
    return data.view(np.uint16).reshape(shape)
