"""Where the object sits in the hand, and how far each finger may close before it touches something.

All of it happens in MANO's rest frame with the wrist fixed. A finger closes from an open posture (s = 0) to a
target posture (s = 1) and stops at its first contact; the thumb also stops at the other fingers.

Legend: N frames, S steps of closing, P contact points.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter1d, minimum_filter1d
from scipy.spatial.transform import Rotation

from dataloader.synthetic.common import LONG_FINGERS, Array
from dataloader.synthetic.motion.objects import HeldObject
from dataloader.synthetic.motion.pose import (
    COLUMNS,
    DOF,
    finger_rotations,
    limit,
    posture,
    random_gesture,
    vary,
)
from dataloader.synthetic.motion.rig import Anatomy, segment_distance
from src.hand.joints import FINGERS, MANO16

_STEPS = 13
_CONTACT_M = 0.0015
"""A finger stops this far before the surface: skinning moves the skin by about as much."""

_CALM = 4
"""Moments of time before and after, over which a finger's contact is smoothed."""

_SQUEEZE_M = 0.002
"""How far soft skin may press into skin."""

_PRE_GRASP = posture((((0.0, 8.0),) * 4, 0.4, (30.0, 12.0, -18.0, -4.0, -6.0)))
_CLOSED = posture((((74.0, 92.0),) * 4, 0.0, (30.0, -8.0, 32.0, 46.0, 56.0)))
_THUMB_ASIDE = _PRE_GRASP[COLUMNS["thumb"]] - [24.0, -6.0, 4.0, 0.0, 0.0]


def open_and_target(rng: np.random.Generator) -> tuple[Array, Array]:
    """(21,), (21,) degrees: a hand about to grasp, and what it would close to if nothing were there."""
    start, end = _PRE_GRASP + vary(rng, 6.0), _CLOSED.copy()
    straight = rng.uniform(-1, 1)
    for i, name in enumerate(DOF):
        if name.endswith("mcp") and not name.startswith("thumb"):
            end[i] += 24.0 * straight
        if name.endswith(("pip", "dip")):
            end[i] -= 30.0 * max(straight, -0.3)
    end += rng.normal(size=len(DOF)) * 8.0
    opposition = DOF.index("thumb_opp")
    end[opposition] = start[opposition] = rng.uniform(18, 56)
    idle = [finger for finger in LONG_FINGERS if rng.random() < (0.12 if finger == "index" else 0.24)]
    other = random_gesture(rng)
    for finger in idle:
        end[COLUMNS[finger]] = other[COLUMNS[finger]]
    return limit(start), limit(end)


def place_object(
    rng: np.random.Generator, held: HeldObject, anatomy: Anatomy, skin_m: Array
) -> tuple[Array, Array] | None:
    """Put the object in front of the palm, clear of the open hand.

    Args:
        rng: chooses the grasp: in the palm or at the finger tips, and the tilt.
        held: the object.
        anatomy: axes of the hand.
        skin_m: (M, 3) vertices of the open hand, of one or several postures, that must all be clear.

    Returns:
        rotation (3, 3) and offset (3,) of x_hand = rotation x_object + offset, metres; None where the hand
        cannot open far enough.
    """
    palmar = -anatomy.dorsal
    axes = np.stack([palmar, anatomy.distal, anatomy.radial], 1)
    if np.linalg.det(axes) < 0:
        axes[:, 0] *= -1.0
    turn = rng.normal(size=3) * [0.35, 0.35, 0.3] + [0.0, 0.0, rng.choice([0.0, np.pi / 2, np.pi])]
    rotation = axes @ Rotation.from_rotvec(turn).as_matrix()
    knuckles = np.mean([anatomy.joints_m[MANO16.index(f"{finger}_1")] for finger in LONG_FINGERS], axis=0)
    thickness = float(np.abs(rotation.T @ palmar) @ np.minimum(held.half_m, held.half_m[[0, 1, 1]]))
    gap, ahead = 0.004, (-0.005, 0.02)
    if rng.random() < 0.4:  # at the finger tips
        gap, ahead = rng.uniform(0.02, 0.045), (0.015, 0.04)
    offset = knuckles + palmar * (0.013 + gap + thickness) + anatomy.distal * rng.uniform(*ahead)
    offset = offset + anatomy.radial * rng.normal(0.008, 0.012)
    for _ in range(4):
        for _ in range(40):
            local = (skin_m - offset) @ rotation
            distance = held.distance(local)
            worst = int(distance.argmin())
            lack = _CONTACT_M + 0.0005 - float(distance[worst])
            if lack <= 0:
                return rotation, offset
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
    pace: int,
) -> Array:
    """Close each finger until it touches.

    Args:
        open_deg: (N, 21) postures at s = 0.
        target_deg: (N, 21) postures at s = 1.
        wish: (N, 5) how far each finger would like to go, thumb to pinky, in [0, 1].
        held: the object.
        rotation: (N, 3, 3) of the object in the hand.
        offset_m: (N, 3).
        anatomy: axes and skin of the hand.
        pace: moments of time from one frame to the next.

    Returns:
        (N, 21) degrees.
    """

    def clearance(skin: Array) -> Array:
        local = np.einsum("nba,nspb->nspa", rotation, skin - offset_m[:, None, None])
        return held.distance(local) - _CONTACT_M

    def thumb_clearance(skin: Array) -> Array:
        return np.minimum(clearance(skin), _gap_to_fingers(skin, angles, anatomy))

    angles = np.array(open_deg)
    for finger in (*LONG_FINGERS, "thumb"):
        limited_by = thumb_clearance if finger == "thumb" else clearance
        reach = _reach(finger, open_deg, target_deg, anatomy, limited_by, pace)
        share = np.minimum(reach, wish[:, FINGERS.index(finger)])
        columns = COLUMNS[finger]
        angles[:, columns] += share[:, None] * (target_deg - open_deg)[:, columns]
    return limit(angles)


