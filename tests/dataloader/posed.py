"""Annotated trees of posed hands: forward kinematics of a real hand layer, labelled as HO3D does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from src.hand.joints import HO3D21, OPENPOSE21, permutation
from src.hand.mano import ManoLayer
from tests.dataloader.tree import Frame, train_meta, write_meta, write_tree


def write_posed_hands(root: Path, hand: ManoLayer, count: int) -> None:
    """A tree of `count` frames of sequence MC1; pictures are those of `write_tree`."""
    pose_labels(root, hand, write_tree(root, {"MC1": count}))


def pose_labels(root: Path, hand: ManoLayer, frames: dict[str, Frame]) -> None:
    """Label the training frames of a tree, which `write_tree` made, with hands of `hand`."""
    rng = np.random.default_rng(0)
    for key, frame in frames.items():
        if not key.startswith("train/"):
            continue
        aa = np.concatenate([rng.normal(0, 1.5, 3), rng.normal(0, 0.3, 45)])
        rotations = torch.from_numpy(Rotation.from_rotvec(aa.reshape(16, 3)).as_matrix())
        betas, trans = torch.from_numpy(rng.normal(0, 1, 10)), torch.from_numpy(rng.uniform(-0.1, 0.1, 3))
        trans[2] -= 0.6
        with torch.no_grad():
            posed = hand(rotations[None, 0], rotations[None, 1:], betas[None], trans[None])
        labels = {
            "handPose": aa,
            "handBeta": betas.numpy(),
            "handTrans": trans.numpy(),
            "handJoints3D": posed.joints_m[0].numpy()[list(permutation(OPENPOSE21, HO3D21))],
        }
        write_meta(root / f"{key[:-4]}meta/{key[-4:]}.pkl", train_meta(frame) | labels)
