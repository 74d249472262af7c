"""Which joints the camera sees: by the depth picture, because no label says it.

Legend: B batch, J 21 joints (`OPENPOSE21`), H W crop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.schema import DEPTH_RANGE_M, HandBatch

HIDDEN, IN_VIEW, UNKNOWN = 0, 1, -1
"""What `joints_in_view` says of a joint."""

COVER_M = 0.025
"""A joint is hidden where the measured surface is nearer than it by more than this: a joint lies up to 20 mm
under its own skin."""


@torch.no_grad()
def joints_in_view(batch: HandBatch) -> Tensor:
    """Whether something (an object, the palm, another finger) stands between the camera and each joint.

    Args:
        batch: crop camera, with depth as it was measured.

    Returns:
        (B, J) int8 on the batch's device: `IN_VIEW`, `HIDDEN`, or `UNKNOWN` where no depth was measured or
        shown at the joint, where it has no label, and outside of the crop.
    """
    size, (height, width) = batch.size, batch.depth.shape[-2:]
    column, row = batch.joints_crop_px.round().unbind(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (batch.joints_conf > 0)
    pixel = row.clamp(0, height - 1).nan_to_num() * width + column.clamp(0, width - 1).nan_to_num()
    pixel = pixel.long()
    surface_m = batch.depth.reshape(size, -1).gather(1, pixel) * DEPTH_RANGE_M + batch.z_ref_m[:, None]
    measured = batch.depth_valid.reshape(size, -1).gather(1, pixel) > 0
    hidden = batch.joints_cam_m[..., 2] - surface_m > COVER_M
    return torch.where(inside & measured, torch.where(hidden, HIDDEN, IN_VIEW), UNKNOWN).to(torch.int8)
