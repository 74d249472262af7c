"""A room with more in it than a table and a wall: flat things at any depth behind the hand, fine detail."""

from __future__ import annotations

import cv2
import numpy as np

from dataloader.synthetic.common import Image
from dataloader.synthetic.scene.appearance import noise, texture
from dataloader.synthetic.scene.cameras import HEIGHT, WIDTH

_NEAR_SHARE = 0.5
_NEAR_M, _FAR_M = (0.01, 0.12), (0.12, 2.5)
"""How far behind the hand everything ends: in this share of rooms near it, in the others farther away."""

_TILT = 4e-4
"""Metres of depth in each pixel across a surface, standard deviation."""

_DECAY = 1.25
"""Amplitudes of a photograph fall about as frequency to this power."""


def furnish(rng: np.random.Generator, rgb: Image, depth_m: Image, nearest_m: float) -> None:
    """Put things into a room, in place, none of them nearer than `nearest_m`.

    Args:
        rng: of this room.
        rgb: (480, 640, 3) colours, 0-255.
        depth_m: (480, 640) z > 0.
        nearest_m: z of the farthest part of the hand, its forearm and what it holds.
    """
    near = rng.random() < _NEAR_SHARE
    far = float(np.exp(rng.uniform(*np.log(_NEAR_M if near else _FAR_M)))) + nearest_m
    np.minimum(depth_m, _plane(rng, far, nearest_m, HEIGHT, WIDTH), out=depth_m)
    if rng.random() < 0.6:
        rgb += _natural(rng) * np.float32(rng.uniform(4, 28))
    for _ in range(rng.integers(0, 7)):
        _stand(rng, rgb, depth_m, nearest_m, far)
    light = noise(rng, HEIGHT, WIDTH, cells=2, octaves=1, channels=1)
    rgb *= 1 + np.float32(rng.uniform(0, 0.9)) * light
    np.clip(rgb, 0, 255, out=rgb)


def _natural(rng: np.random.Generator) -> Image:
    """(480, 640, 3) noise of unit variance with the spectrum of a photograph."""
    down, across = np.fft.fftfreq(HEIGHT // 2)[:, None], np.fft.rfftfreq(WIDTH // 2)
    frequency = np.hypot(down, across).astype(np.float32)
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(rng.standard_normal((2, HEIGHT // 2, WIDTH // 2), np.float32))
    field = np.fft.irfft2(white / frequency**_DECAY, (HEIGHT // 2, WIDTH // 2)).astype(np.float32)
    field /= field.std(axis=(1, 2), keepdims=True)
    grey, tint = (cv2.resize(part, (WIDTH, HEIGHT))[..., None] for part in field)
    return np.asarray(grey + 0.35 * tint * rng.normal(size=3).astype(np.float32), np.float32)


def _plane(rng: np.random.Generator, z_m: float, nearest_m: float, rows: int, columns: int) -> Image:
    """(rows, columns) depth of a surface tilted at random, at `z_m` in its middle and never before
    `nearest_m`."""
    tilt = _TILT * rng.normal(size=2)
    down, across = tilt[0] * (np.arange(rows) - rows / 2), tilt[1] * (np.arange(columns) - columns / 2)
    return np.asarray(np.maximum(z_m + down[:, None] + across, nearest_m), np.float32)


def _stand(rng: np.random.Generator, rgb: Image, depth_m: Image, near: float, far: float) -> None:
    """One flat thing, tilted in depth: a slab, a disc or an odd shape, in front of what is behind it."""
    z = near + (far - near) * rng.random() ** 2
    wide, high = (int(side / z) for side in rng.uniform(30, 260, 2))
    x, y = int(rng.uniform(-wide / 2, WIDTH)), int(rng.uniform(-high / 2, HEIGHT))
    left, top = max(x, 0), max(y, 0)
    window = (slice(top, min(y + high, HEIGHT)), slice(left, min(x + wide, WIDTH)))
    rows, columns = depth_m[window].shape
    if rows < 8 or columns < 8:
        return
    mask = np.zeros((rows, columns), np.uint8)
    shape = rng.integers(3)
    if shape == 0:
        mask[:] = 1
    elif shape == 1:
        cv2.ellipse(mask, (columns // 2, rows // 2), (columns // 2, rows // 2), 0.0, 0.0, 360.0, 1, -1)
    else:
        corners = (rng.random((6, 2)) * [columns, rows]).astype(np.int32)
        cv2.fillConvexPoly(mask, cv2.convexHull(corners), 1)
    plane = _plane(rng, z, near, rows, columns)
    front = (mask > 0) & (plane < depth_m[window])
    depth_m[window][front] = plane[front]
    shade = np.float32(rng.uniform(0.4, 1.1))
    rgb[window][front] = texture(rng, rows, columns)[front] * shade
