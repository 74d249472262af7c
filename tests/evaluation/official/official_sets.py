"""The seeded sets that the official HO3D script was run on; see golden/official.json for its numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from src.runtime.seed import stream
from tests.hand_file import hand_file

SEED = 2024
FRAMES = 24
OPENGL_FROM_OPENCV = np.array([1.0, -1.0, -1.0])
KNUCKLE = HO3D21.index("middle_1")
MIRROR, LINE, PLANE = [-1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]
BESIDE, STILL = [0.0, 0.0, -0.5], [0.1, 0.2, -0.3]


def _spread(points: np.ndarray, third: float) -> np.ndarray:
    """Corners whose spreads along the axes are 1, 1 and `third`, as many as there are points."""
    axes = np.diag([1.0, 1.0, third])
    corners = np.resize(np.concatenate([axes, -axes]) * 0.05, (len(points) - 1, 3))
    return np.concatenate([np.zeros((1, 3)), corners]) + BESIDE


def _folded(points: np.ndarray) -> np.ndarray:
    """The wrist at the knuckle."""
    return np.where(np.arange(len(points))[:, None] == KNUCKLE, points[0], points)


def _coarse(points: np.ndarray) -> np.ndarray:
    """Numbers that 5 mm can be added to without rounding."""
    return np.round(points * 1024.0) / 1024.0


DEGENERATE = {
    "identical": lambda p, t: (t, t),
    "mirrored": lambda p, t: (t * MIRROR, t),
    "collinear truth": lambda p, t: (p, t * LINE + BESIDE),
    "collinear prediction": lambda p, t: (p * LINE + BESIDE, t),
    "both collinear": lambda p, t: (p * LINE + BESIDE, t * LINE + BESIDE),
    "coplanar truth": lambda p, t: (p, t * PLANE + BESIDE),
    "coplanar prediction": lambda p, t: (p * PLANE + BESIDE, t),
    "both coplanar": lambda p, t: (p * PLANE + BESIDE, t * PLANE + BESIDE),
    "equal spreads": lambda p, t: (_spread(p, 1.0), _spread(t, 1.0)),
    "equal spreads, mirrored": lambda p, t: (_spread(p, 1.0) * MIRROR, _spread(t, 1.0)),
    "two equal spreads": lambda p, t: (_spread(p, 0.5), _spread(t, 0.5)),
    "no extent": lambda p, t: (0.0 * p + STILL, t),
    "at the origin": lambda p, t: (0.0 * p, t),
    "no extent of either": lambda p, t: (0.0 * p + STILL, 0.0 * t + STILL),
    "no extent of the truth": lambda p, t: (p, 0.0 * t + STILL),
    "extent of 1e-8 m": lambda p, t: ((p - p.mean(0)) * 2e-7, t),
    "wrist at the knuckle": lambda p, t: (_folded(p), t),
    "wrist at the knuckle of the truth": lambda p, t: (p, _folded(t)),
    "millimetres": lambda p, t: (p * 1000.0, t),
    "a quarter turn": lambda p, t: (p[:, [1, 0, 2]] * [1.0, -1.0, 1.0], t),
    "5 mm off along an axis": lambda p, t: (_coarse(t) + np.array([0.005, 0.0, 0.0]), _coarse(t)),
    "100 m off": lambda p, t: (p + 100.0, t),
}
"""Rows of the degenerate set: prediction and truth (P, 3), spoilt."""


@dataclass(frozen=True)
class Frames:
    """Joints (N, 21, 3) in HO3D order and meshes (N, 778, 3), metres, OpenGL axes, float64."""

    pred_joints: np.ndarray
    target_joints: np.ndarray
    pred_mesh: np.ndarray
    target_mesh: np.ndarray


def make_frames(name: str) -> Frames:
    """The set `random`, `realistic` or `degenerate`."""
    return {"random": _random, "realistic": _realistic, "degenerate": _degenerate}[name]()


def _random() -> Frames:
    random = stream(SEED, "official", "random")

    def cloud(points: int) -> np.ndarray:
        return random.normal(0.0, 0.05, (FRAMES, points, 3)) + np.array([0.05, -0.02, -0.6])

    return Frames(cloud(21), cloud(21), cloud(778), cloud(778))


def _realistic() -> Frames:
    """Posed hands; predictions with another articulation, shape, turn and place, and noise."""
    random = stream(SEED, "official", "realistic")
    turn = Rotation.random(FRAMES, rng=random)
    pose = random.normal(0.0, 0.3, (FRAMES, 15, 3))
    betas = random.normal(0.0, 0.7, (FRAMES, 10))
    place = random.uniform(-0.15, 0.15, (FRAMES, 3)) + np.array([0.0, 0.0, 0.6])
    target = _posed(turn, pose, betas, place)
    pred = _posed(
        Rotation.from_rotvec(random.normal(0.0, 0.1, (FRAMES, 3))) * turn,
        pose + random.normal(0.0, 0.15, pose.shape),
        betas + random.normal(0.0, 0.4, betas.shape),
        place + random.normal(0.0, 0.01, place.shape),
    )
    noisy = [points + random.normal(0.0, 0.002, points.shape) for points in pred]
    return Frames(noisy[0], target[0], noisy[1], target[1])


def _posed(turn: Rotation, pose_aa: np.ndarray, betas: np.ndarray, place: np.ndarray):
    """Joints and mesh of the stand-in hand in float64."""
    local = Rotation.from_rotvec(pose_aa.reshape(-1, 3)).as_matrix().reshape(len(betas), 15, 3, 3)
    hand = ManoLayer.from_file(hand_file())(*map(torch.from_numpy, (turn.as_matrix(), local, betas, place)))
    joints = hand.joints_m.numpy()[:, list(permutation(OPENPOSE21, HO3D21))]
    return joints * OPENGL_FROM_OPENCV, hand.vertices_m.numpy() * OPENGL_FROM_OPENCV


def _degenerate() -> Frames:
    """One row for each entry of `DEGENERATE`: joints and mesh are spoilt alike."""
    random = stream(SEED, "official", "degenerate")
    rows = []
    for spoil in DEGENERATE.values():
        row = []
        for points in (21, 778):
            target = random.normal(0.0, 0.04, (points, 3)) + np.array([0.02, 0.03, -0.5])
            pred = target + random.normal(0.0, 0.008, target.shape)
            row += spoil(pred, target)
        rows.append(row)
    return Frames(*(np.stack(column) for column in zip(*rows, strict=True)))
