"""Where the object sits in the hand, and how far each finger may close before it touches something.

All of it happens in MANO's rest frame with the wrist fixed. A finger closes from an open posture (s = 0) to a
 target posture (s = 1) and stops at its first contact; the thumb also stops at the other fingers.

Legend: N frames, S steps of closing, P contact points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d, minimum_filter1d
from scipy.spatial.transform import Rotation

from dataloader.synthetic.objects import HeldObject
from dataloader.synthetic.pose import DOF, LONG_FINGERS, limit, local_rotations, posture, random_gesture
from dataloader.synthetic.rig import Anatomy, Array, Rig
from src.hand.joints import FINGERS, MANO16

_STEPS = 13
_CONTACT_M = 0.0015
"""A finger stops this far before the surface: skinning moves the skin by about as much."""

_SQUEEZE_M = 0.002
"""How far soft skin may press into skin."""

_CHUNK = 128
"""Frames solved at once; bounds memory to some 20 MB."""


@dataclass(frozen=True)
class ContactPoints:
    """Skin that can touch: a few points on each phalanx, rest frame, metres."""

    phalanges: dict[str, tuple[Array, Array, Array]]
    """finger -> points (P_k, 3) that move with its joints 1, 2, 3."""
    radius_m: dict[str, tuple[float, float, float]]
    """finger -> mean distance of the skin from each bone."""


@dataclass(frozen=True)
class Placement:
    """Object in the hand: x_hand = rotation x_object + offset_m."""

    rotation: Array
    """(3, 3)."""
    offset_m: Array
    """(3,)."""


def contact_points(rig: Rig, anatomy: Anatomy) -> ContactPoints:
    """Pick contact points for a hand of this shape."""
    phalanges, radius = {}, {}
    for finger in FINGERS:
        groups, radii = [], []
        joints = [anatomy.joints_m[MANO16.index(f"{finger}_{k}")] for k in (1, 2, 3)] + [
            anatomy.tips_m[finger]
        ]
        for k in range(3):
            owned = anatomy.vertices_m[rig.owner == MANO16.index(f"{finger}_{k + 1}")]
            radii.append(float(np.median(_segment_distance(owned, joints[k], joints[k + 1]))))
            groups.append(_thin(owned, 10))
        phalanges[finger] = (groups[0], groups[1], groups[2])
        radius[finger] = (radii[0], radii[1], radii[2])
    return ContactPoints(phalanges, radius)


def open_and_target(rng: np.random.Generator) -> tuple[Array, Array]:
    """(21,), (21,) degrees: a hand about to grasp, and what it would close to if nothing were there."""
    start, end = posture(_PRE_GRASP), posture(_CLOSED)
    start += rng.normal(size=len(DOF)) * np.array([3.0 if name.endswith("abd") else 6.0 for name in DOF])
    straight = rng.uniform(-1, 1)
    for name in DOF:
        if name.endswith("mcp") and not name.startswith("thumb"):
            end[DOF.index(name)] += 24.0 * straight
        if name.endswith(("pip", "dip")):
            end[DOF.index(name)] -= 30.0 * max(straight, -0.3)
    end += rng.normal(size=len(DOF)) * 8.0
    end[DOF.index("thumb_opp")] = start[DOF.index("thumb_opp")] = rng.uniform(18, 56)
    idle = [finger for finger in LONG_FINGERS if rng.random() < (0.12 if finger == "index" else 0.24)]
    other = random_gesture(rng)
    for finger in idle:
        for what in ("abd", "mcp", "pip", "dip"):
            i = DOF.index(f"{finger}_{what}")
            end[i] = other[i]
    return limit(start), limit(end)


def place_object(
    rng: np.random.Generator, held: HeldObject, anatomy: Anatomy, skin_m: Array
) -> Placement | None:
    """Put the object in front of the palm, clear of the open hand.

    Args:
        rng: chooses the grasp: in the palm or at the finger tips, and the tilt.
        held: the object.
        anatomy: axes of the hand.
        skin_m: (M, 3) vertices of the open hand, of one or several postures, that must all be clear.

    Returns:
        the placement, or None where the hand cannot open far enough.
    """
    palmar = -anatomy.dorsal
    axes = np.stack([palmar, anatomy.distal, anatomy.radial], 1)
    if np.linalg.det(axes) < 0:
        axes[:, 0] *= -1.0
    turn = rng.normal(size=3) * [0.35, 0.35, 0.3] + [0.0, 0.0, rng.choice([0.0, np.pi / 2, np.pi])]
    rotation = axes @ Rotation.from_rotvec(turn).as_matrix()
    knuckles = np.mean([anatomy.joints_m[MANO16.index(f"{finger}_1")] for finger in LONG_FINGERS], axis=0)
    thickness = float(np.abs(rotation.T @ palmar) @ np.minimum(held.half_m, held.half_m[[0, 1, 1]]))
    at_tips = rng.random() < 0.4
    gap, ahead = (
        (rng.uniform(0.02, 0.045), rng.uniform(0.015, 0.04))
        if at_tips
        else (0.004, rng.uniform(-0.005, 0.02))
    )
    offset = knuckles + palmar * (0.013 + gap + thickness) + anatomy.distal * ahead
    offset = offset + anatomy.radial * rng.normal(0.008, 0.012)
    for _ in range(4):
        for _ in range(40):
            local = (skin_m - offset) @ rotation
            distance = held.distance(local)
            worst = int(distance.argmin())
            lack = _CONTACT_M + 0.0005 - float(distance[worst])
            if lack <= 0:
                return Placement(rotation, offset)
            step = 1e-4 * np.eye(3)
            gradient = (held.distance(local[worst] + step) - distance[worst]) / 1e-4
            offset = offset - rotation @ gradient * (lack + 2e-4) / max(float(np.linalg.norm(gradient)), 0.3)
        offset = offset + 0.012 * palmar + 0.006 * anatomy.distal
    return None


def close_on_object(
    open_deg: Array,
    target_deg: Array,
    wish: Array,
    held: HeldObject,
    rotation: Array,
    offset_m: Array,
    anatomy: Anatomy,
    points: ContactPoints,
) -> Array:
    """Close each finger until it touches.

    Args:
        open_deg: (N, 21) postures at s = 0.
        target_deg: (N, 21) postures at s = 1.
        wish: (N, 5) how far each finger would like to go, thumb to pinky, in [0, 1].
        held: the object.
        rotation: (N, 3, 3) of the object in the hand.
        offset_m: (N, 3).
        anatomy: axes of the hand.
        points: skin.

    Returns:
        (N, 21) degrees.
    """
    angles = np.array(open_deg)
    for finger in (*LONG_FINGERS, "thumb"):

        def clearance(skin: Array, rows: slice, finger: str = finger) -> Array:
            local = np.einsum("nba,nspb->nspa", rotation[rows], skin - offset_m[rows, None, None])
            free = held.distance(local) - _CONTACT_M
            if finger == "thumb":
                free = np.minimum(free, _gap_to_fingers(skin, angles[rows], anatomy, points))
            return free

        reach = _reach(finger, open_deg, target_deg, anatomy, points, clearance)
        share = np.minimum(reach, wish[:, FINGERS.index(finger)])
        columns = _columns(finger)
        angles[:, columns] += share[:, None] * (target_deg - open_deg)[:, columns]
    return limit(angles)


def clear_thumb(angles_deg: Array, anatomy: Anatomy, points: ContactPoints) -> Array:
    """(N, 21) the same postures, the thumb kept outside the other fingers and the palm."""
    aside = np.array(angles_deg)
    columns = _columns("thumb")
    aside[:, columns] = posture(_PRE_GRASP)[columns] - [24.0, -6.0, 4.0, 0.0, 0.0]

    def clearance(skin: Array, rows: slice) -> Array:
        return _gap_to_fingers(skin, angles_deg[rows], anatomy, points)

    share = _reach("thumb", aside, angles_deg, anatomy, points, clearance)
    out = np.array(angles_deg)
    out[:, columns] = aside[:, columns] + share[:, None] * (angles_deg - aside)[:, columns]
    return limit(out)


def _reach(
    finger: str,
    open_deg: Array,
    target_deg: Array,
    anatomy: Anatomy,
    points: ContactPoints,
    clearance: Callable[[Array, slice], Array],
) -> Array:
    """(N,) how far the finger closes before its clearance is used up, smooth over the frames."""
    steps = np.linspace(0, 1, _STEPS)
    reach = np.empty(len(open_deg))
    for start in range(0, len(open_deg), _CHUNK):
        rows = slice(start, start + _CHUNK)
        angles = open_deg[rows, None] + steps[:, None] * (target_deg - open_deg)[rows, None]
        free = clearance(_finger_points(finger, limit(angles), anatomy, points), rows).min(-1)
        blocked = np.maximum.accumulate(free < 0, axis=1)
        first = np.where(blocked.any(1), blocked.argmax(1), _STEPS - 1)
        before = np.maximum(first - 1, 0)
        row = np.arange(len(first))
        a, b = free[row, before], free[row, first]
        part = np.where((b < 0) & (a > b), a.clip(0) / np.maximum(a.clip(0) - b, 1e-9), 1.0)
        reach[rows] = np.where(blocked[:, 0], 0.0, (before + part * (first - before)) / (_STEPS - 1))
    # The smallest of the neighbours, then smoothed within the same window, is never above the frame's own
    # value.
    calm = minimum_filter1d(reach, 9, mode="nearest")
    return np.asarray(np.minimum(gaussian_filter1d(calm, 2.0, mode="nearest", truncate=2.0), reach))


def _finger_points(finger: str, angles_deg: Array, anatomy: Anatomy, points: ContactPoints) -> Array:
    """(..., P, 3) contact points of one finger at postures (..., 21)."""
    return np.concatenate(_walk(finger, angles_deg, anatomy, points.phalanges[finger]), axis=-2)


def _walk(finger: str, angles_deg: Array, anatomy: Anatomy, groups: tuple[Array, ...]) -> list[Array]:
    """Points (P_k, 3) of each of the three phalanges carried along its chain of joints."""
    numbers = [MANO16.index(f"{finger}_{k}") for k in (1, 2, 3)]
    local = local_rotations(angles_deg, anatomy, only=finger)
    joint = anatomy.joints_m[numbers]
    place = np.broadcast_to(joint[0], (*angles_deg.shape[:-1], 3))
    turn = np.eye(3)
    out = []
    for k, group in enumerate(groups):
        turn = turn @ local[..., numbers[k] - 1, :, :]
        out.append((group - joint[k]) @ np.swapaxes(turn, -1, -2) + place[..., None, :])
        if k < 2:
            place = place + turn @ (joint[k + 1] - joint[k])
    return out


def _gap_to_fingers(skin: Array, angles_deg: Array, anatomy: Anatomy, points: ContactPoints) -> Array:
    """(N, S, P) distance of the thumb's points from the bones of the other fingers and palm, less their
    flesh."""
    first_phalanx = len(points.phalanges["thumb"][0])
    gap = np.full(skin.shape[:-1], np.inf)
    free_skin = skin[..., first_phalanx + len(points.phalanges["thumb"][1]) // 2 :, :]
    wrist = anatomy.joints_m[0]
    nearest = np.full(free_skin.shape[:-1], np.inf)
    for finger in LONG_FINGERS:
        joints = [anatomy.joints_m[MANO16.index(f"{finger}_{k}")] for k in (1, 2, 3)]
        ends = (joints[1][None], joints[2][None], anatomy.tips_m[finger][None])
        chain = [np.broadcast_to(joints[0], (len(angles_deg), 3))]
        chain += [end[:, 0] for end in _walk(finger, angles_deg, anatomy, ends)]
        for k in range(3):
            a, b = chain[k][:, None, None], chain[k + 1][:, None, None]
            nearest = np.minimum(nearest, _segment_distance(free_skin, a, b) - points.radius_m[finger][k])
        low = wrist + 0.35 * (joints[0] - wrist)
        nearest = np.minimum(
            nearest, _segment_distance(free_skin, low, joints[0]) - 1.15 * points.radius_m[finger][0]
        )
    gap[..., skin.shape[-2] - free_skin.shape[-2] :] = nearest + _SQUEEZE_M
    return gap


def _segment_distance(p: Array, a: Array, b: Array) -> Array:
    """Distance (...,) of points from the segment a b."""
    ab = b - a
    t = ((p - a) * ab).sum(-1) / (ab * ab).sum(-1)
    return np.asarray(np.linalg.norm(p - a - t.clip(0, 1)[..., None] * ab, axis=-1))


def _thin(points_m: Array, count: int) -> Array:
    """At most `count` points, spread over the list."""
    chosen: Array = points_m[np.linspace(0, len(points_m) - 1, min(count, len(points_m))).astype(int)]
    return chosen


def _columns(finger: str) -> list[int]:
    return [i for i, name in enumerate(DOF) if name.startswith(finger)]


_PRE_GRASP = (((0.0, 8.0),) * 4, 0.4, (30.0, 12.0, -18.0, -4.0, -6.0))
_CLOSED = (((74.0, 92.0),) * 4, 0.0, (30.0, -8.0, 32.0, 46.0, 56.0))
