"""What people wear on a hand: watches and bands, rings, tape, gloves; painted on the skin at rest."""

from __future__ import annotations

import itertools

import numpy as np

from dataloader.synthetic.common import Array, unit
from dataloader.synthetic.motion.rig import Anatomy
from dataloader.synthetic.scene.appearance import (
    ATLAS_PX_PER_M,
    SkinAtlas,
    local_metres,
    noise,
    place_on_atlas,
    texture,
)
from src.hand.joints import FINGERS, MANO16

_GLOVE, _BAND, _RING, _TAPE = 0.06, 0.35, 0.25, 0.12
"""Shares of people with a glove, a watch or band; of fingers with a ring, and of their bones with tape."""

_TAPE_COLOURS = ((235, 230, 215), (222, 184, 140), (240, 240, 240), (60, 90, 170), (30, 30, 30))
_METALS = ((212, 175, 95), (200, 200, 205), (150, 150, 155), (40, 40, 42))


def dress(rng: np.random.Generator, atlas: SkinAtlas, anatomy: Anatomy) -> None:
    """Paint what one person wears over their skin, in place."""
    if rng.random() < _GLOVE:
        _glove(rng, atlas)
    if rng.random() < _BAND:
        _band(rng, atlas, anatomy)
    for finger in FINGERS:
        first = MANO16.index(f"{finger}_1")
        chain = [*anatomy.joints_m[first : first + 3], anatomy.tips_m[finger]]
        places = [place_on_atlas(point, anatomy, atlas.origin_m) for point in chain]
        if finger != "thumb" and rng.random() < _RING:
            metal = _METALS[rng.integers(len(_METALS))]
            _strip(atlas, places[0], places[1], rng.uniform(0.35, 0.7), rng.uniform(0.002, 0.006), metal)
        for a, b in itertools.pairwise(places):
            if rng.random() < _TAPE:
                colour = _TAPE_COLOURS[rng.integers(len(_TAPE_COLOURS))]
                _strip(atlas, a, b, rng.uniform(0.3, 0.8), rng.uniform(0.006, 0.018), colour)


def _glove(rng: np.random.Generator, atlas: SkinAtlas) -> None:
    """Cloth or rubber instead of skin; folds and nails are felt through it."""
    height, width = atlas.back.shape[:2]
    colour = rng.uniform(20, 235, 3).astype(np.float32)
    cloth = colour * (1 + np.float32(0.5) * noise(rng, height, width, cells=10, octaves=3, channels=1))
    for side in (atlas.back, atlas.palm):
        relief = side.mean(axis=-1, keepdims=True) / side.mean()
        side[:] = (cloth * (1 + 0.35 * (relief - 1))).clip(0, 255)


def _band(rng: np.random.Generator, atlas: SkinAtlas, anatomy: Anatomy) -> None:
    """A strap round the wrist, on one in two people with a dial on its back."""
    behind_m = anatomy.joints_m[0] - rng.uniform(0.012, 0.05) * anatomy.distal
    start = place_on_atlas(behind_m, anatomy, atlas.origin_m)
    rows = max(2, int(rng.uniform(0.006, 0.026) * ATLAS_PX_PER_M))
    window = slice(max(0, int(start[0]) - rows // 2), int(start[0]) + rows // 2 + 1)
    strap = texture(rng, rows * 2 + 2, atlas.back.shape[1])
    for side in (atlas.back, atlas.palm):
        side[window] = strap[: side[window].shape[0]]
    if rng.random() < 0.5:
        along, across, box = local_metres(atlas.back, start, np.array([1.0, 0.0]), 0.024)
        radius = rng.uniform(0.011, 0.02)
        away = np.hypot(along, across) if rng.random() < 0.6 else np.maximum(np.abs(along), np.abs(across))
        atlas.back[box][away < radius] = _METALS[rng.integers(len(_METALS))]
        atlas.back[box][away < 0.82 * radius] = rng.uniform(0, 255, 3)


def _strip(
    atlas: SkinAtlas, start: Array, end: Array, share: float, wide_m: float, colour: tuple[int, int, int]
) -> None:
    """A strip round a finger, at a share of the way between two places of the atlas."""
    for side in (atlas.back, atlas.palm):
        along, across, box = local_metres(side, start + share * (end - start), unit(end - start), 0.016)
        inside = (np.abs(along) < wide_m / 2) & (np.abs(across) < 0.0095)
        shade = 1.0 - 0.25 * np.abs(across[inside] / 0.0095)[:, None] ** 2
        side[box][inside] = np.array(colour, np.float32) * shade
