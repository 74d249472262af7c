"""Options of the network by what they must do: drop path, long sequences, passes of the refinement."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from src.config import ModelConfig
from src.models import utnet, vit
from src.models.vertex_sampling import Sampled
from src.models.vit import PRESETS, Attention, ViT
from src.schema import HandBatch
from tests.models.scene import build, make_batch

TINY = ModelConfig(preset="tiny", image_size=(64, 64))


def test_paths_are_dropped_from_none_at_the_first_block_to_drop_path_at_the_last() -> None:
    """model.drop_path is the last block's rate; a depth of one has none to rise over."""
    rates = [block.drop_path for block in ViT(dataclasses.replace(PRESETS["tiny"], depth=4), 0.3).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [block.drop_path for block in ViT(dataclasses.replace(PRESETS["tiny"], depth=1), 0.3).blocks] == [
        0.0
    ]


def test_long_sequences_are_attended_to_as_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs, and the CPU beyond SHORT_SEQUENCE tokens, take the fused kernel, to the same end."""
    torch.manual_seed(0)
    attention, x = Attention(64, 2), torch.randn(1, vit.SHORT_SEQUENCE + 1, 64)
    fused = attention(3 * x)  # large logits: a wrong scale shows
    monkeypatch.setattr(vit, "SHORT_SEQUENCE", 10_000)
    torch.testing.assert_close(fused, attention(3 * x), atol=1e-5, rtol=0)  # float32 of order 1


def test_a_second_pass_looks_where_the_first_one_put_the_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at the coarse hand again, further passes would correct what is corrected already."""
    once, twice = (build(dataclasses.replace(TINY, refine_iterations=n)).eval() for n in (1, 2))
    for net in (once, twice):
        torch.manual_seed(1)
        torch.nn.init.normal_(net.refiner.whole_out.weight, std=0.05)
    looked: list[Tensor] = []
    original = utnet.sample_points

    def watched(maps: tuple[Tensor, ...], points_cam_m: Tensor, batch: HandBatch) -> Sampled:
        looked.append(points_cam_m)
        return original(maps, points_cam_m, batch)

    batch = make_batch(2, 64, 64, noise=True)
    first = once(batch)
    monkeypatch.setattr(utnet, "sample_points", watched)
    twice(batch)
    coarse, refined = (torch.cat([h.vertices_cam_m, h.joints_cam_m], 1) for h in (first.coarse, first.hand))
    assert (coarse - refined).abs().max() > 1e-3
    torch.testing.assert_close(looked[0], coarse, atol=1e-6, rtol=0)
    torch.testing.assert_close(looked[1], refined, atol=1e-6, rtol=0)


def test_a_joint_reads_the_mean_of_what_its_vertices_say() -> None:
    """Of a mesh that says one thing everywhere every joint reads that, however many vertices follow it."""
    refiner = build(TINY).refiner
    pooled = torch.einsum("sv,vbc->bsc", refiner.readout, torch.full((778, 1, 2), 3.0))
    torch.testing.assert_close(pooled, torch.full((1, 16, 2), 3.0))
