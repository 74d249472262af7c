"""Which way a hand points in a picture, and the turn that makes it point up.

Legend: B batch, J 21 joints in OPENPOSE21.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from src.hand.joints import OPENPOSE21

WRIST, MIDDLE_KNUCKLE = OPENPOSE21.index("wrist"), OPENPOSE21.index("middle_1")


def upright_roll(joints_m: Tensor) -> Tensor:
    """Turn about the camera's axis after which wrist and middle knuckle stand one above the other.

    Args:
        joints_m: (B, J, 3) in a camera (OpenCV: x right, y down) whose axis passes near the hand.

    Returns:
        (B,) radians, x towards y as in `rotation_about_z`; some angle where the two lie behind each other.
    """
    x, y, _ = (joints_m[:, MIDDLE_KNUCKLE] - joints_m[:, WRIST]).unbind(-1)
    return -math.pi / 2 - torch.atan2(y, x)
