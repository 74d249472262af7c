"""Learning rate, weight decay and averaged weights do what the configuration says."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from src.config import ModelConfig, OptimizerConfig, SchedulerConfig
from src.config_file import load_config
from src.errors import AssetError
from src.training import optim
from src.training.optim import (
    Ema,
    Optimizer,
    describe_rate,
    learning_rate,
    peak_rate,
)
from tests.models.scene import build
from tests.rooms.sources import ROOT


def test_warm_up_and_cosine() -> None:
    """The rate rises linearly, reaches optimizer.lr, falls to a hundredth of it, and never leaves
    these bounds.
    """
    config = SchedulerConfig(warmup_fraction=0.1)
    rates = [learning_rate(k, 100, 2e-3, config) for k in range(100)]
    assert rates[0] == pytest.approx(2e-3 / 11)
    assert max(rates) == rates[10] == 2e-3
    assert rates[-1] == pytest.approx(2e-5)
    assert all(b > a for a, b in pairwise(rates[:11]))
    assert all(b < a for a, b in pairwise(rates[10:]))
    assert learning_rate(0, 1, 1.0, SchedulerConfig(warmup_fraction=0.0)) == 1.0


@pytest.mark.parametrize(
    ("recipe", "world", "rate", "batch"),
    [
        ("config", 4, "0.000125 (adamw) = 0.0005 per 512 samples", "128 = 4 x 32 x accumulation 1"),
        ("config", 8, "0.00025 (adamw) = 0.0005 per 512 samples", "256 = 8 x 32 x accumulation 1"),
        ("huge", 4, "5e-05 (adamw) = 0.0002 per 512 samples", "128 = 4 x 16 x accumulation 2"),
        ("finetune", 4, "0.000125 (adamw) = 0.0005 per 512 samples", "128 = 4 x 32 x accumulation 1"),
        ("learn", 2, "0.004 (muon) as given", "32 = 2 x 16 x accumulation 1"),
        ("demo", 2, "0.004 (muon) as given", "16 = 2 x 8 x accumulation 1"),
    ],
)
def test_recipes_say_the_rate_that_they_use(recipe: str, world: int, rate: str, batch: str) -> None:
    """A rate that is silently 16 times too small looks like a network that cannot learn."""
    config = load_config(ROOT / "config" / f"{recipe}.yaml")
    assert describe_rate(config, world) == f"Peak learning rate {rate}, global batch {batch}"
    assert rate.startswith(f"{peak_rate(config, world):g} ")


@pytest.mark.parametrize("patches", [True, False])
def test_norms_biases_positions_and_class_token_do_not_decay(patches: bool) -> None:
    """Decay pulls what a pretrained ViT knows of places, and every norm's scale, to zero."""
    model = build(ModelConfig(preset="tiny", image_size=(64, 64)), patches=patches)
    optimizer = Optimizer(model, OptimizerConfig(weight_decay=0.1), torch.device("cpu"))
    decay = {p: g["weight_decay"] for g in optimizer.adamw.param_groups for p in g["params"]}
    embeddings = {"embed.positions", "embed.class_token"} if patches else set()
    free = {n for n, p in model.named_parameters() if p.ndim < 2} | embeddings
    assert {n: decay[p] for n, p in model.named_parameters()} == {
        n: 0.0 if n in free else 0.1 for n, _ in model.named_parameters()
    }


