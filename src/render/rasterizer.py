"""Exact z-buffer rasteriser in numpy: which triangle is seen at which pixel, where on it, and how far.

Camera: OpenCV (x right, y down, z forward), metres. A pixel is sampled at its integer coordinates, the same
convention as `project`: point (X, Y, Z) lands on pixel (fx X / Z + cx, fy Y / Z + cy).

Each triangle is written in homogeneous pixel coordinates p_k = K X_k. The rows of the inverse of [p_0 p_1
p_2] are then linear functions of the pixel that equal (barycentric weight of vertex k) / z. A pixel is
covered where all three are >= 0. This holds for triangles that reach behind the camera as well, so nothing is
clipped by hand.

Legend: V vertices, F triangles, P pixels that show a surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.errors import ShapeError

_DEGENERATE = 1e-12
"""Triangles whose |det [p_0 p_1 p_2]| (pixels^2 metres^3) is below this are edge-on and cover nothing.
"""

_ON_EDGE_PX = 1e-7
"""A pixel this near to an edge counts as covered, so that rounding opens no seam between two triangles."""


@dataclass(frozen=True)
class Fragments:
    """The visible surface, one entry for each covered pixel, in ascending order of `pixel`."""

    pixel: NDArray[np.int64]
    """(P,) y * width + x."""
    triangle: NDArray[np.int64]
    """(P,) row of `faces`."""
    barycentric: NDArray[np.float32]
    """(P, 3) perspective-correct weights of the triangle's vertices."""
    depth_m: NDArray[np.float32]
    """(P,) z of the surface, camera frame."""


def rasterize(
    vertices_cam_m: NDArray[np.float64],
    faces: NDArray[np.int64],
    intrinsics_px: NDArray[np.float64],
    width: int,
    height: int,
    *,
    near_m: float = 0.05,
    one_sided: NDArray[np.bool_] | None = None,
) -> Fragments:
    """Nearest surface at each pixel.

    Args:
        vertices_cam_m: (V, 3), OpenCV camera frame, any z.
        faces: (F, 3) vertex indices; counter-clockwise seen from outside.
        intrinsics_px: (3, 3) K with last row 0 0 1.
        width: pixels.
        height: pixels.
        near_m: surfaces nearer than this are not seen.
        one_sided: (F,) triangles to leave out where their back is seen; None shows both sides of all.

    Raises:
        ShapeError: an array has another shape than stated.
    """
    if vertices_cam_m.ndim != 2 or vertices_cam_m.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise ShapeError(
            f"rasterize: got vertices {vertices_cam_m.shape}, faces {faces.shape}; want (V, 3), (F, 3)"
        )
    planes, rows, faces_kept = _triangle_planes(
        vertices_cam_m, faces, intrinsics_px, height, near_m=near_m, one_sided=one_sided
    )
    triangle, y, first, count = _spans(planes, rows, width, 1.0 / near_m)
    fragment = np.repeat(np.arange(len(triangle)), count)
    x = _ramp(count) + first[fragment]
    triangle, y = triangle[fragment], y[fragment]
    weights = planes[:, :3]
    inverse_depth = planes[:, 3]
    near = inverse_depth[triangle, 0] * x + inverse_depth[triangle, 1] * y + inverse_depth[triangle, 2]
    seen = _nearest(y * width + x, near, width * height)
    triangle, x, y, near = triangle[seen], x[seen], y[seen], near[seen]
    chosen = weights[triangle]
    over_z = chosen[:, :, 0] * x[:, None] + chosen[:, :, 1] * y[:, None] + chosen[:, :, 2]
    return Fragments(
        pixel=y * width + x,
        triangle=faces_kept[triangle],
        barycentric=(over_z / near[:, None]).astype(np.float32),
        depth_m=(1.0 / near).astype(np.float32),
    )


def _triangle_planes(
    vertices: NDArray[np.float64],
    faces: NDArray[np.int64],
    intrinsics: NDArray[np.float64],
    height: int,
    *,
    near_m: float,
    one_sided: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """(T, 4, 3) linear functions of (x, y, 1): weight_k / z and 1 / z; (T, 2) rows touched; (T,) face
    numbers."""
    homogeneous = vertices @ intrinsics.T
    depth = homogeneous[:, 2]
    p = homogeneous[faces]
    cross = np.stack([_cross(p[:, 1], p[:, 2]), _cross(p[:, 2], p[:, 0]), _cross(p[:, 0], p[:, 1])], axis=1)
    determinant = np.einsum("ti,ti->t", p[:, 0], cross[:, 0])
    z = depth[faces]
    keep = (np.abs(determinant) > _DEGENERATE) & (z.max(1) > near_m)
    if one_sided is not None:
        # With y down, a counter-clockwise outside that faces the camera has a negative determinant.
        keep &= ~one_sided | (determinant < 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        row_of_vertex = np.where(depth > near_m, homogeneous[:, 1] / depth, np.nan)
    v = row_of_vertex[faces]
    reaches_behind = np.isnan(v).any(1)
    top = np.where(reaches_behind, 0.0, np.ceil(np.nan_to_num(v).min(1)))
    bottom = np.where(reaches_behind, height - 1.0, np.floor(np.nan_to_num(v).max(1)))
    rows = np.stack([top.clip(0, height), bottom.clip(-1, height - 1)], 1).astype(np.int64)
    keep &= rows[:, 1] >= rows[:, 0]
    weights = cross[keep] / determinant[keep, None, None]
    planes = np.concatenate([weights, weights.sum(1, keepdims=True)], axis=1)
    return planes, rows[keep], np.flatnonzero(keep)


def _spans(
    planes: NDArray[np.float64], rows: NDArray[np.int64], width: int, largest_inverse_depth: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Covered runs.

    Triangle, row, first column, length. Each half-plane bounds x from one side.
    """
    per_triangle = rows[:, 1] - rows[:, 0] + 1
    triangle = np.repeat(np.arange(len(rows)), per_triangle)
    y = _ramp(per_triangle) + rows[triangle, 0]
    limits = planes.copy()
    limits[:, 3] *= -1.0
    limits[:, 3, 2] += largest_inverse_depth
    slope = limits[:, :, 0][triangle]
    offset = limits[:, :, 1][triangle] * y[:, None] + limits[:, :, 2][triangle]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = -offset / slope
    left = np.where(slope > 0, crossing, -1.0).max(1)
    right = np.where(slope < 0, crossing, float(width)).min(1)
    empty = ((slope == 0) & (offset < 0)).any(1)
    first = np.ceil(left - _ON_EDGE_PX).clip(0, width).astype(np.int64)
    last = np.floor(right + _ON_EDGE_PX).clip(-1, width - 1).astype(np.int64)
    count = np.where(empty, 0, (last - first + 1).clip(0))
    return triangle, y, first, count


def _nearest(pixel: NDArray[np.int64], near: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Indices of the fragments with the largest 1 / z at their pixel, ascending by pixel."""
    best = np.zeros(size)
    winner = np.full(size, -1, np.int64)
    candidates = np.flatnonzero(near > 0)
    while len(candidates):
        # Of several writers to one pixel the last one stays; those that it does not beat try again.
        best[pixel[candidates]] = near[candidates]
        winner[pixel[candidates]] = candidates
        candidates = candidates[near[candidates] > best[pixel[candidates]]]
    return winner[winner >= 0]


def _ramp(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 .. n-1 for each n of `counts`, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T, 3) cross product; several times faster than np.cross on short rows."""
    return np.stack(
        [
            a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1],
            a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
            a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0],
        ],
        axis=1,
    )
