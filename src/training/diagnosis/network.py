"""A network on batches: does it look at the picture, at the depth, and does it answer in metres?

The network is run in evaluation mode without gradient, and every module gets its own mode back: no random
number is drawn and nothing it holds changes. Legend: B batch, J joints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from src.losses.loss import HandLoss
from src.schema import HandBatch, HandEstimate, Prediction
from src.training.diagnosis.finding import Finding, judge

MODEL = "src/models/utnet.py"
PROBE_SAMPLES = 4
"""Samples that a probe runs: three forward passes of so many."""
WARM_RATE = 1e-4
"""Sum of learning rates below which a depth branch that starts at zero may still round to nothing."""
ENOUGH_STEPS, ENOUGH_SAMPLES = 300, 8000
"""From here on predictions should vary: networks from scratch leave the mean hand after 3000-8000 samples."""
CONSTANT = 0.05
"""Spread of predictions over that of the labels below which they are all but constant."""
DEAD_MM = 1e-3
"""Movement of predictions that counts as none, once training has gone far enough."""
SCALE = 3.0
"""Predicted over labelled size that no untrained network reaches."""
SMALL = 0.03
"""The same below it. Joints that average over poses shrink, to a tenth before anything is learned."""
FAR_MM = 500.0
"""Mean error of a joint coordinate that only another unit explains."""


@dataclass(frozen=True)
class Probe:
    """How predictions of some samples answer to their inputs, wrist-relative, mm."""

    prediction: Prediction
    """Of the batch that was probed."""
    batch: HandBatch
    by_rgb_mm: float
    """Mean movement of joints when each sample is shown its neighbour's picture."""
    by_depth_mm: float | None
    """The same for depth; None where fewer than two samples show any."""
    spread_mm: float
    """Standard deviation over samples of the predicted joints."""
    label_spread_mm: float
    """The same of the labels."""


@torch.no_grad()
def probe(model: nn.Module, batch: HandBatch) -> Probe | None:
    """Run a network on a few samples and on the same with their pictures or depths exchanged.

    Args:
        model: bare, on the batch's device; nothing of it changes.
        batch: up to `PROBE_SAMPLES` of it are used, those with depth first.

    Returns:
        None for a batch of one sample.
    """
    order = torch.argsort(~batch.depth_present, stable=True)[:PROBE_SAMPLES]
    if len(order) < 2:
        return None
    few = HandBatch(**{name: value[order] for name, value in vars(batch).items()})
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        prediction = model(few)
        other_rgb = model(dataclasses.replace(few, rgb=few.rgb.roll(1, 0)))
        shown = int(few.depth_present.sum())
        other_depth = None
        if shown > 1:
            places = torch.arange(len(order), device=order.device)
            places[:shown] = places[:shown].roll(1)
            exchanged = {name: getattr(few, name)[places] for name in ("depth", "depth_valid")}
            other_depth = model(dataclasses.replace(few, **exchanged))
    finally:
        for module, mode in modes:
            module.training = mode
    moved = None if other_depth is None else _moved(prediction, other_depth, shown)
    return Probe(
        prediction,
        few,
        by_rgb_mm=_moved(prediction, other_rgb, len(order)),
        by_depth_mm=moved,
        spread_mm=_spread_mm(prediction.hand.joints_root_m),
        label_spread_mm=_spread_mm(few.joints_root_m),
    )


def check_probe(seen: Probe, *, steps: int, samples: int, rate_sum: float) -> Iterator[Finding]:
    """What a probe says.

    Args:
        seen: of `probe`.
        steps: optimiser steps that the weights have behind them.
        samples: how many samples these saw.
        rate_sum: sum of their learning rates.
    """
    enough = steps >= ENOUGH_STEPS and samples >= ENOUGH_SAMPLES
    still = seen.by_rgb_mm == 0 and not seen.by_depth_mm
    share = seen.spread_mm / max(seen.label_spread_mm, 1e-9)
    few = enough and share < CONSTANT
    yield judge(
        not (still or few),
        "predictions vary" if not (still or few) else "constant predictions",
        f"joints spread {seen.spread_mm:.4g} mm over samples, labels {seen.label_spread_mm:.4g} mm; "
        f"another picture moves them {seen.by_rgb_mm:.4g} mm",
        f"above {CONSTANT:.0%} of the labels' after {ENOUGH_STEPS} steps" if enough else "above 0 mm",
        f"{MODEL}, src/models/heads.py, optimizer.lr",
    )
    if still:
        return
    floor = DEAD_MM if enough else 0.0
    yield judge(
        seen.by_rgb_mm > floor,
        "RGB used" if seen.by_rgb_mm > floor else "dead RGB branch",
        f"another sample's picture moves the joints {seen.by_rgb_mm:.4g} mm",
        f"above {floor:g} mm",
        "src/models/tokens.py",
    )
    if seen.by_depth_mm is not None and steps > 0 and rate_sum >= WARM_RATE:
        yield judge(
            seen.by_depth_mm > floor,
            "depth used" if seen.by_depth_mm > floor else "dead depth branch",
            f"another sample's depth moves the joints {seen.by_depth_mm:.4g} mm",
            f"above {floor:g} mm once trained",
            "src/models/tokens.py",
        )


