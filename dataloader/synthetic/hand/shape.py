"""Skeleton and surface of the procedural hand: a right hand described by lengths, radii and a distance field.

Frame of this module: the wrist is the origin, fingers point along -x, the back of the hand along +y, the
thumb lies on the +z side (as in MANO's own template). Unit: **millimetres**; `standin.py` turns them into
metres.
Legend: N points, parts numbered as in `PARTS`.

Source: lengths of phalanges from Buryanov and Kotiuk 2010 (means of adults); radii, palm and everything
else are our own choice and follow photographs only loosely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dataloader.synthetic.common import LONG_FINGERS, Array, Index, unit
from src.hand.joints import MANO16

PARTS = ("palm", *LONG_FINGERS, "thumb")
"""A vertex belongs to one part: its position in this tuple is the vertex's part number."""

_LENGTHS_MM = {
    "index": (39.8, 22.4, 19.7),
    "middle": (44.6, 26.3, 21.4),
    "ring": (41.4, 25.7, 21.3),
    "pinky": (32.7, 18.1, 19.7),
    "thumb": (46.2, 31.6, 27.3),
}
_RADII_MM = {
    "index": (10.8, 9.5, 8.5, 7.0),
    "middle": (11.0, 9.7, 8.7, 7.2),
    "ring": (10.2, 9.1, 8.2, 6.8),
    "pinky": (9.2, 7.9, 7.2, 6.0),
    "thumb": (15.0, 12.0, 10.8, 8.4),
}
_KNUCKLES_MM = {
    "index": (-89.0, 3.0, 23.0),
    "middle": (-92.0, 5.0, 1.0),
    "ring": (-84.0, 3.0, -19.5),
    "pinky": (-73.0, -1.0, -37.5),
    "thumb": (-24.0, -10.0, 24.0),
}
_YAW_DEG = {"index": 5.0, "middle": 0.0, "ring": -6.0, "pinky": -14.0}
_THUMB_DIRECTIONS = ((-0.70, -0.30, 0.62), (-0.86, -0.22, 0.46), (-0.93, -0.18, 0.30))
_TAPER = np.array([1.0, 0.3, -0.3, -0.8])
_RAYS = (("index", 13.5, 11.8), ("middle", 14.5, 12.2), ("ring", 14.0, 11.5), ("pinky", 13.0, 10.5))
"""Radii of the palm at its root and at the knuckles, mm."""
_FINGER_BLEND_MM = 2.2
_THUMB_BLEND_MM = 4.5
_TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=np.float64)


@dataclass(frozen=True)
class Finger:
    """A chain of three bones."""

    joints_mm: Array
    """(4, 3) knuckle, two hinges, tip."""
    radii_mm: Array
    """(4,) radius of the flesh at each of them."""

    @property
    def arc_mm(self) -> Array:
        """(4,) distance along the chain from the knuckle to each joint."""
        steps = np.linalg.norm(np.diff(self.joints_mm, axis=0), axis=1)
        return np.concatenate([[0.0], np.cumsum(steps)])


@dataclass(frozen=True)
class Skeleton:
    """All that the surface is made from."""

    fingers: Mapping[str, Finger]
    """Five fingers by name."""
    width: float
    """Factor on the palm's breadth."""
    wrist: float
    """Factor on the wrist's breadth and depth."""
    thickness: float
    """Factor on the palm's depth."""
    thenar: float
    """Factor on the balls of the thumb and of the little finger."""
    size: float
    """Factor on everything."""

    def joints_mm(self) -> Array:
        """(16, 3) joints in MANO16 order, before `size` is applied."""
        joints = np.zeros((16, 3))
        for i, name in enumerate(MANO16[1:], start=1):
            finger, k = name.split("_")
            joints[i] = self.fingers[finger].joints_mm[int(k) - 1]
        return joints


def make_skeleton(shape: Sequence[float] | Array = (0.0,) * 10) -> Skeleton:
    """Skeleton of the hand with the given shape.

    Args:
        shape: ten numbers, each in about one standard deviation among adults: what they change is said by
            the names that they are given here.

    Returns:
        Skeleton in mm, wrist at the origin.
    """
    size, width, length, thick, thumb_length, palm_length, taper, outer_length, thenar, splay = shape
    breadth, flesh = 1 + 0.06 * width, 1 + 0.07 * thick
    fingers = {}
    for name in LONG_FINGERS:
        knuckle = np.array(_KNUCKLES_MM[name]) * [1 + 0.05 * palm_length, 1, breadth * (1 + 0.035 * taper)]
        factor = (1 + 0.06 * length) * (1 + (0.04 if name in ("ring", "pinky") else -0.02) * outer_length)
        yaw = np.radians(_YAW_DEG[name] * (1 + 0.25 * splay))
        direction = unit(np.array([-np.cos(yaw), -0.06, np.sin(yaw)]))
        joints = [knuckle]
        for bone in _LENGTHS_MM[name]:
            direction = unit(direction + np.array([0, -0.05, 0]))
            joints.append(joints[-1] + direction * bone * factor)
        radii = np.array(_RADII_MM[name]) * flesh * (1 + 0.10 * taper * _TAPER)
        fingers[name] = Finger(np.array(joints), radii)
    joints = [np.array(_KNUCKLES_MM["thumb"]) * [1, 1, breadth] + np.array([0.6, -0.9, 1.6]) * thenar]
    for way, bone in zip(_THUMB_DIRECTIONS, _LENGTHS_MM["thumb"], strict=True):
        joints.append(joints[-1] + unit(np.array(way)) * bone * (1 + 0.06 * thumb_length))
    radii = np.array(_RADII_MM["thumb"]) * flesh * (1 + 0.10 * taper * _TAPER)
    fingers["thumb"] = Finger(np.array(joints), radii * (1 + 0.08 * thenar * np.array([1, 0.5, 0, 0])))
    wrist = 1 - 0.04 * taper
    return Skeleton(fingers, breadth, wrist, flesh, 1 + 0.14 * thenar, 1 + 0.055 * size)


