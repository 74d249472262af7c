"""The network as one graph from crops to hands in the image camera, as it is run and as it is exported.

Legend: B crops, H W crop size, J 21 joints in `OPENPOSE21`, V 778 vertices. Metres, pixels.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from dataloader.crop.prepare import normalise_depth, normalise_rgb
from src.models.utnet import UTNet
from src.schema import CropView, NetworkInput

RAW_INPUTS = {
    "rgb_u8": "(B, H, W, 3) uint8, RGB crop",
    "depth_m": "(B, H, W) float32, metres: image camera's z at crop pixels, 0 = not measured",
    "depth_present": "(B,) bool, the crop has depth",
    "intrinsics_crop_px": "(B, 3, 3) float32, pixels: K of the crop camera",
    "rot_crop_from_img": "(B, 3, 3) float32, rotation image camera -> crop camera",
    "z_ref_m": "(B,) float32, metres: reference depth along the crop camera's axis",
}
"""Inputs of `RawNetwork` in their order, with shape, type and unit."""

NORMALISED_INPUTS = {
    "rgb": "(B, 3, H, W) float32, (RGB / 255 - ImageNet mean) / ImageNet standard deviation",
    "depth": "(B, 1, H, W) float32, (z - z_ref_m) / 0.15 m along the crop camera's axis, clipped to +-1.5",
    "depth_valid": "(B, 1, H, W) float32, 1 where depth was measured, else 0",
    **{name: RAW_INPUTS[name] for name in list(RAW_INPUTS)[2:]},
}
"""Inputs of `NormalisedNetwork` likewise."""


class GraphHands(TypedDict):
    """What both graphs answer: right hands in the image camera (OpenCV axes), float32.

    A plain dictionary: the names travel in exported files, which run without this program.
    """

    joints_m: Tensor
    """(B, J, 3) metres."""
    vertices_m: Tensor
    """(B, V, 3) metres."""
    global_orient: Tensor
    """(B, 3, 3) hand model's rest frame -> image camera."""
    hand_pose: Tensor
    """(B, 15, 3, 3) MANO16 order without the wrist."""
    betas: Tensor
    """(B, 10)."""
    translation_m: Tensor
    """(B, 3) metres: wrist = translation_m + J0(betas)."""


class NormalisedNetwork(nn.Module):
    """`NORMALISED_INPUTS` -> `GraphHands`."""

    def __init__(self, network: UTNet) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        rgb: Tensor,
        depth: Tensor,
        depth_valid: Tensor,
        depth_present: Tensor,
        intrinsics_crop_px: Tensor,
        rot_crop_from_img: Tensor,
        z_ref_m: Tensor,
    ) -> GraphHands:
        """Estimate the hand of each crop; see `NORMALISED_INPUTS`."""
        seen = NetworkInput(
            rgb=rgb,
            depth=depth,
            depth_valid=depth_valid,
            depth_present=depth_present,
            intrinsics_crop_px=intrinsics_crop_px,
            rot_crop_from_img=rot_crop_from_img,
            z_ref_m=z_ref_m,
        )
        hand = self.network(seen).hand
        joints = seen.to_image_camera(hand.joints_cam_m)
        return GraphHands(
            joints_m=joints,
            vertices_m=seen.to_image_camera(hand.vertices_cam_m),
            global_orient=rot_crop_from_img.transpose(1, 2) @ hand.global_orient,
            hand_pose=hand.hand_pose,
            betas=hand.betas,
            translation_m=joints[:, 0] - self.network.decoder.mano.rest_root_m(hand.betas),
        )


class RawNetwork(nn.Module):
    """`RAW_INPUTS` -> `GraphHands`: normalisation is part of the graph."""

    def __init__(self, network: UTNet) -> None:
        super().__init__()
        self.normalised = NormalisedNetwork(network)

    def forward(
        self,
        rgb_u8: Tensor,
        depth_m: Tensor,
        depth_present: Tensor,
        intrinsics_crop_px: Tensor,
        rot_crop_from_img: Tensor,
        z_ref_m: Tensor,
    ) -> GraphHands:
        """Estimate the hand of each crop; see `RAW_INPUTS`."""
        view = CropView(intrinsics_crop_px, rot_crop_from_img, z_ref_m, depth_present)
        depth, valid = normalise_depth(depth_m, view)
        rgb = normalise_rgb(rgb_u8)
        hands: GraphHands = self.normalised(
            rgb, depth, valid, depth_present, intrinsics_crop_px, rot_crop_from_img, z_ref_m
        )
        return hands


def example_inputs(image_size: tuple[int, int], batch: int = 2) -> dict[str, Tensor]:
    """`RAW_INPUTS` of some grey crops whose middle row has no depth.

    Args:
        image_size: (H, W).
        batch: B.
    """
    height, width = image_size
    depth = torch.full((batch, height, width), 0.6)
    depth[:, height // 2] = 0.0
    k = torch.tensor([[400.0, 0.0, width / 2], [0.0, 400.0, height / 2], [0.0, 0.0, 1.0]])
    return {
        "rgb_u8": torch.full((batch, height, width, 3), 127, dtype=torch.uint8),
        "depth_m": depth,
        "depth_present": torch.arange(batch) % 2 == 0,
        "intrinsics_crop_px": k.expand(batch, 3, 3).contiguous(),
        "rot_crop_from_img": torch.eye(3).expand(batch, 3, 3).contiguous(),
        "z_ref_m": torch.full((batch,), 0.6),
    }