@torch.no_grad()
def check_output(prediction: Prediction, batch: HandBatch) -> Iterator[Finding]:
    """Unit and size of what the network answers."""
    known = batch.joints_conf > 0
    if not known.all(dim=1).any():
        return
    rows = known.all(dim=1)
    label = _reach(batch.joints_root_m[rows])
    sizes = {
        "hand": _reach(prediction.hand.joints_root_m[rows]) / label,
        "coarse hand": _reach(prediction.coarse.joints_root_m[rows]) / label,
        "votes": _reach(prediction.vote_joints_root_m[rows]) / label,
        "wrist's depth": float(
            (prediction.hand.root_cam_m[rows, 2] / batch.root_cam_m[rows, 2]).median().float()
        ),
    }
    name = max(sizes, key=lambda key: abs(_log(sizes[key])))
    good = SMALL < sizes[name] < SCALE
    yield judge(
        good,
        "output size" if good else "output scale",
        f"{name} {sizes[name]:.3g} x the labelled one",
        f"{SMALL:g} to {SCALE:g}",
        f"{MODEL}, src/models/heads.py (metres)",
    )
    error = (prediction.hand.joints_root_m - batch.joints_root_m).abs()[rows].float().mean()
    mean = float(error) * 1000
    yield judge(
        mean < FAR_MM,
        "output error" if mean < FAR_MM else "output scale",
        f"a joint coordinate is {mean:.4g} mm off in the mean",
        f"below {FAR_MM:g} mm",
        f"{MODEL} (metres)",
    )


@torch.no_grad()
def check_mean(loss: HandLoss, prediction: Prediction, batch: HandBatch) -> Iterator[Finding]:
    """The loss of a batch is the mean of its halves' losses."""
    half = len(batch.rgb) // 2
    if half == 0 or not bool(batch.mano_valid.all() & (batch.joints_conf > 0).all()):
        return
    whole = float(loss(_part(prediction, 0, 2 * half), _batch_part(batch, 0, 2 * half)).total)
    parts = [
        float(loss(_part(prediction, a, a + half), _batch_part(batch, a, a + half)).total) for a in (0, half)
    ]
    ratio = whole / max(sum(parts) / 2, 1e-12)
    good = abs(ratio - 1) < 0.05
    yield judge(
        good,
        "loss is a mean" if good else "loss is a sum",
        f"a batch's loss is {ratio:.3f} x the mean of its halves'",
        "1.000",
        "src/losses/loss.py",
    )


def _moved(a: Prediction, b: Prediction, rows: int) -> float:
    """Mean distance of the joints of both predictions, mm."""
    gap = (a.hand.joints_root_m - b.hand.joints_root_m)[:rows].float().norm(dim=-1)
    return float(gap.mean()) * 1000


def _spread_mm(joints_root_m: Tensor) -> float:
    """Standard deviation over samples, mean over joints, mm."""
    return float(joints_root_m.float().std(dim=0, correction=0).norm(dim=-1).mean()) * 1000


def _reach(joints_root_m: Tensor) -> float:
    """Median over samples of the distance of the farthest joint."""
    return float(joints_root_m.float().norm(dim=-1).amax(dim=1).median())


def _log(ratio: float) -> float:
    """Logarithm; far away for what is not a positive number."""
    return float(torch.log(torch.tensor(ratio))) if ratio > 0 else float("inf")


def _part(prediction: Prediction, start: int, end: int) -> Prediction:
    """Some samples of a prediction."""

    def cut(hand: HandEstimate) -> HandEstimate:
        return HandEstimate(**{name: value[start:end] for name, value in vars(hand).items()})

    values: dict[str, Any] = {
        name: cut(value) if isinstance(value, HandEstimate) else value[start:end]
        for name, value in vars(prediction).items()
    }
    return Prediction(**values)


def _batch_part(batch: HandBatch, start: int, end: int) -> HandBatch:
    """Some samples of a batch."""
    return HandBatch(**{name: value[start:end] for name, value in vars(batch).items()})
