"""The cameras around the table, and those of people who film a hand wherever they stand.

World: X to the person's right, Y away from the person, Z up, origin on the table, metres. `azimuth` 0 stands
behind the person, positive on the person's right. Cameras look with OpenCV's axes (x right, y down, z
forward).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.synthetic.common import Array, rotation_about, unit
from dataloader.synthetic.motion.motion import Motion
from src.runtime.seed import stream

WIDTH, HEIGHT = 640, 480
"""Pixels of a HO3D picture."""

MORE_PX = 64
"""A field of noise is wider and higher than a picture by this: each frame looks at another part of it."""

AZIMUTH_DEG = 72.0
"""Cameras stand within this angle of the person's back: forearms enter from the lower and side borders."""


@dataclass(frozen=True)
class Camera:
    """One calibrated camera: x_cam = rotation (x_world - centre_m)."""

    serial: str
    """Name in camIDList."""
    intrinsics_px: Array
    """(3, 3) K."""
    rotation: Array
    """(3, 3) rows are the camera's right, down and forward axes in the world."""
    centre_m: Array
    """(3,) world."""

    def to_camera(self, points_world_m: Array) -> Array:
        """(..., 3) world to camera, metres."""
        return (points_world_m - self.centre_m) @ self.rotation.T


FOCAL_PX = (380.0, 950.0)
"""Focal lengths of cameras that people bring; at 640 x 480, a wide webcam to a long lens."""

DISTANCE_M = (0.25, 1.2)
"""Of these cameras from the place about which the hand moves."""

_NEAREST_M = 0.1
"""A camera to which a joint comes nearer in any frame is not taken: no loader would."""

_WEARER_SHARE = 0.5
_WEARER_MOST_M = 0.65
"""Share of cameras tried on the head, and how far the hand can be from them. Those that would look along the
forearm are not taken: a third of all cameras is worn."""

_HAND_REACH_M = 0.13
"""A camera stands so far away that this, to each side of what it looks at, is in its picture."""

_ABOVE_TABLE_M = 0.05
_BEHIND_FOREARM = 0.87
"""No camera stands so near to the forearm's direction (cosine) in any frame that it sees the hand through the
arm."""


def cameras_around(seed: int, motion: Motion, count: int) -> list[Camera]:
    """The cameras that film one motion from the person's side of the table.

    Args:
        seed: of the data set.
        motion: what they look at.
        count: cameras; each takes its share of the arc, so that no two look the same way.
    """
    rng = stream(seed, "cameras", motion.number)
    sector = 2.0 * AZIMUTH_DEG / count
    cameras = []
    for digit, place in enumerate(rng.permutation(count)):
        azimuth = np.radians(-AZIMUTH_DEG + sector * (place + rng.uniform(0.1, 0.9)))
        behind = np.abs(azimuth) < np.radians(45)
        elevation = np.radians(rng.uniform(22, 68) if behind else rng.uniform(4, 55))
        distance = rng.uniform(0.54, 0.80)
        flat = np.cos(elevation)
        direction = np.array([np.sin(azimuth) * flat, -np.cos(azimuth) * flat, np.sin(elevation)])
        aim = motion.target_m + rng.normal(size=3) * 0.012
        centre = aim + distance * direction
        forward = (aim - centre) / distance
        rotation = _rolled(_upright(forward, np.array([0.0, 0.0, 1.0])), rng.normal() * 6.0)
        serial, intrinsics = _device(seed, digit)
        cameras.append(Camera(serial, intrinsics, rotation, centre))
    return cameras


def cameras_anywhere(seed: int, motion: Motion, count: int) -> list[Camera]:
    """Cameras of any focal length, distance and elevation above the table, some of them worn on the head.

    Arguments as of `cameras_around`. Each is a device of its own; the hand stands anywhere in its picture.
    """
    return [_anywhere(stream(seed, "any camera", motion.number, digit), motion) for digit in range(count)]