class Blocks(nn.Module):
    """Layers under the names of the network's parts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.ModuleDict({"stem": nn.Linear(8, 8), "shape": nn.Linear(8, 8)})
        self.vit = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(8, 8) for _ in range(2))})
        self.head = nn.Linear(8, 8)


def _all_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [g for o in (optimizer.adamw, optimizer.muon) if o is not None for g in o.param_groups]


def _layers() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 3))


def _learn(model: nn.Module, optimizer: Optimizer, steps: int, rate: float = 1e-2) -> None:
    torch.manual_seed(4)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 8, 3, 3)).square().sum().backward()
        optimizer.step(rate)


def test_muon_moves_matrices_and_adamw_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel left out, or moved as a copy, stays as it was drawn: the run learns with half a network."""
    # bf16 rounds the directions that a gradient of few samples lacks to anything, one by one or together.
    monkeypatch.setattr(optim, "has_bf16", lambda _: False)
    model, config = _layers(), OptimizerConfig(name="muon", weight_decay=0.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    _learn(model, Optimizer(model, config, torch.device("cpu")), 1)
    for name, parameter in model.named_parameters():
        step = parameter.detach() - before[name]
        if name in ("0.weight", "2.weight"):
            assert parameter.grad is not None
            gradient = parameter.grad.flatten(1)
            # Along the gradient's own directions, each about 0.2 sqrt(longer side) of the rate.
            u, drawn, vt = torch.linalg.svd(gradient, full_matrices=False)
            inner = -(u.T @ step.flatten(1) @ vt.T) / (1e-2 * 0.2 * max(gradient.shape) ** 0.5)
            strong = drawn > 0.02 * drawn.norm()
            assert strong.sum() >= 4, name
            assert inner.diagonal()[strong].min() > 0.6, name
            assert inner.diagonal().max() < 1.25, name
            assert (inner - inner.diagonal().diag()).abs().max() < 1e-2, name
            # One speed in all directions: no singular value stands out as it does in the gradient.
            sizes = torch.linalg.svdvals(step.flatten(1))
            assert sizes[0] / sizes[3] < 0.5 * drawn[0] / drawn[3], name
        else:  # biases, and a matrix of 3 rows, too few to be told apart
            assert torch.allclose(step.abs(), torch.tensor(1e-2), rtol=1e-2), name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimiser_goes_on_bit_for_bit(name: Literal["adamw", "muon"]) -> None:
    """Moments lost in a checkpoint show as a jump of the loss after every resume."""
    config, cpu = OptimizerConfig(name=name), torch.device("cpu")
    whole = _layers()
    kept = Optimizer(whole, config, cpu)
    _learn(whole, kept, 2)
    part = _layers()
    part.load_state_dict(whole.state_dict())
    resumed = Optimizer(part, config, cpu)
    resumed.load_state_dict(copy.deepcopy(kept.state_dict()))
    for model, optimizer in ((whole, kept), (part, resumed)):
        _learn(model, optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), part.parameters(), strict=True))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_resume_takes_moments_from_the_file_and_settings_from_the_command(
    name: Literal["adamw", "muon"],
) -> None:
    """A decay that was changed for the resume was logged as changed and stayed the old one; a changed
    `layer_decay` makes other groups, and ended in a traceback.
    """
    torch.manual_seed(3)
    model, cpu = Blocks(), torch.device("cpu")
    before = Optimizer(model, OptimizerConfig(name=name, weight_decay=0.0), cpu)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before.step(1e-2)
    changed = OptimizerConfig(name=name, weight_decay=0.5, betas=(0.8, 0.9), layer_decay=0.5)
    after = Optimizer(model, changed, cpu)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    assert {g["share"] for g in _all_groups(after)} == {0.125, 0.25, 0.5, 1.0}
    decay = {p.data_ptr(): g["weight_decay"] for g in _all_groups(after) for p in g["params"]}
    assert all(decay[p.data_ptr()] == (0.5 if p.ndim > 1 else 0.0) for p in model.parameters())
    assert {g["betas"] for g in after.adamw.param_groups} == {(0.8, 0.9)}
    old, new = before.state_dict(), after.state_dict()
    assert len(old["adamw"]) + len(old["muon"] or ()) == len(list(model.parameters()))
    for kind in ("adamw", "muon") if name == "muon" else ("adamw",):
        assert old[kind].keys() == new[kind].keys()
        for key, moments in old[kind].items():
            for moment, value in moments.items():
                assert torch.equal(value, new[kind][key][moment]), (key, moment)


