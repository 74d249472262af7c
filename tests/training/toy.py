"""A network of two layers and its loss: optimiser steps in milliseconds for tests of the steps alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from src.config import OptimizerConfig, RunConfig, SchedulerConfig, TrainingConfig
from src.runtime.ranks.distributed import DistContext
from src.schema import HandBatch, HandEstimate, LossTerms, Prediction
from src.training.step import TrainStep
from tests.models.scene import make_batch

ALONE = DistContext(0, 1, 0, torch.device("cpu"), None)


class Toy(nn.Module):
    """Votes for joints from the labelled shape and wrist; the rest of its prediction is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(13, 16)
        self.outside = nn.Linear(16, 63)

    def forward(self, batch: HandBatch) -> Prediction:
        """(B,) hands -> votes (B, 21, 3)."""
        seen = torch.cat([batch.betas, batch.root_cam_m], dim=1)
        joints = self.outside(self.inside(seen).tanh()).view(-1, 21, 3)
        none = torch.zeros(len(seen), 1)
        hand = HandEstimate(none, none, none, batch.root_cam_m, joints, none)
        return Prediction(hand, hand, joints, none, none)


class ToyLoss(nn.Module):
    """Mean squared error of the votes in decimetres."""

    def per_sample(self, prediction: Prediction, batch: HandBatch) -> Tensor:
        """(B,)."""
        gap = 10 * (prediction.vote_joints_root_m - batch.joints_root_m)
        return gap.square().mean(dim=(1, 2))

    def forward(self, prediction: Prediction, batch: HandBatch, *, trace: bool = False) -> LossTerms:
        """Mean over samples."""
        value = self.per_sample(prediction, batch).mean()
        return LossTerms(value, {"votes": value}, {"votes": 1.0})


def toy_batch(seed: int, size: int = 2) -> HandBatch:
    """`size` hands; pictures of noise that nobody looks at."""
    return make_batch(size, 32, 32, seed=seed, noise=True)


def toy_trainer(
    *,
    lag: int = 0,
    total_steps: int = 10,
    optimizer: dict[str, Any] | None = None,
    context: DistContext = ALONE,
    **training: Any,
) -> TrainStep:
    """A trainer of a `Toy`, the same weights each time; rate 1e-2 and no warm-up unless given."""
    config = RunConfig(
        training=TrainingConfig(**{"clip_grad_norm": 1e6, "ema_decay": 0.9, **training}),
        optimizer=OptimizerConfig(**{"lr": 1e-2, **(optimizer or {})}),
        scheduler=SchedulerConfig(warmup_fraction=0.0),
    )
    torch.manual_seed(3)
    return TrainStep(Toy(), ToyLoss(), config, context, total_steps, lag=lag)  # type: ignore[arg-type]


def flat(step: TrainStep) -> Tensor:
    """All weights, float64."""
    return torch.cat([p.detach().double().flatten() for p in step.model.parameters()])
