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
from src.schema import HandBatch, LossTerms, Prediction
from src.training.diagnosis.doctor import ENOUGH_SAMPLES, ENOUGH_STEPS, trained_enough
from src.training.diagnosis.training import PROBE, SCORES, SETTING, Probe, Setting
from tests.diagnosis.conftest import Clinic, names
from tests.diagnosis.watched import Watched, heard

Plant = Callable[[Watched], Any]
ZERO = {"zero_mpjpe_mm": 102.152, "zero_pa_mm": 48.320}
MEAN = {"mean_pose_mpjpe_mm": 78.0, "mean_pose_pa_mm": 14.5}


def shown(change: Callable[[HandBatch], HandBatch]) -> Plant:
    """The network sees something else than the batch."""
    return lambda run: run.model.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]),))


def in_millimetres(run: Watched) -> None:
    """The network says something else than it computed."""
    run.model.register_forward_hook(lambda _, inputs, made: joints_of(made, 1000 * made.hand.joints_root_m))


def joints_of(made: Prediction, joints_root_m: Tensor) -> Prediction:
    """An answer with other joints."""
    return dataclasses.replace(made, hand=dataclasses.replace(made.hand, joints_root_m=joints_root_m))


def loss_times(factor: float) -> Plant:
    """The loss in another unit, or a sum where a mean belongs."""

    def changed(_: nn.Module, inputs: Any, terms: LossTerms) -> LossTerms:
        values = {name: factor * value for name, value in terms.values.items()}
        return LossTerms(factor * terms.total, values, terms.weights)

    return lambda run: run.trainer.loss.register_forward_hook(changed)


DARK = shown(lambda b: dataclasses.replace(b, rgb=torch.zeros_like(b.rgb)))
BLIND = shown(lambda b: dataclasses.replace(b.without_depth(), rgb=torch.zeros_like(b.rgb)))


@pytest.mark.parametrize(
    ("cause", "plant", "setting"),
    [
        ("FAIL  constant predictions", BLIND, ""),
        ("FAIL  dead depth branch", shown(HandBatch.without_depth), ""),
        ("FAIL  dead RGB branch", DARK, ""),
        ("FAIL  output scale", in_millimetres, ""),
        ("WARN  loss dominated by one term", None, "loss.heatmap=40"),  # a weight meant for another unit
        ("WARN  loss far too large", loss_times(2016), ""),  # a sum where a mean belongs
        ("FAIL  loss far too large", loss_times(1e6), ""),
        ("WARN  every step clipped", None, "training.clip_grad_norm=0.001"),
    ],
)
def test_named(cause: str, plant: Plant | None, setting: str, clinic: Clinic) -> None:
    """A run that cannot learn must name its cause in the first three steps, not after three days.

    Where that is asked for, a FAIL ends it, and a WARN never does: the doctor may be wrong.
    """
    with heard() as lines:
        asked = ("dataset.p_drop_depth=0", "logging.doctor_stops=true")
        run = Watched(clinic, *asked, *[setting] * bool(setting))
        if plant is not None:
            plant(run)
        run.steps(3)
    assert lines[0].startswith(f"  Doctor {cause}: "), lines
    status, _, what = cause.partition("  ")
    assert run.doctor.stops == (f"the doctor ({what}; logging.doctor_stops)" if status == "FAIL" else None)


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
    ("seen", "early", "late"),
    [
        (Probe(0.6, 0.3, 0.01), [], ["constant predictions"]),
        (Probe(0.0, 0.0, 0.0), ["constant predictions"], ["constant predictions"]),
        (Probe(0.0005, 0.3, 0.3), [], ["dead RGB branch"]),
        (Probe(3.0, 0.0005, 0.3), [], ["dead depth branch"]),
        (Probe(3.0, None, 0.3), [], []),
        (Probe(3.0, 1.0, 0.3), [], []),
    ],
)
def test_answers_are_judged_by_how_much_was_trained(seen: Probe, early: list[str], late: list[str]) -> None:
    """A FAIL may end a good run that has hardly begun; late, near-constant answers are a failure. A few steps
    of huge batches are not late, nor are many steps of two samples.
    """
    assert [names(PROBE.look(seen, enough, True)) for enough in (False, True)] == [early, late]
    steps, samples = ENOUGH_STEPS, ENOUGH_SAMPLES
    enough = ((steps, samples), (steps - 1, samples), (steps, samples - 1))
    assert [trained_enough(*trained) for trained in enough] == [True, False, False]


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
    result: Any = SimpleNamespace(mpjpe_mm=scored[0], pa_mpjpe_mm=scored[1], baselines=ZERO | MEAN)
    assert names(SCORES.look(result, moved_mm)) == named


def test_validations(clinic: Clinic) -> None:
    """102.152 / 48.320 mm was the score of an all-zero prediction, and nobody knew; so are two equal
    validations. One that is not finite is told by others.
    """
    with heard() as lines:
        run = Watched(clinic, "dataset.p_drop_depth=0")
        run.steps(3)
        for factor in (0.0, 1.05, 1.05, torch.nan):
            lines.append(f"x {factor}")
            run.validate(lambda _, inputs, made: joints_of(made, factor * inputs[0].joints_root_m))  # noqa: B023
    said = [line.partition(":")[0] for line in lines[1:]]
    zero, frozen = "  Doctor FAIL  metric equals the zero pose", "  Doctor FAIL  metric frozen"
    assert said == ["x 0.0", zero, "Doctor", "x 1.05", "Doctor", "x 1.05", frozen, "Doctor", "x nan"]
    assert run.doctor.stops is None, "nobody asked for that"


def state_of(run: Watched) -> list[Tensor]:
    """Weights, averages, gradients and the random state."""
    average = run.trainer.ema.state_dict()["average"]  # type: ignore[union-attr]
    weights = list(run.model.parameters())
    return [*weights, *average.values(), *(p.grad for p in weights), torch.get_rng_state()]  # type: ignore[misc]


def test_a_healthy_run_is_left_alone(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a WARN nor a FAIL, and every bit as without the doctor.

    Other ranks wait in the gradients' exchange, which has a limit, while rank 0 looks: they meet after it.
    """
    monkeypatch.setattr("src.training.diagnosis.doctor.LATER_STEP", 4)
    seen, met = [], []
    for doctor in (True, False):
        with heard() as lines:
            run = Watched(clinic, "model.drop_path=0.3")
            run.doctor._context = SimpleNamespace(world=1, is_main=True, barrier=met.append)  # type: ignore[assignment]
            if not doctor:
                run.doctor = mock.create_autospec(run.doctor)
            run.begin()
            run.steps(5)
            run.validate()
            modes = [module.training for module in run.model.modules()]
            run.steps(1)
        ends = ["step 3)", "step 4)", "validation)", "step 6)"] if doctor else []
        assert [line.partition(" (")[2] for line in lines] == ends, lines
        assert all(line.startswith("Doctor: ") and " checks OK" in line for line in lines)
        assert met == ["the doctor's look at a step"] * 5
        seen.append((state_of(run), modes))
    assert all(torch.equal(a, b) for a, b in zip(seen[0][0], seen[1][0], strict=True))
    assert seen[0][1] == seen[1][1]
