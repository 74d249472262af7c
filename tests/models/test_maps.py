"""Coordinates survive every change of layout: tokens, maps, samples under points; how depth comes in."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from src.config import ModelConfig
from src.geometry.camera import project
from src.models.tokens import TokenEmbedding, grid_of, map_to_tokens, sincos_positions, tokens_to_map
from src.models.upsample import Doubling
from src.models.vertex_sampling import gather_map, sample_map, sample_points
from src.schema import DEPTH_RANGE_M, HandBatch
from tests.models.scene import build, hand_model, make_batch, with_presence

STEMS = pytest.mark.parametrize("patches", [False, True])


def coordinate_map(height: int, width: int, stride: int) -> Tensor:
    """(1, 2, H / s, W / s) the crop pixel (x, y) on which each element is centred."""
    y = stride * torch.arange(height // stride) + (stride - 1) / 2
    x = stride * torch.arange(width // stride) + (stride - 1) / 2
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1])[None].float()


def embedding(size: tuple[int, int], *, patches: bool = False, seed: int = 0) -> TokenEmbedding:
    """Tokens whose layers by which depth comes in, which start at zero, have some weight."""
    embed = build(ModelConfig(preset="tiny", image_size=size), seed, patches=patches).embed
    for name, parameter in embed.stem.named_parameters():
        if name.startswith(("depth", "join", "placeholder")) and not parameter.any():
            parameter.data.normal_(std=0.1)
    return embed


@pytest.mark.parametrize(("rows", "cols"), [(16, 12), (1, 5), (7, 1)])
def test_token_r_c_lands_at_row_r_column_c(rows: int, cols: int) -> None:
    """Lesson 7: 16 x 12 tokens laid out as 12 x 16 put token (8, 3) at (6, 3)."""
    layout = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"), dim=-1)
    tokens = layout.reshape(1, rows * cols, 2)
    features = tokens_to_map(tokens, grid_of((rows * 16, cols * 16)))
    assert torch.equal(features[0].permute(1, 2, 0), layout)
    assert torch.equal(map_to_tokens(features), tokens)


@torch.no_grad()
@STEMS
def test_a_bright_patch_lights_its_own_place(patches: bool) -> None:
    """The stem, too, must keep rows and columns: whatever stands in patch (r, c) changes that token most.

    So it does the skips: features that are mirrored against the picture's tell vertices of other pixels.
    """
    strides, batch = (16, 8, 4) if not patches else (16,), make_batch(1, 96, 48, noise=True)
    # A norm over the picture carries some of the change everywhere: one set of first weights does not tell.
    embeds = [embedding((96, 48), patches=patches, seed=seed) for seed in range(6)]
    for field in ("rgb", "depth"):
        picture = getattr(batch, field).clone()
        picture[:, :, 64:80, 0:16] += 3.0
        lit = dataclasses.replace(batch, **{field: picture})
        for level, stride in enumerate(strides):
            total = torch.zeros(96 // stride, 48 // stride)
            for embed in embeds:
                before, after = (
                    [tokens_to_map(t.image, (6, 3)), *t.skips][level] for t in (embed(batch), embed(lit))
                )
                total += (after - before).norm(dim=1)[0]
            row, column = divmod(int(total.argmax()), 48 // stride)
            assert (stride * row // 16, stride * column // 16) == (4, 0), (field, stride)


@torch.no_grad()
def test_maps_stay_in_the_arithmetic_of_the_backbone() -> None:
    """One float32 mask turned both skips, and all that they were merged with, into float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        skips = embedding((64, 64))(make_batch(2, 64, 64, noise=True)).skips
    assert [skip.dtype for skip in skips] == [torch.bfloat16] * 2


