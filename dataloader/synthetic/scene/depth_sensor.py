"""What a stereo depth sensor makes of a clean depth map.

The sensor triangulates between the picture's camera and a second one `BASELINE_M` to its right. Its errors:
noise that grows with z^2 and is alike among neighbours; a shadow on the left of everything that stands out,
as wide as f * baseline * (1 / z_near - 1 / z_far) pixels, where the second camera's view is blocked; surfaces
seen at a grazing angle, ragged silhouettes and a few weak spots return nothing; whole millimetres.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.synthetic.common import Image
from dataloader.synthetic.scene.cameras import HEIGHT, MORE_PX, WIDTH, any_part

BASELINE_M = 0.05
"""Distance of the two imagers."""

NOISE_PER_M = 0.0016
"""Standard deviation of depth at 1 m on a surface that faces the sensor, metres."""

STEP_M = 0.001
"""Depth is reported in whole steps of this."""

GRAZING_COSINE = 0.10
"""Surfaces turned further away than this return nothing."""

_SHADOW_SLACK_PX = 0.75
_JUMP_M = 0.012


def noise_sigma_m(depth_m: Image, cosine: Image) -> Image:
    """Standard deviation of a measurement of a surface at z `depth_m` whose normal makes `cosine` with the
    ray."""
    return (NOISE_PER_M * depth_m * depth_m / np.sqrt(np.clip(cosine, 0.1, 1.0))).astype(np.float32)


def shadow(depth_m: Image, focal_px: float) -> NDArray[np.bool_]:
    """(H, W) pixels whose surface the second imager cannot see because something nearer stands before it.

    Args:
        depth_m: (H, W) z > 0.
        focal_px: of the picture's camera.
    """
    column = np.arange(depth_m.shape[1], dtype=np.float32)
    in_second = column - np.float32(focal_px * BASELINE_M) / depth_m
    # Whatever lies further right here but not further right there stands in front.
    nearest_from_right = np.minimum.accumulate(in_second[:, ::-1], axis=1)[:, ::-1]
    blocked = np.zeros(depth_m.shape, bool)
    blocked[:, :-1] = nearest_from_right[:, 1:] < in_second[:, :-1] - np.float32(_SHADOW_SLACK_PX)
    return blocked


class DepthSensor:
    """One device: the fixed pattern of its noise."""

    def __init__(self, rng: np.random.Generator, focal_px: float) -> None:
        """A device with a pattern of its own; `focal_px` is of the picture's camera."""
        pattern = cv2.GaussianBlur(
            rng.standard_normal((HEIGHT + MORE_PX, WIDTH + MORE_PX), np.float32), (0, 0), 1.4
        )
        # Unit variance, alike among neighbours; each frame looks at another window of it.
        self._pattern = pattern / pattern.std()
        self._focal_px = focal_px

    def measure(self, rng: np.random.Generator, clean_m: Image, cosine: Image) -> Image:
        """One depth picture.

        Args:
            rng: of this frame.
            clean_m: (480, 640) z > 0 of what is seen.
            cosine: (480, 640) between its normal and the ray.

        Returns:
            (480, 640) metres in whole steps, 0 where nothing came back.
        """
        pattern: Image = any_part(rng, self._pattern)
        noisy = clean_m + pattern * noise_sigma_m(clean_m, cosine)
        measured: Image = np.asarray(np.round(noisy / np.float32(STEP_M)) * np.float32(STEP_M), np.float32)
        weak = cv2.resize(rng.random((30, 40), np.float32), (WIDTH, HEIGHT)) > 0.99
        measured[shadow(clean_m, self._focal_px) | weak | self.unseen(clean_m, cosine, pattern)] = 0.0
        return measured

    def unseen(self, clean_m: Image, cosine: Image, pattern: Image, ragged: float = 1.0) -> NDArray[np.bool_]:
        """(480, 640) where the shape of the scene lets nothing come back, but for the second imager's shadow.

        Args:
            clean_m: as of `measure`.
            cosine: as of `measure`.
            pattern: (480, 640) noise of unit variance.
            ragged: silhouettes return nothing where the pattern is above it.
        """
        jump = np.zeros(clean_m.shape, np.uint8)
        jump[:, 1:] = np.abs(clean_m[:, 1:] - clean_m[:, :-1]) > _JUMP_M
        jump[1:] |= (np.abs(clean_m[1:] - clean_m[:-1]) > _JUMP_M).view(np.uint8)
        edges = (cv2.dilate(jump, np.ones((3, 3), np.uint8)) > 0) & (pattern > ragged)
        return edges | (cosine < GRAZING_COSINE)
