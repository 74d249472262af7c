"""Learning rate, decay, Muon and averaged weights do what the configuration says."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves_with_path

from src.config import ModelConfig, OptimizerConfig, SchedulerConfig
from src.config_file import load_config
from src.errors import AssetError
from src.runtime.machine import cpu_flags, has_bf16
from src.training import optim
from src.training.muon import Muon, Share, orthogonal, orthogonalised
from src.training.optim import Ema, Optimizer, describe_rate, learning_rate, peak_rate
from tests.models.scene import build
from tests.rooms.sources import ROOT

BOTH = pytest.mark.parametrize("name", ["adamw", "muon"])
CPU = torch.device("cpu")


def by_name(model: nn.Module, optimizer: Optimizer, key: str) -> dict[str, Any]:
    """What a parameter's group says of it."""
    found = {p.data_ptr(): group[key] for group in optimizer.groups for p in group["params"]}
    return {name: found[p.data_ptr()] for name, p in model.named_parameters()}


def test_the_rate_rises_and_falls_along_straight_lines() -> None:
    """It reaches optimizer.lr, falls to a hundredth of it, and never leaves these."""
    config = SchedulerConfig(warmup_fraction=0.1)
    rates = [learning_rate(k, 100, 2e-3, config) for k in range(100)]
    assert rates[0] == pytest.approx(2e-3 / 11)
    assert max(rates) == rates[10] == 2e-3
    assert rates[-1] == pytest.approx(2e-5)
    assert [b - a for a, b in pairwise(rates[:11])] == pytest.approx([2e-3 / 11] * 10)
    assert [a - b for a, b in pairwise(rates[10:])] == pytest.approx([(2e-3 - 2e-5) / 89] * 89)
    assert learning_rate(0, 1, 1.0, SchedulerConfig(warmup_fraction=0.0)) == 1.0


@pytest.mark.parametrize(
    ("recipe", "world", "rate", "batch"),
    [
        ("config", 4, "0.000125 (adamw) = 0.0005 per 512 samples", "128 = 4 x 32 x accumulation 1"),
        ("config", 8, "0.00025 (adamw) = 0.0005 per 512 samples", "256 = 8 x 32 x accumulation 1"),
        ("huge", 4, "5e-05 (adamw) = 0.0002 per 512 samples", "128 = 4 x 16 x accumulation 2"),
        ("demo", 2, "0.004 (muon) as given", "16 = 2 x 8 x accumulation 1"),
    ],
)
def test_recipes_say_the_rate_that_they_use(recipe: str, world: int, rate: str, batch: str) -> None:
    """A rate that is silently 16 times too small looks like a network that cannot learn."""
    config = load_config(ROOT / "config" / f"{recipe}.yaml")
    assert describe_rate(config, world) == f"Peak learning rate {rate}, global batch {batch}"
    assert rate.startswith(f"{peak_rate(config, world):g} ")


