"""Refinement over the mesh: the graph, what points bring into it, whose axes its corrections turn about."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from src.config import ModelConfig
from src.geometry.rotation import rotation_from_aa, sixd_from_rotation
from src.hand.joints import MANO16, OPENPOSE21
from src.models import gcn, utnet
from src.models.gcn import MeshGraph, normalised_adjacency
from src.models.heads import HandState
from src.models.utnet import UTNet
from src.models.vertex_sampling import sample_points
from src.schema import HandBatch
from tests.models.scene import build, hand_model, make_batch

NET = ModelConfig(preset="tiny", image_size=(64, 96))
FAN = torch.stack([torch.zeros(40), torch.arange(1, 41), torch.arange(2, 42)], dim=1).long()


def wide_batch(size: int = 2) -> HandBatch:
    """Hands on crops of 64 x 96."""
    return make_batch(size, 64, 96, seed=3, noise=True)


def test_graph_is_normalised() -> None:
    """A graph whose product grows or shrinks features makes depth of layers decide the scale."""
    graph = normalised_adjacency(torch.tensor([[0, 1, 2], [1, 2, 3]]), 5)
    degree = torch.tensor([3.0, 4, 4, 3, 1])
    linked = torch.tensor(
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]]
    )
    torch.testing.assert_close(graph, linked / (degree[:, None] * degree).sqrt())


@pytest.mark.parametrize(("faces", "count"), [(hand_model().faces, 778), (FAN, 43)])
def test_graph_product_and_its_gradient(faces: Tensor, count: int) -> None:
    """On a CPU neighbours are gathered, with a backward pass of their own: they must be the matrix's, also
    where a vertex has many more than the others.
    """
    graph, matrix, rng = MeshGraph(faces, count), normalised_adjacency(faces, count), torch.Generator()
    nodes, pull = (torch.randn(count, 2, 3, generator=rng.manual_seed(seed)) for seed in (0, 1))
    results = []
    for product in (graph, lambda x: torch.einsum("uv,vbc->ubc", matrix, x)):
        x = nodes.clone().requires_grad_()
        y = product(x)
        (y * pull).sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


def test_what_is_not_a_number_reaches_its_neighbours_alone() -> None:
    """Rows of fewer neighbours are filled up: 0 times another vertex's nan would spread over the hand."""
    graph, nodes = MeshGraph(hand_model().faces, 778), torch.zeros(778, 1, 1)
    nodes[5] = torch.nan
    assert torch.equal(torch.isnan(graph(nodes))[:, 0, 0], graph.matrix[5] > 0)


def test_graph_is_normalised_once() -> None:
    """Lesson 23: rebuilding the graph in each layer of each step took three times the step's time."""
    net, rebuilt = build(dataclasses.replace(NET, refine_iterations=2)), AssertionError("rebuilt")
    with (
        mock.patch.object(gcn, "normalised_adjacency", side_effect=rebuilt),
        mock.patch.object(torch.Tensor, "rsqrt", side_effect=rebuilt),
    ):
        net(wide_batch(1)).hand.vertices_cam_m.sum().backward()


