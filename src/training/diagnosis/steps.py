"""One optimiser step: which blocks the gradient reaches, how far the weights moved, what the loss is made of.

Of each tensor up to `PROBED` weights are compared before and after, so that a watched step costs little
memory. Gradients are read as the step left them (clipping changes no share).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.config import RunConfig
from src.schema import LossTerms
from src.training.diagnosis.finding import Finding, judge
from src.training.step import StepReport

OPTIM = "src/training/optim.py, optimizer.lr, scheduler"
PROBED = 4096
"""Weights of each tensor that are compared."""
UPDATE = (5e-5, 0.3)
"""Update over weight of a typical matrix, brought to the peak rate; healthy 0.002 to 0.03 at 1e-3."""
DOMINANT_GRADIENT = 0.995
"""Share of one block in the gradient's norm; the heads start at 0.97 in healthy runs."""
DOMINANT_TERM = 0.8
"""Share of one term in the loss; healthy below 0.35."""
LARGE_TERM = 100.0
"""Unweighted terms are of order 1 when training starts."""
LARGE_LOSS = 1e5
FAR_ABOVE_CLIP = 30.0
"""Gradient norm over training.clip_grad_norm; healthy below 5 in the first steps."""
STILL = ("weights do not move", "weights frozen")
CLIPPED_SHARE, CLIPPED_STEPS = 0.9, 40
"""Clipped steps of the last so many that are too many."""


@dataclass(frozen=True)
class Snapshot:
    """Some of the weights before a step."""

    weights: dict[str, Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module) -> Snapshot:
        """Take a snapshot; the model is only read."""
        return cls({name: _some(p).clone() for name, p in model.named_parameters()})


def check_step(
    model: nn.Module, before: Snapshot, report: StepReport, config: RunConfig, *, first: bool
) -> Iterator[Finding]:
    """What a step did.

    Args:
        model: bare, after the step, its gradients not cleared yet.
        before: of the weights before the step.
        report: of the step.
        config: optimizer, training.
        first: the run's very first step, when blocks behind layers that start at zero have no gradient yet.
    """
    yield _rate(report)
    yield from check_terms(report.terms)
    updates = list(_updates(model, before, report, config))
    yield from updates
    # Behind a layer that starts at zero and never moves there is no gradient either.
    moving = not any(f.what in STILL for f in updates) and report.learning_rate > 0
    yield from _gradients(model, judge_silent=moving and not first)
    ratio = report.grad_norm / config.training.clip_grad_norm
    yield judge(
        ratio < FAR_ABOVE_CLIP,
        "clipping" if ratio < FAR_ABOVE_CLIP else "every step clipped",
        f"gradient norm {report.grad_norm:.4g} is {ratio:.3g} x training.clip_grad_norm",
        f"below {FAR_ABOVE_CLIP:g}",
        "training.clip_grad_norm, src/losses/loss.py (means, weights)",
        worse="WARN",
    )


def check_terms(terms: LossTerms) -> Iterator[Finding]:
    """What a loss is made of."""
    total = float(terms.total.detach())
    shares: dict[str, float] = {}
    for name, tensor in terms.values.items():  # both hands' terms of one kind share a unit and a weight
        kind = name.removeprefix("coarse_")
        part = terms.weights[name] * float(tensor.detach()) / max(total, 1e-12)
        shares[kind] = shares.get(kind, 0.0) + part
    name = max(shares, key=lambda key: shares[key])
    good = shares[name] < DOMINANT_TERM or len(shares) == 1
    yield judge(
        good,
        "loss terms" if good else "loss dominated by one term",
        f"{name} makes up {shares[name]:.0%} of the loss",
        f"below {DOMINANT_TERM:.0%}",
        "loss section of the configuration, src/losses/loss.py (unit of the term)",
        worse="WARN",
    )
    largest = max(terms.values, key=lambda key: float(terms.values[key].detach()))
    value = float(terms.values[largest].detach())
    good = value < LARGE_TERM and total < LARGE_LOSS
    yield judge(
        good,
        "order of the loss" if good else "loss far too large",
        f"loss {total:.4g}, largest term {largest} {value:.4g}",
        f"terms of order 1, below {LARGE_TERM:g}",
        "src/losses/loss.py (a sum, another unit, centred twice)",
        worse="FAIL" if total >= LARGE_LOSS else "WARN",
    )


