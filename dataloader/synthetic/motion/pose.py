"""Articulation of the fingers: degrees of freedom, joint limits, gestures, and smooth changes between them.

A posture is a vector of 21 angles in degrees, `DOF` names each. Fingers have abduction (positive towards the
thumb), knuckle (mcp), middle (pip) and end (dip) flexion; the thumb has opposition (swing about the hand's
long axis in front of the palm), abduction in the plane of the palm, and flexion of its three joints. Limits
are the active range of motion of healthy adults. Source of the ranges: standard goniometry tables.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator

from dataloader.synthetic.common import LONG_FINGERS, Array, rotation_about, unit
from dataloader.synthetic.motion.rig import Anatomy
from src.hand.joints import MANO16

DOF: tuple[str, ...] = (
    *(f"{finger}_{what}" for finger in LONG_FINGERS for what in ("abd", "mcp", "pip", "dip")),
    *(f"thumb_{what}" for what in ("opp", "abd", "cmc", "mcp", "ip")),
)
"""Names of the 21 angles."""

COLUMNS = {finger: slice(4 * i, 4 * i + 4) for i, finger in enumerate(LONG_FINGERS)} | {
    "thumb": slice(16, 21)
}
"""finger -> its angles."""

_ABDUCTION = ((-5.0, 20.0), (-8.0, 8.0), (-16.0, 4.0), (-24.0, 4.0))
_BENDING = ((-20.0, 90.0), (0.0, 108.0), (-5.0, 75.0))
_THUMB = ((-5.0, 58.0), (-18.0, 22.0), (-22.0, 34.0), (-8.0, 58.0), (-15.0, 78.0))
LIMITS_DEG = np.array([*(limits for abduction in _ABDUCTION for limits in (abduction, *_BENDING)), *_THUMB])
"""(21, 2) smallest and largest angle of each degree of freedom."""

# (mcp, pip) of index, middle, ring, pinky; spread in [-1, 1]; thumb opp, abd, cmc, mcp, ip.
_Gesture = tuple[tuple[tuple[float, float], ...], float, tuple[float, float, float, float, float]]
_OUT, _CURL, _FLAT = (0.0, 6.0), (80.0, 96.0), (-4.0, 2.0)
_THUMB_OVER, _THUMB_OUT = (42.0, -8.0, 20.0, 32.0, 42.0), (2.0, 14.0, -14.0, 0.0, -6.0)
GESTURES: dict[str, _Gesture] = {
    "flat": ((_FLAT,) * 4, -0.6, (4.0, -4.0, -2.0, 2.0, 2.0)),
    "spread": ((_FLAT,) * 4, 1.0, (2.0, 20.0, -16.0, -4.0, -8.0)),
    "relaxed": (((22.0, 30.0), (30.0, 36.0), (34.0, 40.0), (32.0, 38.0)), 0.0, (22.0, 4.0, 0.0, 10.0, 16.0)),
    "fist": ((_CURL,) * 4, -0.6, _THUMB_OVER),
    "thumb_up": ((_CURL,) * 4, -0.6, _THUMB_OUT),
    "point": ((_OUT, _CURL, _CURL, _CURL), 0.0, _THUMB_OVER),
    "gun": ((_OUT, _CURL, _CURL, _CURL), 0.0, _THUMB_OUT),
    "victory": ((_OUT, _OUT, _CURL, _CURL), 0.9, _THUMB_OVER),
    "three": ((_OUT, _OUT, _OUT, _CURL), 0.6, _THUMB_OVER),
    "four": ((_OUT,) * 4, 0.7, (46.0, -10.0, 24.0, 36.0, 40.0)),
    "horns": ((_OUT, _CURL, _CURL, _OUT), 0.3, _THUMB_OVER),
    "call": ((_CURL, _CURL, _CURL, _OUT), 0.4, _THUMB_OUT),
    "pinch": (((48.0, 56.0), (30.0, 36.0), (22.0, 26.0), (14.0, 20.0)), 0.3, (46.0, 2.0, 6.0, 14.0, 26.0)),
    "pinch_middle": (
        ((14.0, 20.0), (54.0, 58.0), (24.0, 30.0), (14.0, 16.0)),
        0.3,
        (50.0, 0.0, 10.0, 16.0, 26.0),
    ),
    "tripod": (((50.0, 50.0), (54.0, 54.0), (60.0, 76.0), (58.0, 78.0)), -0.3, (48.0, 0.0, 8.0, 16.0, 24.0)),
    "key": (((50.0, 70.0), (62.0, 78.0), (68.0, 80.0), (68.0, 78.0)), -0.5, (20.0, -10.0, 12.0, 20.0, 14.0)),
    "claw": (((0.0, 78.0), (0.0, 80.0), (0.0, 80.0), (0.0, 76.0)), 0.6, (18.0, 10.0, -6.0, 14.0, 50.0)),
    "hook": (((6.0, 100.0), (8.0, 102.0), (8.0, 102.0), (8.0, 98.0)), -0.4, (10.0, 0.0, 0.0, 10.0, 10.0)),
    "duck": (((74.0, 10.0), (76.0, 10.0), (76.0, 10.0), (74.0, 12.0)), -0.5, (44.0, 6.0, 0.0, 6.0, 6.0)),
    "cup": (((36.0, 46.0), (38.0, 50.0), (40.0, 52.0), (40.0, 50.0)), 0.1, (42.0, 8.0, -2.0, 10.0, 18.0)),
    "bent_ring": ((_OUT, _OUT, (64.0, 80.0), (26.0, 30.0)), 0.4, (38.0, 0.0, 8.0, 20.0, 28.0)),
}
"""Key postures; anything between them, and fingers drawn on their own, come from `random_gesture`."""


def posture(gesture: _Gesture) -> Array:
    """(21,) angles in degrees of a key posture."""
    fingers, spread, thumb = gesture
    abd = spread * np.array([11.0, 1.0, -8.0, -14.0])
    mcp, pip = np.array(fingers).T
    return np.concatenate([np.stack([abd, mcp, pip, 0.62 * pip], axis=1).ravel(), thumb])


def random_gesture(rng: np.random.Generator) -> Array:
    """(21,) a key posture with personal variation; sometimes a mix of two, sometimes fingers of their own."""
    names = list(GESTURES)
    angles = posture(GESTURES[names[rng.integers(len(names))]])
    if rng.random() < 0.3:
        other = posture(GESTURES[names[rng.integers(len(names))]])
        angles += rng.random() * (other - angles)
    for finger in LONG_FINGERS:
        if rng.random() < 0.25:
            mcp, pip = rng.uniform(-10, 85), rng.uniform(0, 104)
            angles[COLUMNS[finger]][1:] = mcp, pip, 0.62 * pip
    return limit(angles + vary(rng, 9.0))


def free_gesture(rng: np.random.Generator) -> Array:
    """(21,) each finger bent and spread on its own, anywhere within the limits."""
    return limit(rng.uniform(*LIMITS_DEG.T) + vary(rng, 4.0))


def vary(rng: np.random.Generator, bending_deg: float) -> Array:
    """(21,) degrees of random change: 3 in abduction, `bending_deg` in all other angles."""
    return rng.normal(size=len(DOF)) * [3.0 if name.endswith("abd") else bending_deg for name in DOF]


def limit(angles_deg: Array) -> Array:
    """The nearest natural posture: joint limits, and what tendons couple.

    Args:
        angles_deg: (..., 21).

    A bent knuckle leaves no room for abduction; neighbouring fingers share muscles and cannot differ at will.
    """
    angles = np.array(angles_deg, dtype=np.float64)
    mcp, pip = angles[..., 1:16:4], angles[..., 2:16:4]  # (..., 4), index to pinky: views of `angles`
    for first, second, most in (("middle", "ring", 58.0), ("ring", "pinky", 58.0), ("middle", "index", 85.0)):
        a, b = LONG_FINGERS.index(first), LONG_FINGERS.index(second)
        difference = mcp[..., b] - mcp[..., a]
        excess = difference - difference.clip(-most, most)
        mcp[..., a] += 0.5 * excess
        mcp[..., b] -= 0.5 * excess
    angles[..., 0:16:4] *= 1.0 - 0.85 * (mcp / 90.0).clip(0, 1)
    angles[..., 3:16:4] = angles[..., 3:16:4].clip(0.3 * pip - 8.0, 0.75 * pip + 14.0)
    return angles.clip(*LIMITS_DEG.T)


def finger_rotations(finger: str, angles_deg: Array, anatomy: Anatomy) -> Array:
    """Local rotations (..., 3, 3, 3) of one finger's joints 1, 2, 3 at postures (..., 21)."""
    angles = np.radians(angles_deg[..., COLUMNS[finger]])
    first = MANO16.index(f"{finger}_1")
    bends = [rotation_about(anatomy.flexion_axes[first + k], angles[..., k - 3]) for k in range(3)]
    if finger == "thumb":
        opposition = rotation_about(unit(-anatomy.distal + 0.25 * anatomy.dorsal), angles[..., 0])
        swing = opposition @ rotation_about(anatomy.dorsal, -angles[..., 1])
    else:
        swing = rotation_about(anatomy.dorsal, angles[..., 0])
    return np.stack([swing @ bends[0], *bends[1:]], axis=-3)