@STEMS
def test_depth_does_not_change_how_loud_the_picture_is(patches: bool) -> None:
    """With a norm over picture and depth together, learning both modalities cost a fifth of RGB-D's MPJPE."""
    embed, batch = embedding((64, 64), patches=patches), make_batch(2, 64, 64, noise=True)
    other = dataclasses.replace(batch, rgb=batch.rgb + 0.5 * torch.randn_like(batch.rgb))
    told = []
    for one, two in ((batch, other), (batch.without_depth(), other.without_depth())):
        a, b = embed(one), embed(two)
        told.append([b.image - a.image, *(y - x for x, y in zip(a.skips, b.skips, strict=True))])
    for shown, hidden in zip(*told, strict=True):
        torch.testing.assert_close(shown, hidden, atol=1e-5, rtol=0)


@torch.no_grad()
@STEMS
def test_each_sample_has_its_depth_or_the_placeholder(patches: bool) -> None:
    """A batch mixes both: what a sample does not show must not reach it, and what it shows must."""
    embed = build(ModelConfig(preset="tiny", image_size=(64, 64)), patches=patches).embed
    batch = with_presence(make_batch(2, 64, 64, noise=True), [True, False])
    picture = embed(batch)  # what depth enters through is zero at the start
    for name, parameter in embed.stem.named_parameters():
        if name.startswith(("depth", "join", "placeholder")):
            parameter.normal_(std=0.3)
    told = embed(batch)
    torch.testing.assert_close(told.image[1], picture.image[1] + embed.stem.placeholder)
    for with_depth, without in zip(told.skips, picture.skips, strict=True):
        assert torch.equal(with_depth[1], without[1])
        assert not torch.allclose(with_depth[0], without[0], atol=1e-2)
    embed.stem.placeholder += 1.0
    assert torch.equal(embed(batch).image[0], told.image[0])
    unmeasured = dataclasses.replace(batch, depth_valid=torch.zeros_like(batch.depth_valid))
    assert not torch.allclose(embed(unmeasured).image[0], told.image[0], atol=1e-2)


def test_positions_tell_all_tokens_apart_by_row_and_column() -> None:
    """A half of the channels tells the row, the other the column.

    Positions of amplitude 0.02 left the network on the plateau of the mean pose.
    """
    table = sincos_positions((16, 12), 192)
    assert torch.equal(table[:, :1, :96].expand(16, 12, 96), table[..., :96]), "one row, one code"
    assert torch.equal(table[:1, :, 96:].expand(16, 12, 96), table[..., 96:]), "one column, one code"
    assert table.abs().max() > 0.99
    flat = table.flatten(0, 1)
    assert (torch.cdist(flat, flat) + 100 * torch.eye(192)).min() > 1.0


def test_the_camera_is_told_in_fractions_of_the_crop() -> None:
    """Focal lengths over width and height, centre from the middle, logarithm of the reference depth: the
    query that lets one network serve two cameras.
    """
    embed, told = embedding((64, 96)), []
    embed.intrinsics.register_forward_pre_hook(lambda _, inputs: told.append(inputs[0]))
    k = torch.tensor([[120.0, 0, 60.0], [0, 96.0, 16.0], [0, 0, 1]]).expand(2, 3, 3)
    batch = make_batch(2, 64, 96, noise=True)
    embed(dataclasses.replace(batch, intrinsics_crop_px=k, z_ref_m=torch.tensor([0.5, 1.0])))
    shared = [1.25, 1.5, 0.125, -0.25]
    torch.testing.assert_close(told[0], torch.tensor([[*shared, math.log(0.5)], [*shared, 0.0]]))


