"""Depth sensors that people bring: stereo with fat edges, or time of flight with flying pixels.

Facts about them: they report steps of 0.125 to 1 mm; of an indoor picture 3 to 15 % have no depth; the colour
camera stands beside the depth camera, and alignment leaves 1 to 3 pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

from dataloader.synthetic.common import Image
from dataloader.synthetic.scene.cameras import HEIGHT, WIDTH, any_part
from dataloader.synthetic.scene.depth_sensor import DepthSensor, noise_sigma_m, shadow

_STEPS_M = (0.000125, 0.00025, 0.0005, 0.001)
_JUMP_M = 0.015
_MOST_SHIFT_PX = 3
_IN_REGISTER = 0.18
"""Share of devices whose two pictures lie on one another: with shifts of less than half a pixel, a third."""

_FLYING = 0.7
"""Share of the pixels of an edge that a time-of-flight sensor places between its two sides."""


class AnySensor(DepthSensor):
    """One device: its kind, step, noise, holes and how far its pictures lie beside those of the colours."""

    def __init__(self, rng: np.random.Generator, focal_px: float) -> None:
        """A device drawn at random; `focal_px` is of the picture's camera."""
        super().__init__(rng, focal_px)
        self._of_flight = rng.random() < 0.5
        self._step_m = np.float32(_STEPS_M[rng.integers(len(_STEPS_M))])
        self._edge_px = int(rng.integers(1, 4))
        self._holes = rng.uniform(0.005, 0.08)
        self._ragged, self._way = rng.uniform(-1.5, 1.5), int(rng.choice([-1, 1]))
        self._louder = np.float32(rng.uniform(0.5, 2.5))
        aside, way = rng.uniform(0, _MOST_SHIFT_PX), rng.uniform(0, 2 * np.pi)
        self._shift_px = np.rint(aside * np.array([np.cos(way), np.sin(way)])).astype(int)
        if rng.random() < _IN_REGISTER:
            self._shift_px[:] = 0
        bias = cv2.resize(rng.standard_normal((5, 7), np.float32), (WIDTH, HEIGHT))
        self._bias_m = bias * np.float32(rng.uniform(0.0, 0.004))

    def measure(self, rng: np.random.Generator, clean_m: Image, cosine: Image) -> Image:
        """As of `DepthSensor`, in this device's steps."""
        if self._of_flight:
            seen = self._flight(rng, clean_m)
        else:
            # Matching windows carry the nearer surface over its edge.
            seen = np.asarray(cv2.erode(clean_m, np.ones((2 * self._edge_px - 1,) * 2, np.uint8)), np.float32)
        pattern: Image = any_part(rng, self._pattern)
        seen = seen + self._louder * pattern * noise_sigma_m(clean_m, cosine) + self._bias_m
        measured: Image = np.round(seen / self._step_m) * self._step_m
        measured[self._lost(rng, clean_m, cosine, pattern)] = 0.0
        return self._beside(measured).clip(0.0, 8.0)

    def _flight(self, rng: np.random.Generator, clean_m: Image) -> Image:
        """Depth with flying pixels, and with corners that light on two ways makes farther and rounder."""
        soft = cv2.blur(clean_m, (3, 3))
        flying = (np.abs(soft - clean_m) > _JUMP_M / 3) & (rng.random(clean_m.shape, np.float32) < _FLYING)
        wide = cv2.resize(cv2.blur(clean_m[::4, ::4], (9, 9)), (WIDTH, HEIGHT))
        corners = (clean_m - wide).clip(-0.02, 0.02) * np.float32(-0.15)
        return np.asarray(np.where(flying, soft, clean_m + corners), np.float32)

    def _lost(self, rng: np.random.Generator, clean_m: Image, cosine: Image, pattern: Image) -> Image:
        """(480, 640) bool: nothing comes back."""
        blobs = cv2.resize(rng.random((24, 32), np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        weak = np.asarray(blobs, np.float32) + np.float32(0.05) * pattern
        lost = weak > float(np.quantile(weak[::8, ::8], 1.0 - self._holes))
        lost |= self.unseen(clean_m, cosine, pattern, self._ragged)
        if not self._of_flight:  # the second imager stands on either side
            way = slice(None, None, self._way)
            lost |= shadow(clean_m[:, way], self._focal_px)[:, way]
        return np.asarray(lost)

    def _beside(self, measured_m: Image) -> Image:
        """The picture moved by whole pixels; nothing is known of what moves in."""
        dx, dy = (int(part) for part in self._shift_px)
        moved = np.zeros_like(measured_m)
        moved[max(dy, 0) : HEIGHT + min(dy, 0), max(dx, 0) : WIDTH + min(dx, 0)] = measured_m[
            max(-dy, 0) : HEIGHT + min(-dy, 0), max(-dx, 0) : WIDTH + min(-dx, 0)
        ]
        return moved
