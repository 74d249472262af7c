"""From tokens back to pictures: feature maps at strides 16, 8 and 4 that vertices sample.

Element (r, c) of a map with stride s is centred on crop pixel (s c + (s - 1) / 2, s r + (s - 1) / 2), which
is what bilinear upsampling with align_corners=False keeps.

Legend: B batch, C channels, rows cols grid of the coarse map.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.layers import Residual
from src.models.tokens import tokens_to_map

_WINDOW = 4
"""Largest side, in coarse elements, of a window of attention."""


class FeaturePyramid(nn.Module):
    """Maps at strides 16, 8 and 4.

    Args:
        grid: (rows, cols) of image tokens.
        width: D of a token.
        channels: of the three maps, coarse to fine.
        skips: channels of the stem's maps at strides 8 and 4, or None where there are none.
        kind: conv: bilinear and convolutions; window: attention from fine pixels, described by the picture,
            to the coarse elements of their window.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        channels: tuple[int, int, int],
        skips: tuple[int, int] | None,
        kind: Literal["conv", "window"],
    ) -> None:
        super().__init__()
        self.grid = grid
        rows, cols = grid
        self.enter = nn.Sequential(nn.Conv2d(width, channels[0], 1), nn.GroupNorm(8, channels[0]), nn.GELU())
        self.levels = nn.ModuleList()
        for i, (inside, outside) in enumerate(itertools.pairwise(channels)):
            skip = 0 if skips is None else skips[i]
            here = (rows << i, cols << i)
            step = (
                WindowStep(here, inside, outside, skip)
                if kind == "window"
                else ConvStep(inside, outside, skip)
            )
            self.levels.append(step)

    def forward(self, image_tokens: Tensor, skips: tuple[Tensor, ...], rgb: Tensor) -> tuple[Tensor, ...]:
        """(B, N, D), the stem's maps at strides 8 and 4 or (), (B, 3, H, W) -> maps at strides 16, 8, 4."""
        maps = [self.enter(tokens_to_map(image_tokens, self.grid))]
        for i, level in enumerate(self.levels):
            maps.append(level(maps[-1], skips[i] if skips else None, rgb))
        return tuple(maps)


class ConvStep(nn.Module):
    """Bilinear doubling and convolutions."""

    def __init__(self, inside: int, outside: int, skip: int) -> None:
        super().__init__()
        self.merge = nn.Conv2d(inside + skip, outside, 3, padding=1)
        self.finish = nn.Sequential(Residual(outside), nn.GroupNorm(8, outside), nn.GELU())

    def forward(self, coarse: Tensor, skip: Tensor | None, rgb: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', 2h, 2w)."""
        fine = double(coarse)
        result: Tensor = self.finish(self.merge(fine if skip is None else torch.cat([fine, skip], dim=1)))
        return result


class WindowStep(nn.Module):
    """Doubling by attention inside windows: a fine pixel asks, by its colour, the elements around it.

    Windows do not overlap and divide the map exactly; the bilinear path carries across their edges.
    """

    def __init__(self, coarse: tuple[int, int], inside: int, outside: int, skip: int) -> None:
        super().__init__()
        self.window = (_largest_divisor(coarse[0]), _largest_divisor(coarse[1]))
        self.guide = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GELU())
        self.query = nn.Conv2d(inside + skip + 16, outside, 1)
        self.key = nn.Conv2d(inside, outside, 1)
        self.value = nn.Conv2d(inside, outside, 1)
        fine_cells, cells = 4 * self.window[0] * self.window[1], self.window[0] * self.window[1]
        self.bias = nn.Parameter(torch.zeros(fine_cells, cells))
        self.merge = nn.Conv2d(inside + outside + skip + 16, outside, 3, padding=1)
        self.finish = nn.Sequential(Residual(outside), nn.GroupNorm(8, outside), nn.GELU())

    def forward(self, coarse: Tensor, skip: Tensor | None, rgb: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', 2h, 2w)."""
        fine = double(coarse)
        stride = rgb.shape[-1] // fine.shape[-1]
        guide = self.guide(F.avg_pool2d(rgb, stride))
        seen = [fine, guide] if skip is None else [fine, guide, skip]
        rows, cols = self.window
        query = to_windows(self.query(torch.cat(seen, dim=1)), 2 * rows, 2 * cols)
        key, value = to_windows(self.key(coarse), rows, cols), to_windows(self.value(coarse), rows, cols)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias.to(query.dtype))
        mixed = from_windows(mixed, 2 * rows, 2 * cols, (fine.shape[-2], fine.shape[-1]))
        result: Tensor = self.finish(self.merge(torch.cat([mixed, *seen], dim=1)))
        return result


def double(coarse: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, 2h, 2w), bilinear, element centres kept."""
    return F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)


def to_windows(features: Tensor, rows: int, cols: int) -> Tensor:
    """(B, C, h, w) -> (B, windows, rows * cols, C); rows divides h, cols divides w."""
    b, c, h, w = features.shape
    x = features.view(b, c, h // rows, rows, w // cols, cols).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(b, (h // rows) * (w // cols), rows * cols, c)


def from_windows(windows: Tensor, rows: int, cols: int, size: tuple[int, int]) -> Tensor:
    """The inverse of `to_windows` for a map of `size` = (h, w)."""
    b, _, _, c = windows.shape
    h, w = size
    x = windows.view(b, h // rows, w // cols, rows, cols, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(b, c, h, w)


def _largest_divisor(count: int) -> int:
    """Largest window side that divides `count`."""
    return max(side for side in range(1, _WINDOW + 1) if count % side == 0)