@pytest.mark.parametrize("size", [(128, 128), (256, 192)])
def test_a_map_of_coordinates_returns_the_projection(size: tuple[int, int]) -> None:
    """Lesson 6: vertices in millimetres added to pixels put 3 to 37 percent of them inside the maps."""
    batch = make_batch(4, *size, noise=True)
    hand = hand_model()(batch.global_orient, batch.hand_pose, batch.betas, batch.translation_m)
    points = torch.cat([hand.vertices_m, hand.joints_m], dim=1)
    pixels, limit = project(points, batch.intrinsics_crop_px), torch.tensor([size[1], size[0]])
    strides = (16, 8, 4)
    sampled = sample_points(
        tuple(coordinate_map(*size, s).expand(4, -1, -1, -1) for s in strides), points, batch
    )
    for stride, feature in zip(strides, sampled.features, strict=True):
        # The outer half element of a map fades into zero: the crop's rim is judged by the flag alone.
        inner = ((pixels > stride) & (pixels < limit - stride)).all(dim=-1)
        assert inner.float().mean() > 0.9
        assert (feature - pixels).abs()[inner].max() < 0.5
    inside = ((pixels >= -0.5) & (pixels <= limit - 0.5)).all(dim=-1)
    assert torch.equal(sampled.place[..., 2] == 1, inside)
    # Half a pixel: pixel centres have whole numbers, the crop begins at -0.5.
    shares = (pixels + 0.5) / limit - 0.5
    torch.testing.assert_close(sampled.place[..., :2][inside], shares[inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(8, 6), (1, 3), (4, 4)])
def test_doubling_is_bilinear_to_the_edges(size: tuple[int, int]) -> None:
    """A pyramid that shifts by half an element moves every sample by up to 8 pixels; edges that fade change
    hands that leave the crop.
    """
    level = Doubling(size, inside=8, outside=8, skip=0).eval()
    level.merge, level.finish = torch.nn.Identity(), torch.nn.Identity()
    coarse = torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(0))
    want = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(level(coarse), want)


def test_deterministic_sampling_equals_grid_sample() -> None:
    """On a GPU with deterministic kernels another routine samples: it must give the same gradient."""
    torch.manual_seed(0)
    place, map_ = torch.rand(2, 200, 2) * 1.4 - 0.7, torch.randn(2, 5, 6, 9)
    place[0, 0] = torch.tensor([1e6, -1e6])
    results = []
    for routine in (sample_map, gather_map):
        features = map_.clone().requires_grad_()
        sampled = routine(features, place)
        (sampled * torch.arange(5)).sum().backward()
        results.append((sampled.detach(), features.grad))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


def over_surface(z_m: Tensor) -> HandBatch:
    """A crop that shows depths (1, 1, 128, 128)."""
    batch = make_batch(1, noise=True)
    away = (z_m - batch.z_ref_m[:, None, None, None]) / DEPTH_RANGE_M
    return dataclasses.replace(batch, depth=away, depth_valid=torch.ones_like(away))


def test_depth_residual_is_measured_minus_predicted() -> None:
    """The cue that RGB-only networks lack: its sign says on which side of the surface the hand was put."""
    batch = over_surface(torch.full((1, 1, 128, 128), 0.65))
    points = torch.tensor([[[0.0, 0.0, 0.62], [0.0, 0.0, 0.66], [0.0, 0.0, 0.3], [5.0, 0.0, 0.6]]])
    depth = sample_points((), points, batch).depth[0]
    torch.testing.assert_close(depth[:2, 0], torch.tensor([0.03, -0.01]) / 0.05, atol=1e-4, rtol=0)
    assert depth[2, 0] == 2.0, "clipped at 10 cm"
    assert depth[3].tolist() == [0, 0]
    assert not sample_points((), points, batch.without_depth()).depth.any()


@pytest.mark.parametrize(("column", "residual"), [(63.3, 0.0), (63.7, 1.0)])
def test_depth_residual_at_an_edge_is_that_of_one_surface(column: float, residual: float) -> None:
    """Between a finger and the wall behind it nothing stands: a mean of both says that a hand is too near."""
    z = torch.full((1, 1, 128, 128), 0.65)
    z[..., 64:] = 0.70
    batch = over_surface(z)
    k = batch.intrinsics_crop_px[0]
    point = torch.tensor([[[(column - float(k[0, 2])) / float(k[0, 0]) * 0.65, 0.0, 0.65]]])
    depth = sample_points((), point, batch).depth[0, 0]
    torch.testing.assert_close(depth, torch.tensor([residual, 1.0]), atol=1e-4, rtol=0)  # in 5 cm
