"""Do labels and hand model belong together? Decoded parameters must be the labelled joints."""

from __future__ import annotations

import numpy as np
import torch

from dataloader.ho3d_dataset import HO3DDataset
from src.errors import DataError
from src.hand.mano import ManoLayer

ROWS = 64
TOLERANCE_MM = 1.0
"""MANO reproduces HO3D's joints to 0.0002 mm; another hand, unit or joint order is off by far more."""


@torch.no_grad()
def require_hand_fits(dataset: HO3DDataset, hand: ManoLayer) -> None:
    """Refuse a data set whose joints are not what the hand model makes of its parameters.

    Args:
        dataset: a split; rows without MANO parameters (all of evaluation) are passed over.
        hand: on the CPU.

    Raises:
        DataError: the median over up to 64 evenly spaced rows of the largest joint distance is above 1 mm.
    """
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(ROWS, len(dataset))).astype(int))
    labels = dataset.labels_at(rows)
    rows = rows[labels.mano_valid]
    if not len(rows):
        return
    labels = dataset.labels_at(rows)
    parameters = (labels.global_orient, labels.hand_pose, labels.betas, labels.root_cam_m)
    decoded = hand(*(torch.from_numpy(value) for value in parameters)).joints_m
    # The wrist's position stands in for the translation: compare relative to each wrist.
    joints = torch.from_numpy(labels.joints_cam_m)
    gap = (decoded - decoded[:, :1]) - (joints - joints[:, :1])
    millimetres = float(torch.linalg.vector_norm(gap, dim=-1).amax(dim=1).median()) * 1000
    if millimetres > TOLERANCE_MM:
        raise DataError(
            f"HO3D: labelled joints are {millimetres:.1f} mm from what the hand model decodes (median of "
            f"{len(rows)} frames, want below {TOLERANCE_MM:g} mm). mano.model_path is not the hand of these "
            "labels (the stand-in on real HO3D, or MANO on synthetic data), or the labels have another "
            "unit or joint order"
        )
