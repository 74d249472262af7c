"""Topology of the procedural hand: tubes lofted over the skeleton, then drawn onto its distance field.

A surface that is a disk with b boundary edges has F = 2V - 2 - b triangles, so MANO's 778 vertices and 1538
faces ask for a wrist loop of 16 edges. The loft has 772 vertices; six edges of the palm are split to reach
778.

Construction: a palm of 14 rings of 20 vertices ends in four octagons (the finger bases, neighbours sharing
three vertices); eight-sided tubes grow from them; ten-sided tubes grow the thumb out of a hole in the
palm's side.
Unit: millimetres, frame of `shape.py`. Legend: V vertices, F faces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from dataloader.synthetic.common import LONG_FINGERS, Array, Index, unit
from dataloader.synthetic.hand.shape import PARTS, Finger, Skeleton, distance_and_gradient

NUM_VERTICES, NUM_FACES, WRIST_EDGES = 778, 1538, 16
_PALM_RINGS = 13
_HOLE_FIRST_RING, _HOLE_RINGS, _HOLE_COLUMNS = 3, 3, (19, 0)
_FAIRING_STEPS = 5
"""Plain smoothing of the raw loft: with 3 to 7 steps one face of the first web leans against the skin,
with 0 three, with 9 twenty-two."""
_SEAM_MOBILITY = {False: (0.4, 0.25), True: (0.5, 0.4, 0.3)}
"""Mobility of the first circles of a long finger and of the thumb."""
_BASE_AT = 0.40
"""Where a finger leaves the palm's web, as a share of its first bone."""


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh with what later stages need to know about its vertices."""

    points_mm: Array
    """(V, 3)."""
    faces: Index
    """(F, 3) counter-clockwise seen from outside."""
    part: Index
    """(V,) number in `PARTS`."""
    mobility: Array
    """(V,) share of a smoothing step that a vertex takes."""
    wrist_loop: Index
    """(16,) boundary vertices."""
    tips: dict[str, int]
    """finger -> vertex at its tip."""


@dataclass
class _Loft:
    """Vertices and polygons while they are being laid."""

    points: list[Array] = field(default_factory=list)
    part: list[int] = field(default_factory=list)
    mobility: list[float] = field(default_factory=list)
    quads: list[tuple[int, int, int, int]] = field(default_factory=list)
    triangles: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, point: Array, part: int, mobility: float) -> int:
        self.points.append(np.asarray(point, dtype=np.float64))
        self.part.append(part)
        self.mobility.append(mobility)
        return len(self.points) - 1

    def ring(self, points: Array, part: int, mobility: float) -> list[int]:
        return [self.add(point, part, mobility) for point in points]

    def band(self, lower: list[int], upper: list[int], hole: Sequence[int] = ()) -> None:
        """Quads between two closed rings of equal length, those that begin in `hole` left out."""
        for k, (a, b, c, d) in enumerate(zip(lower, _turned(lower), _turned(upper), upper, strict=True)):
            if k not in hole:
                self.quads.append((a, b, c, d))

    def fan(self, ring: list[int], apex: int) -> None:
        self.triangles += [(a, b, apex) for a, b in zip(ring, _turned(ring), strict=True)]


def _turned(ring: list[int]) -> list[int]:
    """The next vertex of each one of a closed ring."""
    return [*ring[1:], ring[0]]


def _finger_ring(finger: Finger, at_mm: float, sides: int) -> Array:
    """(sides, 3) circle about the chain at arc length `at_mm`, turned into the next bone near a joint."""
    joints, radii, arc = finger.joints_mm, finger.radii_mm, finger.arc_mm
    bone = int(np.searchsorted(arc, at_mm, "right")) - 1
    share = (at_mm - arc[bone]) / (arc[bone + 1] - arc[bone])
    centre = joints[bone] + share * (joints[bone + 1] - joints[bone])
    radius = radii[bone] + share * (radii[bone + 1] - radii[bone])
    direction = unit(joints[bone + 1] - joints[bone])
    if bone < 2 and share > 0.7:
        following = unit(joints[bone + 2] - joints[bone + 1])
        direction = unit(direction * (1.7 - share) + following * (share - 0.7))
    side = unit(np.cross([0.0, 1.0, 0.0], direction))
    upward = np.cross(direction, side)
    angle = np.arange(sides) * 2 * np.pi / sides
    return np.asarray(centre + radius * (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * upward))


def _finger_bases(loft: _Loft, skeleton: Skeleton) -> dict[str, list[int]]:
    """Octagon per long finger; corner 0 faces the thumb, 2 the back of the hand, neighbours share a side."""
    bases: dict[str, list[int]] = {}
    shared = {7: 5, 0: 4, 1: 3}
    for before, name in zip((None, *LONG_FINGERS), LONG_FINGERS, strict=False):
        finger = skeleton.fingers[name]
        circle = _finger_ring(finger, _BASE_AT * finger.arc_mm[1], 8)
        ids = []
        for k in range(8):
            if before is not None and k in shared:
                twin = bases[before][shared[k]]
                loft.points[twin] = (loft.points[twin] + circle[k]) / 2
                ids.append(twin)
            else:
                ids.append(loft.add(circle[k], 0, 0.5))
        bases[name] = ids
    return bases


def _wrist_ellipse(angle: Array, x: float, skeleton: Skeleton) -> Array:
    """(n, 3) points of the forearm's outline; angle 0 faces the thumb, pi / 2 the back of the hand."""
    depth, breadth = 16 * np.sin(angle), 29 * skeleton.width * np.cos(angle) - 1
    return np.stack([np.full_like(angle, x), depth, breadth], axis=1)


