"""AdamW, its learning rate by step, and the averaged weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from src.config import OptimizerConfig, SchedulerConfig
from src.errors import AssetError


def build_optimizer(model: nn.Module, config: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices only.

    Args:
        model: parameters with one axis (biases, norms) or marked `no_weight_decay` (tokens, positions)
            have none.
        config: rates as given, not scaled.
        device: where the parameters live.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or getattr(parameter, "no_weight_decay", False)
            (free if plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=device.type in ("cpu", "cuda")
    )


def learning_rate(step: int, total_steps: int, peak: float, config: SchedulerConfig) -> float:
    """Learning rate of an optimiser step: linear warm-up, then cosine down to the final ratio.

    A function of the step alone, so there is no state that a resume could forget.

    Args:
        step: 0 for the first optimiser step of the run.
        total_steps: optimiser steps of the whole run.
        peak: rate at the end of the warm-up.
        config: shares and ratios.
    """
    warmup = math.floor(config.warmup_fraction * total_steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
    floor = config.final_lr_ratio
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameter groups one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class Ema:
    """Exponential moving average of a model's parameters, in float32, on the parameters' device.

    The decay rises as (1 + k) / (10 + k) with the number of updates k, so that the first weights are
    forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._parameters = dict(model.named_parameters())
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        names = list(self._average)
        torch._foreach_lerp_(
            [self._average[n] for n in names], [self._parameters[n].detach() for n in names], 1.0 - decay
        )

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the model holds the average; afterwards its own weights, bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap contents of average and parameters."""
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self._average[name])
            self._average[name].copy_(kept)

    def state_dict(self) -> dict[str, object]:
        """Average, decay and number of updates."""
        return {"average": dict(self._average), "updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from `state_dict`'s value.

        Raises:
            AssetError: names or shapes differ from the model's.
        """
        average = state["average"]
        assert isinstance(average, Mapping)
        if set(average) != set(self._average):
            odd = sorted(set(average) ^ set(self._average))
            raise AssetError(f"averaged weights: names differ from the model's, e.g. {odd[:3]}")
        for name, value in average.items():
            assert isinstance(value, Tensor)
            if value.shape != self._average[name].shape:
                raise AssetError(
                    f"averaged weights: {name} has shape {tuple(value.shape)}, "
                    f"the model {tuple(self._average[name].shape)}"
                )
            self._average[name].copy_(value)
        updates = state["updates"]
        assert isinstance(updates, int)
        self.updates = updates
