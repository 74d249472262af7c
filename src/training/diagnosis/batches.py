"""What several checks need of a batch: one batch out of several, its crop's roll, values under points.

Legend: B batch, P points, H W crop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from src.geometry.rotation import rotation_about_z
from src.schema import HandBatch


def merge(batches: Sequence[HandBatch]) -> HandBatch:
    """All samples of some batches as one batch on the CPU."""
    columns = {
        field.name: torch.cat([getattr(batch, field.name).detach().cpu() for batch in batches])
        for field in dataclasses.fields(HandBatch)
    }
    return HandBatch(**columns)


def part(batch: HandBatch, count: int) -> HandBatch:
    """The first samples of a batch."""
    return HandBatch(**{name: value[:count] for name, value in vars(batch).items()})


def roll_rad(batch: HandBatch) -> Tensor:
    """(B,) radians: roll of the crop camera about its axis, its rotation without the turn to the crop."""
    rotation = batch.rot_crop_from_img
    turn = _turn_to_axis(rotation[:, 2])
    roll = rotation @ turn.transpose(1, 2)
    return torch.atan2(roll[:, 1, 0], roll[:, 0, 0])


def rolls(batch: HandBatch, times: float) -> Tensor:
    """(B, 3, 3) rotation about the crop camera's axis by `times` its own roll."""
    return rotation_about_z(times * roll_rad(batch))


def mirrors(batch: HandBatch, signs: tuple[float, float, float]) -> Tensor:
    """(B, 3, 3) signs of the *image camera's* axes changed, as a map of the crop camera."""
    rotation = batch.rot_crop_from_img
    return (rotation * torch.tensor(signs)) @ rotation.transpose(1, 2)


def turned(points: Tensor, rotation: Tensor) -> Tensor:
    """(B, P, 3) points by (B, 3, 3) or (3, 3)."""
    return points @ rotation.transpose(-1, -2)


def under(image: Tensor, points_unit: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest pixel's values under points.

    Args:
        image: (B, C, H, W).
        points_unit: (B, P, 2) x, y with the crop in [-0.5, 0.5].

    Returns:
        (B, P, C) values, of the nearest edge pixel outside the crop; (B, P) bool, inside.
    """
    height, width = image.shape[-2:]
    place = ((points_unit + 0.5) * torch.tensor([width, height])).nan_to_num(-1e6).clamp(-1e6, 1e6).round()
    x, y = place.long().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    rows = torch.arange(len(image))[:, None]
    return image[rows, :, y.clamp(0, height - 1), x.clamp(0, width - 1)], inside


def _turn_to_axis(ray: Tensor) -> Tensor:
    """(B, 3) unit rays in front of the camera -> (B, 3, 3) smallest rotation of each to (0, 0, 1)."""
    x, y, z = ray.unbind(-1)
    k = 1 / (1 + z).clamp_min(1e-6)
    rows = [1 - k * x * x, -k * x * y, -x, -k * x * y, 1 - k * y * y, -y, x, y, z]
    return torch.stack(rows, dim=-1).reshape(-1, 3, 3)