def _palm(loft: _Loft, bases: dict[str, list[int]], skeleton: Skeleton) -> tuple[list[list[int]], list[int]]:
    """Rings from wrist to finger bases and the open loop of the wrist; returns (rings, wrist loop)."""
    index, middle, ring, pinky = (bases[name] for name in LONG_FINGERS)
    back = [*index[0:4], *middle[2:4], *ring[2:4], *pinky[2:5]]
    front = [*pinky[5:8], *ring[6:8], *middle[6:8], *index[6:8]]
    end_ring = back + front
    half = np.linspace(0.16, 0.84, 9) * np.pi
    angle = np.concatenate([[0.0], half, [np.pi], np.pi + half])
    start, end = _wrist_ellipse(angle, 6.0, skeleton), np.array([loft.points[i] for i in end_ring])
    shares = np.arange(_PALM_RINGS) / _PALM_RINGS
    rings = [loft.ring(start * (1 - t) + end * t, 0, 0.5) for t in shares]
    rings.append(end_ring)
    for a in range(_PALM_RINGS):
        in_hole = _HOLE_FIRST_RING <= a < _HOLE_FIRST_RING + _HOLE_RINGS
        loft.band(rings[a], rings[a + 1], _HOLE_COLUMNS if in_hole else ())
    loop_angle = np.arange(WRIST_EDGES) * 2 * np.pi / WRIST_EDGES
    loop = loft.ring(_wrist_ellipse(loop_angle, 16.0, skeleton), 0, 0.0)
    _zip_rings(loft, loop, rings[0], angle / (2 * np.pi))
    return rings, loop


def _zip_rings(loft: _Loft, coarse: list[int], fine: list[int], fine_turn: Array) -> None:
    """Triangles between two rings of different length, always advancing the one that lags behind."""
    i = k = 0
    n, m = len(coarse), len(fine)
    turn = np.append(fine_turn, 1.0)
    while i < n or k < m:
        if i < n and (i + 1) / n <= turn[k + 1]:
            loft.triangles.append((coarse[i % n], coarse[(i + 1) % n], fine[k % m]))
            i += 1
        else:
            loft.triangles.append((fine[k % m], coarse[i % n], fine[(k + 1) % m]))
            k += 1


