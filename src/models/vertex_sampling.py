"""What the maps and the depth picture hold where a hand's points project to.

Legend: B batch, P points, C channels, H W crop in pixels. Pixel centres are integers, so a map of any stride
spans the crop from -0.5 to W - 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from src.geometry.camera import project
from src.schema import DEPTH_RANGE_M, NetworkInput

RESIDUAL_UNIT_M = 0.05
"""Depth residual 1 = the measured surface lies 5 cm behind the predicted point."""

RESIDUAL_CLIP = 2.0
_NEAR_M = 0.02
"""Points nearer than this, or behind the camera, are projected as if they stood there."""


@dataclass(frozen=True)
class Sampled:
    """What a set of points sees."""

    features: tuple[Tensor, ...]
    """(B, P, C) of each map, zero beyond the crop."""
    place: Tensor
    """(B, P, 3) x and y in the crop ([-0.5, 0.5] inside) clipped to [-1, 1], and 1 where inside, else 0."""
    depth: Tensor
    """(B, P, 2) depth residual, and 1 where depth was measured; both 0 elsewhere."""


def sample_points(maps: tuple[Tensor, ...], points_cam_m: Tensor, batch: NetworkInput) -> Sampled:
    """Sample maps and depth under points.

    Args:
        maps: (B, C, h, w) each, all spanning the crop.
        points_cam_m: (B, P, 3) crop camera. No gradient flows to them: where a hand is looked at is not
            learned through how the picture changes there.
        batch: gives intrinsics, depth and z_ref.

    Returns:
        float32 features; gradients reach the maps.
    """
    points = points_cam_m.detach()
    height, width = batch.rgb.shape[-2:]
    in_front = torch.cat([points[..., :2], points[..., 2:].clamp_min(_NEAR_M)], dim=-1)
    pixels = project(in_front, batch.intrinsics_crop_px)
    spot = torch.stack([(pixels[..., 0] + 0.5) / width, (pixels[..., 1] + 0.5) / height], dim=-1) - 0.5
    inside = (spot.abs().amax(dim=-1, keepdim=True) <= 0.5).to(spot.dtype)
    features = tuple(sample_map(level, spot) for level in maps)
    depth = depth_residual(batch, points[..., 2], spot)
    return Sampled(features, torch.cat([spot.clamp(-1.0, 1.0), inside], dim=-1), depth)


def sample_map(features: Tensor, spot: Tensor) -> Tensor:
    """Bilinear samples of a map that spans the crop.

    Args:
        features: (B, C, h, w).
        spot: (B, P, 2) x, y with the crop's edges at -0.5 and 0.5.

    Returns:
        (B, P, C); beyond the edges the map fades into zero.
    """
    if features.is_cuda and torch.are_deterministic_algorithms_enabled():
        return gather_map(features, spot)
    return F.grid_sample(features, 2.0 * spot[:, None], align_corners=False)[:, :, 0].transpose(1, 2)


def gather_map(features: Tensor, spot: Tensor) -> Tensor:
    """As `sample_map`, by indexing: its gradient is deterministic on GPUs, which grid_sample's is not."""
    b, c, h, w = features.shape
    # Far points are brought to just beyond the border, where every weight is zero already.
    place = torch.stack(
        [((spot[..., i] + 0.5) * n - 0.5).clamp(-1.0, n) for i, n in enumerate((w, h))], dim=-1
    )
    corner = place.floor()
    part = place - corner
    rows = features.flatten(2).transpose(1, 2)
    batch = torch.arange(b, device=spot.device)[:, None]
    total = torch.zeros(b, spot.shape[1], c, device=features.device, dtype=features.dtype)
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = corner[..., 0] + dx, corner[..., 1] + dy
            weight = (part[..., 0] if dx else 1 - part[..., 0]) * (part[..., 1] if dy else 1 - part[..., 1])
            weight = weight * ((x >= 0) & (x < w) & (y >= 0) & (y < h))
            index = (y.clamp(0, h - 1) * w + x.clamp(0, w - 1)).nan_to_num(0.0).long()
            total = total + weight[..., None] * rows[batch, index]
    return total


def depth_residual(batch: NetworkInput, z_m: Tensor, spot: Tensor) -> Tensor:
    """(B, P) predicted z and (B, P, 2) places -> (B, P, 2) (measured - predicted) / 5 cm, and validity.

    The nearest pixel is read: a mean over an edge of the hand is the depth of nothing.
    """
    picture = torch.cat([batch.depth, batch.depth_valid], dim=1)
    seen = F.grid_sample(picture, 2.0 * spot[:, None], mode="nearest", align_corners=False)
    measured = seen[:, 0, 0] * DEPTH_RANGE_M + batch.z_ref_m[:, None]
    valid = seen[:, 1, 0]
    residual = ((measured - z_m) / RESIDUAL_UNIT_M).clamp(-RESIDUAL_CLIP, RESIDUAL_CLIP)
    return torch.stack([residual * valid, valid], dim=-1)
