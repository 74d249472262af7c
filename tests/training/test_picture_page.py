"""The number under a picture is the error that the validation line means."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from src.training import picture_page
from src.training.picture_page import PicturePage


def test_a_caption_tells_the_error_relative_to_the_wrist(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hand of the right pose 100 mm too far away has an MPJPE of 0, and so has its picture."""
    captions: list[str] = []

    def note(*arguments: Any) -> np.ndarray:
        captions.append(arguments[-1])
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(picture_page, "truth_and_prediction", note)
    joints = torch.randn(2, 21, 3, generator=torch.Generator().manual_seed(0)) * 0.05
    joints[:, 0] = 0
    away = torch.tensor([0.0, 0.0, 0.6])
    batch: Any = SimpleNamespace(
        rgb=torch.zeros(2, 3, 8, 8),
        size=2,
        joints_root_m=joints,
        joints_cam_m=joints + away,
        intrinsics_crop_px=torch.eye(3).expand(2, 3, 3),
        joints_crop_px=torch.zeros(2, 21, 2),
        sample_index=torch.tensor([7, 9]),
    )
    # The first is right but 100 mm too far away; every joint of the second but the wrist is 21 mm off too.
    wrong = torch.zeros(2, 21, 3)
    wrong[1, 1:, 1] = 0.021
    hand = SimpleNamespace(joints_root_m=joints + wrong, joints_cam_m=joints + wrong + away * (0.7 / 0.6))
    prediction: Any = SimpleNamespace(hand=hand)
    PicturePage(2, 1).add(batch, prediction)
    assert captions == ["sample 7: 0.0 mm", "sample 9: 20.0 mm"]
