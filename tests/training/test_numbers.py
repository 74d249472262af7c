"""What an optimiser step does and says: every number against one that was found another way."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from src.config import OptimizerConfig, RunConfig, TrainingConfig
from src.errors import TrainingError
from src.training import setup
from src.training.checkpoints.checkpoint import Progress
from src.training.optim import Optimizer
from src.training.step import TrainStep
from tests.training.toy import flat, toy_batch, toy_trainer

BOTH = pytest.mark.parametrize("name", ["adamw", "muon"])
EACH_LAG = pytest.mark.parametrize("lag", [0, 1], ids=["host checks first", "host checks a step later"])


def seen_by_the_optimiser(step: TrainStep) -> list[Tensor]:
    """All gradients as the optimiser gets them, one flat float64 tensor for each step to come."""
    taken: list[Tensor] = []

    def take(*_: object) -> None:
        grads = [p.grad for p in step.model.parameters() if p.grad is not None]
        taken.append(torch.cat([g.double().flatten() for g in grads]))

    step.optimizer.adamw.register_step_pre_hook(take)
    return taken


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
    assert float(cut[0].norm()) == pytest.approx(0.05, rel=1e-4), "norm of what the optimiser was given"
    assert torch.allclose(cut[0], whole[0] * (0.05 / norm), rtol=1e-4, atol=1e-9), "its direction"
    for report, clipped in zip(reports, (False, True), strict=True):
        assert report.grad_norm == pytest.approx(norm, rel=1e-5), "the norm that is logged is that before"
        assert report.clipped is clipped


def test_clipped_is_above_the_limit_and_nothing_else() -> None:
    """The share of clipped steps tells whether the rate is the one that was asked for."""
    norm = toy_trainer()([toy_batch(1)]).grad_norm
    assert not toy_trainer(clip_grad_norm=1.001 * norm)([toy_batch(1)]).clipped
    assert toy_trainer(clip_grad_norm=0.999 * norm)([toy_batch(1)]).clipped


def test_accumulated_batches_make_one_step_of_everything() -> None:
    """Three batches, one optimiser step: its loss is their mean, and steps, schedule and average move once.

    An average that moves with each batch forgets three times as fast as training.ema_decay says.
    """
    step, parts = toy_trainer(accumulation=3), [toy_batch(1), toy_batch(2, size=4), toy_batch(3)]
    with torch.no_grad():
        losses = [float(step.loss(step.model(part), part).total) for part in parts]
    assert max(losses) - min(losses) > 1e-2 * losses[0], f"the test wants batches apart, got {losses}"
    before = flat(step)
    report = step(parts)
    assert report.loss == pytest.approx(sum(losses) / 3, rel=1e-5), f"mean of {losses}"
    first = flat(step)
    assert step.ema is not None
    assert (step.step, step.schedule_step, step.ema.updates) == (1, 1, 1)
    with step.ema.applied():
        average = flat(step)
    # The decay of the first update is 1 / 10: nine tenths of the way to the new weights.
    share = float((average - before).norm() / (first - before).norm())
    assert share == pytest.approx(0.9, abs=1e-4), "share of the first step that the average took"
    step(parts)
    second = flat(step)
    with step.ema.applied():
        # Then 2 / 11: nine elevenths of the way from where it was to the newest weights.
        share = float((flat(step) - average).norm() / (second - average).norm())
    assert share == pytest.approx(9 / 11, abs=1e-4), "share of the way to the second step's weights"


def test_the_average_forgets_at_the_rate_that_was_set() -> None:
    """Long after its start the average moves by 1 - ema_decay of the gap in a step, a tenth here."""
    step = toy_trainer(total_steps=200)
    assert step.ema is not None
    step.ema.updates = 100_000
    before = flat(step)
    step([toy_batch(1)])
    with step.ema.applied():
        average = flat(step)
    share = float((average - before).norm() / (flat(step) - before).norm())
    assert share == pytest.approx(0.1, abs=1e-4), "share of a step that the average takes"


@pytest.mark.parametrize("spoilt", [0, 1, 2])
def test_a_bad_sample_is_named_in_whichever_batch_of_a_step(spoilt: int) -> None:
    """With accumulation a step is several batches: which term and which sample must be found in any."""
    step = toy_trainer(accumulation=3)
    batches = [dataclasses.replace(toy_batch(k), sample_index=10 * k + torch.arange(2)) for k in range(3)]
    joints = batches[spoilt].joints_root_m.clone()
    joints[1] = torch.nan
    batches[spoilt] = dataclasses.replace(batches[spoilt], joints_root_m=joints)
    with pytest.raises(TrainingError, match=rf"rank 0: terms votes, sample indices \[{10 * spoilt + 1}\]\)"):
        step(batches)


def test_gradients_of_accumulated_batches_are_averaged() -> None:
    """A sum in place of the mean multiplies the gradient, and with it the share of clipped steps."""
    alone, twice = toy_trainer(), toy_trainer(accumulation=2)
    one, two = seen_by_the_optimiser(alone), seen_by_the_optimiser(twice)
    alone([toy_batch(1)])
    twice([toy_batch(1), toy_batch(1)])
    ratio = float(two[0].norm() / one[0].norm())
    assert ratio == pytest.approx(1.0, rel=1e-5), "gradient of a batch taken twice over that of it once"


@BOTH
def test_a_gpu_takes_the_same_steps_with_decay(name: str) -> None:
    """On a GPU the check lags a step and the weights change by another branch: it must decay them too."""
    recipe = {"name": name, "weight_decay": 1.0}
    now, late = (toy_trainer(lag=lag, optimizer=recipe) for lag in (0, 1))
    for k in range(3):
        for step in (now, late):
            step([toy_batch(k)])
    late.settled(everything=True)
    gap = float((flat(now) - flat(late)).abs().max())
    assert gap == 0.0, f"{name}: weights are {gap:.3g} off where the host's check is a step late"


@BOTH
@EACH_LAG
def test_a_step_decays_matrices_by_rate_times_decay(name: str, lag: int) -> None:
    """Without a gradient a matrix loses lr x weight_decay of itself, 0.5 % here, and a bias nothing."""
    step = toy_trainer(optimizer={"name": name, "weight_decay": 0.5})
    before = {n: p.detach().clone() for n, p in step.model.named_parameters()}
    for parameter in step.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step.optimizer.step(1e-2, None if lag == 0 else torch.ones(()))
    for n, parameter in step.model.named_parameters():
        left = float(parameter.detach().norm() / before[n].norm())
        kept = 1.0 if n.endswith("bias") else 1 - 1e-2 * 0.5
        assert left == pytest.approx(kept, abs=1e-6), f"{name}: share of {n} that is left"


def test_the_rate_follows_optimiser_steps() -> None:
    """Eight steps of two batches: from the peak along a cosine to a hundredth of it, never by batches."""
    step = toy_trainer(accumulation=2, total_steps=8)
    rates = [step([toy_batch(1), toy_batch(2)]).learning_rate for _ in range(8)]
    cosine = [(1 + math.cos(math.pi * k / 7)) / 2 for k in range(8)]
    assert rates == pytest.approx([1e-2 * (0.01 + 0.99 * c) for c in cosine])
    assert [g["lr"] for g in step.optimizer.adamw.param_groups] == [rates[-1]] * 2, "what AdamW used"


@EACH_LAG
def test_an_epochs_sums_hold_each_step_once(lag: int) -> None:
    """The epoch's loss is printed as their mean, and the share of clipped steps is read beside it."""
    norms = [toy_trainer()([toy_batch(k)]).grad_norm for k in range(4)]
    step, position = toy_trainer(lag=lag, clip_grad_norm=sorted(norms)[2]), Progress()
    reports = []
    for k in range(4):
        reports.append(step([toy_batch(k)]))
        position.count(step.settled())
    position.count(step.settled(everything=True))
    clipped = [report.grad_norm > sorted(norms)[2] for report in reports]
    assert 0 < sum(clipped) < 4, f"the test wants some steps clipped, got {clipped}"
    assert position.clipped_steps == sum(clipped)
    assert position.loss_sum == pytest.approx(sum(report.loss for report in reports))


