"""Samples as the checks of data look at them. Legend: B batch, J joints, P points, H W crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from src.geometry.rotation import rotation_about_z
from src.hand.mano import ManoLayer
from src.schema import HandBatch

MOST_SAMPLES = 64
"""Samples that are looked at together: enough for their statistics."""


def some(batch: HandBatch, rows: Tensor) -> HandBatch:
    """Some samples of a batch."""
    return HandBatch(**{name: value[rows] for name, value in vars(batch).items()})


@dataclass(frozen=True)
class Samples:
    """Samples of a split, and the hand that their labelled parameters are for."""

    batch: HandBatch
    """On the CPU."""
    hand: ManoLayer
    """On any device."""

    @classmethod
    def of(cls, batches: Sequence[HandBatch], hand: ManoLayer) -> Samples:
        """The first samples of some batches, on any device."""
        share = max(1, MOST_SAMPLES // len(batches))
        parts = [vars(batch) for batch in batches]
        columns = {n: torch.cat([part[n][:share].detach().cpu() for part in parts]) for n in parts[0]}
        return cls(HandBatch(**columns), hand)

    @cached_property
    def labelled(self) -> Tensor:
        """(B, J) bool, the joint has a label."""
        return self.batch.joints_conf > 0

    @cached_property
    def posed(self) -> HandBatch | None:
        """The samples with MANO parameters and all joints."""
        rows = self.batch.mano_valid & self.labelled.all(dim=1)
        return some(self.batch, rows) if rows.any() else None

    @cached_property
    def depth_ratio(self) -> float | None:
        """Reference depth over the labelled wrist's, median; None where no wrist has depth."""
        batch = self.batch
        rows = batch.depth_present & self.labelled[:, 0] & (batch.root_cam_m[:, 2] > 0)
        return float((batch.z_ref_m / batch.root_cam_m[:, 2])[rows].median()) if rows.any() else None


def under(image: Tensor, points_unit: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest pixels of an image (B, 1, H, W) under points (B, P, 2), crop = [-0.5, 0.5].

    Returns:
        (B, P) values, of the nearest edge pixel outside the crop; (B, P) bool, inside.
    """
    height, width = image.shape[-2:]
    place = ((points_unit + 0.5) * torch.tensor([width, height])).nan_to_num(-1e6).clamp(-1e6, 1e6).round()
    x, y = place.long().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    rows = torch.arange(len(image))[:, None]
    return image[rows, 0, y.clamp(0, height - 1), x.clamp(0, width - 1)], inside


def turned(points: Tensor, rotation: Tensor) -> Tensor:
    """(B, P, 3) points by (B, 3, 3)."""
    return points @ rotation.mT


def mirrors(batch: HandBatch, signs: Sequence[int]) -> Tensor:
    """(B, 3, 3) signs of the *image camera's* axes changed, as a map of the crop camera."""
    rotation = batch.rot_crop_from_img
    return (rotation * torch.tensor(signs)) @ rotation.mT


def rolls(batch: HandBatch, times: float) -> Tensor:
    """(B, 3, 3) rotation about the crop camera's axis by `times` its own roll."""
    m = batch.rot_crop_from_img  # turned to the crop, by a rotation with a symmetric 2 x 2 block; then rolled
    return rotation_about_z(times * torch.atan2(m[:, 1, 0] - m[:, 0, 1], m[:, 0, 0] + m[:, 1, 1]))


def reversed_axes(signs: Sequence[int]) -> str:
    """`x and y reversed`."""
    return " and ".join(axis for axis, sign in zip("xyz", signs, strict=True) if sign < 0) + " reversed"
