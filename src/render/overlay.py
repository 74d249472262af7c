"""Meshes drawn over the pictures that they were seen in. Pictures are (H, W, 3) uint8 RGB."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from src.render.rasterizer import rasterize

NEAREST_M = 0.02
"""What is nearer than this to the camera is not drawn."""
_AMBIENT = 0.35
"""Brightness of a surface seen from the side; 1 where it faces the camera."""


def draw_meshes(
    picture: NDArray[np.uint8],
    intrinsics_px: NDArray[np.float64],
    vertices_m: NDArray[np.floating],
    faces: Sequence[NDArray[np.int64]],
    tints: Sequence[tuple[int, int, int]],
    *,
    opacity: float = 0.72,
    finer: int = 2,
) -> None:
    """Blend N meshes into a picture, in place; nearer ones cover others.

    Args:
        picture: what is drawn on.
        intrinsics_px: (3, 3) K of the picture.
        vertices_m: (N, V, 3) camera of the picture, OpenCV, metres; meshes that are not finite are left out.
        faces: N times (F, 3), counter-clockwise seen from outside.
        tints: N colours, RGB.
        opacity: of the meshes.
        finer: samples a pixel along x and y; 1 is three times as fast, with steps at the edges.
    """
    drawn = np.flatnonzero(np.isfinite(vertices_m).all(axis=(1, 2))).tolist()
    vertices = vertices_m[drawn].astype(np.float64)
    front = vertices[vertices[..., 2] > NEAREST_M]
    if not len(front):
        return
    seen = front @ intrinsics_px.T
    pixels = seen[:, :2] / seen[:, 2:]
    height, width = picture.shape[:2]
    # Only the rectangle that shows them is looked at.
    x0, y0 = (max(0, int(v)) for v in np.floor(pixels.min(0)).clip(-1, 1e6) - 1)
    x1, y1 = np.minimum(np.ceil(pixels.max(0)).clip(-1, 1e6) + 2, (width, height)).astype(int).tolist()
    if x0 >= x1 or y0 >= y1:
        return
    k_px = intrinsics_px * np.array([[finer], [finer], [1.0]])
    k_px[:2, 2] += (finer - 1) / 2 - finer * np.array([x0, y0])
    size = ((x1 - x0) * finer, (y1 - y0) * finer)
    corners = np.concatenate([faces[mesh] + k * vertices.shape[1] for k, mesh in enumerate(drawn)])
    owner = np.repeat(drawn, [len(faces[mesh]) for mesh in drawn])
    points = vertices.reshape(-1, 3)
    found = rasterize(points, corners, k_px, *size, near_m=NEAREST_M)
    shade = _shades(points, corners)[corners[found.triangle]]
    light = np.einsum("pk,pk->p", found.barycentric, shade)
    colours = np.array(tints, np.float64)[owner[found.triangle]]
    layer = np.zeros((size[1] * size[0], 4), np.float32)
    layer[found.pixel] = np.concatenate([colours * light[:, None], np.ones((len(light), 1))], axis=1)
    layer = layer.reshape(y1 - y0, finer, x1 - x0, finer, 4).mean(axis=(1, 3))
    window = picture[y0:y1, x0:x1]
    window[:] = np.rint(window * (1 - opacity * layer[..., 3:]) + opacity * layer[..., :3])


def _shades(points: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.float64]:
    """(P,) brightness of each vertex, lit from the camera."""
    a, b, c = points[faces].transpose(1, 0, 2)
    normals = np.zeros_like(points)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], np.cross(b - a, c - a))
    cosine = -(normals * points).sum(1)
    cosine /= np.maximum(np.linalg.norm(normals, axis=1) * np.linalg.norm(points, axis=1), 1e-12)
    return np.asarray(_AMBIENT + (1 - _AMBIENT) * np.abs(cosine))


def depth_picture(
    depth: NDArray[np.floating], valid: NDArray[np.bool_], near: float, far: float
) -> NDArray[np.uint8]:
    """Depth as a picture: near red, far violet, grey where nothing was measured.

    Args:
        depth: (H, W) any unit.
        valid: (H, W) where it was measured.
        near: what is red, in that unit; nearer is red as well.
        far: what is violet.
    """
    scaled = (far - np.nan_to_num(depth)) / (far - near)
    colours = cv2.applyColorMap((scaled.clip(0, 1) * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    return np.where(valid[..., None], colours, np.uint8(110))
