"""What people bring: worn things, rooms, lenses and depth sensors of the domain `wide`."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.synthetic.common import Array, Image
from dataloader.synthetic.motion.motion import Motion
from dataloader.synthetic.scene.any_sensor import AnySensor
from dataloader.synthetic.scene.appearance import NEAREST_UPRIGHT_M, Person
from dataloader.synthetic.scene.cameras import HEIGHT, MORE_PX, WIDTH, Camera, any_part
from dataloader.synthetic.scene.depth_sensor import DepthSensor
from dataloader.synthetic.scene.furniture import furnish
from dataloader.synthetic.scene.look import Look
from dataloader.synthetic.scene.web import Web
from dataloader.synthetic.scene.worn import dress
from src.runtime.seed import stream

_SHOWN_ARM_M = 0.15
"""Rooms begin behind the forearm as far as this from the wrist."""

_GAP_M = 0.005
"""Between the farthest that is drawn and the room behind it."""

_LAMP_UP = 0.9
_LAMP_ASIDE = 0.6
"""Lamps hang above, more or less."""

_STREAK = 0.35
"""Share of cameras whose shutter stays open long enough for a hand to smear."""

_CARRIED = 0.2
"""Share of pictures that are aligned to the depth camera instead of the other way round."""


def dressed(seed: int, motion: Motion) -> Person:
    """The person of a motion with the web of their thumb and what they wear on their hand."""
    person = dataclasses.replace(Person.of(seed, motion), web=Web.of(seed, motion))
    dress(stream(seed, "worn", motion.number), person.atlas, motion.anatomy)
    return person


class WideLook(Look):
    """One camera's view of one motion, as in the world that people bring."""

    def __init__(self, seed: int, motion: Motion, camera: Camera, digit: int) -> None:
        super().__init__(seed, motion, camera, digit)
        self._room = stream(seed, "room", motion.number, digit)
        shown = np.concatenate([motion.hand_and_held_m(), motion.forearm_m(_SHOWN_ARM_M)[:, None]], axis=1)
        self._behind_m = float(camera.to_camera(shown)[..., 2].max()) + _GAP_M
        self.up = camera.rotation[:, 2].astype(np.float32)
        self.farther_m = max(self._behind_m - NEAREST_UPRIGHT_M, 0.0)
        device = stream(seed, "lens", motion.number, digit)
        self.jpeg_quality = int(device.integers(45, 96))
        self._response = _response(device)
        self._coarser = float(device.uniform(1.0, 2.2)) if device.random() < 0.6 else 1.0
        self._carried = device.random() < _CARRIED
        self._streak_px = int(device.integers(3, 12)) if device.random() < _STREAK else 0
        self._grain: NDArray[np.int16] | None = None
        if device.random() < 0.5:
            grain = device.standard_normal((HEIGHT + MORE_PX, WIDTH + MORE_PX, 3), np.float32)
            grain *= np.float32(device.uniform(1.0, 9.0))
            self._grain = grain.round().clip(-60, 60).astype(np.int16)

    def lamp(self, rng: np.random.Generator) -> Array:
        """As of `Look`: above, wherever the camera stands."""
        return _LAMP_UP * self.up + _LAMP_ASIDE * rng.normal(size=3)

    def furnish(self, rgb: Image, depth_m: Image) -> None:
        """Things at any depth behind the hand."""
        furnish(self._room, rgb, depth_m, self._behind_m)

    def sensor(self, rng: np.random.Generator) -> DepthSensor:
        """Stereo or time of flight."""
        return AnySensor(rng, float(self._camera.intrinsics_px[0, 0]))

    def align(self, rgb: NDArray[np.uint8], depth_m: Image) -> None:
        """Colours that were carried into the depth camera are black where it measured nothing."""
        if self._carried:
            rgb[depth_m == 0.0] = 0

    def lens(self, rng: np.random.Generator, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Smeared, coarser, in this camera's colours, with its grain."""
        image: cv2.typing.MatLike = rgb
        if self._streak_px:
            image = cv2.filter2D(image, -1, _streak(rng.uniform(0, np.pi), rng.uniform(1.0, self._streak_px)))
        if self._coarser > 1.0:
            fewer = (round(WIDTH / self._coarser), round(HEIGHT / self._coarser))
            image = cv2.resize(cv2.resize(image, fewer, interpolation=cv2.INTER_LINEAR), (WIDTH, HEIGHT))
        image = cv2.LUT(image, self._response)
        if self._grain is not None:
            image = cv2.add(image, any_part(rng, self._grain), dtype=cv2.CV_8U)
        return np.asarray(image, np.uint8)


def _response(rng: np.random.Generator) -> NDArray[np.uint8]:
    """(256, 1, 3) what a camera makes of each value: exposure, white balance, contrast."""
    warm, green = rng.normal(size=2) * [0.14, 0.05]
    gain = np.exp(rng.uniform(np.log(0.7), np.log(1.6)) + np.array([warm, green, -warm]))
    light = (np.arange(256) / 255)[:, None] * gain
    curve = light ** rng.uniform(0.7, 1.2)
    black = rng.uniform(0, 18) if rng.random() < 0.5 else 0.0
    return np.asarray((black + (255 - black) * curve).round().clip(0, 255).astype(np.uint8)[:, None])


def _streak(angle: float, length_px: float) -> Image:
    """(11, 11) kernel of a straight smear."""
    kernel = np.zeros((11, 11), np.float32)
    half = length_px / 2 * np.array([np.cos(angle), np.sin(angle)])
    ends = [tuple(int(v) for v in np.round((5 + way * half) * 16)) for way in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1, cv2.LINE_AA, 4)
    return np.asarray(kernel / kernel.sum())
