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
DEGENERATE = (
    "identical", "mirrored", "collinear truth", "collinear prediction", "both collinear", "coplanar truth",
    "coplanar prediction", "both coplanar", "equal spreads", "equal spreads, mirrored",
    "two equal spreads", "no extent", "at the origin", "no extent of either", "no extent of the truth",
    "extent of 1e-8 m", "wrist at the knuckle", "wrist at the knuckle of the truth", "millimetres",
    "a quarter turn", "5 mm off along an axis", "100 m off",
)  # fmt: skip
"""Rows of the degenerate set."""


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
    """One row for each name of `DEGENERATE`: joints and mesh are spoilt alike."""
    random = stream(SEED, "official", "degenerate")
    rows = []
    for name in DEGENERATE:
        pairs = []
        for points in (21, 778):
            target = random.normal(0.0, 0.04, (points, 3)) + np.array([0.02, 0.03, -0.5])
            pred = target + random.normal(0.0, 0.008, target.shape)
            pairs.append(_spoil(name, pred, target))
        rows.append((pairs[0][0], pairs[0][1], pairs[1][0], pairs[1][1]))
    return Frames(*(np.stack(column) for column in zip(*rows, strict=True)))


def _spoil(name: str, pred: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, truth) of one degenerate row; both (P, 3)."""
    line, plane = np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0])
    beside = np.array([0.0, 0.0, -0.5])
    knuckle = HO3D21.index("middle_1")
    if name == "identical":
        return target.copy(), target
    if name in ("mirrored", "equal spreads, mirrored", "equal spreads", "two equal spreads"):
        if "spreads" in name:
            axes = np.array([1.0, 1.0, 0.5 if name.startswith("two") else 1.0])
            corners = np.concatenate([np.diag(axes), -np.diag(axes)]) * 0.05
            target = np.concatenate([np.zeros((1, 3)), np.resize(corners, (len(target) - 1, 3))]) + beside
            pred = target.copy()
        return (target * [-1.0, 1.0, 1.0] if "mirrored" in name else pred), target
    if name.startswith(("collinear", "both collinear", "coplanar", "both coplanar")):
        keep = line if "collinear" in name else plane
        flat_pred, flat_target = pred * keep + beside, target * keep + beside
        if name.startswith("both"):
            return flat_pred, flat_target
        return (pred, flat_target) if name.endswith("truth") else (flat_pred, target)
    spoilt_pred, spoilt_target = pred.copy(), target.copy()
    if name in ("no extent", "no extent of either"):
        spoilt_pred[:] = [0.1, 0.2, -0.3]
    if name in ("no extent of either", "no extent of the truth"):
        spoilt_target[:] = [0.1, 0.2, -0.3]
    if name == "at the origin":
        spoilt_pred[:] = 0.0
    if name == "extent of 1e-8 m":
        spoilt_pred = (pred - pred.mean(0)) * 2e-7
    if name == "wrist at the knuckle":
        spoilt_pred[knuckle] = spoilt_pred[0]
    if name == "wrist at the knuckle of the truth":
        spoilt_target[knuckle] = spoilt_target[0]
    if name == "millimetres":
        spoilt_pred = pred * 1000.0
    if name == "a quarter turn":
        spoilt_pred = pred[:, [1, 0, 2]] * [1.0, -1.0, 1.0]
    if name == "5 mm off along an axis":
        spoilt_target = np.round(target * 1024.0) / 1024.0
        spoilt_pred = spoilt_target + np.array([0.005, 0.0, 0.0])
    if name == "100 m off":
        spoilt_pred = pred + 100.0
    return spoilt_pred, spoilt_target
