"""The optimiser, its learning rate by step, and the averaged weights."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from src.config import OptimizerConfig, RunConfig, SchedulerConfig
from src.errors import AssetError
from src.models.pretrained import only_ours
from src.runtime.machine import has_bf16
from src.training.muon import Muon, Share, parameters_of

MUON_SIDE = 8
"""Rows and columns that a matrix must have for its directions to be worth telling apart."""

MUON_MOMENTUM = 0.95
FINAL_RATE = 0.01
"""Rate of the last step over the peak."""
_EMBEDDINGS = ("embed.positions", "embed.class_token")
_BELOW_THE_BLOCKS = ("embed.stem.", *_EMBEDDINGS)
"""What pretrained weights bring beside the blocks, less what is only ours: the queries, and all of depth."""


class Optimizer:
    """AdamW over all parameters, or Muon over the matrices and AdamW over the rest.

    Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") orthogonalises the
    averaged gradient of each matrix, so that all its directions learn at one speed. Its steps are scaled to
    the size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training"): one rate serves both.

    Args:
        model: what has two axes or more decays, the queries too, and is Muon's where it is the weight of a
            linear or convolutional layer and both sides of the matrix (outputs x all inputs) have MUON_SIDE
            rows. What has one axis, and a ViT's positions and class token, do not decay.
        config: decay and moments; the rate comes with each step.
        device: where the parameters live.
        ranks: which hold the same gradients and share Muon's work; None: one.
    """

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, device: torch.device, ranks: Share | None = None
    ) -> None:
        self._names: dict[Tensor, str] = {}
        self._shown: list[tuple[nn.Parameter, nn.Parameter]] = []
        parts: dict[str, dict[float, list[nn.Parameter]]] = {"matrices": {}, "decayed": {}, "free": {}}
        layers = {m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        for name, weight in model.named_parameters():
            parameter, kind = weight, "decayed"
            if weight.ndim < 2 or name in _EMBEDDINGS:
                kind = "free"
            elif config.name == "muon" and weight in layers and min(weight.flatten(1).shape) >= MUON_SIDE:
                # Muon takes two axes: a convolution's kernel is shown to it as a matrix in the same memory.
                parameter, kind = nn.Parameter(weight.detach().flatten(1)), "matrices"
                self._shown.append((weight, parameter))
            self._names[parameter] = name
            parts[kind].setdefault(config.layer_decay ** _layers_above(name, model), []).append(parameter)
        self.adamw = torch.optim.AdamW(
            _groups(parts["decayed"], config.weight_decay) + _groups(parts["free"], 0.0),
            lr=config.lr,
            betas=config.betas,
            fused=device.type in ("cpu", "cuda"),
        )
        self.muon: Muon | None = None
        if parts["matrices"]:
            self.muon = Muon(
                _groups(parts["matrices"], config.weight_decay),
                momentum=MUON_MOMENTUM,
                dtype=torch.bfloat16 if has_bf16(device) else torch.float32,
                share=ranks,
            )

    def step(self, rate: float, alive: Tensor | None = None) -> None:
        """Change the weights by their gradients.

        Args:
            rate: learning rate.
            alive: () float32 on the device, 1 or 0; at 0 no weight changes. None: 1.
        """
        for group in self.groups:
            group["lr"] = rate * group["share"]
        # torch's fused kernels skip a step on the device where this says so, as its GradScaler has them do.
        self.adamw.found_inf = None if alive is None else 1 - alive  # type: ignore[attr-defined]
        self.adamw.step()
        if self.muon is not None:
            for weight, matrix in self._shown:
                matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
            self.muon.step(alive=alive)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight, matrix in self._shown:
            weight.grad = matrix.grad = None
        self.adamw.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Moments by kind of optimiser and name of the parameter; rates and decay are the configuration's."""
        return {
            "adamw": self._moments(self.adamw),
            "muon": None if self.muon is None else self._moments(self.muon),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s moments, at the rates, shares and decay of the present configuration.

        torch's own loading takes all of these from the file, and what was changed for the resume is lost.

        Raises:
            AssetError: it is of the other `optimizer.name`, or of other parameters or shapes.
        """
        if (state.get("muon") is None) != (self.muon is None):
            was, now = ("adamw", "muon") if state.get("muon") is None else ("muon", "adamw")
            raise AssetError(
                f"optimiser state: got that of optimizer.name={was}, want {now}'s. Resume with the optimiser "
                "that the run began with"
            )
        self._put_moments(self.adamw, state.get("adamw") or {}, ("step", "exp_avg", "exp_avg_sq"))
        if self.muon is not None:
            self._put_moments(self.muon, state["muon"], ("momentum_buffer",))

    def _moments(self, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
        """Of each parameter by its name; empty where it has none yet."""
        return {self._names[p]: dict(optimizer.state.get(p, {})) for p in parameters_of(optimizer)}

    def _put_moments(
        self, optimizer: torch.optim.Optimizer, moments: Mapping[str, Any], kinds: tuple[str, ...]
    ) -> None:
        """The opposite of `_moments`; a parameter has all `kinds` of them, or none yet."""
        parameters = parameters_of(optimizer)
        names = [self._names[p] for p in parameters]
        wrong = sorted(moments.keys() ^ set(names)) or [
            name
            for name, parameter in zip(names, parameters, strict=True)
            if (moments[name] and moments[name].keys() != set(kinds))
            or any(m.shape != (() if k == "step" else parameter.shape) for k, m in moments[name].items())
        ]
        if wrong:
            raise AssetError(
                f"optimiser state: moments of {', '.join(wrong[:4])} ({len(wrong)} in all) are not "
                "those of this network's parameters. Resume with the code and settings that wrote it, or "
                "start a new run"
            )
        state = {k: moments[name] for k, name in enumerate(names) if moments[name]}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Parameters of one rate and decay together, of both optimisers."""
        return self.adamw.param_groups + ([] if self.muon is None else self.muon.param_groups)


def _groups(parameters: Mapping[float, list[nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """One group for each share of the learning rate."""
    return [
        {"params": part, "weight_decay": weight_decay, "share": share} for share, part in parameters.items()
    ]


def _layers_above(name: str, model: nn.Module) -> int:
    """Blocks of the backbone between a parameter and its output, plus one in blocks and below; 0 outside.

    0 also for what no pretrained ViT has: below 32 blocks the layers of depth, which start at zero, would
    learn at 0.75^33 of the rate, that is never.
    """
    if only_ours(name):
        return 0
    blocks = sum(1 for key, _ in model.named_modules() if re.fullmatch(r"vit\.blocks\.\d+", key))
    if name.startswith(_BELOW_THE_BLOCKS):
        return blocks + 1
    inside = re.match(r"vit\.blocks\.(\d+)\.", name)
    return blocks - int(inside[1]) if inside else 0


def peak_rate(config: RunConfig, world: int) -> float:
    """Peak learning rate on `world` ranks: in proportion to the global batch where a reference is given.

    Linear scaling: Goyal et al. 2017, "Accurate, large minibatch SGD".
    """
    reference = config.optimizer.reference_batch
    return config.optimizer.lr * (1.0 if reference is None else global_batch(config, world) / reference)


def global_batch(config: RunConfig, world: int) -> int:
    """Samples of one optimiser step on all ranks."""
    return config.training.batch_size * config.training.accumulation * world


def describe_rate(config: RunConfig, world: int) -> str:
    """How the peak rate comes about, for the log."""
    t, o = config.training, config.optimizer
    ranks = f"{world} x {t.batch_size} x accumulation {t.accumulation}"
    batch = f"global batch {global_batch(config, world)} = {ranks}"
    if o.reference_batch is None:
        return f"Peak learning rate {o.lr:g} ({o.name}) as given, {batch}"
    peak = peak_rate(config, world)
    return f"Peak learning rate {peak:g} ({o.name}) = {o.lr:g} per {o.reference_batch} samples, {batch}"


def learning_rate(step: int, total_steps: int, peak: float, config: SchedulerConfig) -> float:
    """Learning rate of an optimiser step: linear warm-up, then a straight line down to the final ratio.

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
    return peak * (1 - (1 - FINAL_RATE) * progress)


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

    def state_dict(self) -> dict[str, Any]:
        """Average and number of updates; the decay is the configuration's."""
        return {"average": dict(self._average), "updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s value, whose names and shapes must be the model's."""
        for name, value in self._average.items():
            value.copy_(state["average"][name])
        self.updates = state["updates"]