class Blocks(nn.Module):
    """Layers under the names of the network's parts."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.ModuleDict({"stem": nn.Linear(8, 8), "shape": nn.Linear(8, 8)})
        self.vit = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(8, 8) for _ in range(blocks))})
        self.head = nn.Linear(8, 8)


@pytest.mark.parametrize("patches", [True, False])
def test_what_decays_and_what_learns_at_the_full_rate(patches: bool) -> None:
    """Decay pulls what a pretrained ViT knows of places, and every norm's scale, to zero; at the share
    of the first layer, 0.75^33 for huge, depth would stay the zeros that it starts with.
    """
    model = build(ModelConfig(preset="tiny", image_size=(64, 64)), patches=patches)
    optimizer = Optimizer(model, OptimizerConfig(weight_decay=0.1, layer_decay=0.5), CPU)
    embeddings = {"embed.positions", "embed.class_token"} if patches else set()
    free = {n for n, p in model.named_parameters() if p.ndim < 2} | embeddings
    for name, decay in by_name(model, optimizer, "weight_decay").items():
        assert decay == (0.0 if name in free else 0.1), name
    for name, share in by_name(model, optimizer, "share").items():
        if name.startswith("embed.stem."):
            fresh = name.split(".")[2].startswith(("depth", "join", "placeholder"))
            assert share == (1.0 if fresh else 0.5**4), name


@BOTH
@pytest.mark.parametrize("blocks", [2, 12])  # every preset but tiny has blocks of two digits
def test_pretrained_blocks_move_less_the_deeper_they_lie(name: Any, blocks: int) -> None:
    """At one rate for all, a fresh head washes out what the first blocks were pretrained for."""
    model = Blocks(blocks)
    optimizer = Optimizer(model, OptimizerConfig(name=name, layer_decay=0.5), CPU)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.1)
    got = by_name(model, optimizer, "lr")
    shares = {f"vit.blocks.{k}": 0.5 ** (blocks - k) for k in range(blocks)}
    shares |= {"embed.stem": 0.5 ** (blocks + 1), "embed.shape": 1.0, "head": 1.0}
    for part, share in shares.items():
        assert got[f"{part}.weight"] == got[f"{part}.bias"] == pytest.approx(0.1 * share), part


def test_muon_moves_matrices_and_adamw_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel left out, or moved as a copy, stays as it was drawn: the run learns with half a network."""
    monkeypatch.setattr(optim, "has_bf16", lambda _: False)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 3))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(torch.randn(4, 8, 3, 3)).square().sum().backward()
    Optimizer(model, OptimizerConfig(name="muon", weight_decay=0.0), CPU).step(1e-2)
    for name, parameter in model.named_parameters():
        step, gradient = parameter.detach() - before[name], parameter.grad
        assert gradient is not None
        if name in ("0.weight", "2.weight"):
            flat = gradient.flatten(1)
            want = -1e-2 * 0.2 * max(flat.shape) ** 0.5 * orthogonalised(flat).view_as(step)
        else:  # biases, and a matrix of 3 rows, too few to be told apart
            want = -1e-2 * gradient.sign()
        assert torch.allclose(step, want, rtol=1e-2, atol=1e-5), name


@BOTH
def test_a_resume_takes_moments_from_the_file_and_settings_from_the_command(name: Any) -> None:
    """A decay that was changed for the resume was logged as changed and stayed the old one; a changed
    `layer_decay` makes other groups, and ended in a traceback.
    """
    model = Blocks()
    before = Optimizer(model, OptimizerConfig(name=name, weight_decay=0.0), CPU)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before.step(1e-2)
    changed = OptimizerConfig(name=name, weight_decay=0.5, betas=(0.8, 0.9), layer_decay=0.5)
    after = Optimizer(model, changed, CPU)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    assert {g["share"] for g in after.groups} == {0.125, 0.25, 0.5, 1.0}
    decay = by_name(model, after, "weight_decay")
    assert decay == {n: 0.5 if p.ndim > 1 else 0.0 for n, p in model.named_parameters()}
    assert {g["betas"] for g in after.adamw.param_groups} == {(0.8, 0.9)}
    old, new = (dict(tree_leaves_with_path(optimizer.state_dict())) for optimizer in (before, after))
    assert len(old) >= len(list(model.parameters()))
    assert old.keys() == new.keys()
    for where, value in old.items():
        assert value is new[where] is None or torch.equal(value, new[where]), where


def test_moments_that_do_not_fit_are_refused() -> None:
    """Dropped, missing, of another shape or optimiser: the loss jumps, or a kernel writes past their end."""
    model = Blocks()
    optimizer, other = (Optimizer(model, OptimizerConfig(name=name), CPU) for name in ("muon", "adamw"))
    optimizer.load_state_dict(optimizer.state_dict())  # of a run that was saved before its first step
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(1e-2)
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    moments = state["adamw"]["head.bias"]
    for kind, name, value in (
        ("muon", "head.weight", {}),
        ("adamw", "tail.bias", {"tail.bias": moments}),
        ("adamw", "head.bias", {"head.bias": moments | {"exp_avg": torch.zeros(4)}}),
        ("muon", "head.weight", {"head.weight": {"momentum_buffer": torch.zeros(8, 4)}}),
    ):
        bad = copy.deepcopy(state)
        bad[kind].pop(name, None)
        bad[kind] |= value
        with pytest.raises(AssetError, match=rf"moments of {name} \(1 in all\) are not those .*Resume"):
            optimizer.load_state_dict(bad)
    for was, now in ((optimizer, other), (other, optimizer)):
        with pytest.raises(AssetError, match=r"optimizer\.name=(muon, want adamw|adamw, want muon)'s"):
            now.load_state_dict(was.state_dict())


