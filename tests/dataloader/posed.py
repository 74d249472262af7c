"""Annotated trees of posed hands: forward kinematics of a real hand layer, labelled as HO3D does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from dataloader.crop.augment import UNCHANGED, Augmentation, Augmenter
from dataloader.ho3d_dataset import HO3DDataset
from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from src.render.rasterizer import rasterize
from tests.dataloader.tree import (
    DEPTH_UNIT_M,
    SIZE,
    Frame,
    train_meta,
    write_meta,
    write_pictures,
    write_tree,
)

WALL_M = 0.15
"""From the farthest point of a rendered hand to the wall behind it."""
SKIN = (210, 160, 130)
"""RGB of a rendered hand; its wall is dark."""


class GeometryAlone(Augmenter):
    """Draws that move a crop and leave its pixels as they are."""

    def draw(self, epoch: int, sample_index: int) -> Augmentation:
        """Roll, scale and shift."""
        drawn = super().draw(epoch, sample_index)
        return dataclasses.replace(UNCHANGED, roll_rad=drawn.roll_rad, scale=drawn.scale, shift=drawn.shift)


def geometry_alone(train: HO3DDataset) -> HO3DDataset:
    """A training split with its depth, moved, its pixels as they are."""
    drawn = train.augmenter
    assert drawn is not None
    alone = GeometryAlone(drawn.config, drawn.seed, drawn.calm_from)
    return dataclasses.replace(train, modality="rgbd", augmenter=alone)


@dataclass(frozen=True)
class PosedHand:
    """What a frame was made from."""

    vertices_m: np.ndarray
    """(778, 3) OpenGL axes."""
    intrinsics: np.ndarray
    """(3, 3)."""


def write_posed_hands(root: Path, hand: ManoLayer, count: int) -> dict[str, PosedHand]:
    """A tree of `count` frames of sequence MC1; pictures are those of `write_tree`."""
    return pose_labels(root, hand, write_tree(root, {"MC1": count}))


def pose_labels(root: Path, hand: ManoLayer, frames: dict[str, Frame]) -> dict[str, PosedHand]:
    """Label the training frames of a tree, which `write_tree` made, with hands of `hand`."""
    rng = np.random.default_rng(0)
    made: dict[str, PosedHand] = {}
    for key, frame in frames.items():
        if not key.startswith("train/"):
            continue
        aa = np.concatenate([rng.normal(0, 1.5, 3), rng.normal(0, 0.3, 45)])
        rotations = torch.from_numpy(Rotation.from_rotvec(aa.reshape(16, 3)).as_matrix())
        betas, trans = torch.from_numpy(rng.normal(0, 1, 10)), torch.from_numpy(rng.uniform(-0.1, 0.1, 3))
        trans[2] -= 0.6
        with torch.no_grad():
            posed = hand(rotations[None, 0], rotations[None, 1:], betas[None], trans[None])
        joints = posed.joints_m[0].numpy()[list(permutation(OPENPOSE21, HO3D21))]
        labels = {
            "handPose": aa,
            "handBeta": betas.numpy(),
            "handTrans": trans.numpy(),
            "handJoints3D": joints,
        }
        write_meta(root / f"{key[:-4]}meta/{key[-4:]}.pkl", train_meta(frame) | labels)
        made[key] = PosedHand(posed.vertices_m[0].numpy(), frame.intrinsics)
    return made


def write_rendered_hands(root: Path, hand: ManoLayer, count: int) -> None:
    """`write_posed_hands` with pictures of the hands before a wall, and exact depth."""
    for key, posed in write_posed_hands(root, hand, count).items():
        vertices = posed.vertices_m @ np.diag([1.0, -1.0, -1.0])
        seen = rasterize(vertices, hand.faces.numpy(), posed.intrinsics, SIZE[1], SIZE[0])
        depth = np.full(SIZE[0] * SIZE[1], vertices[:, 2].max() + WALL_M)
        rgb = np.full((SIZE[0] * SIZE[1], 3), 40, np.uint8)
        depth[seen.pixel], rgb[seen.pixel] = seen.depth_m, SKIN
        packed = np.rint(depth / DEPTH_UNIT_M).astype(np.uint16).reshape(SIZE)
        write_pictures(root / "train/MC1", key[-4:], rgb.reshape(*SIZE, 3), packed)
