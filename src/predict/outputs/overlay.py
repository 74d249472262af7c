"""Hands drawn into their pictures: shaded mesh, skeleton, box. Pictures are RGB."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from src.predict.frame import HandBox
from src.predict.hands import Hands
from src.render.overlay import NEAREST_M, draw_meshes
from src.render.pictures import draw_skeleton

RIGHT_RGB, LEFT_RGB = (120, 175, 250), (250, 165, 95)


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
    faces = [hands.faces_of(k) for k in range(len(hands))]
    tints = [LEFT_RGB if left else RIGHT_RGB for left in hands.left]
    draw_meshes(picture, intrinsics_px, hands.vertices_m, faces, tints)
    thickness = max(1, round(min(rgb.shape[:2]) / 300))
    for k, box in enumerate(boxes):
        joints = hands.joints_m[k].astype(np.float64)
        pixels = np.full((len(joints), 2), np.nan)
        front = joints[:, 2] > NEAREST_M
        seen = joints[front] @ intrinsics_px.T
        pixels[front] = seen[:, :2] / seen[:, 2:]
        picture = draw_skeleton(picture, pixels, thickness=thickness)
        x0, y0, x1, y1 = (round(v) for v in np.clip(box.box_px, -1e6, 1e6).tolist())
        cv2.rectangle(
            picture, (x0, y0), (x1, y1), LEFT_RGB if box.left else RIGHT_RGB, thickness, cv2.LINE_AA
        )
    return picture