def test_average_is_exponential_and_swaps_back_bit_for_bit() -> None:
    """Validation of the averaged weights must not change the weights that are trained.

    Weights of 1, 2, 3, 4 above their start, with decays of 1/10, 2/11, 1/5, 1/5, then the one that was set:
    averages of 0.9, 1.8, 2.76 and 3.752 above it.
    """
    model = nn.Linear(3, 3)
    ema = Ema(model, decay=0.2)
    expected = model.weight.detach().clone() + 3.752
    for _ in range(4):
        with torch.no_grad():
            model.weight.add_(1.0)
        ema.update()
    trained = model.weight.detach().clone()
    with ema.applied():
        assert torch.allclose(model.weight, expected, atol=1e-6)
    assert torch.equal(model.weight, trained)


SHAPES = ((3, 3), (16, 48), (48, 16), (24, 200), (1, 8), (136, 128))


def matrix(shape: tuple[int, int], seed: int) -> Tensor:
    """A random one."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_the_book(x: Tensor) -> Tensor:
    """Five steps of the quintic of Jordan et al. 2024, as it is written down, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x.double() / x.double().norm()
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


@pytest.mark.parametrize("shape", SHAPES)
def test_the_short_way_gives_the_matrix_of_the_long_one(shape: tuple[int, int]) -> None:
    """Working on X X^T loses digits; lost in small singular values, they would turn steps into noise."""
    u, s, v = torch.linalg.svd(matrix(shape, 1), full_matrices=False)
    x = u @ torch.diag(torch.logspace(0, -7, len(s))) @ v
    got, want = orthogonalised(x), by_the_book(x)
    assert (got - want).norm() < 1e-3 * want.norm()
    assert torch.equal(orthogonalised(0 * x), 0 * x), "no gradient is no step"


def test_small_matrices_stay_in_float32() -> None:
    """In bfloat16 most of tiny's matrices take three to eight times their time in float32: casts alone."""
    for shape, dtype in (
        ((127, 300), torch.float32),
        ((300, 127), torch.float32),
        ((128, 300), torch.bfloat16),
    ):
        assert orthogonalised(matrix(shape, 1), torch.bfloat16).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_are_those_of_the_library(dtype: torch.dtype) -> None:
    """Rates found with torch's Muon and other machines' arithmetic must keep their meaning."""
    ours, theirs = ([nn.Parameter(matrix(s, k)) for k, s in enumerate(SHAPES)] for _ in range(2))
    mine = Muon([{"params": ours, "lr": 1e-2, "weight_decay": 0.3}], momentum=0.95, dtype=dtype)
    library = torch.optim.Muon(theirs, 1e-2, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = b.grad = matrix(SHAPES[k], 10 * step + k)
        mine.step()
        library.step()  # type: ignore[no-untyped-call]
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        moved = b.detach() - matrix(SHAPES[k], k)
        assert (a.detach() - b.detach()).norm() < 0.02 * moved.norm(), SHAPES[k]


@pytest.mark.parametrize("world", [2, 3, 9])
def test_ranks_share_the_work_and_get_the_same_bits(world: int) -> None:
    """Weights that differ between ranks in the last bit drift apart, and no collective notices."""
    matrices = [matrix(s, k) for k, s in enumerate(SHAPES * 2)]
    sizes = [m.numel() for m in matrices]
    sent: list[Tensor] = []
    for rank in range(world):
        orthogonal(matrices, share=Share(rank, world, lambda t: sent.append(t.clone())))
    parts = torch.stack(sent).sum(0).split(sizes)
    assert all(torch.equal(p.view_as(m), m) for p, m in zip(parts, orthogonal(matrices), strict=True))
    done = torch.stack([torch.stack([part.any() for part in flat.split(sizes)]) for flat in sent])
    assert done.sum(0).tolist() == [1] * len(matrices), "a matrix is one rank's"
    if world == 2:
        costs = done.float() @ torch.tensor([float(min(m.shape) ** 2 * max(m.shape)) for m in matrices])
        assert costs.max() < 1.5 * costs.min(), "one rank waits for the other"


def test_bf16_is_used_where_the_processor_computes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emulated, it made a training step on a plain machine ten times as long."""
    read, file = cpu_flags.__wrapped__, tmp_path / "cpuinfo"
    monkeypatch.setattr("src.runtime.machine.cpu_flags", lambda: read(file))
    assert not has_bf16(CPU), "no such file"
    for text, found in (
        ("processor : 0\nflags\t\t: fpu avx2 avx512_bf16\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2 avx512f\nbugs : bf16\n", False),
    ):
        file.write_text(text)
        assert has_bf16(CPU) is found, text
