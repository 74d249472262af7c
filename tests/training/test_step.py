"""The optimiser step: what reaches the weights, what must not, and every number against another way to it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from src.config import ModelConfig, RunConfig, TrainingConfig
from src.errors import TrainingError
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.runtime.ranks.distributed import DistContext, spawn_ranks
from src.schema import HandBatch, LossTerms, Prediction, RawBatch
from src.training import setup
from src.training.step import TrainStep
from tests.models.scene import hand_model, make_batch
from tests.training.toy import ALONE, ToyLoss, flat, toy_batch, toy_trainer

BOTH = pytest.mark.parametrize("name", ["adamw", "muon"])
EACH_LAG = pytest.mark.parametrize("lag", [0, 1], ids=["host checks first", "host checks a step later"])


def trainer(context: DistContext, accumulation: int = 1, drop_path: float = 0.0) -> TrainStep:
    """Of the smallest real network."""
    config = RunConfig(
        model=ModelConfig(preset="tiny", image_size=(64, 64), drop_path=drop_path),
        training=TrainingConfig(accumulation=accumulation, clip_grad_norm=1e6),
    )
    torch.manual_seed(3)
    model = UTNet(config.model, hand_model())
    return TrainStep(model, HandLoss(config.loss, hand_model()), config, context, total_steps=10)


def batch(seed: int) -> HandBatch:
    """Two samples, numbered apart from those of other seeds."""
    made = make_batch(2, 64, 64, seed=seed, noise=True)
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


def spoilt(good: HandBatch, row: int) -> HandBatch:
    """The batch with a label that is not finite."""
    joints = good.joints_root_m.clone()
    joints[row] = torch.nan
    return dataclasses.replace(good, joints_root_m=joints)


def seen_by_the_optimiser(step: TrainStep) -> list[Tensor]:
    """All gradients as the optimiser gets them, one flat float64 tensor for each step to come."""
    taken: list[Tensor] = []

    def take(*_: object) -> None:
        assert all(p.grad is not None for p in step.model.parameters()), "DDP waits for a gradient"
        taken.append(torch.cat([p.grad.double().flatten() for p in step.model.parameters()]))  # type: ignore[union-attr]

    step.optimizer.adamw.register_step_pre_hook(take)
    return taken


def twice(context: DistContext, batches: int) -> tuple[Tensor, float]:
    """Gradients and loss of the second of two steps on micro-batches, depth shown in the second alone."""
    step = trainer(context, accumulation=batches // context.world)
    step.peak_rate = 1e-9
    taken = seen_by_the_optimiser(step)
    mine = [batch(k) for k in range(batches)][context.rank :: context.world]
    step([b.without_depth() for b in mine])
    loss = step(mine).loss
    return taken[1], loss


@pytest.mark.parametrize("batches", [2, 4])
def test_ranks_share_every_gradient_of_every_step(batches: int) -> None:
    """Gradient and Train Loss are means over all samples, no sums over ranks or accumulated batches; a graph
    recorded in a step without exchange, or without depth, is not kept for the rest.
    """
    two, (one, loss) = spawn_ranks(twice, 2, (batches,), timeout_s=120), twice(ALONE, batches)
    assert torch.equal(two[0][0], two[1][0])
    assert (two[0][0] - one).abs().max() < 1e-5 * one.abs().max()
    assert [loss_of_two for _, loss_of_two in two] == pytest.approx([loss, loss], rel=1e-6)


def first_to_last(context: DistContext, accumulation: int) -> list[Tensor]:
    """Gradients of the first four steps of a process: the same weights, batches and random numbers."""
    step = trainer(context, accumulation, drop_path=0.5)
    step.peak_rate = 0.0
    taken = seen_by_the_optimiser(step)
    for _ in range(4):
        torch.manual_seed(context.rank)
        step([batch(accumulation * context.rank + k) for k in range(accumulation)])
    return taken


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_first_step_of_ranks_adds_up_as_all_others(accumulation: int) -> None:
    """A resumed run begins with a step that an undisturbed one has in its middle: in another order of three
    numbers it ends with other weights.
    """
    for taken in spawn_ranks(first_to_last, 3, (accumulation,), timeout_s=120):
        assert [torch.equal(taken[0], later) for later in taken] == [True] * 4


def moved(context: DistContext) -> Tensor:
    """Weights after two steps of Muon on micro-batches 1 and 2, however they are divided."""
    step = toy_trainer(context=context, accumulation=2 // context.world, optimizer={"name": "muon"})
    for _ in range(2):
        step([toy_batch(1), toy_batch(2)][context.rank :: context.world])
    return flat(step)


def test_muon_shared_out_over_ranks_takes_the_steps_of_one() -> None:
    """A matrix that no rank has dealt with stays as it was drawn; ranks that differ never meet again."""
    two, one = spawn_ranks(moved, 2, timeout_s=120), moved(ALONE)
    assert torch.equal(two[0], two[1])
    assert (two[0] - one).norm() < 1e-2 * (one - flat(toy_trainer())).norm()


class InfiniteOnRankOne(ToyLoss):
    """A loss that is infinite by a constant: its gradient is finite, so DDP carries no sign of it."""

    def forward(self, prediction: Prediction, batch: HandBatch, *, trace: bool = False) -> LossTerms:
        terms = super().forward(prediction, batch)
        return dataclasses.replace(terms, total=terms.total + torch.inf)


def troubled(context: DistContext) -> tuple[list[str], bool]:
    """What a rank hears where rank 1 has a bad label or an infinite loss, and whether it is asked to stop."""
    heard = []
    for trouble in ("label", "loss"):
        step, mine = toy_trainer(context=context), toy_batch(context.rank)
        if context.rank == 1:
            mine = spoilt(mine, 1) if trouble == "label" else mine
            step.loss = step.loss if trouble == "label" else InfiniteOnRankOne()  # type: ignore[assignment]
        before = flat(step)
        with pytest.raises(TrainingError) as caught:
            step([mine])
        assert torch.equal(flat(step), before), "weights changed"
        assert step.step == 0
        heard.append(str(caught.value))
    asked = toy_trainer(context=context)([toy_batch(context.rank)], stop=context.rank == 1).stop_requested
    return heard, asked


def test_what_happens_on_one_rank_is_decided_by_all() -> None:
    """One bad sample on one GPU must not poison the weights of all, and a rank that stops alone leaves others
    waiting in their next collective.
    """
    for (label, loss), asked in spawn_ranks(troubled, 2, timeout_s=120):
        assert "rank 1: terms votes, sample indices [1])" in label
        assert "rank 0: terms" not in label
        assert "loss inf" in loss
        assert asked


def test_a_gradient_that_overflows_is_refused_too() -> None:
    """A finite loss can have a gradient that is not: the weights must not see it."""
    step = toy_trainer()
    before = flat(step)
    next(step.model.parameters()).register_hook(lambda g: g * torch.inf)
    with pytest.raises(TrainingError, match="the gradient overflowed"):
        step([toy_batch(0)])
    assert torch.equal(flat(step), before)
    assert step.ema is not None
    assert step.ema.updates == 0


def test_bad_samples_are_named_in_whichever_batch_of_a_step() -> None:
    """With accumulation a step is several batches: which term and which sample must be found in any."""
    batches = [dataclasses.replace(toy_batch(k), sample_index=10 * k + torch.arange(2)) for k in range(3)]
    spoiled = [spoilt(batches[0], 1), batches[1], spoilt(batches[2], 0)]
    with pytest.raises(TrainingError, match=r"rank 0: terms votes, sample indices \[1, 20\]\)"):
        toy_trainer(accumulation=3)(spoiled)


@BOTH
def test_a_step_checked_late_changes_nothing_after_it(name: str) -> None:
    """A GPU hears of a NaN a step later: by then its weights, and those of the next step, must be safe."""
    step = toy_trainer(optimizer={"name": name}, lag=1)
    step([toy_batch(0)])
    before = flat(step)
    step([spoilt(toy_batch(1), 1)])
    assert torch.equal(flat(step), before)
    with pytest.raises(TrainingError, match=r"step 1: .*sample indices \[1\].*not changed"):
        step([toy_batch(2)])
    assert torch.equal(flat(step), before)
    assert [r.step for r in step.settled()] == [0]


@BOTH
def test_late_checks_are_the_same_steps(name: str) -> None:
    """What the host reads later must not change what is learned, decay included, nor lose a step."""
    now, late = (toy_trainer(lag=lag, optimizer={"name": name, "weight_decay": 1.0}) for lag in (0, 1))
    seen: list[int] = []
    for k in range(3):
        for step in (now, late):
            step([toy_batch(k)], stop=k == 2)
        seen.append(len(late.settled()))
        assert late.unsettled == 1
    rest = late.settled(everything=True)
    assert (seen, late.unsettled) == ([0, 1, 1], 0)
    assert [(r.step, r.stop_requested) for r in rest] == [(2, True)]
    assert now.settled()[-1].loss == rest[0].loss
    assert torch.equal(flat(now), flat(late))


@BOTH
@EACH_LAG
def test_the_optimiser_gets_the_gradient_cut_to_the_limit(name: str, lag: int) -> None:
    """A limit that is only logged, or applied when the step is done, bounds nothing: one bad batch of a night
    throws the weights away, and the log says `clipped`.
    """
    free, bound = (toy_trainer(lag=lag, optimizer={"name": name}, clip_grad_norm=c) for c in (1e6, 0.05))
    whole, cut = seen_by_the_optimiser(free), seen_by_the_optimiser(bound)
    reports = [step([toy_batch(1), toy_batch(2)]) for step in (free, bound)]
    norm = float(whole[0].norm())
    assert norm > 0.5, f"the test wants a gradient far above the limit of 0.05, got norm {norm:.3f}"
    # torch divides by norm + 1e-6.
    assert torch.allclose(cut[0], whole[0] * (0.05 / norm), rtol=1e-4, atol=1e-9), "what the optimiser got"
    assert [r.grad_norm for r in reports] == pytest.approx([norm, norm], rel=1e-5), "logged: before the cut"
    assert [r.clipped for r in reports] == [False, True]


def test_accumulated_batches_make_one_step_of_everything() -> None:
    """Three batches, one optimiser step: its loss is their mean, and steps, schedule and average move once.

    An average that moves with each batch forgets three times as fast as training.ema_decay says.
    """
    step, parts = toy_trainer(accumulation=3), [toy_batch(1), toy_batch(2, size=4), toy_batch(3)]
    with torch.no_grad():
        losses = [float(step.loss(step.model(part), part).total) for part in parts]
    assert max(losses) - min(losses) > 1e-2 * losses[0], f"the test wants batches apart, got {losses}"
    assert step(parts).loss == pytest.approx(sum(losses) / 3, rel=1e-5), f"mean of {losses}"
    assert step.ema is not None
    assert (step.step, step.schedule_step, step.ema.updates) == (1, 1, 1)
    report = step(parts)  # of 10 steps; without warm-up the rate falls along a line, by steps, not batches
    assert report.learning_rate == pytest.approx(1e-2 * (1 - 0.99 / 9))
    assert {g["lr"] for g in step.optimizer.groups} == {report.learning_rate}, "what the optimiser used"


@pytest.mark.parametrize("able", [False, True])
def test_arithmetic_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    """fp32 and bf16 are orders; only auto looks at the device."""
    monkeypatch.setattr(setup, "has_bf16", lambda device: able)
    got = [
        setup.backbone_dtype(RunConfig(training=TrainingConfig(precision=name)), torch.device("cpu"))  # type: ignore[arg-type]
        for name in ("fp32", "bf16", "auto")
    ]
    assert got == [torch.float32, torch.bfloat16, torch.bfloat16 if able else torch.float32]
