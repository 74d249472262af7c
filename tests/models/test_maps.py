"""Coordinates survive every change of layout: tokens, windows, maps, samples under vertices; the graph."""

import dataclasses
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import ModelConfig
from src.geometry.camera import project
from src.models import gcn
from src.models.gcn import MeshGraph, normalised_adjacency
from src.models.tokens import grid_of, map_to_tokens, sincos_positions, tokens_to_map
from src.models.upsample import double
from src.models.utnet import UTNet
from src.models.vertex_sampling import gather_map, sample_map, sample_points
from src.schema import DEPTH_RANGE_M
from tests.models.scene import build, hand_model, make_batch, with_presence


def coordinate_map(height: int, width: int, stride: int) -> torch.Tensor:
    """(1, 2, H / s, W / s) the crop pixel (x, y) on which each element is centred."""
    y = stride * torch.arange(height // stride) + (stride - 1) / 2
    x = stride * torch.arange(width // stride) + (stride - 1) / 2
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1])[None].float()


def with_depth_joined(net):
    """Layers by which depth comes in, and which start at zero, with some weight."""
    with torch.no_grad():
        for name in ("depth", "join4", "join8", "join16"):
            if hasattr(net.embed.stem, name) and not getattr(net.embed.stem, name).weight.any():
                getattr(net.embed.stem, name).weight.normal_(std=0.1)
    return net


