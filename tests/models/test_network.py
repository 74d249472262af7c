"""UTNet as a whole: what must hold before the first step of training."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from src.config import LossConfig, ModelConfig
from src.errors import ConfigError, ShapeError
from src.losses.loss import HandLoss
from src.models.vit import Block
from src.schema import HandBatch
from tests.models.scene import build, hand_model, make_batch, with_presence

TINY = ModelConfig(preset="tiny", image_size=(64, 64))
PATCHES = ModelConfig(preset="tiny", image_size=(64, 48), refine_iterations=2)
STEMS = pytest.mark.parametrize(("config", "patches"), [(TINY, False), (PATCHES, True)])


@STEMS
def test_depth_changes_nothing_at_initialisation(config, patches):
    """Lesson 14: the output jumped when depth was dropped, so one hand was not learned from both."""
    net = build(config, patches=patches).eval()
    batch = make_batch(3, *config.image_size, noise=True)
    # With a last layer that says something: the depth residual, too, must come in through zeros.
    torch.nn.init.normal_(net.refiner.joint_rotation.weight)
    seen, hidden = tree_leaves(net(batch)), tree_leaves(net(batch.without_depth()))
    assert [torch.equal(a, b) for a, b in zip(seen, hidden, strict=True)] == [True] * 15


@STEMS
def test_refinement_starts_as_nothing(config, patches):
    """A refinement that begins with noise would first have to unlearn it."""
    prediction = build(config, patches=patches)(make_batch(2, *config.image_size, noise=True))
    torch.testing.assert_close(
        prediction.hand.vertices_cam_m, prediction.coarse.vertices_cam_m, atol=1e-6, rtol=0
    )


def test_refinement_teaches_the_maps_that_it_reads():
    """Maps that the read-out alone teaches do not learn what the surface under a vertex looks like."""
    net = build(TINY)
    torch.nn.init.normal_(net.refiner.whole_out.weight, std=0.1)
    leaves = []

    def cut(_module, _inputs, maps):
        leaves.extend(level.detach().requires_grad_() for level in maps)
        return tuple(leaves)

    net.pyramid.register_forward_hook(cut)
    net(make_batch(2, 64, 64, noise=True)).hand.joints_root_m.square().sum().backward()
    # The read-out sees the finest map alone: the others' gradients are the refinement's.
    assert all(level.grad is not None and level.grad.abs().max() > 0 for level in leaves)


@pytest.mark.parametrize("shown", [[True, True], [False, False], [True, False]])
@STEMS
def test_every_parameter_takes_part_in_every_step(config, patches, shown):
    """Acceptance 9: DDP without a search for unused parameters fails when a modality leaves weights out."""
    net = build(config, patches=patches)
    batch = with_presence(make_batch(2, *config.image_size, noise=True), shown)
    HandLoss(LossConfig(), hand_model())(net(batch), batch).total.backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_depth_reaches_the_output_after_two_steps():
    """Zero-initialised and dead look the same at the start: depth must have an effect once trained."""
    net = build(TINY)
    batch = make_batch(4, 64, 64)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
    loss = HandLoss(LossConfig(), hand_model())
    for _ in range(2):
        optimiser.zero_grad()
        loss(net(batch), batch).total.backward()
        optimiser.step()
    for name in ("depth", "join4", "join8", "join16"):
        assert net.embed.get_parameter(f"stem.{name}.weight").abs().max() > 0, name
    for name in ("stem.depth.weight", "intrinsics.0.weight"):
        assert net.embed.get_parameter(name).grad.abs().max() > 0, name
    assert net.refiner.enter_depth.weight.grad.abs().max() > 0
    moved = (net(batch).hand.joints_cam_m - net(batch.without_depth()).hand.joints_cam_m).abs().max()
    assert moved > 1e-5


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("tiny", (2.3, 3.0)),
        ("small", (21, 27)),
        ("base", (84, 96)),
        ("large", (300, 320)),
        ("huge", (625, 650)),
    ],
)
def test_presets_have_the_sizes_they_are_named_for(preset, millions):
    """A preset that is not the ViT of its name cannot take that ViT's weights."""
    size = (128, 128) if preset == "tiny" else (256, 192)
    with torch.device("meta"):
        blocks = _count_backbone(preset, size)
    heads = 0.0
    if preset == "tiny":
        net = build(ModelConfig(preset=preset, image_size=size))
        blocks, heads = 0.0, sum(p.numel() for p in net.parameters()) / 1e6
    assert millions[0] < blocks + heads < millions[1]


def _count_backbone(preset: str, size: tuple[int, int]) -> float:
    from src.models.tokens import TokenEmbedding
    from src.models.vit import PRESETS, ViT

    sizes = dataclasses.replace(PRESETS[preset], stem_channels=None)
    embed, vit = TokenEmbedding(sizes, size), ViT(sizes)
    return sum(p.numel() for module in (embed, vit) for p in module.parameters()) / 1e6


