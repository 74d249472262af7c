"""The optimiser step over ranks: what reaches the weights, and what must not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import pytest
import torch

from src.config import ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from src.errors import TrainingError
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.runtime.ranks.distributed import DistContext, spawn_ranks
from src.schema import HandBatch, LossTerms, RawBatch
from src.training.checkpoints.checkpoint import Progress
from src.training.step import TrainStep
from tests.models.scene import hand_model, make_batch

ALONE = DistContext(0, 1, 0, torch.device("cpu"), None)
MODEL = ModelConfig(preset="tiny", image_size=(64, 64))


def trainer(
    context: DistContext,
    *,
    accumulation: int = 1,
    lr: float = 1e-3,
    clip: float = 1e6,
    optimizer: Literal["adamw", "muon"] = "adamw",
    lag: int | None = None,
) -> TrainStep:
    config = RunConfig(
        model=MODEL,
        training=TrainingConfig(accumulation=accumulation, clip_grad_norm=clip, ema_decay=0.9),
        optimizer=OptimizerConfig(name=optimizer, lr=lr),
    )
    torch.manual_seed(3)
    model = UTNet(config.model, hand_model())
    return TrainStep(model, HandLoss(config.loss, hand_model()), config, context, total_steps=10, lag=lag)


def batch(seed: int, size: int = 2) -> HandBatch:
    made = make_batch(size, 64, 64, seed=seed, noise=True)
    return dataclasses.replace(made, sample_index=made.sample_index + 100 * seed)


def raw(seed: int) -> RawBatch:
    """What a loader hands over for `batch`, its pictures drawn at random."""
    labels, rng = batch(seed), torch.Generator().manual_seed(seed)
    made = {f.name: getattr(labels, f.name) for f in dataclasses.fields(RawBatch) if hasattr(labels, f.name)}
    return RawBatch(
        **made,
        rgb_u8=torch.randint(0, 256, (2, 64, 64, 3), generator=rng, dtype=torch.uint8),
        depth_u16=torch.randint(0, 9000, (2, 64, 64), generator=rng).to(torch.uint16),
        colour_affine=torch.eye(3, 4).expand(2, 3, 4),
    )


def weights(step: TrainStep) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in step.model.parameters()])


def gradients(context: DistContext, accumulation: int) -> tuple[torch.Tensor, float]:
    """Gradients and reported loss of one step on micro-batches 1 and 2, however they are divided."""
    step = trainer(context, accumulation=accumulation)
    mine = [batch(1), batch(2)] if context.world == 1 else [batch(1 + context.rank)]
    taken: list[torch.Tensor] = []
    step.optimizer.adamw.register_step_pre_hook(
        lambda *_: taken.append(torch.cat([p.grad.flatten() for p in step.model.parameters()]))
    )
    report = step(mine)
    return taken[0], report.loss


def test_two_ranks_equal_two_accumulated_batches() -> None:
    """Gradient and Train Loss are means over all samples, no sums over ranks or accumulated batches."""
    two = spawn_ranks(gradients, 2, (1,), timeout_s=120)
    one, loss = gradients(ALONE, 2)
    assert torch.equal(two[0][0], two[1][0])
    assert (two[0][0] - one).abs().max() < 1e-5 * one.abs().max()
    assert [loss_of_two for _, loss_of_two in two] == pytest.approx([loss, loss], rel=1e-6)


def twice(context: DistContext, batches: int) -> torch.Tensor:
    """Gradients of the second of two steps on micro-batches, depth shown in the second alone."""
    step = trainer(context, accumulation=batches // context.world, lr=1e-9)
    taken: list[torch.Tensor] = []
    step.optimizer.adamw.register_step_pre_hook(
        lambda *_: taken.append(torch.cat([p.grad.flatten() for p in step.model.parameters()]))
    )
    for shown in (False, True):
        mine = [batch(k) for k in range(batches)][context.rank :: context.world]
        step(mine if shown else [b.without_depth() for b in mine])
    return taken[1]


@pytest.mark.parametrize("batches", [2, 4])
def test_ranks_share_every_gradient_of_every_step(batches: int) -> None:
    """A graph recorded in a step without exchange, or without depth, must not be kept for the rest."""
    two, one = spawn_ranks(twice, 2, (batches,), timeout_s=120), twice(ALONE, batches)
    assert torch.equal(two[0], two[1])
    assert (two[0] - one).abs().max() < 1e-5 * one.abs().max()


def moved(context: DistContext) -> torch.Tensor:
    """Weights after two steps of Muon on micro-batches 1 and 2, however they are divided."""
    step = trainer(context, accumulation=2 // context.world, optimizer="muon")
    for _ in range(2):
        step([batch(1), batch(2)] if context.world == 1 else [batch(1 + context.rank)])
    return weights(step)


def test_muon_shared_out_over_ranks_takes_the_steps_of_one() -> None:
    """A matrix that no rank has dealt with stays as it was drawn; ranks that differ never meet again."""
    two, one = spawn_ranks(moved, 2, timeout_s=120), moved(ALONE)
    start = weights(trainer(ALONE))
    assert torch.equal(two[0], two[1])
    assert (two[0] - one).norm() < 1e-2 * (one - start).norm()


def poisoned(context: DistContext, where: str) -> tuple[str, bool, int]:
    """One step in which rank 1's second sample is spoilt: message, weights unchanged, steps done."""
    step = trainer(context)
    mine = batch(context.rank)
    if context.rank == 1:
        field = getattr(mine, where).clone()
        field[1] = torch.nan
        mine = dataclasses.replace(mine, **{where: field})
    before = weights(step)
    try:
        step([mine])
    except TrainingError as error:
        return str(error), torch.equal(weights(step), before), step.step
    return "", torch.equal(weights(step), before), step.step


