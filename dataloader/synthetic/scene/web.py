"""The web of the thumb: the flesh that fills the space between the thumb and the index finger.

The hand model's skin is cut in between them as far as the bones go. On a real hand a fold of skin and the
muscles under it reach from the thumb's first phalanx to that of the index finger. What a camera sees of a
hand from the thumb's side is mostly this sheet, and a network that has never seen it takes it for the back of
the hand. It is drawn over the model's skin and moves with the joints; no label knows of it.

Legend: 16 joints in MANO16 order, W points of the web.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataloader.synthetic.common import Array, Index
from dataloader.synthetic.motion.motion import Motion
from src.hand.joints import MANO16
from src.runtime.seed import stream

_ROWS = _COLUMNS = 8
"""Points from the web's root to its free edge, and from the thumb to the index finger."""

_ROOT = 0.3
"""Where it begins between wrist and index knuckle."""

_THINNER = 0.6
"""Share of its thickness that is lost at the free edge."""

_WRIST, _THUMB, _INDEX = (MANO16.index(name) for name in ("wrist", "thumb_1", "index_1"))


@dataclass(frozen=True)
class Web:
    """How much flesh one person has there."""

    thumb: float
    """Share of the thumb's first phalanx along which it is grown to the thumb."""
    index: float
    """The same of the index finger."""
    sag: float
    """How far the middle of its free edge falls back, as a share of its length."""
    thickness_m: float
    """Between the bones' plane and its skin, at the root."""

    @classmethod
    def of(cls, seed: int, motion: Motion) -> Web:
        """The web of the person who makes a motion of the data set `seed`."""
        rng = stream(seed, "web", motion.number)
        thumb, index, sag, thickness_m = rng.uniform([0.2, 0.1, 0.0, 0.004], [1.0, 0.7, 0.25, 0.013]).tolist()
        return cls(thumb, index, sag, thickness_m)

    def points_m(self, joints_m: Array) -> Array:
        """(W, 3) of a hand's joints (16, 3), metres, any frame: first its side of the back, then the palm's.

        The right hand's: the sides change places if the frame is mirrored.
        """
        knuckle, hinge = joints_m[_INDEX : _INDEX + 2]
        root = joints_m[_WRIST] + _ROOT * (knuckle - joints_m[_WRIST])
        across = np.linspace(0.0, 1.0, _COLUMNS)
        reach = np.linspace(0.0, 1.0, _ROWS)[:, None] * (1.0 - 4.0 * self.sag * across * (1.0 - across))
        thumb = _along(joints_m[_THUMB : _THUMB + 3], self.thumb, reach)
        index = _along(np.stack([root, knuckle, hinge]), self.index, reach)
        middle = (1.0 - across)[:, None] * thumb + across[:, None] * index
        down, right = np.gradient(middle, axis=(0, 1))
        outward = np.cross(right, down)
        outward /= np.linalg.norm(outward, axis=-1, keepdims=True) + 1e-9
        flesh = outward * (self.thickness_m * (1.0 - _THINNER * reach**2))[..., None]
        return np.concatenate([middle + flesh, middle - flesh]).reshape(-1, 3)


def web_faces() -> Index:
    """(F, 3) of the points of any web: its two sides, closed along the free edge."""
    number = np.arange(2 * _ROWS * _COLUMNS).reshape(2, _ROWS, _COLUMNS)
    back, palm = number
    strips = [back, palm[:, ::-1], np.stack([back[-1], palm[-1]])]
    faces = []
    for strip in strips:
        a, b, c, d = strip[:-1, :-1], strip[:-1, 1:], strip[1:, 1:], strip[1:, :-1]
        faces += [np.stack([a, d, b], -1).reshape(-1, 3), np.stack([b, d, c], -1).reshape(-1, 3)]
    return np.concatenate(faces)


def web_backness() -> Array:
    """(W,) 1 on the side of the back of the hand, 0 on the palm's."""
    return np.repeat([1.0, 0.0], _ROWS * _COLUMNS)


def _along(chain_m: Array, last: float, share: Array) -> Array:
    """(..., 3) points at shares (...,) of a chain (3, 3) whose second bone is cut at `last` of itself."""
    start, knee, end = chain_m
    points = np.stack([start, knee, knee + last * (end - knee)])
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    arc = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    return np.stack([np.interp(share, arc, points[:, k]) for k in range(3)], axis=-1)