@pytest.mark.parametrize("size", [(64, 96), (48, 32), (256, 192)])
def test_any_multiple_of_16_is_a_crop(size):
    """Square grids hid a swap of rows and columns in the first version."""
    config = ModelConfig(preset="tiny", image_size=size)
    prediction = build(config)(make_batch(1, *size, noise=True))
    assert prediction.hand.vertices_cam_m.shape == (1, 778, 3)
    assert torch.isfinite(prediction.hand.vertices_cam_m).all()


def test_sizes_that_do_not_fit_are_refused():
    """A crop of another size than configured would be squeezed or cut without a word."""
    with pytest.raises(ConfigError, match="multiples of 16"):
        build(ModelConfig(preset="tiny", image_size=(100, 128)))
    with pytest.raises(ShapeError, match="64"):
        build(TINY)(make_batch(1, 128, 64, noise=True))


@pytest.mark.parametrize("field", ["rgb", "depth"])
def test_a_nan_in_the_picture_is_a_nan_in_the_hand(field):
    """Lesson 10: nan that turns into a plausible hand is scored as one."""
    net = build(TINY)
    with torch.no_grad():
        net.embed.stem.depth.weight.normal_(std=0.1)
    batch = make_batch(2, 64, 64, noise=True)
    value = getattr(batch, field).clone()
    value[1, 0, 5, 7] = torch.nan
    hand = net(dataclasses.replace(batch, **{field: value})).hand
    assert torch.isnan(hand.joints_root_m[1]).all()
    assert torch.isnan(hand.root_cam_m[1]).all()
    assert torch.isfinite(hand.joints_root_m[0]).all()


def test_bf16_stays_in_the_backbone():
    """Rotations and projections in bf16 lose millimetres: everything that is handed out is float32."""
    net = build(TINY)
    net.backbone_dtype = torch.bfloat16
    batch = make_batch(2, 64, 64, noise=True)
    prediction = net(batch)
    assert {value.dtype for value in tree_leaves(prediction)} == {torch.float32}
    error = (
        (prediction.hand.global_orient.transpose(1, 2) @ prediction.hand.global_orient - torch.eye(3))
        .abs()
        .max()
    )
    assert error < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = net(batch)
    assert torch.equal(again.hand.vertices_cam_m, prediction.hand.vertices_cam_m)


def test_recomputed_activations_give_the_same_gradient():
    """Activation checkpointing must replay the drop path, or gradients belong to another network."""
    grads = []
    for recompute in (False, True):
        net = build(dataclasses.replace(TINY, drop_path=0.5)).train()
        net.vit.recompute = recompute
        batch = make_batch(4, 64, 64, noise=True)
        torch.manual_seed(3)
        net(batch).hand.vertices_cam_m.sum().backward()
        grads.append(net.vit.blocks[1].attn.qkv.weight.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)
    assert grads[0].abs().max() > 0


def test_the_network_does_not_read_labels():
    """Lesson 19: an oracle at test time scores well and is worth nothing."""
    net = build(TINY).eval()
    batch = make_batch(2, 64, 64, noise=True)
    labels = (
        "joints_cam_m",
        "joints_root_m",
        "joints_crop_px",
        "joints_unit",
        "joints_conf",
        "root_cam_m",
        "translation_m",
        "global_orient",
        "hand_pose",
        "betas",
    )
    blind = dataclasses.replace(
        batch, **{name: torch.full_like(getattr(batch, name), torch.nan) for name in labels}
    )
    assert torch.equal(net(batch).hand.vertices_cam_m, net(blind).hand.vertices_cam_m)


def test_state_holds_no_hand_model_and_copies_load():
    """The licensed hand must not travel in checkpoints, and a checkpoint must fit a network built anew."""
    net = build(TINY)
    state = net.state_dict()
    assert not [name for name in state if "mano" in name or "rest" in name]
    build(TINY, seed=1).load_state_dict(state, strict=True)


def test_options_of_the_model_are_read():
    """Lesson 20: keys that nobody reads. Drop path and iterations must change the network."""
    batch = make_batch(3, 64, 64, noise=True)
    plain, dropping = build(TINY).train(), build(dataclasses.replace(TINY, drop_path=0.9)).train()
    assert torch.equal(plain(batch).vote_joints_unit, plain(batch).vote_joints_unit)
    assert not torch.equal(dropping(batch).vote_joints_unit, dropping(batch).vote_joints_unit)
    dropping.eval()
    assert torch.equal(dropping(batch).vote_joints_unit, plain(batch).vote_joints_unit)
    calls = []
    twice = build(dataclasses.replace(TINY, refine_iterations=2))
    twice.refiner.register_forward_hook(lambda *_: calls.append(1))
    twice(batch)
    assert len(calls) == 2


