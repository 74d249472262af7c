"""Boxes from depth alone: the nearest surface that has a hand's size, at the end of an arm or by itself.

A surface is what hangs together without a step in depth. An arm enters from the picture's border; distances
are measured along the surface from there, so an arm that comes towards the camera is not shortened. The wrist
is the narrowest place before the far end; behind it comes the hand, or a hand and what it holds. What is
round, of a hand's size and nearer than any hand is taken for one: depth cannot know better.

Legend: h w size of the reduced depth picture; P pixels of one surface. Image camera, metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from src.errors import DataError
from src.predict.frame import Frame, HandBox

Array = NDArray[np.float64]

NEAREST_M, FARTHEST_M = 0.10, 1.60
"""Where a hand can stand."""

LONGER_SIDE = 160
"""Pixels of the reduced picture's longer side: a hand at 1 m is still about 15 of them wide."""

STEP_M = 0.02
"""Neighbours whose depth differs by more than this, and this share of their distance, are two surfaces."""
STEP_SHARE = 0.02

HAND_M = (0.08, 0.22)
"""A hand along the surface, from the wrist: a fist, and a large hand stretched out."""

WRIST_M = (0.09, 0.24)
"""How far before the far end the wrist is looked for: a fist, and a hand with a thing that juts out."""

THIN_M = 0.035
"""No wrist is narrower: a finger that points, a stick or a pen is, and the far end is where it begins."""

SEEN_M = 0.16
"""How much behind the wrist counts as the hand: beyond stands what it holds, or the tips of a long hand."""

WIDEST_M = 0.25
"""A wider surface is a table or a wall, or a hand that lies on one."""

FLAT_M = 0.003
"""A hand's surface is off its best plane by more (root mean square), a board's or a wall's by less."""

SKIN_M = 0.007
"""From the outline of a hand to its joints."""

PLANES, PLANE_M, TRIES = 3, 0.012, 100
"""Planes taken out of a surface that is too wide, half their thickness, and points tried for each."""

BAND_M = 0.01
"""Length of the pieces of an arm whose width is measured."""


class DepthBoxes:
    """The nearest surface of a hand's size; a `BoxFinder` of one hand at most, which it calls a right one."""

    def find(self, frame: Frame) -> list[HandBox]:
        """The nearest hand; none if no surface has a hand's size.

        Raises:
            DataError: the frame has no depth.
        """
        if frame.depth_m is None:
            raise DataError(
                f"{frame.name}: there is no depth to find a hand in. Give the depth pictures, or other boxes"
            )
        view = _View.of(frame)
        hands = [hand for part in view.surfaces(view.valid) for hand in _hands(view, part, PLANES)]
        if not hands:
            return []
        nearest = min(hands, key=lambda hand: float(np.median(view.points[hand][:, 2])))
        return [HandBox(_box(frame, view.points[nearest]))]


@dataclass(frozen=True, eq=False)
class _View:
    """A reduced depth picture as points."""

    points: Array
    """(h * w, 3)."""
    valid: NDArray[np.bool_]
    """(h * w,) something was measured where a hand can stand."""
    from_border: NDArray[np.int64]
    """(h * w,) pixels to the picture's border."""
    edges: sparse.csr_array
    """(h * w, h * w) distance between neighbours on one surface."""

    @classmethod
    def of(cls, frame: Frame) -> _View:
        """Reduce a frame with depth."""
        assert frame.depth_m is not None
        stride = max(1, round(max(frame.depth_m.shape) / LONGER_SIDE))
        # Noise would make the ways along a surface longer.
        measured = np.isfinite(frame.depth_m) & (frame.depth_m < FARTHEST_M)
        known = np.where(measured, frame.depth_m, np.float32(0))
        z = cv2.medianBlur(known, 5)[::stride, ::stride].astype(np.float64)
        h, w = z.shape
        y, x = np.mgrid[:h, :w]
        pixels = np.stack([x * stride, y * stride, np.ones((h, w))], axis=-1)
        valid = z > NEAREST_M
        z = np.where(valid, z, 0.0)
        points = (pixels @ np.linalg.inv(frame.intrinsics_px).T * z[..., None]).reshape(-1, 3)
        border = np.minimum.reduce([x, y, w - 1 - x, h - 1 - y]).ravel()
        return cls(points, valid.ravel(), border, _neighbours(z, points))

    def surfaces(self, where: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
        """Pixels of each surface in a part of the picture that may hold a hand, (P,) each."""
        seen = np.flatnonzero(where)
        _, label = csgraph.connected_components(self.edges[seen][:, seen], directed=False)
        order = np.argsort(label, kind="stable")
        parts = np.split(seen[order], np.flatnonzero(np.diff(label[order])) + 1)
        spread = [np.ptp(self.points[part], axis=0) if len(part) else np.zeros(3) for part in parts]
        return [part for part, s in zip(parts, spread, strict=True) if np.linalg.norm(s) > HAND_M[0]]


def _neighbours(z: Array, points: Array) -> sparse.csr_array:
    """Graph of the pixels that hang together: (h, w) depth and its (h * w, 3) points -> distances."""
    h, w = z.shape
    number = np.arange(h * w).reshape(h, w)
    first, second = [], []
    for a, b in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:-1, :-1], np.s_[1:, 1:]),
        (np.s_[:-1, 1:], np.s_[1:, :-1]),
    ):
        near = np.minimum(z[a], z[b])
        joined = (near > 0) & (np.abs(z[a] - z[b]) < STEP_SHARE * near + STEP_M / 2)
        first.append(number[a][joined])
        second.append(number[b][joined])
    i, j = np.concatenate(first), np.concatenate(second)
    length = np.linalg.norm(points[i] - points[j], axis=1)
    return sparse.csr_array((length, (i, j)), shape=(h * w, h * w))