def _anywhere(rng: np.random.Generator, motion: Motion) -> Camera:
    """One such camera."""
    focal = float(np.exp(rng.uniform(*np.log(FOCAL_PX))))
    joints_m = motion.in_world(motion.joints_m)
    elbow = motion.elbow_direction.mean(axis=0)
    elbow_side = np.arctan2(elbow[0], -elbow[1])
    while True:
        worn = rng.random() < _WEARER_SHARE
        low = max(DISTANCE_M[0], _HAND_REACH_M * 2 * focal / HEIGHT)
        high = max(low, _WEARER_MOST_M) if worn else DISTANCE_M[1]
        distance = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        lowest = max(-1.0, (_ABOVE_TABLE_M - motion.target_m[2]) / distance)
        azimuth = elbow_side + np.radians(rng.normal() * 30.0 if worn else rng.uniform(-180.0, 180.0))
        up = np.sin(np.radians(rng.uniform(15.0, 80.0))) if worn else rng.uniform(lowest, 1.0)
        flat = np.sqrt(1.0 - up * up)
        direction = np.array([np.sin(azimuth) * flat, -np.cos(azimuth) * flat, up])
        if (motion.elbow_direction @ direction).max() >= _BEHIND_FOREARM:
            continue
        forward = -direction
        steep = np.abs(forward[2]) > 0.99
        upright = _upright(forward, np.array([0.0, 1.0, 0.0] if steep else [0.0, 0.0, 1.0]))
        free_m = np.maximum(distance / focal * np.array([WIDTH, HEIGHT]) / 2 - _HAND_REACH_M, 0.0)
        aside = upright[:2].T @ (free_m * rng.uniform(-0.8, 0.8, 2))
        k = np.array([
            [focal, 0.0, WIDTH / 2 + rng.uniform(-16, 16)],
            [0.0, focal * rng.uniform(0.99, 1.01), HEIGHT / 2 + rng.uniform(-14, 14)],
            [0.0, 0.0, 1.0],
        ])  # fmt: skip
        serial = f"9{rng.integers(10**10, 10**11)}"
        centre = motion.target_m + aside - distance * forward
        centre[2] = max(centre[2], _ABOVE_TABLE_M)
        camera = Camera(serial, k, _rolled(upright, rng.normal() * 10.0), centre)
        if camera.to_camera(joints_m)[..., 2].min() >= _NEAREST_M:
            return camera


def _upright(forward: Array, up: Array) -> Array:
    """(3, 3) rotation of a camera that looks along `forward` with `up` upwards in its picture."""
    right = unit(np.cross(forward, up))
    return np.stack([right, np.cross(forward, right), forward])


def _rolled(rotation: Array, angle_deg: float) -> Array:
    """(3, 3) a camera turned about its own axis."""
    about = rotation_about(np.array([0.0, 0.0, 1.0]), np.asarray(np.radians(angle_deg)))
    return np.asarray(about @ rotation)


def _device(seed: int, digit: int) -> tuple[str, Array]:
    """Serial number and K of the camera with this digit: the same device films every motion."""
    rng = stream(seed, "device", digit)
    focal = rng.uniform(605.0, 625.0)
    row_x = [focal, 0.0, 320.0 + rng.uniform(-12, 12)]
    row_y = [0.0, focal * rng.uniform(0.998, 1.002), 240.0 + rng.uniform(-10, 10)]
    k = np.array([row_x, row_y, [0.0, 0.0, 1.0]])
    return f"8400{rng.integers(10**7, 10**8)}", k


def any_part(rng: np.random.Generator, field: NDArray[Any]) -> NDArray[Any]:
    """(480, 640, ...) of a field (480 + MORE_PX, 640 + MORE_PX, ...)."""
    a, b = rng.integers(0, MORE_PX, 2)
    return field[a : a + HEIGHT, b : b + WIDTH]
