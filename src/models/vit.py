"""Vision transformer blocks and the presets of the whole network.

Pre-norm blocks whose parameter names and arithmetic are those of timm's `VisionTransformer` (fused qkv,
LayerNorm eps 1e-6, exact GELU), so that pretrained weights fit without surgery. The transformer works on a
plain sequence: whoever lays image tokens out keeps their (rows, cols).

Legend: B batch, N tokens, D channels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

_Map = Callable[[Tensor], Tensor]

NORM_EPS = 1e-6
"""eps of the backbone's LayerNorms; pretrained ViTs use it, PyTorch's default of 1e-5 shifts features."""

SHORT_SEQUENCE = 320
"""On a CPU, sequences up to this length are attended to by plain products: the fused kernel's backward pass
takes 1.3 times their time in float32 and 4 times in bf16 (32 x 83 tokens)."""


@dataclass(frozen=True)
class Preset:
    """Sizes of the backbone and of what reads it."""

    width: int
    """D, channels of a token."""
    depth: int
    """Transformer blocks."""
    heads: int
    """Attention heads."""
    stem_channels: tuple[int, int, int] | None
    """Channels of the picture in a convolutional stem at strides 4, 8 and 16, half of them for depth.

    None: one projection per patch, as pretrained ViTs have it.
    """
    map_channels: tuple[int, int, int]
    """Channels of the feature maps at strides 16, 8 and 4 that vertices sample."""
    readout_width: int
    """Hidden width of the read-out that sees all image tokens."""
    graph_width: int
    """Channels of a node of the mesh refinement."""
    graph_layers: int
    """Graph convolutions of one pass of the refinement."""
    recompute: bool = False
    """Blocks are computed again in the backward pass: less memory, about a third more time."""


PRESETS: dict[str, Preset] = {
    "tiny": Preset(192, 3, 3, (32, 64, 128), (64, 48, 32), 224, 32, 3),
    "small": Preset(384, 12, 6, None, (128, 96, 64), 512, 96, 4),
    "base": Preset(768, 12, 12, None, (192, 128, 64), 768, 128, 4),
    "large": Preset(1024, 24, 16, None, (256, 128, 64), 1024, 128, 4),
    "huge": Preset(1280, 32, 16, None, (256, 128, 64), 1024, 128, 4, recompute=True),
}
"""tiny is for 128 px and two cores (< 3 M parameters in all), huge the first version's size at 256 x 192."""


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if x.device.type == "cpu" and n <= SHORT_SEQUENCE:
            mixed = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.proj(mixed.transpose(1, 2).reshape(b, n, d))
        return result


class Block(nn.Module):
    """Pre-norm transformer block.

    While training, each residual branch is left out for whole samples with probability `drop_path`, and
    scaled up where it is not (stochastic depth, Huang et al. 2016). It is computed for the other samples
    alone, as DINOv2 does: at the 0.3 of `huge` that is a seventh less arithmetic.
    """

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        enter, leave = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=enter, gelu=nn.GELU(), fc2=leave))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = self._with_branch(x, self.norm1, self.attn)
        return self._with_branch(x, self.norm2, self.mlp)

    def _with_branch(self, x: Tensor, norm: _Map, branch: _Map) -> Tensor:
        """x + branch(norm(x)), for the samples that are not left out."""
        if not self.training or self.drop_path == 0.0:
            return x + branch(norm(x))
        keep = 1.0 - self.drop_path
        if torch.compiler.is_compiling():  # whose graph has no sizes that were drawn: all are computed
            kept = torch.rand(x.shape[0], 1, 1, device=x.device) < keep
            return x + branch(norm(x)) * (kept.to(x.dtype) / keep)
        rows, weight = _drawn(len(x), keep)
        if len(rows) == len(x):
            return x + branch(norm(x)) * weight
        index = torch.tensor(rows, pin_memory=x.is_cuda).to(x.device, non_blocking=True)
        change = branch(norm(x.index_select(0, index)))
        return x.index_add(0, index, change.to(x.dtype), alpha=weight)


def _drawn(batch: int, keep: float) -> tuple[list[int], float]:
    """Samples that keep a branch and its weight; where none does, the first with weight 0.

    So every parameter has a gradient in every step, which DDP wants. Drawn on the host, for the device would
    have to be asked how many there are; from torch's global generator, whose state checkpoints hold and
    recomputed activations restore: both drop the same branches again.
    """
    rows = [row for row, number in enumerate(torch.rand(batch).tolist()) if number < keep]
    return (rows, 1.0 / keep) if rows else ([0], 0.0)


class ViT(nn.Module):
    """Blocks and a last norm over a sequence of tokens.

    Args:
        sizes: of the preset.
        drop_path: drop probability of the last block's branches, rising linearly from 0 at the first.
    """

    def __init__(self, sizes: Preset, drop_path: float = 0.0) -> None:
        super().__init__()
        rates = [drop_path * i / max(sizes.depth - 1, 1) for i in range(sizes.depth)]
        self.blocks = nn.ModuleList(Block(sizes.width, sizes.heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(sizes.width, eps=NORM_EPS)
        self.recompute = sizes.recompute
        self.apply(_initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D), normalised."""
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        result: Tensor = self.norm(tokens)
        return result


def _initialise(module: nn.Module) -> None:
    """Xavier weights and zero biases: attention logits of order 1 at any width."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