@pytest.mark.parametrize("size", [(128, 96), (256, 192)])
def test_projecting_early_is_the_layer_on_all_samples(size: tuple[int, int]) -> None:
    """Where the layer is computed is a matter of speed: what points see, and what learns from it, stays."""
    refiner = build(ModelConfig(preset="tiny", image_size=size)).refiner
    assert refiner.early == [True, True, size == (128, 96)]
    batch = make_batch(2, *size, noise=True)
    points = batch.joints_cam_m * torch.tensor([1.5, 1.5, 1.0])  # some lie beyond the crop
    shapes = [(2, c, size[0] // s, size[1] // s) for c, s in zip(refiner.seen, (16, 8, 4), strict=True)]
    maps = [torch.randn(shape, requires_grad=True) for shape in shapes]
    learns = [*maps, refiner.enter.weight, refiner.enter.bias]
    plain = sample_points(tuple(maps), points, batch)
    places = torch.cat([plain.place, batch.joints_root_m], dim=-1)
    whole = refiner.enter(torch.cat([*plain.features, places], dim=-1))
    early = refiner._enter(sample_points(refiner.project(maps), points, batch).features, places)
    torch.testing.assert_close(early, whole, atol=1e-5, rtol=0)
    weight = torch.randn_like(whole)
    mine, true = (torch.autograd.grad((x * weight).sum(), learns) for x in (early, whole))
    torch.testing.assert_close(mine, true, atol=1e-4, rtol=1e-4)


def refine(net: UTNet, batch: HandBatch, shift: Tensor | float = 0.0) -> tuple[HandState, HandState]:
    """(state before, state after) one refinement whose points see noise, `shift` added to the features."""
    taken: list[HandState] = []

    def noisy(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        state, estimate, sampled, summary = inputs
        rng = torch.Generator().manual_seed(7)
        first, *others = (torch.randn(f.shape, generator=rng) for f in sampled.features)
        features = (first + shift, *others)
        return state, estimate, dataclasses.replace(sampled, features=features), summary

    handles = [
        net.refiner.register_forward_pre_hook(noisy),
        net.refiner.register_forward_hook(lambda _, inputs, output: taken.extend([inputs[0], output])),
    ]
    with torch.no_grad():
        net(batch)
    for handle in handles:
        handle.remove()
    return taken[0], taken[1]


@torch.no_grad()
def test_a_residual_turns_in_the_joints_own_frame() -> None:
    """Refined = coarse x residual: the wrist's residual turns about the hand's own axes, a finger's about its
    own bone's. On the other side the same numbers turn another way.
    """
    net, turn = build(NET), rotation_from_aa(torch.tensor([0.3, -0.2, 0.5]))
    net.coarse.pose_summary.bias.normal_(0.0, 0.5)
    net.refiner.whole_out.bias[:96] = (sixd_from_rotation(turn) - net.refiner.identity).repeat(16)
    before, after = refine(net, wide_batch())
    for old, new in ((before.global_orient, after.global_orient), (before.hand_pose, after.hand_pose)):
        assert float((old - torch.eye(3)).abs().max()) > 0.1, "the test wants rotations that are not 1"
        torch.testing.assert_close(new, old @ turn, atol=1e-5, rtol=0)


def test_what_a_joint_sees_turns_that_joint() -> None:
    """Features under the 21 joints come in our order, rotations go out in MANO's: one taken for another bends
    a neighbour.
    """
    net, batch = build(NET).eval(), wide_batch(1)
    nn.init.normal_(net.refiner.joint_rotation.weight)
    _, plain = refine(net, batch)
    for joint in ("wrist", "index_2", "ring_3", "thumb_1"):
        shift = torch.zeros(1, 778 + 21, net.refiner.enter.out_features)
        shift[0, 778 + OPENPOSE21.index(joint)] = 3.0
        _, seen = refine(net, batch, shift)
        turned = torch.cat([plain.global_orient - seen.global_orient, (plain.hand_pose - seen.hand_pose)[0]])
        changes = dict(zip(MANO16, turned.abs().amax(dim=(1, 2)).tolist(), strict=True))
        assert [name for name, change in changes.items() if change > 1e-6] == [joint]


def test_a_joint_reads_the_mean_of_what_its_vertices_say() -> None:
    """Of a mesh that says one thing everywhere every joint reads that, however many vertices follow it."""
    pooled = torch.einsum("sv,vbc->bsc", build(NET).refiner.readout, torch.full((778, 1, 2), 3.0))
    torch.testing.assert_close(pooled, torch.full((1, 16, 2), 3.0))


def test_a_second_pass_looks_where_the_first_one_put_the_hand() -> None:
    """Looking at the coarse hand again, further passes would correct what is corrected already."""
    once, twice = (build(dataclasses.replace(NET, refine_iterations=n)).eval() for n in (1, 2))
    for net in (once, twice):
        torch.manual_seed(1)
        nn.init.normal_(net.refiner.whole_out.weight, std=0.05)
    batch = wide_batch()
    first = once(batch)
    with mock.patch.object(utnet, "sample_points", side_effect=sample_points) as look:
        twice(batch)
    coarse, refined = (torch.cat([h.vertices_cam_m, h.joints_cam_m], 1) for h in (first.coarse, first.hand))
    assert (coarse - refined).abs().max() > 1e-3
    looked = [call.args[1] for call in look.call_args_list]
    torch.testing.assert_close(looked, [coarse, refined], atol=1e-6, rtol=0)
