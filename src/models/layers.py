"""Small pieces that several parts of the network are made of.

Legend: B batch, C channels, H W a map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SmallLinear(nn.Linear):
    """A last layer that starts near zero, so that what it is added to is the first prediction.

    Args:
        inputs, outputs: as of a linear layer.
        start: standard deviation of the outputs for inputs of order 1 at the start.
        gain: factor on the output. A plain layer on hundreds of normalised features moves its output far with
            every step of the optimiser, and its gradient drowns all others in the norm that is clipped.
    """

    def __init__(self, inputs: int, outputs: int, *, start: float = 0.01, gain: float = 1.0) -> None:
        super().__init__(inputs, outputs)
        self.gain = gain
        nn.init.normal_(self.weight, std=start / (gain * inputs**0.5))
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self.gain * super().forward(input)


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        result: Tensor = x + self.conv2(F.gelu(self.conv1(F.gelu(self.norm(x)))))
        return result


def pooling_matrix(cells: int, count: int) -> Tensor:
    """(cells, count) rows that sum to 1: means of `count` equal intervals over `cells` equal intervals."""
    edges = torch.arange(cells + 1) / cells
    ends = torch.arange(count + 1) / count
    overlap = torch.minimum(edges[1:, None], ends[None, 1:]) - torch.maximum(
        edges[:-1, None], ends[None, :-1]
    )
    return overlap.clamp_min(0.0) * cells
