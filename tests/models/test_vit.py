"""Blocks of the transformer: sizes, attention, branches that are left out, recomputed activations."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from src.config import ModelConfig
from src.models import vit
from src.models.tokens import TokenEmbedding
from src.models.vit import PRESETS, Attention, Block, ViT
from tests.models.scene import build, make_batch

TINY = ModelConfig(preset="tiny", image_size=(64, 64))
MILLIONS = {"small": (21, 27), "base": (84, 96), "large": (300, 320), "huge": (625, 650)}


def test_presets_have_the_sizes_they_are_named_for() -> None:
    """A preset that is not the ViT of its name cannot take that ViT's weights; tiny is below 3 M in all."""
    for preset, (least, most) in MILLIONS.items():
        with torch.device("meta"):
            parts = TokenEmbedding(PRESETS[preset], (256, 192)), ViT(PRESETS[preset])
        assert least < sum(p.numel() for part in parts for p in part.parameters()) / 1e6 < most, preset
    assert 2.3 < sum(p.numel() for p in build(TINY).parameters()) / 1e6 < 3.0
    assert [name for name, sizes in PRESETS.items() if sizes.recompute] == ["huge"]


def test_every_norm_of_the_backbone_has_the_eps_of_pretrained_vits() -> None:
    """timm's and torchvision's ViTs have 1e-6, torch's default is ten times that (lesson 13)."""
    norms = [m.eps for m in ViT(PRESETS["tiny"]).modules() if isinstance(m, nn.LayerNorm)]
    assert norms == [1e-6] * 7


def test_long_sequences_are_attended_to_as_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs, and the CPU beyond SHORT_SEQUENCE tokens, take the fused kernel, to the same end."""
    torch.manual_seed(0)
    attention, x = Attention(64, 2), torch.randn(1, vit.SHORT_SEQUENCE + 1, 64)
    fused = attention(3 * x)  # large logits: a wrong scale shows
    monkeypatch.setattr(vit, "SHORT_SEQUENCE", 10_000)
    torch.testing.assert_close(fused, attention(3 * x), atol=1e-5, rtol=0)  # float32 of order 1


def test_paths_are_dropped_from_none_at_the_first_block_to_drop_path_at_the_last() -> None:
    """model.drop_path is the last block's rate; a depth of one has none to rise over."""
    blocks = build(dataclasses.replace(TINY, drop_path=0.3)).vit.blocks
    assert [block.drop_path for block in blocks] == pytest.approx([0.0, 0.15, 0.3])
    assert [b.drop_path for b in ViT(dataclasses.replace(PRESETS["tiny"], depth=1), 0.3).blocks] == [0.0]


@pytest.mark.parametrize("drop_path", [0.001, 0.5, 0.999])
def test_a_branch_is_left_out_for_whole_samples(drop_path: float) -> None:
    """Left out in part or not scaled up, features shift between training and scoring; where no sample keeps a
    branch, its parameters still need a gradient, or DDP stops. In evaluation none is left out.
    """
    block = Block(32, 4, drop_path).train()
    x = torch.randn(6, 5, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    torch.manual_seed(5)
    out = block(x)
    torch.manual_seed(5)
    masks = [(torch.rand(6) < 1 - drop_path).float()[:, None, None] / (1 - drop_path) for _ in range(2)]
    assert [bool(mask.any()) for mask in masks] == [drop_path < 0.9] * 2
    assert [bool(mask.all()) for mask in masks] == [drop_path < 0.1] * 2
    between = x + masks[0] * block.attn(block.norm1(x))
    torch.testing.assert_close(out, between + masks[1] * block.mlp(block.norm2(between)))
    out.square().sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    whole = x + block.attn(block.norm1(x))
    torch.testing.assert_close(block.eval()(x), whole + block.mlp(block.norm2(whole)))


def test_branches_that_are_left_out_are_drawn_on_the_host_and_not_computed() -> None:
    """Computed and thrown away, they are a seventh of the work of a huge network's transformer. How many
    samples keep a branch decides shapes: drawn on a GPU, every block would wait for it.
    """
    block, seen = Block(16, 2, 0.5).to("meta").train(), []  # a device that cannot be asked for a value
    block.mlp.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    torch.manual_seed(0)
    for _ in range(50):
        block(torch.zeros(8, 3, 16, device="meta"))
    assert 3.0 < sum(seen) / 50 < 5.0


def test_branches_may_be_left_out_in_bf16() -> None:
    """The residual stays float32 while autocast makes the branch bf16: added unlike, every such run stops."""
    net = build(dataclasses.replace(TINY, drop_path=0.5)).train()
    net.backbone_dtype = torch.bfloat16
    net(make_batch(4, 64, 64, noise=True)).hand.vertices_cam_m.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.vit.parameters())


def test_recomputed_activations_give_the_same_gradient() -> None:
    """Recomputing must replay the drop path, or gradients belong to another network."""
    grads = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = ViT(dataclasses.replace(PRESETS["tiny"], recompute=recompute), 0.5).train()
        x = torch.randn(4, 9, 192, requires_grad=True)
        net(x)[..., :96].square().sum().backward()  # a norm ends it: squares of all channels are constant
        grads.append([x.grad, net.blocks[1].attn.qkv.weight.grad])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)
    assert grads[0][1].abs().max() > 0
