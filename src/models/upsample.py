"""From tokens back to pictures: feature maps at strides 16, 8 and 4 that vertices sample.

Element (r, c) of a map with stride s is centred on crop pixel (s c + (s - 1) / 2, s r + (s - 1) / 2), which
is what bilinear doubling keeps.

Legend: B batch, C channels, rows cols grid of the coarse map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.models.layers import Residual
from src.models.tokens import tokens_to_map
from src.models.vit import Preset


class FeaturePyramid(nn.Module):
    """Maps at strides 16, 8 and 4.

    Args:
        sizes: of the preset.
        grid: (rows, cols) of image tokens.
    """

    def __init__(self, sizes: Preset, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        first, second, third = sizes.map_channels
        skip4, skip8 = (0, 0) if sizes.stem_channels is None else sizes.stem_channels[:2]
        self.enter = nn.Sequential(nn.Conv2d(sizes.width, first, 1), nn.GroupNorm(8, first), nn.GELU())
        twice = (2 * grid[0], 2 * grid[1])
        self.levels = nn.ModuleList(
            [Doubling(grid, first, second, skip8), Doubling(twice, second, third, skip4)]
        )

    def forward(self, image_tokens: Tensor, skips: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(B, N, D), the stem's maps at strides 8 and 4 or () -> maps at strides 16, 8 and 4."""
        maps = [self.enter(tokens_to_map(image_tokens, self.grid))]
        for i, level in enumerate(self.levels):
            maps.append(level(maps[-1], *skips[i : i + 1]))
        return tuple(maps)


class Doubling(nn.Module):
    """Bilinear doubling and convolutions.

    Args:
        size: (h, w) of the coarse map.
        inside, outside: channels before and after.
        skip: channels of the map that is merged; 0 for none.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], inside: int, outside: int, skip: int) -> None:
        super().__init__()
        self.merge = nn.Conv2d(inside + skip, outside, 3, padding=1)
        self.finish = nn.Sequential(Residual(outside), nn.GroupNorm(8, outside), nn.GELU())
        self.register_buffer("rows", doubling_matrix(size[0]), persistent=False)
        self.register_buffer("columns", doubling_matrix(size[1]).T.contiguous(), persistent=False)

    def forward(self, coarse: Tensor, *skip: Tensor) -> Tensor:
        """(B, C, h, w) and a map of twice its size to be merged with, if there is one -> (B, C', 2h, 2w)."""
        # Products with fixed matrices: torch's upsampling takes four times as long on a CPU, and has no
        # deterministic gradient on GPUs.
        doubled = self.rows @ coarse @ self.columns
        result: Tensor = self.finish(self.merge(torch.cat([doubled, *skip], dim=1)))
        return result


def doubling_matrix(count: int) -> Tensor:
    """(2 count, count) bilinear weights of the halves of `count` cells; what lies outside is the edge's."""
    centres = ((torch.arange(2 * count) + 0.5) / 2 - 0.5).clamp(0, count - 1)
    return (1 - (centres[:, None] - torch.arange(count)).abs()).clamp_min(0.0)