def check_clipped(clipped: Sequence[bool]) -> Iterator[Finding]:
    """Share of clipped steps among the last ones; nothing while they are few."""
    recent = clipped[-CLIPPED_STEPS:]
    if len(recent) < CLIPPED_STEPS:
        return
    share = sum(recent) / len(recent)
    yield judge(
        share <= CLIPPED_SHARE,
        "clipped share" if share <= CLIPPED_SHARE else "every step clipped",
        f"{share:.0%} of the last {len(recent)} steps were clipped",
        f"at most {CLIPPED_SHARE:.0%}",
        "training.clip_grad_norm, optimizer.lr",
        worse="WARN",
    )


def _rate(report: StepReport) -> Finding:
    """The learning rate is one."""
    rate = report.learning_rate
    good = rate > 0
    return judge(good, "learning rate" if good else "learning rate zero", f"{rate:.3g}", "above 0", OPTIM)


def _updates(model: nn.Module, before: Snapshot, report: StepReport, config: RunConfig) -> Iterator[Finding]:
    """Whether and how far weights moved."""
    ratios: list[float] = []
    frozen: list[str] = []
    matrices = {name: p for name, p in model.named_parameters() if p.ndim >= 2}
    moved_any = False
    for name, parameter in matrices.items():
        old = before.weights[name]
        update = float((_some(parameter) - old).norm())
        weight = float(old.norm())
        moved_any |= update > 0
        pushed = parameter.grad is not None and bool(_some(parameter.grad).any())
        if update == 0 and (pushed or not parameter.requires_grad):
            frozen.append(name)
        if update > 0 and weight > 0:
            ratios.append(update / weight)
    if report.learning_rate <= 0:
        return
    yield judge(
        moved_any,
        "weights move" if moved_any else "weights do not move",
        f"{len(frozen)} of {len(matrices)} matrices unchanged by the step",
        "all move",
        "src/training/step.py, src/training/optim.py",
    )
    if moved_any and frozen:
        names = ", ".join(frozen[:3])
        yield Finding(
            "WARN", "weights frozen", f"{len(frozen)} matrices unchanged by the step ({names})", "all move",
            "src/training/optim.py (Optimizer), requires_grad",
        )  # fmt: skip
    if not ratios:
        return
    to_peak = report.peak_rate / report.learning_rate
    typical = sorted(ratios)[len(ratios) // 2] * to_peak
    good = UPDATE[0] < typical < UPDATE[1]
    side = "high" if typical >= UPDATE[1] else "low"
    yield judge(
        good,
        "update over weight" if good else f"learning rate far too {side}",
        f"a typical matrix changes by {typical:.2g} of itself in a step at the peak rate "
        f"{report.peak_rate:g}",
        f"{UPDATE[0]:g} to {UPDATE[1]:g}",
        OPTIM,
        worse="FAIL" if side == "high" else "WARN",
    )


def _gradients(model: nn.Module, *, judge_silent: bool) -> Iterator[Finding]:
    """Share of each block in the gradient; blocks without any are named where `judge_silent`."""
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            block = name.partition(".")[0]
            square = 0.0 if parameter.grad is None else float(parameter.grad.float().square().sum())
            squares[block] = squares.get(block, 0.0) + square
    total = math.sqrt(sum(squares.values()))
    shares = {block: math.sqrt(square) / max(total, 1e-30) for block, square in squares.items()}
    text = ", ".join(f"{block} {share:.2g}" for block, share in shares.items())
    silent = [block for block, share in shares.items() if share == 0]
    if judge_silent:
        yield judge(
            not silent,
            "gradient reaches every block" if not silent else "block without gradient",
            (f"{', '.join(silent)}: 0; " if silent else "") + f"shares of the norm: {text}",
            "above 0 everywhere",
            "src/models/utnet.py (a detach, a block that nothing reads)",
        )
    top = max(shares, key=lambda block: shares[block])
    good = shares[top] < DOMINANT_GRADIENT or len(shares) == 1
    yield judge(
        good,
        "gradient shares" if good else "gradient dominated by one block",
        f"{top} has {shares[top]:.4f} of the gradient's norm ({text})",
        f"below {DOMINANT_GRADIENT}",
        f"src/models ({top}: scale of its output), src/losses/loss.py",
        worse="WARN",
    )


def _some(tensor: Tensor) -> Tensor:
    """Up to PROBED evenly spaced elements, flat."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // PROBED)]