@given(rows=st.integers(1, 20), cols=st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_token_r_c_lands_at_row_r_column_c(rows, cols):
    """Lesson 7: 16 x 12 tokens laid out as 12 x 16 put token (8, 3) at (6, 3)."""
    layout = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"), dim=-1)
    tokens = layout.reshape(1, rows * cols, 2)
    features = tokens_to_map(tokens, (rows, cols))
    assert torch.equal(features[0].permute(1, 2, 0), layout)
    assert torch.equal(map_to_tokens(features), tokens)
    assert grid_of((rows * 16, cols * 16)) == (rows, cols)


@pytest.mark.parametrize("patches", [False, True])
def test_a_bright_patch_lights_its_own_token(patches):
    """The stem, too, must keep rows and columns: whatever stands in patch (r, c) changes that token most."""
    change = {"rgb": torch.zeros(6, 3), "depth": torch.zeros(6, 3)}
    # A norm over the picture carries some of the change everywhere: one set of first weights does not tell.
    for seed in range(6):
        config = ModelConfig(preset="tiny", image_size=(96, 48))
        stem = with_depth_joined(build(config, seed, patches=patches)).embed
        batch = make_batch(1, 96, 48, noise=True)
        for field, total in change.items():
            picture = getattr(batch, field).clone()
            picture[:, :, 64:80, 0:16] += 3.0
            lit = stem(dataclasses.replace(batch, **{field: picture})).image
            total += tokens_to_map(lit - stem(batch).image, (6, 3)).norm(dim=1)[0].detach()
    for total in change.values():
        assert divmod(int(total.argmax()), 3) == (4, 0)


@pytest.mark.parametrize("patches", [False, True])
def test_depth_does_not_change_how_loud_the_picture_is(patches):
    """With a norm over picture and depth together, learning both modalities cost a fifth of RGB-D's MPJPE."""
    net = with_depth_joined(build(ModelConfig(preset="tiny", image_size=(64, 64)), patches=patches))
    batch = make_batch(2, 64, 64, noise=True)
    other = dataclasses.replace(batch, rgb=batch.rgb + 0.5 * torch.randn_like(batch.rgb))
    told = []
    for one, two in ((batch, other), (batch.without_depth(), other.without_depth())):
        a, b = net.embed(one), net.embed(two)
        told.append([b.image - a.image, *(y - x for x, y in zip(a.skips, b.skips, strict=True))])
    for shown, hidden in zip(*told, strict=True):
        torch.testing.assert_close(shown, hidden, atol=1e-5, rtol=0)
    assert not torch.allclose(net.embed(batch).image, net.embed(batch.without_depth()).image, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("patches", [False, True])
def test_each_sample_has_its_depth_or_the_placeholder(patches):
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


@torch.no_grad()
def test_depth_lights_its_own_place_in_the_skips():
    """Features of depth that are mirrored against the picture's tell vertices of other pixels."""
    torch.manual_seed(0)
    embed = with_depth_joined(UTNet(ModelConfig(preset="tiny", image_size=(96, 48)), hand_model())).embed
    batch = make_batch(1, 96, 48, noise=True)
    depth = batch.depth.clone()
    depth[:, :, 64:80, 0:16] += 3.0
    lit = embed(dataclasses.replace(batch, depth=depth)).skips
    for stride, before, after in zip((8, 4), embed(batch).skips, lit, strict=True):
        row, column = divmod(int((after - before).norm(dim=1)[0].argmax()), 48 // stride)
        assert 64 <= stride * row < 80
        assert 0 <= stride * column < 16


def test_positions_have_amplitude_one_and_tell_all_tokens_apart():
    """Positions of amplitude 0.02 left the network on the plateau of the mean pose."""
    table = sincos_positions((16, 12), 192).flatten(0, 1)
    assert table.abs().max() > 0.99
    distance = torch.cdist(table, table) + 100 * torch.eye(192)
    assert distance.min() > 1.0


@pytest.mark.parametrize("stride", [16, 8, 4])
@pytest.mark.parametrize("size", [(128, 128), (256, 192)])
def test_a_map_of_coordinates_returns_the_projection(stride, size):
    """Lesson 6: vertices in millimetres added to pixels put 3 to 37 percent of them inside the maps."""
    batch = make_batch(4, *size, noise=True)
    points = torch.cat(
        [
            hand_model()(batch.global_orient, batch.hand_pose, batch.betas, batch.translation_m).vertices_m,
            batch.joints_cam_m,
        ],
        dim=1,
    )
    pixels = project(points, batch.intrinsics_crop_px)
    sampled = sample_points((coordinate_map(*size, stride).expand(4, -1, -1, -1),), points, batch)
    limit = torch.tensor([size[1], size[0]])
    # The outer half element of a map fades into zero: the crop's rim is judged by the flag alone.
    inner = ((pixels > stride) & (pixels < limit - stride)).all(dim=-1)
    assert inner.float().mean() > 0.9
    assert (sampled.features[0] - pixels).abs()[inner].max() < 0.5
    inside = ((pixels >= -0.5) & (pixels <= limit - 0.5)).all(dim=-1)
    assert torch.equal(sampled.place[..., 2] == 1, inside)


@pytest.mark.parametrize("size", [(128, 96), (256, 192)])
def test_projecting_early_is_the_layer_on_all_samples(size):
    """Where the layer is computed is a matter of speed: what points see, and what learns from it, stays."""
    torch.manual_seed(0)
    refiner = UTNet(ModelConfig(preset="tiny", image_size=size), hand_model()).refiner
    assert refiner.early == [True, True, size == (128, 96)]
    batch = make_batch(2, *size, noise=True)
    points = batch.joints_cam_m * torch.tensor([1.5, 1.5, 1.0])  # some lie beyond the crop
    maps = [
        torch.randn(2, c, size[0] // s, size[1] // s, requires_grad=True)
        for c, s in zip(refiner.seen, (16, 8, 4), strict=True)
    ]
    learns = [*maps, refiner.enter.weight, refiner.enter.bias]
    plain = sample_points(tuple(maps), points, batch)
    places = torch.cat([plain.place, batch.joints_root_m], dim=-1)
    whole = refiner.enter(torch.cat([*plain.features, places], dim=-1))
    early = refiner._enter(sample_points(refiner.project(maps), points, batch).features, places)
    torch.testing.assert_close(early, whole, atol=1e-5, rtol=0)
    weight = torch.randn_like(whole)
    mine, true = (torch.autograd.grad((x * weight).sum(), learns) for x in (early, whole))
    torch.testing.assert_close(mine, true, atol=1e-4, rtol=1e-4)


def test_upsampling_keeps_coordinates():
    """A pyramid that shifts by half an element moves every sample by up to 8 pixels."""
    fine = double(coordinate_map(128, 96, 16))
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(fine[inner], coordinate_map(128, 96, 8)[inner])
    stem = UTNet(ModelConfig(preset="tiny", image_size=(64, 64)), hand_model()).embed.stem
    convolutions = [
        *((stem.rgb, 4), (stem.stage8[0], 2), (stem.stage16[0], 2)),
        *((stem.depth, 4), (stem.depth8[0], 2), (stem.depth16[0], 2)),
    ]
    for layer, stride in convolutions:
        # Output i reads pixels s i - p ... s i - p + k - 1; their centre must be s i + (s - 1) / 2.
        assert -layer.padding[0] + (layer.kernel_size[0] - 1) / 2 == (stride - 1) / 2
        assert layer.stride[0] == stride


def test_deterministic_sampling_equals_grid_sample():
    """On a GPU with deterministic kernels another routine samples: it must give the same gradient."""
    torch.manual_seed(0)
    place = torch.rand(2, 200, 2) * 1.4 - 0.7
    place[0, 0] = torch.tensor([1e6, -1e6])
    grads = []
    for routine in (sample_map, gather_map):
        features = torch.randn(2, 5, 6, 9, generator=torch.Generator().manual_seed(1)).requires_grad_()
        sampled = routine(features, place)
        (sampled * torch.arange(5)).sum().backward()
        grads.append((sampled.detach(), features.grad))
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5, rtol=1e-5)


def test_depth_residual_is_measured_minus_predicted():
    """The cue that RGB-only networks lack: its sign says on which side of the surface the hand was put."""
    batch = make_batch(1, noise=True)
    z = batch.z_ref_m[:, None, None, None]
    batch = dataclasses.replace(
        batch,
        depth=((0.65 - z) / DEPTH_RANGE_M).expand_as(batch.depth).contiguous(),
        depth_valid=torch.ones_like(batch.depth_valid),
    )
    points = torch.tensor(
        [[[0.0, 0.0, 0.62], [0.0, 0.0, 0.66], [0.0, 0.0, 0.3], [5.0, 0.0, 0.6], [0, 0, -1.0]]]
    )
    depth = sample_points((coordinate_map(128, 128, 16),), points, batch).depth[0]
    torch.testing.assert_close(depth[:2, 0], torch.tensor([0.03, -0.01]) / 0.05, atol=1e-4, rtol=0)
    assert depth[2, 0] == 2.0, "clipped at 10 cm"
    assert depth[3].tolist() == [0, 0]
    assert torch.equal(
        sample_points((coordinate_map(128, 128, 16),), points, batch.without_depth()).depth,
        torch.zeros(1, 5, 2),
    )


@pytest.mark.parametrize(("column", "residual"), [(63.3, 0.0), (63.7, 1.0)])
def test_depth_residual_at_an_edge_is_that_of_one_surface(column, residual):
    """Between a finger and the wall behind it nothing stands: a mean of both says that a hand is too near."""
    batch = make_batch(1, noise=True)
    z = torch.full((1, 1, 128, 128), 0.65)
    z[..., 64:] = 0.70
    away = (z - batch.z_ref_m[:, None, None, None]) / DEPTH_RANGE_M
    batch = dataclasses.replace(batch, depth=away, depth_valid=torch.ones_like(away))
    k = batch.intrinsics_crop_px[0]
    point = torch.tensor([[[(column - float(k[0, 2])) / float(k[0, 0]) * 0.65, 0.0, 0.65]]])
    depth = sample_points((coordinate_map(128, 128, 16),), point, batch).depth[0, 0]
    torch.testing.assert_close(depth, torch.tensor([residual, 1.0]), atol=1e-4, rtol=0)  # in 5 cm


def test_graph_is_normalised():
    """A graph whose product grows or shrinks features makes depth of layers decide the scale."""
    faces = torch.tensor([[0, 1, 2], [1, 2, 3]])
    graph = normalised_adjacency(faces, 5)
    degree = torch.tensor([3.0, 4, 4, 3, 1])
    linked = torch.tensor(
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]]
    )
    torch.testing.assert_close(graph, linked / (degree[:, None] * degree).sqrt())
    hand = normalised_adjacency(hand_model().faces, 778).double()
    assert torch.equal(hand, hand.T)
    assert float(torch.linalg.eigvalsh(hand).max()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("mesh", ["hand", "fan"])
def test_graph_product_and_its_gradient(mesh):
    """On a CPU neighbours are gathered, with a backward pass of their own: they must be the matrix's, also
    where a vertex has many more than the others.
    """
    fan = torch.stack([torch.zeros(40), torch.arange(1, 41), torch.arange(2, 42)], dim=1).long()
    faces, count = (hand_model().faces, 778) if mesh == "hand" else (fan, 43)
    graph = MeshGraph(faces, count)
    nodes = torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(0))
    pull = torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(1))
    results = []
    for product in (graph, lambda x: torch.einsum("uv,vbc->ubc", normalised_adjacency(faces, count), x)):
        x = nodes.clone().requires_grad_()
        y = product(x)
        (y * pull).sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


def test_what_is_not_a_number_reaches_its_neighbours_alone():
    """Rows of fewer neighbours are filled up: 0 times another vertex's nan would spread over the hand."""
    graph = MeshGraph(hand_model().faces, 778)
    linked = graph.matrix > 0
    nodes = torch.zeros(778, 1, 1)
    nodes[5] = torch.nan
    assert torch.equal(torch.isnan(graph(nodes))[:, 0, 0], linked[5])


def test_graph_is_normalised_once():
    """Lesson 23: rebuilding the graph in each layer of each step took three times the step's time."""
    net = UTNet(ModelConfig(preset="tiny", image_size=(64, 64), refine_iterations=2), hand_model())
    with (
        mock.patch.object(gcn, "normalised_adjacency", side_effect=AssertionError("rebuilt")),
        mock.patch.object(torch.Tensor, "rsqrt", side_effect=AssertionError("rebuilt")),
    ):
        net(make_batch(1, 64, 64, noise=True)).hand.vertices_cam_m.sum().backward()
