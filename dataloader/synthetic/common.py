"""What the procedural hand, the motions and the scenes share: array types, directions and turns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from src.hand.joints import MANO16

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Image = NDArray[np.float32]

LONG_FINGERS = ("index", "middle", "ring", "pinky")


def unit(vector: Array) -> Array:
    """(3,) vector of length one."""
    return np.asarray(vector / np.linalg.norm(vector))


def smooth_step(x: Array) -> Array:
    """0 below 0, 1 above 1, smooth between."""
    x = np.clip(x, 0, 1)
    return np.asarray(x * x * (3 - 2 * x))


def rotation_about(axis: Array, angle_rad: Array) -> Array:
    """Rotations (..., 3, 3) about one unit axis (3,) by angles (...)."""
    x, y, z = axis
    skew = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    s, c = np.sin(angle_rad)[..., None, None], np.cos(angle_rad)[..., None, None]
    return np.asarray(np.eye(3) + s * skew + (1.0 - c) * (skew @ skew))


def flexion_axes(
    joints: Array, tips: Mapping[str, Array], distal: Array, dorsal: Array, thumb_pad: Array
) -> Array:
    """Axis about which each joint of a right hand closes.

    Args:
        joints: (16, 3) rest joints in MANO16 order, any unit and frame.
        tips: finger name -> (3,) rest position of its tip.
        distal: (3,) unit vector along the hand.
        dorsal: (3,) unit vector out of the back of the hand.
        thumb_pad: (3,) direction in which the thumb's pad looks; the thumb closes towards it.

    Returns:
        (16, 3) unit vectors; a positive rotation closes the hand. Row 0 (the wrist) bends it towards the
        palm.
    """
    axes = np.empty((16, 3))
    axes[0] = np.cross(dorsal, distal)
    for i, name in enumerate(MANO16[1:], start=1):
        finger, k = name.split("_")
        bone = unit((tips[finger] if k == "3" else joints[i + 1]) - joints[i])
        axes[i] = unit(np.cross(bone, thumb_pad) if finger == "thumb" else np.cross(dorsal, bone))
    return axes
