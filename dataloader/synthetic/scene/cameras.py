"""The cameras around the table.

World: X to the person's right, Y away from the person, Z up, origin on the table, metres. `azimuth` 0 stands
behind the person, positive on the person's right. Cameras look with OpenCV's axes (x right, y down, z
forward).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataloader.synthetic.common import Array, rotation_about
from src.runtime.seed import stream

WIDTH, HEIGHT = 640, 480
"""Pixels of a HO3D picture."""

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


def cameras_around(seed: int, motion: int, count: int, target_m: Array) -> list[Camera]:
    """The cameras that film one motion.

    Args:
        seed: of the data set.
        motion: number of the motion.
        count: cameras; each takes its share of the arc, so that no two look the same way.
        target_m: (3,) world point that they look at.
    """
    rng = stream(seed, "cameras", motion)
    sector = 2.0 * AZIMUTH_DEG / count
    cameras = []
    for digit, place in enumerate(rng.permutation(count)):
        azimuth = np.radians(-AZIMUTH_DEG + sector * (place + rng.uniform(0.1, 0.9)))
        behind = np.abs(azimuth) < np.radians(45)
        elevation = np.radians(rng.uniform(22, 68) if behind else rng.uniform(4, 55))
        distance = rng.uniform(0.54, 0.80)
        flat = np.cos(elevation)
        direction = np.array([np.sin(azimuth) * flat, -np.cos(azimuth) * flat, np.sin(elevation)])
        aim = target_m + rng.normal(size=3) * 0.012
        centre = aim + distance * direction
        forward = (aim - centre) / distance
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        upright = np.stack([right, np.cross(forward, right), forward])
        roll = rotation_about(np.array([0.0, 0.0, 1.0]), np.asarray(np.radians(rng.normal() * 6.0)))
        serial, intrinsics = _device(seed, digit)
        cameras.append(Camera(serial, intrinsics, roll @ upright, centre))
    return cameras


def _device(seed: int, digit: int) -> tuple[str, Array]:
    """Serial number and K of the camera with this digit: the same device films every motion."""
    rng = stream(seed, "device", digit)
    focal = rng.uniform(605.0, 625.0)
    row_x = [focal, 0.0, 320.0 + rng.uniform(-12, 12)]
    row_y = [0.0, focal * rng.uniform(0.998, 1.002), 240.0 + rng.uniform(-10, 10)]
    k = np.array([row_x, row_y, [0.0, 0.0, 1.0]])
    return f"8400{rng.integers(10**7, 10**8)}", k
