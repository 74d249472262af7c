"""Defects of a network, an optimiser, a loss, a validation or a set-up, planted one by one."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dataloader.ho3d.leaks import FrameNames, LeakReport, find_leaks
from src.losses.loss import HandLoss
from src.schema import HandBatch, HandEstimate, LossTerms, Prediction
from src.training.diagnosis.network import check_probe, probe
from src.training.diagnosis.setting import check_setting
from src.training.diagnosis.steps import check_clipped
from tests.diagnosis import test_planted_data
from tests.diagnosis.conftest import Clinic, names
from tests.diagnosis.watched import Watched, causes, heard, watch
from tests.rooms.sources import ROOT

Plant = Callable[[Watched], None]


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


def in_millimetres(hand: HandEstimate) -> HandEstimate:
    return dataclasses.replace(hand, joints_root_m=hand.joints_root_m * 1000)


def gradient(block: int, factor: float) -> Plant:
    """The gradient of one block is multiplied."""

    def plant(run: Watched) -> None:
        blocks = list(dict.fromkeys(name.partition(".")[0] for name, _ in run.model.named_parameters()))
        for name, parameter in run.model.named_parameters():
            if name.partition(".")[0] == blocks[block]:
                parameter.register_hook(lambda g: g * factor)

    return plant


class Summed(HandLoss):
    """Sums where means belong."""

    def forward(self, prediction: Prediction, batch: HandBatch, *, trace: bool = False) -> LossTerms:
        terms = super().forward(prediction, batch)
        return LossTerms(
            terms.total * batch.size, {n: v * batch.size for n, v in terms.values.items()}, terms.weights
        )


def summed(run: Watched) -> None:
    run.trainer.loss = Summed(run.config.loss, run.trainer.loss.mano)


def times(factor: float) -> Plant:
    """The loss in another unit."""

    def plant(run: Watched) -> None:
        original = run.trainer.loss.forward

        def forward(prediction: Prediction, batch: HandBatch, *, trace: bool = False) -> LossTerms:
            terms = original(prediction, batch)
            values = {name: factor * value for name, value in terms.values.items()}
            return LossTerms(factor * terms.total, values, terms.weights)

        run.trainer.loss.forward = forward  # type: ignore[method-assign]

    return plant


def half_optimised(run: Watched) -> None:
    group = run.trainer.optimizer.adamw.param_groups[0]
    group["params"] = group["params"][: len(group["params"]) // 2]


def not_optimised(run: Watched) -> None:
    run.trainer.optimizer.step = lambda *_: None  # type: ignore[method-assign, assignment]


def without_rate(run: Watched) -> None:
    run.trainer.peak_rate = 0.0


DEFECTS: dict[str, tuple[str, Plant | None, tuple[str, ...]]] = {
    "neither picture nor depth is read": (
        "constant predictions",
        shown(lambda b: dataclasses.replace(b.without_depth(), rgb=torch.zeros_like(b.rgb))),
        (),
    ),
    "depth is not read": ("dead depth branch", shown(HandBatch.without_depth), ()),
    "picture is not read": (
        "dead RGB branch",
        shown(lambda b: dataclasses.replace(b, rgb=torch.zeros_like(b.rgb))),
        (),
    ),
    "output in millimetres": ("output scale", answers(in_millimetres), ()),
    "a weight meant for another unit": ("loss dominated by one term", None, ("loss.root=1000",)),
    "loss in square millimetres": ("loss far too large", times(1e6), ()),
    "a sum where a mean belongs": ("loss is a sum", summed, ()),
    "gradient of one block exploded": ("gradient dominated by one block", gradient(0, 1e5), ()),
    "a block is detached": ("block without gradient", gradient(-1, 0.0), ()),
    "learning rate 0.5": ("learning rate far too high", None, ("optimizer.lr=0.5",)),
    "learning rate 1e-8": ("learning rate far too low", None, ("optimizer.lr=1e-8",)),
    "schedule at its end": ("learning rate zero", without_rate, ()),
    "half of the weights are not optimised": ("weights frozen", half_optimised, ()),
    "optimiser does nothing": ("weights do not move", not_optimised, ()),
    "clip norm meant for another loss": ("every step clipped", None, ("training.clip_grad_norm=0.001",)),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_named(defect: str, clinic: Clinic) -> None:
    """A run that cannot learn must name its cause in the first three steps, not after three days."""
    cause, plant, overrides = DEFECTS[defect]
    found = watch(clinic, "dataset.p_drop_depth=0", *overrides, plant=plant)
    assert found[:1] == [cause], found


def test_clipped_share(clinic: Clinic) -> None:
    """Clipping of every step, long after the start, is another learning rate than was asked for."""
    assert names(list(check_clipped([True] * 50))) == ["every step clipped"]
    assert names(list(check_clipped([True] * 35 + [False] * 15))) == []
    assert list(check_clipped([True] * 20)) == []


def test_weights_not_loaded(clinic: Clinic) -> None:
    """Weights whose keys matched nothing were once "successfully loaded"."""

    def plant(run: Watched) -> None:
        model = dataclasses.replace(run.config.model, pretrained=Path("weights.pth"))
        run.doctor._config = dataclasses.replace(run.config, model=model)

    assert watch(clinic, plant=plant, steps=0) == ["weights not loaded"]

    def loaded(run: Watched) -> None:
        plant(run)
        for parameter in run.model.vit.parameters():
            parameter.data += 0.01 * torch.linspace(-1, 1, parameter.numel()).view_as(parameter)

    assert watch(clinic, plant=loaded, steps=0) == []


def test_leaking_and_empty_splits(clinic: Clinic) -> None:
    """A validation on training frames, or on motions that training holds, measures memory."""
    config = clinic.config()
    run = Watched(clinic)
    frames = FrameNames(*run.train_set.frames())
    assert names(list(check_setting(config, find_leaks(frames, frames))))[:1] == ["validation split leaks"]
    random = clinic.config("split.by=frame")
    assert names(list(check_setting(random, LeakReport(16, 0, {1: 9}, 9, 16)))) == []
    assert names(list(check_setting(config, LeakReport(16, 0, {1: 9}, 9, 16)))) == ["validation split leaks"]
    assert names(list(check_setting(config, LeakReport(0, 0, {}, 0, 0)))) == ["empty validation split"]


def test_emulated_arithmetic(clinic: Clinic) -> None:
    """A plain machine told to compute in bf16 trains at a tenth of its speed, without a word."""
    healthy = LeakReport(16, 0, {1: 0}, 0, 0)
    for precision, native, named in (
        ("bf16", False, ["bf16 is emulated"]),
        ("bf16", True, []),
        ("auto", False, []),
        ("fp32", False, []),
    ):
        config = clinic.config(f"training.precision={precision}")
        assert names(list(check_setting(config, healthy, native_bf16=native))) == named


class Predictor(nn.Module):
    """Answers with the wrist-relative joints that `change` makes of a batch."""

    def __init__(self, change: Callable[[HandBatch], Tensor], model: nn.Module) -> None:
        super().__init__()
        self.change = change
        self.inner = model

    def forward(self, batch: HandBatch) -> Prediction:
        made = self.inner(batch)
        hand = dataclasses.replace(made.hand, joints_root_m=self.change(batch))
        return dataclasses.replace(made, hand=hand)


def validated(clinic: Clinic, *changes: Callable[[HandBatch], Tensor]) -> list[str]:
    """Causes named by the validations of some predictors, one after the other."""
    with heard() as lines:
        run = Watched(clinic, "dataset.p_drop_depth=0")
        run.steps(3)
        lines.clear()
        for change in changes:
            run.validate(Predictor(change, run.model))
    return causes(lines)


def test_metric_of_the_zero_pose(clinic: Clinic) -> None:
    """102.152 / 48.320 mm was the score of an all-zero prediction, and nobody knew."""
    found = validated(clinic, lambda b: torch.zeros_like(b.joints_root_m))
    assert found[:1] == ["metric equals the zero pose"]


def test_metric_of_the_mean_pose(clinic: Clinic) -> None:
    """A constant mean hand looks respectable and has learned nothing."""
    from src.evaluation.baselines import mean_pose_m

    table = Watched(clinic).train_set.labels()
    mean = torch.from_numpy(mean_pose_m(table, table.mano_valid, clinic.hand)).float().reshape(-1, 21, 3)[:1]
    mean = mean - mean[:, :1]

    def answer(batch: HandBatch) -> Tensor:  # the mean pose of the image camera
        return mean @ batch.rot_crop_from_img.transpose(1, 2)

    assert validated(clinic, answer)[:1] == ["metric equals the mean pose"]


def test_metric_frozen(clinic: Clinic) -> None:
    """Two validations with the same predictions: the weights that are validated do not change."""

    def guess(batch: HandBatch) -> Tensor:
        depth = 0.01 * batch.depth.mean(dim=(1, 2, 3))
        return batch.joints_root_m + depth[:, None, None] * batch.joints_root_m.roll(1, 1)

    assert validated(clinic, guess, guess)[:1] == ["metric frozen"]
    grown: list[float] = []

    def moving(batch: HandBatch) -> Tensor:
        grown.append(0.0)
        return guess(batch) * (1 + 0.01 * len(grown))

    assert validated(clinic, moving, moving) == []


def test_predictions_not_finite(clinic: Clinic) -> None:
    """A network that says nan must not be averaged into a number."""
    found = validated(clinic, lambda b: b.joints_root_m * torch.nan)
    assert found[:1] == ["predictions not finite"]


def test_depth_that_changes_no_score(clinic: Clinic) -> None:
    """With and without depth the same predictions, to the last bit."""
    found = validated(clinic, lambda b: b.joints_root_m[:, torch.arange(21)] * 1.05 + 0.003)
    assert found[:1] == ["dead depth branch"]


def test_constant_predictions_late(clinic: Clinic) -> None:
    """Near-constant predictions are healthy in the first minutes and a failure after thousands of samples."""
    run = Watched(clinic)
    seen = probe(run.model, run.batches[0])
    assert seen is not None
    stuck = dataclasses.replace(seen, by_rgb_mm=0.6, by_depth_mm=0.3, spread_mm=0.6, label_spread_mm=90.0)
    assert names(list(check_probe(stuck, steps=100, samples=800, rate_sum=1.0))) == []
    late = list(check_probe(stuck, steps=1500, samples=12000, rate_sum=1.0))
    assert names(late) == ["constant predictions"]
    moving = dataclasses.replace(stuck, spread_mm=30.0)
    assert names(list(check_probe(moving, steps=1500, samples=12000, rate_sum=1.0))) == []


def test_a_fail_can_stop_the_run(clinic: Clinic) -> None:
    """Only where it was asked for: the doctor may be wrong, and a cluster's queue is long."""
    for asked, want in ((False, None), (True, "the doctor (output scale; logging.doctor_stops)")):
        with heard():
            run = Watched(clinic, f"logging.doctor_stops={str(asked).lower()}")
            answers(in_millimetres)(run)
            run.steps(1)
            assert run.doctor.stops == want


