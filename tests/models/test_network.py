"""UTNet as a whole: what must hold before the first step of training."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from src.config import LossConfig, ModelConfig
from src.errors import ConfigError, ShapeError
from src.losses.loss import HandLoss
from src.models.vit import PRESETS
from src.schema import HandBatch, Prediction
from tests.models.scene import build, hand_model, make_batch, with_presence

TINY = ModelConfig(preset="tiny", image_size=(64, 64))
PATCHES = ModelConfig(preset="tiny", image_size=(64, 48), refine_iterations=2)
STEMS = pytest.mark.parametrize(("config", "patches"), [(TINY, False), (PATCHES, True)])
LOSS = HandLoss(LossConfig(), hand_model())
LABELS = (
    *("joints_cam_m", "joints_root_m", "joints_crop_px", "joints_unit", "joints_conf", "root_cam_m"),
    *("translation_m", "global_orient", "hand_pose", "betas"),
)


@STEMS
def test_depth_and_refinement_change_nothing_at_initialisation(config: ModelConfig, patches: bool) -> None:
    """Lesson 14: the output jumped when depth was dropped, so one hand was not learned from both.

    A refinement that begins with noise would first have to unlearn it.
    """
    net, batch = build(config, patches=patches).eval(), make_batch(3, *config.image_size, noise=True)
    prediction = net(batch)
    refined, coarse = prediction.hand.vertices_cam_m, prediction.coarse.vertices_cam_m
    torch.testing.assert_close(refined, coarse, atol=1e-6, rtol=0)
    # With a last layer that says something: the depth residual, too, must come in through zeros.
    nn.init.normal_(net.refiner.joint_rotation.weight)
    seen, hidden = tree_leaves(net(batch)), tree_leaves(net(batch.without_depth()))
    assert [torch.equal(a, b) for a, b in zip(seen, hidden, strict=True)] == [True] * 15


@pytest.mark.parametrize("refined", [True, False])
@pytest.mark.parametrize("shown", [[True, True], [False, False], [True, False]])
@STEMS
def test_every_parameter_takes_part_in_every_step(
    config: ModelConfig, patches: bool, shown: list[bool], refined: bool
) -> None:
    """DDP without a search for unused parameters fails when a modality or an ablation leaves weights out."""
    config = config if refined else dataclasses.replace(config, refine_iterations=0)
    net = build(config, patches=patches)
    batch = with_presence(make_batch(2, *config.image_size, noise=True), shown)
    prediction = net(batch)
    LOSS(prediction, batch).total.backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    assert [prediction.hand is prediction.coarse, net.refiner is None] == [not refined] * 2


def test_depth_reaches_the_output_after_two_steps() -> None:
    """Zero-initialised and dead look the same at the start: depth must have an effect once trained."""
    net, batch = build(TINY), make_batch(4, 64, 64)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        LOSS(net(batch), batch).total.backward()
        optimiser.step()
    for name in ("depth", "join4", "join8", "join16"):
        assert net.embed.get_parameter(f"stem.{name}.weight").abs().max() > 0, name
    assert net.embed.get_parameter("intrinsics.0.weight").grad.abs().max() > 0
    assert net.refiner.enter_depth.weight.grad.abs().max() > 0
    moved = (net(batch).hand.joints_cam_m - net(batch.without_depth()).hand.joints_cam_m).abs().max()
    assert moved > 1e-5


def test_sizes_that_do_not_fit_are_refused() -> None:
    """A crop of another size than configured would be squeezed or cut without a word."""
    with pytest.raises(ConfigError, match="multiples of 16"):
        build(ModelConfig(preset="tiny", image_size=(100, 128)))
    with pytest.raises(ShapeError, match="64"):
        build(TINY)(make_batch(1, 128, 64, noise=True))


@pytest.mark.parametrize("field", ["rgb", "depth"])
def test_a_nan_in_the_picture_is_a_nan_in_the_hand(field: str) -> None:
    """Lesson 10: nan that turns into a plausible hand is scored as one."""
    net, batch = build(TINY), make_batch(2, 64, 64, noise=True)
    nn.init.normal_(net.embed.stem.depth.weight, std=0.1)
    getattr(batch, field)[1, 0, 5, 7] = torch.nan
    hand = net(batch).hand
    assert torch.isnan(torch.cat([hand.joints_root_m[1], hand.root_cam_m[1:]])).all()
    assert torch.isfinite(hand.joints_root_m[0]).all()


def test_bf16_stays_in_the_backbone() -> None:
    """Rotations and projections in bf16 lose millimetres: everything that is handed out is float32."""
    net, batch = build(TINY), make_batch(2, 64, 64, noise=True)
    net.backbone_dtype = torch.bfloat16
    prediction = net(batch)
    assert {value.dtype for value in tree_leaves(prediction)} == {torch.float32}
    orient = prediction.hand.global_orient
    assert (orient.mT @ orient - torch.eye(3)).abs().max() < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(batch).hand.vertices_cam_m, prediction.hand.vertices_cam_m)


def test_the_network_does_not_read_labels() -> None:
    """Lesson 19: an oracle at test time scores well and is worth nothing."""
    net, batch = build(TINY).eval(), make_batch(2, 64, 64, noise=True)
    blind = dataclasses.replace(batch, **{n: torch.full_like(getattr(batch, n), torch.nan) for n in LABELS})
    assert torch.equal(net(batch).hand.vertices_cam_m, net(blind).hand.vertices_cam_m)


def test_state_holds_no_hand_model_and_copies_load() -> None:
    """The licensed hand must not travel in checkpoints, and a checkpoint must fit a network built anew."""
    state = build(TINY).state_dict()
    assert not [name for name in state if "mano" in name or "rest" in name]
    build(TINY, seed=1).load_state_dict(state, strict=True)


@STEMS
def test_heads_get_the_queries_they_are_named_for(config: ModelConfig, patches: bool) -> None:
    """One token off, and the wrist is read from a piece of background."""
    net, got = build(config, patches=patches), []
    net.vit = nn.Identity()
    net.coarse.register_forward_pre_hook(lambda _, inputs: got.append(inputs[1]))
    net.readout.register_forward_pre_hook(lambda _, inputs: got.append(inputs[0]))
    batch = make_batch(1, *config.image_size, noise=True)
    net(batch)
    image, queries = got
    assert torch.equal(image, net.embed(batch).image)
    assert torch.equal(queries[:, :18], torch.cat([net.embed.pose, net.embed.shape, net.embed.camera], dim=1))
    assert queries.shape[1] == 19


class Plain(nn.Module):
    """A network whose batch is a row of tensors."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *fields: Tensor) -> Prediction:
        return self.net(HandBatch(*fields))


@torch.no_grad()
def test_the_whole_network_can_be_exported() -> None:
    """Traced with the plain operators that other runtimes have: no sparse product, no decomposition."""
    with mock.patch.dict(PRESETS, tiny=dataclasses.replace(PRESETS["tiny"], depth=1, graph_layers=1)):
        net = Plain(build(dataclasses.replace(TINY, image_size=(32, 32), second_look=True)).eval())
    nn.init.normal_(net.net.refiner.whole_out.weight, std=0.05)
    fields = tuple(vars(make_batch(2, 32, 32, noise=True)).values())
    program = torch.export.export(net, fields)
    for got, want in zip(*map(tree_leaves, (program.module()(*fields), net(*fields))), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    names = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"}
    assert {"aten.matmul.default", "aten.grid_sampler.default"} <= names
    names -= {"aten.linalg_cross.default", "aten.linalg_vector_norm.default"}  # made of sums and products
    assert [name for name in names if "sparse" in name or "linalg" in name or "embedding" in name] == []
