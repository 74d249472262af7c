"""The debug lines of a batch, by hand: which unit, which frame, which of the two hands."""

from __future__ import annotations

import dataclasses

import torch

from src.runtime.debug import batch_lines, loss_table_lines
from src.schema import HandEstimate, LossTerms, Prediction
from tests.models.scene import make_batch


def test_lines_of_a_batch() -> None:
    """Two hands, every joint of the first at (100, -50, 600) mm, of the second at (40, 20, 500) mm.

    The labelled wrists are 3, 6 and 9 mm (with either sign) off the wrist of the independent path in the
    first sample, and on it in the second.
    """
    batch, joints = make_batch(2, 32, 32, noise=True), torch.empty(2, 21, 3)
    joints[0], joints[1] = torch.tensor([0.1, -0.05, 0.6]), torch.tensor([0.04, 0.02, 0.5])
    rgb, depth = torch.full((2, 3, 32, 32), 0.25), torch.zeros(2, 1, 32, 32)
    rgb[0, 0, 0, 0], rgb[1, 2, 5, 5], depth[0, 0, 1, 1], depth[1, 0, 2, 2] = -2.118, 2.64, -1.5, 1.25
    batch = dataclasses.replace(
        batch,
        rgb=rgb,
        depth=depth,
        joints_cam_m=joints,
        joints_root_m=torch.full((2, 21, 3), 7.0),
        root_cam_m=joints[:, 0] + torch.tensor([[0.003, -0.006, 0.009], [0.0, 0.0, 0.0]]),
    )
    own = torch.zeros(2, 21, 3)
    own[..., 1] = 0.03
    none = torch.zeros(2, 1)
    hand = HandEstimate(none, none, none, torch.tensor([[0.01, 0.02, 0.7], [9.0, 9.0, 9.0]]), own, none)
    coarse = dataclasses.replace(hand, joints_root_m=own + 1, root_cam_m=hand.root_cam_m + 1)
    prediction = Prediction(hand, coarse, own + 2, none, none)
    assert batch_lines(2, batch, prediction) == [
        "[Debug Batch 2]",
        "  RGB range: [-2.118, 2.640]",
        "  Depth range: [-1.500, 1.250]",
        "  GT 3D joints mean: 201.667, std: 251.821",
        "  Pred 3D joints mean: 10.000, std: 14.142",
        "  GT root joint: [100.000, -50.000, 600.000]",
        "  Pred root joint: [10.000, 20.000, 700.000]",
        "  GT centered by root mean: 3.000, std: 3.464",
    ]


def test_shares_of_a_loss_add_up() -> None:
    """A term's share is weight x value over the total: 2 x 0.3 and 0.5 x 0.8 of 1.0."""
    values = {"joints_3d": torch.tensor(0.3), "coarse_betas": torch.tensor(0.8)}
    terms = LossTerms(torch.tensor(1.0), values, {"joints_3d": 2.0, "coarse_betas": 0.5})
    assert loss_table_lines(7, terms) == [
        "[Debug Loss Terms] step 7, total 1.0000",
        "  joints_3d: 0.3000 x 100 mm, weight 2, share 60.0 %",
        "  coarse_betas: 0.8000 squared standard deviations, weight 0.5, share 40.0 %",
    ]
