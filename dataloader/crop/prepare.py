"""Integers -> network input, on whatever device the batch is: colour, normalisation, depth scaling,
projections.

Nothing here waits for the device: no `.item()`, no boolean indexing, no shape that depends on values.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from src.geometry.camera import project
from src.schema import (
    DEPTH_CLIP,
    DEPTH_RANGE_M,
    DEPTH_UNIT_M,
    IMAGENET_MEAN,
    IMAGENET_STD,
    CropView,
    HandBatch,
    RawBatch,
)


def prepare(raw: RawBatch) -> HandBatch:
    """What the network is fed and judged by.

    Args:
        raw: B samples, all on one device.

    Returns:
        the batch on the same device, float32; see `HandBatch` for shape, unit and frame of each field.
    """
    height, width = raw.rgb_u8.shape[1:3]
    depth, depth_valid = normalise_depth(raw.depth_u16.to(torch.float32) * DEPTH_UNIT_M, raw)
    joints_crop_px = project(raw.joints_cam_m, raw.intrinsics_crop_px)
    size = _constant((float(width), float(height)), raw.rgb_u8.device)
    kept = {f.name for f in dataclasses.fields(RawBatch)} & {f.name for f in dataclasses.fields(HandBatch)}
    return HandBatch(
        **{name: tensor for name, tensor in raw.fields().items() if name in kept},
        rgb=normalise_rgb(raw.rgb_u8, raw.colour_affine),
        depth=depth,
        depth_valid=depth_valid,
        joints_root_m=raw.joints_cam_m - raw.joints_cam_m[:, :1],
        joints_crop_px=joints_crop_px,
        joints_unit=joints_crop_px / size - 0.5,
    )


def normalise_rgb(rgb_u8: Tensor, colour_affine: Tensor | None = None) -> Tensor:
    """(B, H, W, 3) uint8 RGB -> (B, 3, H, W) float32, ImageNet-normalised.

    Args:
        rgb_u8: crops.
        colour_affine: (B, 3, 4) what is done to their colours; None: nothing.
    """
    batch, height, width, _ = rgb_u8.shape
    flat = rgb_u8.permute(0, 3, 1, 2).reshape(batch, 3, height * width).to(torch.float32) / 255
    flat = flat.contiguous()  # in any other layout convolutions round another way, and bf16 shows it
    if colour_affine is not None:
        flat = torch.baddbmm(colour_affine[:, :, 3:], colour_affine[:, :, :3], flat).clamp_(0, 1)
    mean, std = _constant(IMAGENET_MEAN, flat.device), _constant(IMAGENET_STD, flat.device)
    return ((flat - mean[:, None]) / std[:, None]).reshape(batch, 3, height, width)


def normalise_depth(measured_m: Tensor, view: CropView) -> tuple[Tensor, Tensor]:
    """Depth input and its mask, both (B, 1, H, W) float32.

    Args:
        measured_m: (B, H, W) the image camera's z at crop pixels, 0 where nothing was measured.
        view: of these crops.

    The sensor measures the image camera's z; the network is told z along the crop camera's axis:
    z' = z / (R^T K_crop^-1 [x, y, 1])_z at crop pixel (x, y).
    """
    height, width = measured_m.shape[1:]
    z = measured_m / _ray_z(view.intrinsics_crop_px, view.rot_crop_from_img, height, width)
    shown = (measured_m > 0) & view.depth_present[:, None, None]
    scaled = ((z - view.z_ref_m[:, None, None]) / DEPTH_RANGE_M).clamp(-DEPTH_CLIP, DEPTH_CLIP)
    return torch.where(shown, scaled, torch.zeros_like(scaled))[:, None], shown.to(torch.float32)[:, None]


def _ray_z(intrinsics_crop_px: Tensor, rot_crop_from_img: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W) image camera's z of the crop camera's ray K_crop^-1 [x, y, 1] at each crop pixel."""
    device = intrinsics_crop_px.device
    x = torch.arange(width, dtype=torch.float32, device=device)
    y = torch.arange(height, dtype=torch.float32, device=device)
    k = intrinsics_crop_px[:, :, :, None, None]
    # K_crop has no skew, so its inverse is written out: torch.linalg.inv would wait for the device.
    ray_x = (x[None, None, :] - k[:, 0, 2]) / k[:, 0, 0]
    ray_y = (y[None, :, None] - k[:, 1, 2]) / k[:, 1, 1]
    axis = rot_crop_from_img[:, :, 2, None, None]  # third column of R = third row of R^T
    return axis[:, 0] * ray_x + axis[:, 1] * ray_y + axis[:, 2]


def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A small constant, filled in on the device: a copy from the host would wait for it."""
    return torch.stack([torch.full((), value, device=device) for value in values])