@pytest.mark.parametrize("where", ["rgb", "joints_root_m"])
def test_nan_on_one_rank_stops_all_before_the_weights(where: str) -> None:
    """One bad sample on one GPU must not poison the weights of all; the message says which sample it was."""
    for message, unchanged, steps in spawn_ranks(poisoned, 2, (where,), timeout_s=120):
        assert unchanged
        assert steps == 0
        assert "rank 1: terms" in message
        assert "sample indices [101]" in message
        assert "rank 0: terms" not in message
        if where == "joints_root_m":
            assert "joints_3d" in message


class InfiniteOnRankOne(HandLoss):
    """A loss that is infinite by a constant: its gradient is finite, so DDP carries no sign of it."""

    def forward(self, *args: object, **kwargs: object) -> LossTerms:
        terms = super().forward(*args, **kwargs)
        return dataclasses.replace(terms, total=terms.total + torch.inf)


def infinite_loss(context: DistContext) -> tuple[str, int]:
    step = trainer(context)
    if context.rank == 1:
        step.loss = InfiniteOnRankOne(step.config.loss, hand_model())
    try:
        step([batch(context.rank)])
    except TrainingError as error:
        return str(error), step.step
    return "", step.step


def test_ranks_decide_on_the_shared_loss() -> None:
    """A rank that stops alone leaves the others waiting in their next collective."""
    for message, steps in spawn_ranks(infinite_loss, 2, timeout_s=60):
        assert "loss inf" in message
        assert steps == 0


def asked(context: DistContext) -> bool:
    return trainer(context)([batch(context.rank)], stop=context.rank == 1).stop_requested


def test_a_stop_on_one_rank_stops_all() -> None:
    """A signal often reaches one rank only: all must leave after the same step."""
    assert spawn_ranks(asked, 2, timeout_s=60) == [True, True]


def test_a_gradient_that_overflows_is_refused_too() -> None:
    """A finite loss can have a gradient that is not: the weights must not see it."""
    step = trainer(ALONE)
    before = weights(step)
    parameter = next(step.model.parameters())
    parameter.register_hook(lambda g: g * torch.inf)
    with pytest.raises(TrainingError, match="the gradient overflowed"):
        step([batch(0)])
    assert torch.equal(weights(step), before)
    assert step.ema is not None
    assert step.ema.updates == 0


@pytest.mark.parametrize("change", [lambda b: b, lambda b: b.without_depth()])
def test_every_parameter_has_a_gradient(change: Callable[[HandBatch], HandBatch]) -> None:
    """DDP without find_unused_parameters hangs or fails on a parameter that a batch leaves out."""
    step = trainer(ALONE)
    step.optimizer.adamw.register_step_pre_hook(
        lambda *_: names.extend(n for n, p in step.model.named_parameters() if p.grad is None)
    )
    names: list[str] = []
    step([change(batch(0))])
    assert names == []


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_same_seed_same_weights(name: Literal["adamw", "muon"]) -> None:
    """Two runs on one machine give the same weights, bit for bit."""
    first, second = trainer(ALONE, optimizer=name), trainer(ALONE, optimizer=name)
    for step in (first, second):
        for k in range(2):
            step([batch(k)])
    assert torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_checked_late_changes_nothing_after_it(name: Literal["adamw", "muon"]) -> None:
    """A GPU hears of a NaN a step later: by then its weights, and those of the next step, must be safe."""
    step = trainer(ALONE, optimizer=name, lag=1)
    step([batch(0)])
    before = weights(step)
    bad = batch(1)
    bad = dataclasses.replace(bad, joints_root_m=torch.full_like(bad.joints_root_m, torch.nan))
    step([bad])
    assert torch.equal(weights(step), before)
    with pytest.raises(TrainingError, match=r"step 1: .*sample indices \[100, 101\].*not changed"):
        step([batch(2)])
    assert torch.equal(weights(step), before)
    assert [r.step for r in step.settled()] == [0]


def test_late_checks_are_the_same_steps() -> None:
    """What the host reads later must not change what is learned, nor lose a step of the epoch's mean."""
    now, late = trainer(ALONE), trainer(ALONE, lag=1)
    seen: list[int] = []
    for k in range(3):
        for step in (now, late):
            step([batch(k)], stop=k == 2)
        seen.append(len(late.settled()))
    rest = late.settled(everything=True)
    assert seen == [0, 1, 1]
    assert [(r.step, r.stop_requested) for r in rest] == [(2, True)]
    assert [r.loss for r in now.settled()][-1] == rest[0].loss
    assert torch.equal(weights(now), weights(late))


def test_an_epoch_counts_each_step_once() -> None:
    """The epoch's loss, its clipped share and a stop are sums over steps that were read late."""
    step, position = trainer(ALONE, clip=1e-3, lag=1), Progress()
    losses = []
    for k in range(4):
        losses.append(step([batch(k)], stop=k == 3).loss)
        assert not position.count(step.settled())
        assert step.unsettled == 1
    assert position.count(step.settled(everything=True))
    assert step.unsettled == 0
    assert position.loss_sum == pytest.approx(sum(losses))
    assert position.clipped_steps == 4
