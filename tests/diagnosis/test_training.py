"""Defects of a network, a loss, a validation or a set-up; and what the doctor leaves alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from dataloader.ho3d.leaks import LeakReport
from src.config import OptimizerConfig, RunConfig, SplitConfig, TrainingConfig
from src.schema import HandBatch, HandEstimate, LossTerms, Prediction
from src.training.diagnosis.doctor import ENOUGH_SAMPLES, ENOUGH_STEPS, trained_enough
from src.training.diagnosis.training import PROBE, SCORES, SETTING, Probe, Setting
from tests.diagnosis.conftest import Clinic, names
from tests.diagnosis.watched import Watched, causes, heard

Plant = Callable[[Watched], None]
BASELINES = {
    "zero_mpjpe_mm": 102.152,
    "zero_pa_mm": 48.320,
    "mean_pose_mpjpe_mm": 78.0,
    "mean_pose_pa_mm": 14.5,
}


def shown(change: Callable[[HandBatch], HandBatch]) -> Plant:
    """The network sees something else than the batch."""

    def plant(run: Watched) -> None:
        original = run.model.forward
        run.model.forward = lambda batch: original(change(batch))  # type: ignore[method-assign]

    return plant


def answers(change: Callable[[HandEstimate], HandEstimate]) -> Plant:
    """The network says something else than it computed."""

    def plant(run: Watched) -> None:
        original = run.model.forward

        def forward(batch: HandBatch) -> Prediction:
            made = original(batch)
            return dataclasses.replace(made, hand=change(made.hand))

        run.model.forward = forward  # type: ignore[method-assign]

    return plant


in_millimetres = answers(lambda hand: dataclasses.replace(hand, joints_root_m=hand.joints_root_m * 1000))


def loss_times(factor: float) -> Plant:
    """The loss in another unit, or a sum where a mean belongs."""

    def plant(run: Watched) -> None:
        original = run.trainer.loss.forward

        def forward(prediction: Prediction, batch: HandBatch, *, trace: bool = False) -> LossTerms:
            terms = original(prediction, batch)
            values = {name: factor * value for name, value in terms.values.items()}
            return LossTerms(factor * terms.total, values, terms.weights)

        run.trainer.loss.forward = forward  # type: ignore[method-assign]

    return plant


DEFECTS: dict[str, tuple[str, Plant | None, str]] = {
    "neither picture nor depth is read": (
        "FAIL  constant predictions",
        shown(lambda b: dataclasses.replace(b.without_depth(), rgb=torch.zeros_like(b.rgb))),
        "",
    ),
    "depth is not read": ("FAIL  dead depth branch", shown(HandBatch.without_depth), ""),
    "picture is not read": (
        "FAIL  dead RGB branch",
        shown(lambda b: dataclasses.replace(b, rgb=torch.zeros_like(b.rgb))),
        "",
    ),
    "output in millimetres": ("FAIL  output scale", in_millimetres, ""),
    "a weight meant for another unit": ("WARN  loss dominated by one term", None, "loss.root=30"),
    "a sum where a mean belongs": ("WARN  loss far too large", loss_times(2016), ""),
    "loss in square millimetres": ("FAIL  loss far too large", loss_times(1e6), ""),
    "clip norm meant for another loss": ("WARN  every step clipped", None, "training.clip_grad_norm=0.001"),
    "learning rate 0.5": ("WARN  learning rate far too high", None, "optimizer.lr=0.5"),
    "learning rate 1e-8": ("WARN  learning rate far too low", None, "optimizer.lr=1e-8"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_named(defect: str, clinic: Clinic) -> None:
    """A run that cannot learn must name its cause in the first three steps, not after three days."""
    cause, plant, setting = DEFECTS[defect]
    with heard() as lines:
        run = Watched(clinic, "dataset.p_drop_depth=0", *[setting] * bool(setting))
        if plant is not None:
            plant(run)
        run.begin()
        run.steps(3)
    assert lines[0].startswith(f"  Doctor {cause}: "), lines


HEALTHY = Setting(RunConfig(), 4, LeakReport(16, 0, {1: 9}, 9, 16), native_bf16=True)
FP32, BF16 = (RunConfig(training=TrainingConfig(precision=p)) for p in ("fp32", "bf16"))  # type: ignore[arg-type]


def per_batch(lr: float, reference_batch: int) -> RunConfig:
    return RunConfig(optimizer=OptimizerConfig(lr=lr, reference_batch=reference_batch))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        ({"leaks": LeakReport(16, 1, {1: 9}, 9, 16)}, ["validation split leaks"]),
        ({"config": RunConfig(split=SplitConfig(by="sequence"))}, ["validation split leaks"]),
        ({"config": BF16}, []),
        ({"config": FP32, "native_bf16": False}, []),
        ({"config": BF16, "native_bf16": False}, ["bf16 is emulated"]),
        ({"config": per_batch(1e-3, 32)}, []),
        ({"config": per_batch(1e-3, 32), "world": 11}, ["learning rate far too high"]),  # 0.011
        ({"config": per_batch(2e-5, 32_000), "world": 1}, ["learning rate far too low"]),  # 0.02e-6
    ],
)
def test_set_up(changes: dict[str, Any], named: list[str]) -> None:
    """Training frames that are scored, a rate that grows with the ranks, emulated bf16: said at once."""
    assert names(SETTING.look(HEALTHY._replace(**changes))) == named


@pytest.mark.parametrize(
    ("seen", "enough", "named"),
    [
        (Probe(0.6, 0.3, 0.01), False, []),  # what has hardly begun says nearly the same for all
        (Probe(0.6, 0.3, 0.01), True, ["constant predictions"]),
        (Probe(0.0, 0.0, 0.0), False, ["constant predictions"]),
        (Probe(0.0005, 0.3, 0.3), True, ["dead RGB branch"]),
        (Probe(0.0005, 0.3, 0.3), False, []),
        (Probe(3.0, 0.0005, 0.3), True, ["dead depth branch"]),
        (Probe(3.0, 0.0005, 0.3), False, []),
        (Probe(3.0, None, 0.3), True, []),
        (Probe(3.0, 1.0, 0.3), True, []),
    ],
)
def test_answers_are_judged_by_how_much_was_trained(seen: Probe, enough: bool, named: list[str]) -> None:
    """A FAIL may end a good run that has hardly begun; late, near-constant answers are a failure."""
    assert names(PROBE.look(seen, enough, True)) == named


def test_enough_is_steps_and_samples() -> None:
    """Neither a few steps of huge batches nor many steps of two samples are enough."""
    assert trained_enough(ENOUGH_STEPS, ENOUGH_SAMPLES)
    assert not trained_enough(ENOUGH_STEPS - 1, ENOUGH_SAMPLES)
    assert not trained_enough(ENOUGH_STEPS, ENOUGH_SAMPLES - 1)


@pytest.mark.parametrize(
    ("scored", "moved_mm", "named"),
    [
        ((102.150, 48.320), None, ["metric equals the zero pose"]),
        ((78.3, 14.6), 5.0, ["metric equals the mean pose"]),
        ((40.0, 14.5), 5.0, []),  # turns the hand well and bends no finger yet
        ((78.0, 9.0), None, []),
        ((60.0, 48.320), 5.0, []),
        ((60.0, 20.0), 0.0005, ["metric frozen"]),
    ],
)
def test_both_metrics_must_be_a_constant_hands(
    scored: tuple[float, float], moved_mm: float | None, named: list[str]
) -> None:
    """On its way down a metric passes a baseline's: alone that says nothing, and a FAIL may end the run."""
    result: Any = SimpleNamespace(mpjpe_mm=scored[0], pa_mpjpe_mm=scored[1], baselines=BASELINES)
    assert names(SCORES.look(result, moved_mm)) == named


