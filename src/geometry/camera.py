"""Pinhole projection and its inverse.

Camera frame: x right, y down, z forward, metres. Pixels: x right, y down, the centre of the first pixel is
(0, 0). Intrinsics K = [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in pixels. Any leading axes, broadcast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.geometry.rotation import need_axes


def project(points_cam_m: Tensor, intrinsics_px: Tensor) -> Tensor:
    """Project points to pixels.

    Args:
        points_cam_m: (..., N, 3), camera frame, metres (any unit gives the same pixels).
        intrinsics_px: (..., 3, 3) in pixels; leading axes broadcast with those of the points.

    Returns:
        (..., N, 2) pixels. A point in the camera's plane gives inf or nan: callers that may see one must ask
        for z > 0 themselves.

    Raises:
        ShapeError: last axes are not 3 or (3, 3).
    """
    need_axes(points_cam_m, (3,), "points_cam_m")
    need_axes(intrinsics_px, (3, 3), "intrinsics_px")
    rays = points_cam_m @ intrinsics_px.transpose(-1, -2)
    return rays[..., :2] / rays[..., 2:]


def unproject(points_px: Tensor, depth_m: Tensor, intrinsics_px: Tensor) -> Tensor:
    """Points of the camera frame that project to given pixels at given depths.

    Args:
        points_px: (..., N, 2) pixels.
        depth_m: (..., N) z along the optical axis, metres.
        intrinsics_px: (..., 3, 3).

    Returns:
        (..., N, 3) metres.

    Raises:
        ShapeError: last axes are not 2 or (3, 3).
    """
    need_axes(points_px, (2,), "points_px")
    need_axes(intrinsics_px, (3, 3), "intrinsics_px")
    k = intrinsics_px
    y = (points_px[..., 1] - k[..., 1, 2, None]) / k[..., 1, 1, None]
    x = (points_px[..., 0] - k[..., 0, 2, None] - k[..., 0, 1, None] * y) / k[..., 0, 0, None]
    return torch.stack([x, y, torch.ones_like(x)], -1) * depth_m[..., None]
