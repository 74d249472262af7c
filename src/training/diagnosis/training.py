"""A run: its set-up, a training step, a network's answers, a validation. Legend: J joints, n samples."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from src.config import RunConfig
from src.evaluation.evaluator import CheckedResult
from src.schema import HandBatch
from src.training.diagnosis.samples import some
from src.training.diagnosis.table import ONLY_WARNS, Seen, Table
from src.training.optim import peak_rate
from src.training.step import StepReport

SETTING, STEP, PROBE, SCORES = Table(), Table(), Table(), Table()
RATES = (1e-6, 1e-2)
"""Peak learning rates outside of which networks of this kind have not been seen to learn."""
CONSTANT = 0.05
"""Spread of predictions over that of the labels below which they are all but constant."""
STILL_MM = 1e-3
"""Movement of predictions that counts as none."""
SAME_MM, SAME_SHARE = 0.05, 0.01
"""Both metrics this near to the zero pose's, or relatively to the mean pose's, are a constant hand's."""
_MODEL = "src/models/utnet.py, src/models/heads.py"


class Setting(NamedTuple):
    """A run before its first step."""

    config: RunConfig
    world: int
    leaks: Any
    """`dataloader.ho3d.leaks.LeakReport` of the training split against the validation split."""
    native_bf16: bool
    """The device computes bfloat16 itself."""


class Probe(NamedTuple):
    """How a network's joints, relative to the wrist, depend on what it is shown."""

    by_rgb_mm: float
    """Mean movement when each sample is shown its neighbour's picture."""
    by_depth_mm: float | None
    """The same for depth; None where fewer than two samples show any."""
    spread: float
    """Standard deviation over samples of the predicted joints, over that of the labels."""


@SETTING.row("bf16 is emulated", below=1, fails=ONLY_WARNS, where="training.precision=auto")
def arithmetic_of_the_backbone(s: Setting) -> Seen:
    """Emulated, a step takes many times as long."""
    precision, own = s.config.training.precision, "" if s.native_bf16 else "no "
    text = f"training.precision={precision}, this device has {own}bf16 of its own"
    return Seen(precision == "bf16" and not s.native_bf16, text)


@SETTING.row(
    *("learning rate far too high", "learning rate far too low"),
    above=RATES[0],
    below=RATES[1],
    fails=ONLY_WARNS,
    where="optimizer.lr, optimizer.reference_batch",
)
def peak_learning_rate(s: Setting) -> Seen:
    """Of the global batch: a rate per 32 samples grows with the ranks."""
    rate = peak_rate(s.config, s.world)
    return Seen(rate, f"{rate:g}", "learning rate far too low" if rate <= RATES[0] else None)


@SETTING.row("validation split leaks", below=1, where="dataloader/ho3d/split.py, split.by")
def splits_disjoint(s: Setting) -> Seen:
    """No frame is on both sides; where motions are held out, no motion either."""
    held_out = s.config.split.by == "sequence" and s.config.validation.split == "val"
    shared = s.leaks.same_motion if held_out else s.leaks.identical
    kind = "of motions that training holds" if held_out else "training frames"
    return Seen(shared, f"{shared:,} of {s.leaks.total:,} validation frames are {kind}")


@STEP.row("output scale", below=500, why=" mm", where=f"{_MODEL} (metres)")
def output_in_metres(report: StepReport, batch: HandBatch) -> Seen:
    """Error of a joint coordinate that only another unit explains."""
    error = (report.prediction.hand.joints_root_m.detach() - batch.joints_root_m).abs()[batch.joints_conf > 0]
    mean = float(error.float().sum()) / max(1, error.numel()) * 1000
    return Seen(mean, f"a joint coordinate is {mean:.4g} mm off in the mean")


@STEP.row(
    "loss far too large",
    below=100,
    fails=1e5,
    why=", terms of order 1",
    where="src/losses/loss.py (a sum, another unit, centred twice), loss section of the configuration",
)
def order_of_the_loss(report: StepReport, batch: HandBatch) -> Seen:
    """Unweighted terms are of order 1 when training starts."""
    total = float(report.terms.total.detach())
    values = {name: float(value.detach()) for name, value in report.terms.values.items()}
    name = max(values, key=lambda key: values[key])
    return Seen(max(total, values[name]), f"loss {total:.4g}, largest term {name} {values[name]:.4g}")


@STEP.row("loss dominated by one term", below=0.8, fails=ONLY_WARNS, where="loss section, src/losses/loss.py")
def loss_terms(report: StepReport, batch: HandBatch) -> Seen:
    """Terms of the refined and of the coarse hand share a unit and a weight; healthy below 0.35."""
    shares: dict[str, float] = {}
    for name, value in report.terms.values.items():
        kind, part = name.removeprefix("coarse_"), report.terms.weights[name] * float(value.detach())
        shares[kind] = shares.get(kind, 0.0) + part / max(float(report.terms.total.detach()), 1e-12)
    name = max(shares, key=lambda key: shares[key])
    return Seen(shares[name] if len(shares) > 1 else 0, f"{name} makes up {shares[name]:.0%} of the loss")


