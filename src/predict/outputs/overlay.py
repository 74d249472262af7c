"""Hands drawn into their pictures: shaded mesh, skeleton, box. Pictures are RGB."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from src.predict.frame import HandBox
from src.predict.hands import Hands
from src.render.pictures import draw_skeleton
from src.render.rasterizer import rasterize

RIGHT_RGB, LEFT_RGB = (120, 175, 250), (250, 165, 95)
_OPACITY = 0.72
_FINER = 2
"""Samples a pixel along x and y."""
_AMBIENT = 0.35
"""Brightness of a surface seen from the side; 1 where it faces the camera."""
_NEAREST_M = 0.02


def draw_hands(
    rgb: NDArray[np.uint8], intrinsics_px: NDArray[np.float64], hands: Hands, boxes: Sequence[HandBox]
) -> NDArray[np.uint8]:
    """A copy of a picture with its hands: right ones blue, left ones orange; nearer ones cover others.

    Args:
        rgb: (H, W, 3).
        intrinsics_px: (3, 3) K.
        hands: N, NumPy arrays, image camera.
        boxes: N.
    """
    picture = np.ascontiguousarray(rgb).copy()
    if len(hands):
        _draw_meshes(picture, intrinsics_px, hands)
    thickness = max(1, round(min(rgb.shape[:2]) / 300))
    for k, box in enumerate(boxes):
        joints = hands.joints_m[k].astype(np.float64)
        pixels = np.full((len(joints), 2), np.nan)
        front = joints[:, 2] > _NEAREST_M
        seen = joints[front] @ intrinsics_px.T
        pixels[front] = seen[:, :2] / seen[:, 2:]
        picture = draw_skeleton(picture, pixels, thickness=thickness)
        x0, y0, x1, y1 = (round(v) for v in np.clip(box.box_px, -1e6, 1e6).tolist())
        cv2.rectangle(
            picture, (x0, y0), (x1, y1), LEFT_RGB if box.left else RIGHT_RGB, thickness, cv2.LINE_AA
        )
    return picture


def _draw_meshes(picture: NDArray[np.uint8], k_px: NDArray[np.float64], hands: Hands) -> None:
    """Blend the meshes into a picture, in place; only the rectangle that shows them is looked at."""
    vertices = hands.vertices_m.astype(np.float64)
    front = vertices[vertices[..., 2] > _NEAREST_M]
    if not len(front):
        return
    seen = front @ k_px.T
    pixels = seen[:, :2] / seen[:, 2:]
    height, width = picture.shape[:2]
    x0, y0 = (max(0, int(v)) for v in np.floor(pixels.min(0)).clip(-1, 1e6) - 1)
    x1, y1 = np.minimum(np.ceil(pixels.max(0)).clip(-1, 1e6) + 2, (width, height)).astype(int).tolist()
    if x0 >= x1 or y0 >= y1:
        return
    finer = k_px * np.array([[_FINER], [_FINER], [1.0]])
    finer[:2, 2] += (_FINER - 1) / 2 - _FINER * np.array([x0, y0])
    size = ((x1 - x0) * _FINER, (y1 - y0) * _FINER)
    count = vertices.shape[1]
    faces = np.concatenate([hands.faces_of(i) + i * count for i in range(len(hands))])
    points = vertices.reshape(-1, 3)
    found = rasterize(points, faces, finer, *size, near_m=_NEAREST_M)
    shade = _shades(points, faces)[faces[found.triangle]]
    light = np.einsum("pk,pk->p", found.barycentric, shade)
    tints = np.where(hands.left[:, None], LEFT_RGB, RIGHT_RGB)[found.triangle // len(hands.faces)]
    layer = np.zeros((size[1] * size[0], 4), np.float32)
    layer[found.pixel] = np.concatenate([tints * light[:, None], np.ones((len(light), 1))], axis=1)
    layer = layer.reshape(y1 - y0, _FINER, x1 - x0, _FINER, 4).mean(axis=(1, 3))
    window = picture[y0:y1, x0:x1]
    window[:] = np.rint(window * (1 - _OPACITY * layer[..., 3:]) + _OPACITY * layer[..., :3])


def _shades(points: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.float64]:
    """(P,) brightness of each vertex, lit from the camera."""
    a, b, c = points[faces].transpose(1, 0, 2)
    normals = np.zeros_like(points)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], np.cross(b - a, c - a))
    cosine = -(normals * points).sum(1)
    cosine /= np.maximum(np.linalg.norm(normals, axis=1) * np.linalg.norm(points, axis=1), 1e-12)
    return np.asarray(_AMBIENT + (1 - _AMBIENT) * np.abs(cosine))