def test_a_warning_never_stops_a_run(clinic: Clinic) -> None:
    """logging.doctor_stops is about what cannot learn: a rate that is merely unusual must not end days."""
    with heard() as lines:
        run = Watched(clinic, "logging.doctor_stops=true", "optimizer.lr=0.02")
        run.begin()
    assert any("WARN  learning rate far too high" in line for line in lines), lines
    assert run.doctor.stops is None


def test_the_doctor_can_be_switched_off(clinic: Clinic) -> None:
    """logging.doctor=false says nothing and looks at nothing."""
    with heard() as lines:
        run = Watched(clinic, doctor=False)
        answers(in_millimetres)(run)
        run.begin()
        run.steps(3)
        run.validate()
    assert lines == []


def weights(run: Any) -> Tensor:
    average = run.trainer.ema.state_dict()["average"]
    tensors = [*run.model.parameters(), *average.values(), *(p.grad for p in run.model.parameters())]
    return torch.cat([t.detach().flatten() for t in tensors])


def test_nothing_changes(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, averages, gradients and random states are the same bits with and without the doctor."""
    monkeypatch.setattr("src.training.diagnosis.doctor.LATER_STEP", 4)
    seen = []
    for doctor in (True, False):
        with heard() as lines:
            run = Watched(clinic, "model.drop_path=0.3", "validation.rgb_only=false", doctor=doctor)
            run.begin()
            run.steps(5)
            run.validate()
            modes = [module.training for module in run.model.modules()]
            run.steps(1)
        assert bool(lines) == doctor
        seen.append((weights(run), torch.get_rng_state(), modes))
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])
    assert seen[0][2] == seen[1][2]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("p_drop_depth", [0.4, 1.0])
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
    assert causes(lines) == [], lines
    ends = [line.partition(" (")[2] for line in lines]
    assert ends[:2] == ["step 3)", "step 6)"]
    assert ends[2:] == (["validation)", "step 7)", "validation)"] if seed == 0 else [])
    assert all(line.startswith("Doctor: ") and " checks OK" in line for line in lines)


def _written_causes() -> set[str]:
    """Names of findings that are not OK, where the doctor's code has them as plain text."""
    found = set()
    for path in (*(ROOT / "src/training/diagnosis").glob("*.py"), ROOT / "src/tools/doctor.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
                continue
            status = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
            if call.func.id == "judge" or (call.func.id == "Finding" and status in ("WARN", "FAIL")):
                what = call.args[1]
                what = (
                    what.orelse if isinstance(what, ast.IfExp) else what
                )  # judge(good, "good" if good else "bad")
                if isinstance(what, ast.Constant):
                    found.add(str(what.value))
    return found


def test_the_guide_explains_every_cause() -> None:
    """A name in the log that the guide does not know leaves its reader alone with it."""
    causes_planted = {cause for cause, *_ in (*test_planted_data.DEFECTS.values(), *DEFECTS.values())}
    written = _written_causes()
    assert {"dead depth branch", "metric frozen", "labels exist"} <= written
    guide = (ROOT / "records/TRAINING_DEBUG_GUIDE.md").read_text(encoding="utf-8")
    assert not {cause for cause in causes_planted | written if f"`{cause}`" not in guide}


def test_ranks_meet_after_what_the_doctor_does_on_rank_0_alone(clinic: Clinic) -> None:
    """Others wait in the gradients' exchange, which has a limit, while rank 0 copies weights or looks."""
    met: list[str] = []
    watched = Watched(clinic)
    watched.doctor._context = SimpleNamespace(barrier=met.append)  # type: ignore[assignment]
    watched.doctor.before(watched.trainer)
    assert watched.doctor._due
    assert met == ["the doctor's copy of weights"]
    watched.doctor.after(watched.trainer, watched.trainer([watched.batches[0]]), [watched.batches[0]])
    assert met[1:] == ["the doctor's look at a step"]