def _tube(loft: _Loft, first: list[int], name: str, skeleton: Skeleton) -> int:
    """Grow a finger from its base, circle by circle; returns the vertex at its tip."""
    finger, part, previous = skeleton.fingers[name], PARTS.index(name), first
    stations = _stations(name, finger)
    # Circles near the palm slide to even out its seam; the tip keeps the even spacing that makes it round.
    mobilities = [*_SEAM_MOBILITY[name == "thumb"], *[0.12] * len(stations)][: len(stations) - 2] + [0.05] * 2
    for at, mobility in zip(stations, mobilities, strict=True):
        ring = loft.ring(_finger_ring(finger, at, len(first)), part, mobility)
        loft.band(previous, ring)
        previous = ring
    apex = loft.add(finger.joints_mm[3], part, 0.0)
    loft.fan(previous, apex)
    return apex


def _stations(name: str, finger: Finger) -> list[float]:
    """Arc lengths of a finger's circles: close together at the joints, where the skin folds."""
    _, first, second, total = finger.arc_mm
    tip, end = finger.radii_mm[3], total - second
    if name == "thumb":
        stations = [
            26.0,
            first - 7,
            first - 1.5,
            first + 4,
            first + 10,
            second - 7.5,
            second - 1.5,
            second + 4,
        ]
        return [*stations, second + 0.55 * end, total - 0.8 * tip, total - 0.25 * tip]
    stations = [*np.linspace(_BASE_AT * first, first - 6, 4)[1:], first - 2, first + 2, first + 6, second - 4]
    stations += [second, second + 0.38 * end, total - 0.85 * tip, total - 0.25 * tip]
    return sorted([*stations, (first + second) / 2 + 0.3] if name == "middle" else stations)


def _loft_hand(skeleton: Skeleton) -> Mesh:
    """The 772-vertex loft: right topology, positions still those of tubes and ellipses."""
    loft = _Loft()
    bases = _finger_bases(loft, skeleton)
    rings, wrist = _palm(loft, bases, skeleton)
    tips = {name: _tube(loft, bases[name], name, skeleton) for name in LONG_FINGERS}
    h0, h1, h2, h3 = rings[_HOLE_FIRST_RING : _HOLE_FIRST_RING + _HOLE_RINGS + 1]
    hole = [h0[0], h0[1], h1[1], h2[1], h3[1], h3[0], h3[19], h2[19], h1[19], h0[19]]
    tips["thumb"] = _tube(loft, hole, "thumb", skeleton)
    quads = np.array(loft.quads)
    faces = np.concatenate([loft.triangles, quads[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)])
    # The two vertices inside the thumb's hole belong to no face.
    used = np.isin(np.arange(len(loft.points)), faces)
    new = np.cumsum(used) - 1
    return Mesh(
        points_mm=np.array(loft.points)[used],
        faces=new[faces],
        part=np.array(loft.part, dtype=np.int64)[used],
        mobility=np.array(loft.mobility)[used],
        wrist_loop=new[np.array(wrist)],
        tips={name: int(new[i]) for name, i in tips.items()},
    )


def _split_longest(mesh: Mesh, count: int) -> Mesh:
    """Split the `count` longest inner edges of the palm, one after the other."""
    points, faces, part, mobility = mesh.points_mm, mesh.faces, mesh.part, mesh.mobility
    for _ in range(count):
        edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
        length = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
        length[part[edges].max(1) > 0] = 0
        a, b = edges[int(np.argmax(length))]
        middle = len(points)
        points = np.vstack([points, (points[a] + points[b]) / 2])
        part, mobility = np.append(part, 0), np.append(mobility, 0.5)
        cut = (faces == a).any(1) & (faces == b).any(1)
        halves = [np.where(faces[cut] == end, middle, faces[cut]) for end in (a, b)]
        faces = np.concatenate([faces[~cut], *halves])
    return dataclasses.replace(mesh, points_mm=points, faces=faces, part=part, mobility=mobility)