def test_moments_that_do_not_fit_are_refused() -> None:
    """Moments dropped, missing or of another shape: the loss jumps, or a kernel writes past their end."""
    model, cpu = Blocks(), torch.device("cpu")
    optimizer = Optimizer(model, OptimizerConfig(name="muon"), cpu)
    optimizer.load_state_dict(optimizer.state_dict())  # of a run that was saved before its first step
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(1e-2)
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)

    def changed(kind: str, name: str, value: dict[str, Tensor] | None) -> dict[str, Any]:
        bad = copy.deepcopy(state)
        bad[kind].pop(name, None)
        if value is not None:
            bad[kind][name] = value
        return bad

    moments = state["adamw"]["head.bias"]
    for kind, name, value in (
        ("adamw", "head.bias", None),
        ("muon", "head.weight", None),
        ("adamw", "tail.bias", moments),
        ("adamw", "head.bias", moments | {"exp_avg": torch.zeros(4)}),
        ("muon", "head.weight", {"momentum_buffer": torch.zeros(8, 4)}),
    ):
        with pytest.raises(AssetError, match=rf"moments of {name} \(1 in all\) are not those .*Resume"):
            optimizer.load_state_dict(changed(kind, name, value))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_pretrained_blocks_move_less_the_deeper_they_lie(name: Literal["adamw", "muon"]) -> None:
    """At one rate for all, a fresh head washes out what the first blocks were pretrained for."""

    model = Blocks()
    optimizer = Optimizer(model, OptimizerConfig(name=name, layer_decay=0.5), torch.device("cpu"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.1)
    rates = {p.data_ptr(): g["lr"] for g in _all_groups(optimizer) for p in g["params"]}
    got = {n: rates[p.data_ptr()] for n, p in model.named_parameters()}
    shares = {"embed.stem": 0.125, "vit.blocks.0": 0.25, "vit.blocks.1": 0.5, "embed.shape": 1.0, "head": 1.0}
    for part, share in shares.items():
        assert got[f"{part}.weight"] == got[f"{part}.bias"] == pytest.approx(0.1 * share), part


@pytest.mark.parametrize("patches", [True, False])
def test_depth_is_fine_tuned_at_the_full_rate(patches: bool) -> None:
    """At the first layer's share, 0.75^33 for huge, depth would stay the zeros that it starts with."""
    model = build(ModelConfig(preset="tiny", image_size=(64, 64)), patches=patches)
    optimizer = Optimizer(model, OptimizerConfig(layer_decay=0.5), torch.device("cpu"))
    shares = {p: g["share"] for g in optimizer.adamw.param_groups for p in g["params"]}
    got = {name: shares[p] for name, p in model.embed.stem.named_parameters()}
    fresh = {name for name in got if name.startswith(("depth", "join", "placeholder"))}
    assert {got[name] for name in fresh} == {1.0}
    assert {got[name] for name in got.keys() - fresh} == {0.5**4}


def test_optimiser_of_another_name_is_refused() -> None:
    """Half a state would leave the matrices without their momentum, without a word."""
    model, cpu = _layers(), torch.device("cpu")
    muon, adamw = (Optimizer(model, OptimizerConfig(name=n), cpu) for n in ("muon", "adamw"))
    with pytest.raises(AssetError, match=r"got that of optimizer\.name=muon, want adamw's"):
        adamw.load_state_dict(muon.state_dict())
    with pytest.raises(AssetError, match=r"got that of optimizer\.name=adamw, want muon's"):
        muon.load_state_dict(adamw.state_dict())


def test_average_is_exponential_and_swaps_back_bit_for_bit() -> None:
    """Validation of the averaged weights must not change the weights that are trained.

    Weights of 1, 2, 3, 4 above their start, with decays of 1/10, 2/11, 3/12, 4/13: averages of 0.9, 1.8, 2.7
    and 3.6 above it.
    """
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    ema = Ema(model, decay=0.5)
    expected = model.weight.detach().clone() + 3.6
    for _ in range(4):
        with torch.no_grad():
            model.weight.add_(1.0)
        ema.update()
    trained = model.weight.detach().clone()
    with ema.applied():
        assert torch.allclose(model.weight, expected, atol=1e-6)
    assert torch.equal(model.weight, trained)
    other = Ema(model, decay=0.5)
    other.load_state_dict(ema.state_dict())
    with other.applied():
        assert torch.allclose(model.weight, expected, atol=1e-6)
    with pytest.raises(AssetError, match="names differ"):
        other.load_state_dict({"average": {"x": torch.zeros(1)}, "updates": 1})