def clear_thumb(angles_deg: Array, anatomy: Anatomy, pace: int) -> Array:
    """(N, 21) the same postures, the thumb kept outside the other fingers and the palm; `pace` as above."""
    aside = np.array(angles_deg)
    aside[:, COLUMNS["thumb"]] = _THUMB_ASIDE
    share = _reach(
        "thumb", aside, angles_deg, anatomy, lambda skin: _gap_to_fingers(skin, angles_deg, anatomy), pace
    )
    return limit(aside + share[:, None] * (angles_deg - aside))


def _reach(
    finger: str,
    open_deg: Array,
    target_deg: Array,
    anatomy: Anatomy,
    clearance: Callable[[Array], Array],
    pace: int,
) -> Array:
    """(N,) how far the finger closes before its clearance is used up, smooth over time."""
    steps = np.linspace(0, 1, _STEPS)
    postures = limit(open_deg[:, None] + steps[:, None] * (target_deg - open_deg)[:, None])
    free = clearance(np.concatenate(_walk(finger, postures, anatomy, anatomy.contacts_m[finger]), -2)).min(-1)
    blocked = np.maximum.accumulate(free < 0, axis=1)
    first = np.where(blocked.any(1), blocked.argmax(1), _STEPS - 1)
    before = np.maximum(first - 1, 0)
    row = np.arange(len(first))
    a, b = free[row, before], free[row, first]
    part = np.where((b < 0) & (a > b), a.clip(0) / np.maximum(a.clip(0) - b, 1e-9), 1.0)
    reach = np.where(blocked[:, 0], 0.0, (before + part * (first - before)) / (_STEPS - 1))
    # The smallest of the neighbours, then smoothed within the same window, is never above the frame's own
    # value.
    # Frames that are far apart in time say nothing of each other.
    radius = _CALM // pace
    calm = minimum_filter1d(reach, 2 * radius + 1, mode="nearest")
    calm = gaussian_filter1d(calm, 0.5 * _CALM / pace, mode="nearest", radius=radius)
    return np.asarray(np.minimum(calm, reach))


def _walk(finger: str, angles_deg: Array, anatomy: Anatomy, groups: list[Array]) -> list[Array]:
    """Points (P_k, 3) of each of the three phalanges carried along its chain of joints."""
    local = finger_rotations(finger, angles_deg, anatomy)
    first = MANO16.index(f"{finger}_1")
    joint = anatomy.joints_m[first : first + 3]
    place = np.broadcast_to(joint[0], (*angles_deg.shape[:-1], 3))
    turn = np.eye(3)
    out = []
    for k, group in enumerate(groups):
        turn = turn @ local[..., k, :, :]
        out.append((group - joint[k]) @ np.swapaxes(turn, -1, -2) + place[..., None, :])
        if k < 2:
            place = place + turn @ (joint[k + 1] - joint[k])
    return out


def _gap_to_fingers(skin: Array, angles_deg: Array, anatomy: Anatomy) -> Array:
    """(N, S, P) distance of the thumb's points from the bones of the other fingers and palm, less their
    flesh."""
    root, middle, _ = anatomy.contacts_m["thumb"]
    skip = len(root) + len(middle) // 2  # the thumb's root always touches the palm
    gap = np.full(skin.shape[:-1], np.inf)
    tip, nearest = skin[..., skip:, :], gap[..., skip:]
    for finger in LONG_FINGERS:
        first = MANO16.index(f"{finger}_1")
        joints, radius = anatomy.joints_m[first : first + 3], anatomy.radius_m[finger]
        ends = [joints[1][None], joints[2][None], anatomy.tips_m[finger][None]]
        chain = [np.broadcast_to(joints[0], (len(angles_deg), 3))]
        chain += [end[:, 0] for end in _walk(finger, angles_deg, anatomy, ends)]
        for k in range(3):
            a, b = chain[k][:, None, None], chain[k + 1][:, None, None]
            np.minimum(nearest, segment_distance(tip, a, b) - radius[k], out=nearest)
        palm = anatomy.joints_m[0] + 0.35 * (joints[0] - anatomy.joints_m[0])
        np.minimum(nearest, segment_distance(tip, palm, joints[0]) - 1.15 * radius[0], out=nearest)
    return gap + _SQUEEZE_M