def local_rotations(angles_deg: Array, anatomy: Anatomy) -> Array:
    """MANO's rotations (..., 15, 3, 3), MANO16 order without the wrist, of postures (..., 21) in degrees."""
    fingers = [name.split("_")[0] for name in MANO16[1::3]]
    return np.concatenate([finger_rotations(finger, angles_deg, anatomy) for finger in fingers], axis=-3)


def smooth_noise(rng: np.random.Generator, times: Array, columns: int, period: float) -> Array:
    """(len(times), columns) smooth random curves of unit variance that change within about `period`."""
    knots = np.arange(-1, int(times.max() / period) + 3)
    values = rng.normal(size=(len(knots), columns))
    return np.asarray(CubicSpline(knots * period, values)(times))


def gesture_path(rng: np.random.Generator, times: Array, free: float) -> Array:
    """(N, 21) angles in degrees: key postures reached one after the other, held or passed, with a little
    tremor; a share `free` of them are free gestures."""

    def gesture() -> Array:
        return free_gesture(rng) if free and rng.random() < free else random_gesture(rng)

    knots, moments = [gesture()], [-rng.uniform(0, 12)]
    while moments[-1] < times.max():
        hold = rng.random() < 0.25
        knots.append(limit(knots[-1] + rng.normal(size=len(DOF)) * 2.0) if hold else gesture())
        moments.append(moments[-1] + rng.uniform(9, 20))
    # Monotone between the knots, so that a limit kept at the knots is kept everywhere.
    path = PchipInterpolator(np.array(moments), np.stack(knots))(times)
    return limit(path + 1.2 * smooth_noise(rng, times, len(DOF), 8.0))
