"""Things to hold: a signed distance field, a textured mesh and the eight corners of each.

Object frame: origin at the centre, long axis along z, metres. A mug's handle points along +x.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from dataloader.synthetic.common import Array, Index

Mesh = tuple[Array, Index, Array]
"""Vertices (M, 3) metres, faces (K, 3), texture coordinates (M, 2)."""

KINDS: dict[str, str] = {"box": "B", "cylinder": "C", "mug": "M", "ball": "S", "bottle": "T"}
"""Kind -> letter in a sequence's name; objLabel counts them from 1."""

_SIDES = 32
"""Edges of a round cross-section."""

_OUTLINES = {
    "cylinder": [(0, -1), (1, -1), (1, 1), (0, 1)],
    "mug": [(0, -1), (1, -1), (1, 1), (0.9, 1), (0.9, -0.9), (0, -0.9)],
    "bottle": [(0, -1), (1, -1), (1, 0.25), (0.85, 0.4), (0.42, 0.55), (0.42, 1), (0, 1)],
}
"""Corners of round things as shares of their radius and half length, from the middle of the floor upwards."""

_HANDLE_RADIUS_M = 0.0055
_HANDLE_ARC = np.linspace(-1.25, 1.25, 9)


@dataclass(frozen=True)
class HeldObject:
    """One object: kind and half extents (half width, half depth, half length), metres."""

    kind: str
    half_m: Array
    """(3,)."""

    @property
    def corners_m(self) -> Array:
        """(8, 3) corners of its bounding box, object frame."""
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
        return signs * self.half_m

    def distance(self, points_m: Array) -> Array:
        """Signed distance (...,) of points (..., 3) in the object frame; negative inside."""
        radius, half = self.half_m[0], self.half_m[2]
        if self.kind == "box":
            return _box_distance(np.abs(points_m) - self.half_m)
        if self.kind == "ball":
            return np.asarray(np.linalg.norm(points_m, axis=-1) - radius)
        across = np.hypot(points_m[..., 0], points_m[..., 1])
        z = points_m[..., 2]
        if self.kind == "bottle":
            body = _box_distance(np.stack([across - radius, np.abs(z + 0.3 * half) - 0.7 * half], -1))
            neck = _box_distance(np.stack([across - 0.42 * radius, np.abs(z) - half], -1))
            return np.minimum(body, neck)
        wall = _box_distance(np.stack([across - radius, np.abs(z) - half], -1))
        if self.kind == "mug":
            bead = np.linalg.norm(points_m[..., None, :] - self._handle(), axis=-1).min(-1)
            return np.asarray(np.minimum(wall, bead - _HANDLE_RADIUS_M))
        return wall

    def _handle(self) -> Array:
        """(9, 3) centre line of a mug's handle."""
        reach = 0.62 * self.half_m[2]
        x = 0.92 * self.half_m[0] + (np.cos(_HANDLE_ARC) - 0.32) * reach
        return np.stack([x, np.zeros_like(x), np.sin(_HANDLE_ARC) * reach], 1)

    def mesh(self) -> Mesh:
        """Vertices (M, 3) metres, faces (K, 3), texture coordinates (M, 2); no vertex is shared across a
        crease."""
        if self.kind == "box":
            return _box_mesh(self.half_m)
        if self.kind == "ball":
            angle = np.linspace(-np.pi / 2, np.pi / 2, 17)
            return _revolved([np.stack([np.cos(angle), np.sin(angle)], 1) * self.half_m[0]])
        outline = np.array(_OUTLINES[self.kind]) * self.half_m[[0, 2]]
        body = _revolved([outline[i : i + 2] for i in range(len(outline) - 1)])
        return _joined(body, self._handle_mesh()) if self.kind == "mug" else body

    def _handle_mesh(self) -> Mesh:
        """A bent tube."""
        around = np.linspace(0, 2 * np.pi, 10)[:, None]
        outward = np.stack([np.cos(_HANDLE_ARC), np.zeros(9), np.sin(_HANDLE_ARC)], 1)[:, None]
        offset = np.cos(around) * outward + np.sin(around) * np.array([0, 1.0, 0])
        vertices = (self._handle()[:, None] + _HANDLE_RADIUS_M * offset).reshape(-1, 3)
        return vertices, _grid_faces(9, 10), np.full((len(vertices), 2), 0.3)


def draw_object(rng: np.random.Generator, size: float = 1.0) -> HeldObject:
    """A random object that one hand can hold, made larger by a factor."""
    kind = list(KINDS)[rng.integers(len(KINDS))]
    if kind == "box":
        half = rng.uniform([0.012, 0.020, 0.045], [0.034, 0.042, 0.095])
    elif kind == "ball":
        half = np.full(3, rng.uniform(0.022, 0.042))
    else:
        low, high = [0.010, 0.05, 0.034, 0.042, 0.024, 0.07], [0.036, 0.10, 0.042, 0.052, 0.036, 0.11]
        radius, length = rng.uniform(low, high).reshape(3, 2)[list(_OUTLINES).index(kind)]
        half = np.array([radius, radius, length])
    return HeldObject(kind, size * half)


def _box_distance(outside: Array) -> Array:
    """Distance to a box from |point| - half extents (..., d)."""
    return np.asarray(np.linalg.norm(np.maximum(outside, 0), axis=-1) + np.minimum(outside.max(-1), 0))


def _box_mesh(half: Array) -> Mesh:
    """Six separate squares."""
    vertices, uv = [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            for a, b in ((-1, -1), (-1, 1), (1, 1), (1, -1)):
                point = np.empty(3)
                point[axis], point[(axis + 1) % 3], point[(axis + 2) % 3] = sign, a, b * sign
                vertices.append(point * half)
                uv.append(((a + 1) / 2, (b + 1) / 2))
    first = np.arange(0, 24, 4)[:, None]
    faces = np.concatenate([first + np.array([0, 2, 1]), first + np.array([0, 3, 2])])
    return np.array(vertices), faces, np.array(uv, np.float64)


def _revolved(parts: list[Array]) -> Mesh:
    """Outlines (radius, z), each smooth in itself, turned about z."""
    angle = np.linspace(0, 2 * np.pi, _SIDES + 1)
    meshes = []
    for part in parts:
        r, z = part[:, 0, None], part[:, 1, None]
        vertices = np.stack([r * np.cos(angle), r * np.sin(angle), z + 0 * angle], -1).reshape(-1, 3)
        if len(part) == 2 and part[0, 1] == part[1, 1]:
            reach = max(np.abs(vertices).max(), 1e-6)
            uv = 0.5 + 0.45 * vertices[:, :2] / reach
        else:
            height = np.linspace(0, 1, len(part))[:, None]
            uv = np.stack(np.broadcast_arrays(angle / np.pi, height), -1).reshape(-1, 2)
        meshes.append((vertices, _grid_faces(len(part), _SIDES + 1), uv))
    return functools.reduce(_joined, meshes)


def _grid_faces(rows: int, columns: int) -> Index:
    """Two triangles for each cell of a rows x columns grid of vertices."""
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1, 1)
    halves = np.array([[0, 1, columns + 1], [0, columns + 1, columns]])
    return np.concatenate([corner + halves[0], corner + halves[1]])


def _joined(a: Mesh, b: Mesh) -> Mesh:
    """Two meshes as one."""
    return np.vstack([a[0], b[0]]), np.vstack([a[1], b[1] + len(a[0])]), np.vstack([a[2], b[2]])
