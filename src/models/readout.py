"""Where the joints are: dense votes on the finest feature map, and what the picture says as a whole.

Every joint has a map of votes over the crop. Its expected place is the joint's 2D position; what the feature
map and the depth picture hold there, weighed by the same votes, describes the joint. A map is supervised as a
whole (each cell is told), which localises fingers in a fraction of the samples that a regression from pooled
tokens takes. Places, descriptions and a flat read-out of all tokens together give the joints in 3D.

Legend: B batch, J 21 joints, N image tokens, D channels of a token; C channels, h w size of the finest map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.hand.joints import OPENPOSE21
from src.models.layers import SmallLinear, pooling_matrix
from src.models.tokens import grid_of
from src.models.vit import Preset
from src.schema import DEPTH_RANGE_M, NetworkInput

NUM_JOINTS = len(OPENPOSE21)
JOINT_STEP_M = 0.1
"""Joint code 1 = 10 cm, the size of a hand."""

READOUT_GRID = 8
"""The flat read-out sees READOUT_GRID^2 cells, whatever the size of the crop."""

READOUT_CHANNELS = 32
POINT_CHANNELS = 16
"""Features that describe one voted joint."""

VOTE_STRIDE = 4
"""Pixels of the crop per cell of the votes."""

_LEAST_SEEN = 0.05
"""Share of a joint's votes that must fall on measured depth for their mean depth to be taken at full size."""


@dataclass(frozen=True)
class Readout:
    """What the picture says."""

    summary: Tensor
    """(B, R) features of the whole crop."""
    joints_root_m: Tensor
    """(B, J, 3) voted joints, wrist-relative."""
    joints_unit: Tensor
    """(B, J, 2) voted joints in the picture, crop = [-0.5, 0.5]."""
    logits: Tensor
    """(B, J, h, w) votes before the softmax over all cells."""


class DenseReadout(nn.Module):
    """Joints from votes of all cells and from all image tokens.

    Depth enters through layers that start at zero: at the start the output is the same without it.

    Args:
        sizes: of the preset; D, C and R.
        image_size: (H, W) of the crop in pixels.
        rest_joints_m: (J, 3) the mean hand, where training starts.
    """

    cells: Tensor
    crop_px: Tensor

    def __init__(self, sizes: Preset, image_size: tuple[int, int], rest_joints_m: Tensor) -> None:
        super().__init__()
        self.grid = grid_of(image_size)
        height, width = image_size
        fine, hidden = sizes.map_channels[-1], sizes.readout_width
        self.reduce = nn.Linear(sizes.width, READOUT_CHANNELS)
        self.flat = nn.Sequential(
            nn.Linear(READOUT_GRID**2 * READOUT_CHANNELS, hidden), nn.LayerNorm(hidden), nn.GELU()
        )
        self.votes = nn.Conv2d(fine, NUM_JOINTS, 1)
        self.describe = nn.Linear(fine, POINT_CHANNELS)
        self.enter_points = nn.Linear(NUM_JOINTS * (POINT_CHANNELS + 3), hidden)
        self.enter_depth = nn.Linear(NUM_JOINTS * 2, hidden, bias=False)
        self.mix = nn.Sequential(
            nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.GELU()
        )
        self.joints = SmallLinear(hidden, NUM_JOINTS * 3)
        self.joints_depth = nn.Linear(NUM_JOINTS * 2, NUM_JOINTS, bias=False)
        nn.init.normal_(self.votes.weight, std=0.02)
        nn.init.zeros_(self.enter_depth.weight)
        nn.init.zeros_(self.joints_depth.weight)
        with torch.no_grad():
            self.joints.bias.copy_(rest_joints_m.flatten() / JOINT_STEP_M)
        cells = cell_centres((height // VOTE_STRIDE, width // VOTE_STRIDE))
        self.register_buffer("cells", cells, persistent=False)
        self.register_buffer("crop_px", torch.tensor([width, height]).float(), persistent=False)
        self.register_buffer("pool_rows", pooling_matrix(READOUT_GRID, self.grid[0]), persistent=False)
        self.register_buffer("pool_cols", pooling_matrix(READOUT_GRID, self.grid[1]), persistent=False)

    def forward(self, image_tokens: Tensor, fine: Tensor, batch: NetworkInput) -> Readout:
        """Read out.

        Args:
            image_tokens: (B, N, D).
            fine: (B, C, h, w) feature map at VOTE_STRIDE.
            batch: gives depth, intrinsics and z_ref.
        """
        logits = self.votes(fine)
        share = logits.flatten(2).softmax(dim=-1)
        place = share @ self.cells
        sharpness = share.square().sum(dim=-1, keepdim=True).log() / 4.0
        features = self.describe(share @ fine.flatten(2).transpose(1, 2))
        points = torch.cat([features, 4.0 * place, sharpness], dim=-1).flatten(1)
        depth = self._depth(share, batch)
        whole = self.flat(self._cells_of_tokens(image_tokens))
        summary = self.mix(whole + self.enter_points(points) + self.enter_depth(depth))
        focal = torch.stack([batch.intrinsics_crop_px[:, 0, 0], batch.intrinsics_crop_px[:, 1, 1]], dim=-1)
        across = (place - place[:, :1]) * (self.crop_px / focal * batch.z_ref_m[:, None])[:, None]
        along = DEPTH_RANGE_M * self.joints_depth(depth)
        joints = JOINT_STEP_M * self.joints(summary).unflatten(1, (NUM_JOINTS, 3))
        joints = joints + torch.cat([across, along[..., None]], dim=-1)
        return Readout(summary, joints - joints[:, :1], place, logits)

    def _cells_of_tokens(self, image_tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, READOUT_GRID^2 READOUT_CHANNELS)."""
        cells = self.reduce(image_tokens).unflatten(1, self.grid)
        # A product with fixed matrices: adaptive pooling has no deterministic gradient on GPUs.
        cells = torch.einsum("pr,brcd->bpcd", self.pool_rows, cells)
        return torch.einsum("qc,bpcd->bpqd", self.pool_cols, cells).flatten(1)

    def _depth(self, share: Tensor, batch: NetworkInput) -> Tensor:
        """(B, J, h w) votes -> (B, 2 J) mean measured depth under them and the share that was measured."""
        seen = torch.cat([batch.depth * batch.depth_valid, batch.depth_valid], dim=1)
        seen = F.avg_pool2d(seen, VOTE_STRIDE)
        under = share @ seen.flatten(2).transpose(1, 2)
        mean = under[..., 0] / under[..., 1].clamp_min(_LEAST_SEEN)
        return torch.cat([mean, under[..., 1]], dim=1)


def cell_centres(size: tuple[int, int]) -> Tensor:
    """(h w, 2) x, y of the vote cells' centres in the units of `joints_unit`, row by row.

    A cell's centre is the mean of its pixels' integer centres; units are pixels over the crop's side, minus
    0.5.
    """

    def axis(count: int) -> Tensor:
        return (VOTE_STRIDE * torch.arange(count) + (VOTE_STRIDE - 1) / 2) / (VOTE_STRIDE * count) - 0.5

    y, x = torch.meshgrid(axis(size[0]), axis(size[1]), indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)