def neighbour_mean(faces: Index, num_vertices: int) -> sparse.csr_matrix:
    """(V, V) sparse operator that replaces each vertex by the mean of its neighbours."""
    a = np.concatenate([faces[:, k] for k in (0, 1, 1, 2, 2, 0)])
    b = np.concatenate([faces[:, k] for k in (1, 0, 2, 1, 0, 2)])
    links = sparse.csr_matrix((np.ones(len(a)), (a, b)), shape=(num_vertices, num_vertices))
    links.data[:] = 1.0
    return sparse.csr_matrix(sparse.diags(1 / np.asarray(links.sum(1)).ravel()) @ links)


def build_mesh(skeleton: Skeleton) -> Mesh:
    """The 778-vertex mesh of `skeleton`, on its skin, in construction order."""
    mesh = _loft_hand(skeleton)
    mean, points = neighbour_mean(mesh.faces, len(mesh.points_mm)), mesh.points_mm.copy()
    pull = np.where(mesh.mobility >= 0.25, mesh.mobility, 0)[:, None]
    for _ in range(_FAIRING_STEPS):
        points += pull * (mean @ points - points)
    mesh = dataclasses.replace(mesh, points_mm=relax(mesh, points, skeleton, steps=60))
    mesh = _split_longest(mesh, NUM_VERTICES - len(points))
    mesh = dataclasses.replace(mesh, points_mm=relax(mesh, mesh.points_mm, skeleton, steps=40))
    assert mesh.points_mm.shape == (NUM_VERTICES, 3), mesh.points_mm.shape
    assert mesh.faces.shape == (NUM_FACES, 3), mesh.faces.shape
    return mesh


def relax(mesh: Mesh, points: Array, skeleton: Skeleton, *, steps: int) -> Array:
    """Alternate projection on the skin and tangential smoothing; the last steps only project.

    Args:
        mesh: topology and mobility.
        points: (V, 3) start, mm.
        skeleton: hand whose distance field is the target.
        steps: how often.

    Returns:
        (V, 3) mm, on the skin. The wrist loop keeps its cross section's plane.
    """
    mean = neighbour_mean(mesh.faces, len(points))
    inner = np.ones((len(points), 3))
    inner[mesh.wrist_loop, 0] = 0
    points = points.copy()
    for step in range(steps):
        distance, gradient = distance_and_gradient(points, mesh.part, skeleton)
        slope = (gradient * gradient).sum(1)
        shift = (distance / np.maximum(slope, 0.2))[:, None] * gradient
        points -= np.clip(shift, -4, 4) * inner
        if step < steps - 5:
            normal = gradient / np.sqrt(slope)[:, None]
            drift = mean @ points - points
            drift -= (drift * normal).sum(1, keepdims=True) * normal
            points += mesh.mobility[:, None] * drift
    return points


def transport(points: Array, part: Index, source: Skeleton, target: Skeleton) -> Array:
    """Carry vertices along with their nearest bones from one skeleton to another.

    Returns:
        (V, 3) mm, near the target's skin: a start for `relax`.
    """
    carried, total = np.zeros_like(points), np.zeros(len(points))
    wrist = np.zeros((1, 3))
    for name in (*LONG_FINGERS, "thumb"):
        old, new = source.fingers[name], target.fingers[name]
        chain, new_chain = np.vstack([wrist, old.joints_mm]), np.vstack([wrist, new.joints_mm])
        growths = [1.0, *(new.radii_mm / old.radii_mm)]
        for i in range(4):
            bone = chain[i + 1] - chain[i]
            along = np.clip((points - chain[i]) @ bone / (bone @ bone), 0, 1)[:, None]
            offset = points - chain[i] - along * bone
            weight = np.exp(-(offset * offset).sum(1) / 8.0**2) + 1e-9
            weight = np.where((part > 0) & (part != PARTS.index(name)), 0, weight)
            place = new_chain[i] + along * (new_chain[i + 1] - new_chain[i]) + offset * growths[i]
            carried += weight[:, None] * place
            total += weight
    return carried / total[:, None]
