"""Picture files, written for the tests of this room."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np

SIZE = (240, 320)


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(h, w, 3) of blobs and sensor noise, with about the entropy of a photograph."""
    rng = np.random.default_rng(seed)
    blobs = cv2.resize(rng.uniform(0, 256, (9, 12, 3)), size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(blobs + rng.normal(0, 4, blobs.shape), 0, 255).astype(np.uint8)


def depth_picture(seed: int) -> np.ndarray:
    """(h, w, 3) of HO3D's depth: bytes B = 0, G, R."""
    depth = 4000 + 20 * picture(seed)[..., 0].astype(np.uint16)
    depth[: seed * 9] = 0
    return np.stack([np.zeros_like(depth), depth >> 8, depth & 255], axis=-1).astype(np.uint8)


def encoded(end: str, pixels: np.ndarray, **options: int) -> bytes:
    """A picture as OpenCV writes it; `QUALITY=60` and the like are its own names of what a JPEG may have."""
    flat = [n for key, value in options.items() for n in (getattr(cv2, f"IMWRITE_JPEG_{key}"), value)]
    return cv2.imencode(end, pixels, flat)[1].tobytes()


def jpeg(pixels: np.ndarray, **options: int) -> bytes:
    """One JPEG."""
    return encoded(".jpg", pixels, **options)


def png(pixels: np.ndarray) -> bytes:
    """One PNG."""
    return encoded(".png", pixels)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG with its right checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(size: tuple[int, int], bits: int, colour: int, rows: bytes) -> dict[str, bytes]:
    """The parts of a PNG of these bits and this colour type, by their names."""
    head = struct.pack(">IIBBBBB", size[1], size[0], bits, colour, 0, 0, 0)
    palette = {"PLTE": chunk(b"PLTE", bytes(range(12)))} if colour == 3 else {}
    return {
        "start": b"\x89PNG\r\n\x1a\n",
        "IHDR": chunk(b"IHDR", head),
        **palette,
        "IDAT": chunk(b"IDAT", zlib.compress(rows)),
        "IEND": chunk(b"IEND", b""),
    }