class Predictor(nn.Module):
    """Answers with the wrist-relative joints that `change` makes of a batch."""

    def __init__(self, change: Callable[[HandBatch], Tensor], model: nn.Module) -> None:
        super().__init__()
        self.change = change
        self.inner = model

    def forward(self, batch: HandBatch) -> Prediction:
        made = self.inner(batch)
        return dataclasses.replace(
            made, hand=dataclasses.replace(made.hand, joints_root_m=self.change(batch))
        )


def test_validations(clinic: Clinic) -> None:
    """102.152 / 48.320 mm was the score of an all-zero prediction, and nobody knew; so are two equal
    validations. One that is not finite is told by others.
    """
    with heard() as lines:
        run = Watched(clinic, "dataset.p_drop_depth=0")
        run.steps(3)
        for factor in (0.0, 1.05, 1.05, 1.2, torch.nan):
            lines.append(f"x {factor}")
            run.validate(Predictor(lambda b: factor * b.joints_root_m, run.model))  # noqa: B023
    said = [line.partition(":")[0] for line in lines[1:]]
    zero, frozen = "  Doctor FAIL  metric equals the zero pose", "  Doctor FAIL  metric frozen"
    assert said == [
        "x 0.0",
        zero,
        "Doctor",
        "x 1.05",
        "Doctor",
        "x 1.05",
        frozen,
        "Doctor",
        "x 1.2",
        "Doctor",
        "x nan",
    ]