def test_parts_left_out_leave_nothing_behind():
    """An arm of the ablation that keeps what it claims to lack says nothing about it; a parameter without a
    gradient stops DDP.
    """
    batch = make_batch(3, 64, 64, noise=True)
    net = build(dataclasses.replace(TINY, refine_iterations=0)).train()
    prediction = net(batch)
    HandLoss(LossConfig(), hand_model())(prediction, batch).total.backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []
    assert not [name for name in net.state_dict() if name.startswith("refiner")]
    assert prediction.hand is prediction.coarse


@STEMS
def test_heads_get_the_queries_they_are_named_for(config, patches):
    """One token off, and the wrist is read from a piece of background."""
    net = build(config, patches=patches)
    net.vit = torch.nn.Identity()
    got = []
    net.coarse.register_forward_pre_hook(lambda _, inputs: got.append(inputs[1]))
    net.readout.register_forward_pre_hook(lambda _, inputs: got.append(inputs[0]))
    batch = make_batch(1, *config.image_size, noise=True)
    net(batch)
    image, queries = got
    assert torch.equal(image, net.embed(batch).image)
    assert torch.equal(queries[:, :18], torch.cat([net.embed.pose, net.embed.shape, net.embed.camera], dim=1))
    assert queries.shape[1] == 19


def test_the_whole_network_can_be_exported():
    """Traced with the plain operators that other runtimes have: no sparse product, no decomposition."""
    net = build(dataclasses.replace(TINY, image_size=(32, 32))).eval()
    torch.nn.init.normal_(net.refiner.whole_out.weight, std=0.05)
    batch = make_batch(2, 32, 32, noise=True)

    class Plain(torch.nn.Module):
        def forward(self, *fields):
            return net(HandBatch(*fields))

    plain, fields = Plain(), tuple(getattr(batch, f.name) for f in dataclasses.fields(HandBatch))
    plain.net = net
    with torch.no_grad():
        program = torch.export.export(plain, fields).run_decompositions()
        for got, want in zip(*map(tree_leaves, (program.module()(*fields), plain(*fields))), strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"aten.bmm.default", "aten.grid_sampler_2d.default"} <= names
    assert [name for name in names if not name.startswith("aten.") and "getitem" not in name] == []
    assert [name for name in names if "sparse" in name or "linalg" in name or "embedding" in name] == []


@pytest.mark.slow
def test_huge_makes_one_training_step():
    """The first version's size, 1280 x 32 at 256 x 192, must fit where it fitted."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(line for line in lines if line.startswith("MemAvailable"))
    if int(available.split()[1]) < 20 * 2**20:
        pytest.skip("needs 20 GiB of free memory")
    net = build(ModelConfig(preset="huge", image_size=(256, 192)))
    batch = make_batch(1, 256, 192)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-5, fused=True)
    terms = HandLoss(LossConfig(), hand_model())(net(batch), batch)
    terms.total.backward()
    optimiser.step()
    assert torch.isfinite(terms.total)


@pytest.mark.parametrize("drop_path", [0.001, 0.5, 0.999])
def test_a_branch_is_left_out_for_whole_samples(drop_path):
    """Left out in part or not scaled up, features shift between training and scoring; where no sample keeps a
    branch, its parameters still need a gradient, or DDP stops.
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


def test_branches_that_are_left_out_are_not_computed():
    """Computed and thrown away, they are a seventh of the work of a huge network's transformer."""
    block = Block(16, 2, 0.5).train()
    seen = []
    block.mlp.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    torch.manual_seed(0)
    for _ in range(50):
        block(torch.zeros(8, 3, 16))
    assert 3.0 < sum(seen) / 50 < 5.0
    block.eval()(torch.zeros(8, 3, 16))
    assert seen[-1] == 8


def test_branches_are_drawn_on_the_host():
    """How many samples keep a branch decides shapes: drawn on a GPU, every block would wait for it."""
    torch.manual_seed(0)
    block = Block(16, 2, 0.5).to("meta").train()  # a device that cannot be asked for a value
    assert block(torch.empty(8, 3, 16, device="meta")).shape == (8, 3, 16)


def test_branches_may_be_left_out_in_bf16():
    """The residual stays float32 while autocast makes the branch bf16: added unlike, every such run stops."""
    net = build(dataclasses.replace(TINY, drop_path=0.5)).train()
    net.backbone_dtype = torch.bfloat16
    torch.manual_seed(0)
    prediction = net(make_batch(4, 64, 64, noise=True))
    prediction.hand.vertices_cam_m.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.vit.parameters())