@STEP.row("every step clipped", below=30, fails=ONLY_WARNS, where="training.clip_grad_norm, loss section")
def clipping(report: StepReport, batch: HandBatch) -> Seen:
    """Gradient norm over its limit; healthy below 5 in the first steps."""
    ratio = report.grad_norm / report.clip_norm
    return Seen(ratio, f"gradient norm {report.grad_norm:.4g} is {ratio:.3g} x training.clip_grad_norm")


@PROBE.row("constant predictions", "dead RGB branch", above=0, where=f"{_MODEL}, src/models/tokens.py")
def predictions_vary(p: Probe, enough: bool, warm: bool) -> Seen:
    """By anything at all at first, by a twentieth of what labels do once `enough` was trained."""
    text = f"joints spread {p.spread:.1%} of what labels do; another picture moves them {p.by_rgb_mm:.4g} mm"
    if enough and p.spread < CONSTANT:
        return Seen(0, text)
    still = p.by_rgb_mm <= (STILL_MM if enough else 0)
    return Seen(0 if still else 1, text, "dead RGB branch" if still and p.by_depth_mm else None)


@PROBE.row("dead depth branch", above=0, why=" mm", where="src/models/tokens.py")
def depth_used(p: Probe, enough: bool, warm: bool) -> Seen | None:
    """Movement by another sample's depth; a branch that starts at zero needs some `warm` steps."""
    if p.by_depth_mm is None or not warm:
        return None
    text = f"another sample's depth moves the joints {p.by_depth_mm:.4g} mm"
    return Seen(0 if enough and p.by_depth_mm <= STILL_MM else p.by_depth_mm, text)


@SCORES.row("metric equals the zero pose", "metric equals the mean pose", below=1, where=_MODEL)
def score_of_no_constant_hand(result: CheckedResult, moved_mm: float | None) -> Seen:
    """Both metrics: on its way down one of them passes a baseline's."""
    known, scored = result.baselines, (result.mpjpe_mm, result.pa_mpjpe_mm)
    text = f"MPJPE {scored[0]:.3f} / PA {scored[1]:.3f} mm"
    for key, name in (("zero", "zero pose"), ("mean_pose", "mean pose")):
        theirs = known.get(f"{key}_mpjpe_mm", math.nan), known.get(f"{key}_pa_mm", math.nan)
        room = [SAME_MM if key == "zero" else SAME_SHARE * score for score in scored]
        text = f"{text}, {name} {theirs[0]:.3f} / {theirs[1]:.3f} mm"
        if all(abs(a - b) < most for a, b, most in zip(scored, theirs, room, strict=True)):
            return Seen(1, f"{text}: predictions constant", f"metric equals the {name}")
    return Seen(0, text)


@SCORES.row("metric frozen", above=STILL_MM, why=" mm", where="src/training/optim.py (EMA), optimizer.lr")
def metric_moves(result: CheckedResult, moved_mm: float | None) -> Seen | None:
    """Mean movement of predicted joints since the last validation."""
    text = f"predictions moved {moved_mm} mm since the last validation (MPJPE {result.mpjpe_mm:.3f} mm)"
    return None if moved_mm is None else Seen(moved_mm, text)


@torch.no_grad()
def probe(model: nn.Module, batch: HandBatch, most: int = 4) -> Probe | None:
    """Run a bare network on a few samples and on the same with their pictures or depths exchanged.

    In evaluation mode, and every module gets its own mode back: no random number is drawn, nothing changes.

    Args:
        model: on the batch's device.
        batch: those with depth are taken first.
        most: samples; None is returned for a batch of one.
    """
    few = some(batch, torch.argsort(~batch.depth_present, stable=True)[:most])
    if few.size < 2:
        return None
    shown = int(few.depth_present.sum())
    places = torch.arange(few.size, device=few.rgb.device)
    places[:shown] = places[:shown].roll(1)
    other_depth = dataclasses.replace(few, depth=few.depth[places], depth_valid=few.depth_valid[places])
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        looks = (few, dataclasses.replace(few, rgb=few.rgb.roll(1, 0)), other_depth)
        joints, by_rgb, by_depth = (model(look).hand.joints_root_m.float() for look in looks)
    finally:
        for module, mode in modes:
            module.training = mode
    spread, labels = (_mean_mm(x.std(dim=0, correction=0)) for x in (joints, few.joints_root_m))
    by_depth_mm = _mean_mm((by_depth - joints)[:shown]) if shown > 1 else None
    return Probe(_mean_mm(by_rgb - joints), by_depth_mm, spread / max(labels, 1e-9))


def _mean_mm(offsets_m: Tensor) -> float:
    """Mean length of (..., 3) offsets."""
    return float(offsets_m.float().norm(dim=-1).mean()) * 1000