def test_a_fail_can_stop_the_run_and_a_warning_never_does(clinic: Clinic) -> None:
    """Only where it was asked for, and only for what cannot learn: the doctor may be wrong."""
    want = "the doctor (output scale; logging.doctor_stops)"
    asked = "logging.doctor_stops=true"
    for overrides, plant, stops in (
        ([asked], True, want),
        ([], True, None),
        ([asked, "loss.root=30"], False, None),
    ):
        with heard() as lines:
            run = Watched(clinic, *overrides)
            if plant:
                in_millimetres(run)
            run.steps(1)
        assert causes(lines)
        assert run.doctor.stops == stops


def state_of(run: Watched) -> Tensor:
    average = run.trainer.ema.state_dict()["average"]  # type: ignore[union-attr]
    tensors: list[Any] = [
        *run.model.parameters(),
        *average.values(),
        *(p.grad for p in run.model.parameters()),
    ]
    return torch.cat([t.detach().flatten() for t in tensors])


def test_nothing_changes(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, averages, gradients and random states are the same bits with and without the doctor."""
    monkeypatch.setattr("src.training.diagnosis.doctor.LATER_STEP", 4)
    seen = []
    for doctor in (True, False):
        with heard() as lines:
            run = Watched(clinic, "model.drop_path=0.3")
            if not doctor:
                run.doctor = mock.create_autospec(run.doctor)
            run.begin()
            run.steps(5)
            run.validate()
            modes = [module.training for module in run.model.modules()]
            run.steps(1)
        assert bool(lines) == doctor
        seen.append((state_of(run), torch.get_rng_state(), modes))
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])
    assert seen[0][2] == seen[1][2]


@pytest.mark.parametrize(("seed", "p_drop_depth"), [(0, 0.4), (1, 1.0), (2, 0.0)])
def test_healthy(seed: int, p_drop_depth: float, clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the first steps of a healthy run nor its validations give a WARN or a FAIL."""
    monkeypatch.setattr("src.training.diagnosis.doctor.LATER_STEP", 6)
    with heard() as lines:
        run = Watched(clinic, f"seed={seed}", f"dataset.p_drop_depth={p_drop_depth}")
        run.begin()
        run.steps(6)
        if seed == 0:
            run.validate()
            run.steps(1)
            run.validate()
    ends = ["step 3)", "step 6)", *(["validation)", "step 7)", "validation)"] if seed == 0 else [])]
    assert [line.partition(" (")[2] for line in lines] == ends, lines
    assert all(line.startswith("Doctor: ") and " checks OK" in line for line in lines)


def test_ranks_meet_after_what_the_doctor_does_on_rank_0_alone(clinic: Clinic) -> None:
    """Others wait in the gradients' exchange, which has a limit, while rank 0 looks."""
    met: list[str] = []
    run = Watched(clinic)
    run.doctor._context = SimpleNamespace(world=1, barrier=met.append)  # type: ignore[assignment]
    run.steps(4)
    assert met == ["the doctor's look at a step"] * 3
