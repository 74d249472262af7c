"""From a batch to tokens: picture and depth embedded on one grid, queries beside it.

Depth has features of its own that enter through projections that start at zero, and so does the placeholder
that stands where a sample shows no depth: at initialisation a network with depth equals one without,
pretrained RGB features are not disturbed, and every parameter takes part in every step whatever the modality
drop decided.

Legend: B batch, H W crop, rows cols grid of image tokens, D channels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.errors import ConfigError, ShapeError
from src.models.layers import Residual
from src.models.vit import NORM_EPS, Preset
from src.schema import NetworkInput

PATCH = 16
"""Side in pixels of the square that one image token stands for, whatever the stem."""

NUM_POSE_QUERIES = 16
"""One query per rotation, MANO16 order."""


class Tokens(NamedTuple):
    """What the backbone is fed with."""

    queries: Tensor
    """(B, Q, D) [class token,] 16 pose, shape, camera, intrinsics."""
    image: Tensor
    """(B, rows * cols, D) row by row."""
    skips: tuple[Tensor, ...]
    """Maps of the convolutional stem at strides 8 and 4, (B, C, H / s, W / s); empty for a patch stem."""


def grid_of(image_size: tuple[int, int]) -> tuple[int, int]:
    """(rows, cols) of image tokens for a crop of (H, W) pixels.

    Raises:
        ConfigError: H or W is not a multiple of 16.
    """
    height, width = image_size
    if height % PATCH or width % PATCH:
        raise ConfigError(f"model.image_size: got ({height}, {width}), want multiples of {PATCH}")
    return height // PATCH, width // PATCH


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, rows * cols, D) -> (B, D, rows, cols); token r * cols + c lands at row r, column c."""
    # A channels-last map would give 1 x 1 convolutions gradients in strides that DDP copies and warns of.
    return tokens.transpose(1, 2).contiguous().view(tokens.shape[0], -1, *grid)


def map_to_tokens(features: Tensor) -> Tensor:
    """(B, D, rows, cols) -> (B, rows * cols, D), row by row."""
    return features.flatten(2).transpose(1, 2)


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """(rows, cols, D) positions as sines and cosines of amplitude 1: a half of the channels for y, one for x.

    Wavelengths run geometrically from 4 tokens to 4 times the longer side, so that neighbours differ and the
    ends of the crop do too. With an amplitude of 0.02 the network stays with the mean pose.
    """
    octaves = width // 4
    longest = 4.0 * max(grid)
    wavelength = 4.0 * (longest / 4.0) ** (torch.arange(octaves) / max(octaves - 1, 1))

    def axis(count: int) -> Tensor:
        angle = 2 * math.pi * torch.arange(count)[:, None] / wavelength
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    rows, cols = grid
    y = axis(rows)[:, None].expand(rows, cols, -1)
    x = axis(cols)[None].expand(rows, cols, -1)
    return torch.cat([y, x], dim=-1).contiguous()