def _hands(view: _View, part: NDArray[np.int64], planes: int) -> list[NDArray[np.int64]]:
    """Pixels of the hand at the end of a surface; of a wide one, of what is left without its planes."""
    border = view.from_border[part]
    away = csgraph.dijkstra(
        view.edges[part][:, part],
        directed=False,
        indices=np.flatnonzero(border <= max(1, border.min())),
        min_only=True,
    )
    width = _widths(view.points[part], away)
    end = float(np.flatnonzero(width >= THIN_M).max(initial=0)) * BAND_M
    if end < HAND_M[0]:
        return []
    first, last = (max(0, round((end - m) / BAND_M)) for m in reversed(WRIST_M))
    wrist = (first + int(np.argmin(width[first : last + 1]))) * BAND_M
    hand = part[(away >= wrist) & (away <= wrist + SEEN_M)]
    if width[round(wrist / BAND_M) :].max() <= WIDEST_M:
        return [] if _is_flat(view.points[hand]) else [hand]
    if planes == 0:
        return []
    left = np.zeros(len(view.points), bool)
    left[part] = ~_on_plane(view.points[part])
    return [found for rest in view.surfaces(left) for found in _hands(view, rest, planes - 1)]


def _widths(points: Array, away: Array) -> Array:
    """Width of a surface in each band of the distance along it, smoothed over three bands."""
    band = (away / BAND_M).astype(int)
    count = np.maximum(np.bincount(band), 1)
    mean = np.stack([np.bincount(band, axis) / count for axis in points.T], axis=1)
    off = ((points - mean[band]) ** 2).sum(axis=1)
    width = np.sqrt(12 * np.bincount(band, off) / count)  # of a line of that variance
    padded = np.pad(width, 1, mode="edge")
    smooth: Array = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    return smooth


def _is_flat(points: Array) -> bool:
    """Whether points (P, 3) lie on one plane."""
    off = points - points.mean(axis=0)
    return bool(np.linalg.eigvalsh(off.T @ off / len(points))[0] < FLAT_M**2)


def _on_plane(points: Array) -> NDArray[np.bool_]:
    """(P,) which points lie on the plane that most of them share."""
    draw = np.random.default_rng(0)
    corners = points[draw.integers(len(points), size=(TRIES, 3))]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    off = np.abs(points @ normal.T - (normal * corners[:, 0]).sum(axis=1))
    on = off < PLANE_M
    return np.asarray(on[:, on.sum(axis=0).argmax()])


def _box(frame: Frame, points: Array) -> tuple[float, float, float, float]:
    """Box around the joints of a hand whose surface is seen as these points."""
    pixels = points @ frame.intrinsics_px.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    skin = SKIN_M * np.diag(frame.intrinsics_px)[:2] / np.median(points[:, 2])
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    inset = np.minimum(skin, (high - low) / 4)
    (x0, y0), (x1, y1) = (low + inset).tolist(), (high - inset).tolist()
    return x0, y0, x1, y1