def test_the_twelfth_block_is_not_the_second() -> None:
    """Every preset but tiny has blocks of two digits: of 12, block k keeps 0.5^(12 - k) of the rate."""
    model = nn.ModuleDict(
        {"vit": nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(2, 2) for _ in range(12))})}
    )
    optimizer = Optimizer(model, OptimizerConfig(layer_decay=0.5), torch.device("cpu"))
    shares = {p: g["share"] for g in optimizer.adamw.param_groups for p in g["params"]}
    got = {name: shares[p] for name, p in model.named_parameters()}
    want = {f"vit.blocks.{k}.{n}": 0.5 ** (12 - k) for k in range(12) for n in ("weight", "bias")}
    assert got == pytest.approx(want)


@pytest.mark.parametrize("able", [False, True])
def test_arithmetic_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    """fp32 and bf16 are orders; only auto looks at the device."""
    monkeypatch.setattr(setup, "has_bf16", lambda device: able)
    got = {
        name: setup.backbone_dtype(RunConfig(training=TrainingConfig(precision=name)), torch.device("cpu"))
        for name in ("fp32", "bf16", "auto")
    }
    auto = torch.bfloat16 if able else torch.float32
    assert got == {"fp32": torch.float32, "bf16": torch.bfloat16, "auto": auto}
