"""What differs between the worlds that are filmed, beside who looks and what is done: as in `table`.

`scene/wide.py` has the other one. Streams of random numbers are its own, so `table` is drawn as ever.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataloader.synthetic.common import Array, Image
from dataloader.synthetic.frames import JPEG_QUALITY
from dataloader.synthetic.motion.motion import Motion
from dataloader.synthetic.scene.cameras import Camera
from dataloader.synthetic.scene.depth_sensor import DepthSensor


class Look:
    """One camera's view of one motion: a table and a wall, a clean lens, a stereo sensor."""

    jpeg_quality = JPEG_QUALITY
    farther_m = 0.0
    """By how much walls and clutter stand farther away than in HO3D's rooms."""

    def __init__(self, seed: int, motion: Motion, camera: Camera, digit: int) -> None:
        self._motion, self._camera = motion, camera
        self.up = np.array([0.0, -1.0, 0.0], np.float32)
        """(3,) where the sky is, camera frame."""

    def lamp(self, rng: np.random.Generator) -> Array:
        """(3,) towards the strongest light, camera frame, of any length."""
        return rng.normal(size=3) * [0.8, 0.4, 0.4] + [0.0, -0.8, -0.7]

    def furnish(self, rgb: Image, depth_m: Image) -> None:
        """Change the room (in place), (480, 640, 3) colours in 0-255 and (480, 640) z > 0."""

    def sensor(self, rng: np.random.Generator) -> DepthSensor:
        """What measures depth."""
        return DepthSensor(rng, float(self._camera.intrinsics_px[0, 0]))

    def align(self, rgb: NDArray[np.uint8], depth_m: Image) -> None:
        """Change the picture (in place) by how it was laid on the measured depth (480, 640)."""

    def lens(self, rng: np.random.Generator, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the camera makes of a frame (480, 640, 3) RGB that is sharp and well lit."""
        return rgb
