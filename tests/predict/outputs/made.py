"""Predicted hands without a network."""

from __future__ import annotations

import numpy as np
import torch

from src.hand.mano import ManoLayer
from src.predict.frame import HandBox
from src.predict.hands import Hands, mirrored
from src.predict.outputs.store import FrameHands
from tests.hand_file import hand_file


def some_hands(count: int, seed: int = 0, left: tuple[bool, ...] = ()) -> Hands:
    """Open hands of some shapes, half a metre away; those of `left` are mirrored."""
    rng, layer = np.random.default_rng(seed), ManoLayer.from_file(hand_file())
    pose = np.tile(np.eye(3, dtype=np.float32), (count, 15, 1, 1))
    orient = np.tile(np.diag([1.0, -1, -1]).astype(np.float32), (count, 1, 1))
    betas = rng.normal(0, 0.5, (count, 10)).astype(np.float32)
    place = (np.array([-0.1, 0, 0.5]) + rng.normal(0, 0.01, (count, 3))).astype(np.float32)
    out = layer(*map(torch.from_numpy, (orient, pose, betas, place)))
    named = {
        "joints_m": out.joints_m.numpy(), "vertices_m": out.vertices_m.numpy(), "global_orient": orient,
        "hand_pose": pose, "betas": betas, "translation_m": place,
    }  # fmt: skip
    sides = np.array(left or (False,) * count, bool)
    turned = {
        name: np.where(sides.reshape(-1, *[1] * (v.ndim - 1)), mirrored(name, v), v)
        for name, v in named.items()
    }
    return Hands(**turned, left=sides, faces=layer.faces.numpy())


def frame_hands(name: str, count: int, seed: int = 0) -> FrameHands:
    """A frame with some hands; every second one is a left one."""
    left = tuple(k % 2 == 1 for k in range(count))
    boxes = [HandBox((10.5 + k, 20, 90, 95), side, 0.5 + 0.1 * k) for k, side in enumerate(left)]
    return FrameHands(name, boxes, some_hands(count, seed, left))