class ConvStem(nn.Module):
    """Strided convolutions down to one token per 16 x 16 pixels, one set for the picture and one for depth.

    The first layer has stride 4: convolutions at full resolution would take most of the time of a small
    network. Even kernels keep every output centred on its pixels, so maps and projections share coordinates.

    Depth has half the channels and meets the picture as finished features, through projections that start at
    zero. Where both shared the first layer, a norm stood over their sum, so how loud the picture was depended
    on whether depth was shown, and learning both modalities cost RGB-D more
    (records/2026-11-26-depth-stem.md).
    """

    def __init__(self, width: int, channels: tuple[int, int, int]) -> None:
        super().__init__()
        c4, c8, c16 = channels
        self.rgb = nn.Conv2d(3, c4, 8, stride=4, padding=2)
        self.stage4 = nn.Sequential(nn.GroupNorm(8, c4), nn.GELU())
        self.stage8 = nn.Sequential(nn.Conv2d(c4, c8, 4, stride=2, padding=1), Residual(c8))
        self.stage16 = nn.Sequential(nn.Conv2d(c8, c16, 4, stride=2, padding=1), Residual(c16))
        self.project = nn.Sequential(nn.GroupNorm(8, c16), nn.GELU(), nn.Conv2d(c16, width, 1))
        d4, d8, d16 = (c // 2 for c in channels)
        self.depth = nn.Conv2d(2, d4, 8, stride=4, padding=2, bias=False)
        self.depth4 = nn.Sequential(nn.GroupNorm(4, d4), nn.GELU())
        self.depth8 = nn.Sequential(nn.Conv2d(d4, d8, 4, stride=2, padding=1), Residual(d8))
        self.depth16 = nn.Sequential(
            nn.Conv2d(d8, d16, 4, stride=2, padding=1), nn.GroupNorm(8, d16), nn.GELU()
        )
        self.join4 = nn.Conv2d(d4, c4, 1, bias=False)
        self.join8 = nn.Conv2d(d8, c8, 1, bias=False)
        self.join16 = nn.Conv2d(d16, width, 1, bias=False)
        self.placeholder = nn.Parameter(torch.zeros(width))
        for join in (self.join4, self.join8, self.join16):
            nn.init.zeros_(join.weight)

    def forward(self, rgb: Tensor, depth: Tensor, hidden: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, 3, H, W), (B, 2, H, W), (B, 1, 1, 1) 1 where depth is hidden -> tokens' map and skips."""
        at4 = self.stage4(self.rgb(rgb))
        at8 = self.stage8(at4)
        at16 = self.project(self.stage16(at8))
        shown = 1.0 - hidden
        deep4 = self.depth4(self.depth(depth))
        deep8 = self.depth8(deep4)
        deep16 = self.depth16(deep8)
        tokens = at16 + shown * self.join16(deep16) + self.placeholder[:, None, None] * hidden
        # A mask in float32 would turn bf16 maps into float32.
        skips = at8 + shown.to(at8) * self.join8(deep8), at4 + shown.to(at4) * self.join4(deep4)
        return tokens, skips


class PatchStem(nn.Module):
    """One linear projection per 16 x 16 patch, as in a ViT."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rgb = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.depth = nn.Conv2d(2, width, PATCH, stride=PATCH, bias=False)
        self.placeholder = nn.Parameter(torch.zeros(width))
        nn.init.zeros_(self.depth.weight)

    def forward(self, rgb: Tensor, depth: Tensor, hidden: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `ConvStem.forward`, with no skips."""
        x = self.rgb(rgb) + self.depth(depth) + self.placeholder[:, None, None] * hidden
        return x, ()


class TokenEmbedding(nn.Module):
    """Image tokens and query tokens of a batch.

    A patch stem has a learned table of positions (pretrained weights bring theirs) and a class token, which
    pretrained features need; a convolutional stem has fixed positions. Both start as sines of amplitude 1.
    """

    def __init__(self, sizes: Preset, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid = grid_of(image_size)
        width = sizes.width
        positions = sincos_positions(self.grid, width)[None]
        self.stem: nn.Module
        if sizes.stem_channels is None:
            self.stem = PatchStem(width)
            self.positions = nn.Parameter(positions)
            self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        else:
            self.stem = ConvStem(width, sizes.stem_channels)
            self.register_buffer("positions", positions, persistent=False)
            self.register_parameter("class_token", None)
        self.pose = nn.Parameter(torch.randn(1, NUM_POSE_QUERIES, width) * 0.02)
        self.shape = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.camera = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.intrinsics = nn.Sequential(
            nn.Linear(5, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width, eps=NORM_EPS)
        )

    def forward(self, batch: NetworkInput) -> Tokens:
        """Embed a batch whose crops have the configured size.

        Raises:
            ShapeError: the crop is of another size.
        """
        size = tuple(batch.rgb.shape[-2:])
        if size != self.image_size:
            raise ShapeError(
                f"crop: got {size[0]} x {size[1]} pixels, want model.image_size = {self.image_size}"
            )
        hidden = (~batch.depth_present).to(batch.rgb.dtype)[:, None, None, None]
        image, skips = self.stem(batch.rgb, torch.cat([batch.depth, batch.depth_valid], dim=1), hidden)
        image = map_to_tokens(image) + self.positions.flatten(1, 2)
        b = image.shape[0]
        camera = self.intrinsics(self._camera_numbers(batch))[:, None]
        fixed = [self.class_token, self.pose, self.shape, self.camera]
        queries = [token.expand(b, -1, -1) for token in fixed if token is not None]
        return Tokens(torch.cat([*queries, camera], dim=1), image, skips)

    def _camera_numbers(self, batch: NetworkInput) -> Tensor:
        """(B, 5) focal lengths and centre in fractions of the crop, log of the reference depth in metres."""
        height, width = self.image_size
        k = batch.intrinsics_crop_px
        focal = [k[:, 0, 0] / width, k[:, 1, 1] / height]
        centre = [k[:, 0, 2] / width - 0.5, k[:, 1, 2] / height - 0.5]
        return torch.stack([*focal, *centre, batch.z_ref_m.log()], dim=-1)
