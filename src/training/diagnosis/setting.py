"""A set-up before its first step: splits, learning rate, weights that should have been loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import nn

from src.config import RunConfig
from src.training.diagnosis.finding import Finding, judge
from src.training.optim import peak_rate

RATES = (1e-6, 1e-2)
"""Peak learning rates outside of which networks of this kind have not been seen to learn."""
UNTOUCHED = 0.5
"""Share of norms at weight 1 and bias 0: 1 of a fresh network, 0 of a trained one or, without depth, few."""


class Leaks(Protocol):
    """Counts of validation frames (`dataloader.ho3d.leaks.LeakReport`)."""

    @property
    def total(self) -> int:
        """All of them."""

    @property
    def identical(self) -> int:
        """That are training frames themselves."""

    @property
    def same_motion(self) -> int:
        """Whose motion is in training."""


def check_setting(
    config: RunConfig,
    leaks: Leaks,
    *,
    world: int = 1,
    repeated_labels: int = 0,
    native_bf16: bool = True,
) -> Iterator[Finding]:
    """Splits, rates and arithmetic.

    Args:
        config: the run.
        world: ranks of the run.
        leaks: of the training split against the validation split.
        repeated_labels: validation frames whose joints are, bit for bit, those of a training frame.
        native_bf16: the device computes bfloat16 itself.
    """
    yield judge(
        leaks.total > 0,
        "validation frames" if leaks.total else "empty validation split",
        f"{leaks.total:,} frames",
        "above 0",
        "validation.split, split section",
    )
    yield judge(
        leaks.identical == 0,
        "splits disjoint" if leaks.identical == 0 else "validation split leaks",
        f"{leaks.identical:,} of {leaks.total:,} validation frames are training frames",
        "0",
        "dataloader/ho3d/split.py, split.by",
    )
    if config.split.by == "sequence" and config.validation.split == "val":
        shared = leaks.same_motion + repeated_labels
        yield judge(
            shared == 0,
            "motions held out" if shared == 0 else "validation split leaks",
            f"{leaks.same_motion:,} of {leaks.total:,} validation frames are of motions that training holds, "
            f"{repeated_labels:,} have a training frame's labels",
            "0 by split.by=sequence",
            "dataloader/ho3d/split.py (motion_of)",
        )
    rate = peak_rate(config, world)
    good = RATES[0] <= rate <= RATES[1]
    yield judge(
        good,
        "peak learning rate" if good else f"learning rate far too {'high' if rate > RATES[1] else 'low'}",
        f"{rate:g}",
        f"{RATES[0]:g} to {RATES[1]:g}",
        "optimizer.lr, optimizer.reference_batch",
        worse="WARN",
    )
    good = native_bf16 or config.training.precision != "bf16"
    yield judge(
        good,
        "arithmetic of the backbone" if good else "bf16 is emulated",
        f"training.precision={config.training.precision}, this device "
        f"{'computes bf16 itself' if native_bf16 else 'has no bf16: a step takes many times as long'}",
        "bf16 only where the device computes it",
        "training.precision (auto takes what the device has)",
        worse="WARN",
    )


def check_loaded(model: nn.Module, source: str) -> Finding:
    """Whether weights that were asked for have arrived.

    A fresh network's norms have weight 1 and bias 0 to the last bit; of a trained network almost none has.

    Args:
        model: the part that `source` fills.
        source: what was asked for, for the message.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm)]
    fresh = sum(bool((m.weight == 1).all() & (m.bias == 0).all()) for m in norms if m.weight is not None)
    share = fresh / max(1, len(norms))
    good = share < UNTOUCHED
    return judge(
        good,
        "weights loaded" if good else "weights not loaded",
        f"{fresh} of {len(norms)} norms are as a fresh network has them after loading {source}",
        f"below {UNTOUCHED:.0%}",
        "model.pretrained, src/models/pretrained.py, src/training/checkpoints/checkpoint.py",
    )