def _capsule(points: Array, start: Array, end: Array, radii: Sequence[float], depth: float = 1.0) -> Array:
    """(N,) distance to a capsule whose radius changes linearly; `depth` stretches it along y."""
    bone = end - start
    along = np.clip((points - start) @ bone / (bone @ bone), 0, 1)
    offset = points - start - along[:, None] * bone
    offset = offset / np.array([1.0, depth, 1.0])
    return np.asarray(np.sqrt((offset * offset).sum(1)) - (radii[0] + (radii[1] - radii[0]) * along))


def _smooth_min(distances: Sequence[Array], blend_mm: float) -> Array:
    """(N,) minimum over the list with a rounded seam about `blend_mm` wide."""
    stacked = np.stack(distances)
    lowest = stacked.min(0)
    return np.asarray(lowest - blend_mm * np.log(np.exp((lowest - stacked) / blend_mm).sum(0)))


def _finger_distance(points: Array, skeleton: Skeleton, name: str) -> Array:
    """(N,) distance to one finger."""
    finger, depth = skeleton.fingers[name], 1.0 if name == "thumb" else 0.92
    joints, radii = finger.joints_mm, finger.radii_mm
    last = joints[3] - unit(joints[3] - joints[2]) * radii[3]
    ends = (joints[1], joints[2], last)
    parts = [_capsule(points, joints[i], ends[i], (radii[i], radii[i + 1]), depth) for i in range(3)]
    return _smooth_min(parts, 1.2)


def _palm_distance(points: Array, skeleton: Skeleton) -> Array:
    """(N,) distance to the palm: four rays of metacarpals, wrist, the two balls and the first web."""
    fingers, thick, thenar = skeleton.fingers, skeleton.thickness, skeleton.thenar
    parts = []
    for name, near, far in _RAYS:
        knuckle = fingers[name].joints_mm[0]
        carpus = np.array([-12.0, 0.0, knuckle[2] * 0.42])
        forearm = np.array([34.0, 0.0, knuckle[2] * 0.45 * skeleton.wrist])
        wrist, end = thick * skeleton.wrist, knuckle + np.array([0, -1.5, 0])
        parts.append(_capsule(points, carpus, end, (near * thick, far * thick), 0.95))
        parts.append(_capsule(points, forearm, carpus, (15.5 * wrist, 15.0 * wrist), 1.05))
    thumb, index, pinky = (fingers[name].joints_mm for name in ("thumb", "index", "pinky"))
    ball, heel = np.array([[-20.0, -9.0, 16.0 * skeleton.width], [-22.0, -8.0, -21.0 * skeleton.width]])
    web = thumb[1] * 0.5 + index[0] * 0.5 + [10, -2, 0]
    outer = 14.5 * thick * (0.5 + 0.5 * thenar)
    parts.append(_capsule(points, ball, thumb[1], (14.5 * thenar, 11.5)))
    parts.append(_capsule(points, thumb[0] + [-14, -2, -4], web, (11.5, 9.0), 0.85))
    parts.append(_capsule(points, heel, pinky[0] + np.array([8, -5, 0]), (outer, 10.5)))
    return _smooth_min(parts, 2.6)


def distance_and_gradient(points: Array, part: Index, skeleton: Skeleton) -> tuple[Array, Array]:
    """Signed distance to the skin, negative inside, exact near the skin only.

    A point sees the palm and its own finger, so that neighbouring fingers never grow together.

    Args:
        points: (N, 3) mm.
        part: (N,) number of the part each point belongs to.
        skeleton: the hand.

    Returns:
        (N,) mm, and (N, 3) its gradient, from four neighbours at the corners of a tetrahedron.
    """
    step = 0.05
    values = [_distance(points + step * corner, part, skeleton) for corner in _TETRAHEDRON]
    gradient = sum(v[:, None] * c for v, c in zip(values, _TETRAHEDRON, strict=True)) / (4 * step)
    return np.mean(values, axis=0), np.asarray(gradient)


def _distance(points: Array, part: Index, skeleton: Skeleton) -> Array:
    """(N,) signed distance."""
    palm = _palm_distance(points, skeleton)
    out = np.empty(len(points))
    for number, name in enumerate(PARTS):
        rows = part == number
        own, surface = points[rows], palm[rows]
        if name != "thumb":
            near = LONG_FINGERS if name == "palm" else (name,)
            fingers = np.stack([_finger_distance(own, skeleton, finger) for finger in near]).min(0)
            surface = _smooth_min([surface, fingers], _FINGER_BLEND_MM)
        if name in ("palm", "thumb"):
            thumb = _finger_distance(own, skeleton, "thumb")
            surface = _smooth_min([surface, thumb], _THUMB_BLEND_MM)
        out[rows] = surface
    return out
