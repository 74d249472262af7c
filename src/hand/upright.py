"""A hand turned upright for a second look: the crop is turned until the hand of a first look points up.

Orientation takes most of what a network learns from scratch, and a third of it is the roll about the camera's
axis, which a turned picture takes away: crop and intrinsics are those of the same camera, rolled. The weights
of both looks are one set. Training gives one look at each crop: most are finished crops that were turned
upright within what a first look errs by (`dataloader/crop/augment.py`), as second looks see them, the others
turned at will, as first looks do.

Other work normalises hands by their oriented bounding box (Ge et al. 2018, HandPointNet); here the network's
own first answer says how to turn, so colour alone will do.

Legend: B batch, J joints, V vertices, H W crop, h w votes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from src.geometry.rotation import rotation_about_z
from src.hand.joints import OPENPOSE21
from src.schema import IMAGENET_MEAN, IMAGENET_STD, HandEstimate, NetworkInput, Prediction

WRIST, MIDDLE_KNUCKLE = OPENPOSE21.index("wrist"), OPENPOSE21.index("middle_1")

_BLACK = tuple(-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))
"""What a crop shows beyond its picture."""


def upright_roll(joints_m: Tensor) -> Tensor:
    """Turn about the camera's axis after which wrist and middle knuckle stand one above the other.

    Args:
        joints_m: (B, J, 3) in a camera (OpenCV: x right, y down) whose axis passes near the hand.

    Returns:
        (B,) radians, x towards y as in `rotation_about_z`; some angle where the two lie behind each other.
    """
    x, y, _ = (joints_m[:, MIDDLE_KNUCKLE] - joints_m[:, WRIST]).unbind(-1)
    return -math.pi / 2 - torch.atan2(y, x)


def turned(batch: NetworkInput, roll_rad: Tensor) -> NetworkInput:
    """The crops as their cameras see them when rolled.

    The principal point of a crop camera is (W / 2, H / 2) and its two focal lengths are one, so intrinsics
    stay. What a turned crop shows of the space beyond the old one is black, without depth.

    Args:
        batch: B crops.
        roll_rad: (B,) turn of what is seen, x towards y.
    """
    black = torch.tensor(_BLACK, device=batch.rgb.device)[:, None, None]
    depth = torch.cat([batch.depth, batch.depth_valid], dim=1)
    height, width = batch.rgb.shape[-2:]
    places = _places((height, width), (height, width), roll_rad)
    depth = F.grid_sample(depth, places, mode="nearest", align_corners=False)
    rgb = F.grid_sample(batch.rgb - black, places, align_corners=False) + black
    return NetworkInput(
        intrinsics_crop_px=batch.intrinsics_crop_px,
        rot_crop_from_img=rotation_about_z(roll_rad) @ batch.rot_crop_from_img,
        z_ref_m=batch.z_ref_m,
        depth_present=batch.depth_present,
        rgb=rgb,
        depth=depth[:, :1],
        depth_valid=depth[:, 1:],
    )


def turned_back(prediction: Prediction, roll_rad: Tensor, size: tuple[int, int]) -> Prediction:
    """What was seen in crops turned by (B,) `roll_rad`, in the cameras as they were; `size` is (H, W)."""
    back = rotation_about_z(-roll_rad)
    rows = back.transpose(1, 2)
    height, width = size
    extent = torch.tensor([width, height], device=back.device)
    logits = prediction.vote_logits
    high, wide = logits.shape[-2:]
    places = _places(size, (high, wide), -roll_rad)
    return Prediction(
        hand=_hand_turned(prediction.hand, back),
        coarse=_hand_turned(prediction.coarse, back),
        vote_joints_root_m=prediction.vote_joints_root_m @ rows,
        vote_joints_unit=(prediction.vote_joints_unit * extent) @ rows[:, :2, :2] / extent,
        vote_logits=F.grid_sample(logits, places, padding_mode="border", align_corners=False),
    )


def _hand_turned(hand: HandEstimate, turn: Tensor) -> HandEstimate:
    """A hand turned about the camera by (B, 3, 3)."""
    rows = turn.transpose(1, 2)
    return HandEstimate(
        global_orient=turn @ hand.global_orient,
        hand_pose=hand.hand_pose,
        betas=hand.betas,
        root_cam_m=(hand.root_cam_m[:, None] @ rows)[:, 0],
        joints_root_m=hand.joints_root_m @ rows,
        vertices_root_m=hand.vertices_root_m @ rows,
    )


def _places(size: tuple[int, int], cells: tuple[int, int], roll_rad: Tensor) -> Tensor:
    """(B, h, w, 2) where a crop of (H, W) pixels that is turned by (B,) looks into the one before, for each
    of its h x w cells, in `grid_sample`'s units."""
    (height, width), (rows, columns) = size, cells
    y = (torch.arange(rows, device=roll_rad.device) + 0.5) * (height / rows) - 0.5 - height / 2
    x = (torch.arange(columns, device=roll_rad.device) + 0.5) * (width / columns) - 0.5 - width / 2
    across, down = torch.meshgrid(x, y, indexing="xy")
    turn = rotation_about_z(roll_rad)[:, :2, :2]
    # Row vectors times the turn itself: turned the other way.
    before = torch.stack([across, down], dim=-1).flatten(0, 1) @ turn
    half = torch.tensor([width / 2, height / 2], device=roll_rad.device)
    return ((before + 0.5) / half).view(-1, rows, columns, 2)
