"""One optimiser step over all ranks: forward, backward, a check that all ranks share, clip, update, average.

No rank ever steps on a value that another rank would refuse: the loss and the stop flags of a step are summed
over ranks, the gradients are averaged by DDP, and only then is anything decided.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from src.config import RunConfig
from src.errors import TrainingError
from src.losses.loss import HandLoss
from src.runtime.distributed import DistContext
from src.schema import HandBatch, LossTerms, Prediction
from src.training.muon import Share
from src.training.optim import Ema, Optimizer, learning_rate, peak_rate


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did, the same on every rank but for `terms`."""

    loss: float
    """Mean over ranks and accumulated batches."""
    grad_norm: float
    """Global norm before clipping."""
    clipped: bool
    """The norm was above training.clip_grad_norm."""
    learning_rate: float
    """Rate that the step used."""
    peak_rate: float
    """Highest rate of the run."""
    stop_requested: bool
    """A rank was asked to stop."""
    terms: LossTerms
    """Of this rank's last batch."""
    prediction: Prediction
    """Of this rank's last batch."""


def wrap_for_ranks(model: nn.Module, context: DistContext) -> nn.Module:
    """The model in DistributedDataParallel, or itself with one rank.

    Buffers are constants here and are not broadcast in forward passes, and every parameter takes part in
    every step (find_unused_parameters=False).
    """
    if context.world == 1:
        return model
    # torch 2.15 renamed the switch and warns about its old name.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    switch: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
    }
    return DistributedDataParallel(
        model,
        device_ids=[context.device.index] if context.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **switch,
    )


class TrainStep:
    """Holds what changes from step to step: weights, optimiser, average, step counter."""

    def __init__(
        self,
        model: nn.Module,
        loss: HandLoss,
        config: RunConfig,
        context: DistContext,
        total_steps: int,
        *,
        trace_loss: bool = False,
    ) -> None:
        """Wrap the model and start at step 0.

        Args:
            model: bare, on its device.
            loss: what is minimised.
            config: training, optimizer and scheduler.
            context: ranks.
            total_steps: optimiser steps of the whole run.
            trace_loss: log the lines of [Debug 3D Loss] on rank 0.
        """
        self.model = model
        self.wrapped = wrap_for_ranks(model, context)
        self.loss = loss
        self.config = config
        self.context = context
        self.total_steps = total_steps
        ranks = Share(context.rank, context.world, dist.all_reduce) if context.world > 1 else None
        self.optimizer = Optimizer(model, config.optimizer, context.device, ranks)
        self.ema = Ema(model, config.training.ema_decay) if config.training.ema_decay > 0 else None
        self.peak_rate = peak_rate(config, context.world)
        self.step = 0
        self._trace = trace_loss and context.is_main

    def __call__(
        self,
        batches: Sequence[HandBatch],
        *,
        stop: bool = False,
        on_backward: Callable[[HandBatch, Prediction], None] | None = None,
    ) -> StepReport:
        """Do one optimiser step on this rank's batches.

        Args:
            batches: `training.accumulation` batches on this rank's device.
            stop: this rank was asked to stop.
            on_backward: called with each batch and its prediction before its backward pass.

        Raises:
            TrainingError: a loss or gradient of any rank is not finite; on every rank, before the
                weights or the average change; names the rank, the loss terms and the sample indices.
        """
        rate = learning_rate(self.step, self.total_steps, self.peak_rate, self.config.scheduler)
        self.wrapped.train()
        self.optimizer.zero_grad()
        done: list[tuple[HandBatch, Prediction, LossTerms]] = []
        for k, batch in enumerate(batches):
            last = k == len(batches) - 1
            waiting = isinstance(self.wrapped, DistributedDataParallel) and not last
            with self.wrapped.no_sync() if waiting else contextlib.nullcontext():  # type: ignore[operator]
                prediction = self.wrapped(batch)
                terms = self.loss(prediction, batch, trace=self._trace)
                if on_backward is not None:
                    on_backward(batch, prediction)
                (terms.total / len(batches)).backward()
            done.append((batch, prediction, terms))
        loss, stop_requested = self._share(done, stop)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.training.clip_grad_norm)
        grad_norm = float(norm)
        if not (torch.isfinite(torch.tensor(loss)) and torch.isfinite(norm)):
            self._refuse(done, loss, grad_norm)
        self.optimizer.step(rate)
        if self.ema is not None:
            self.ema.update()
        self.step += 1
        _, prediction, terms = done[-1]
        clipped = grad_norm > self.config.training.clip_grad_norm
        return StepReport(loss, grad_norm, clipped, rate, self.peak_rate, stop_requested, terms, prediction)

    def _share(
        self, done: Sequence[tuple[HandBatch, Prediction, LossTerms]], stop: bool
    ) -> tuple[float, bool]:
        """(mean loss over ranks and batches, whether any rank was asked to stop), equal on every rank."""
        mean = torch.stack([terms.total.detach() for _, _, terms in done]).mean()
        shared = torch.stack([mean, torch.full_like(mean, float(stop))])
        if self.context.world > 1:
            dist.all_reduce(shared)
            shared = shared / self.context.world
        loss, asked = shared.tolist()
        return loss, asked > 0

    def _refuse(
        self, done: Sequence[tuple[HandBatch, Prediction, LossTerms]], loss: float, grad_norm: float
    ) -> None:
        """Raise on every rank, with what each rank saw."""
        self.optimizer.zero_grad()
        reports = self.context.gather_objects(_describe(done, self.loss))
        seen = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(reports) if text)
        raise TrainingError(
            f"step {self.step}: loss {loss:g}, gradient norm {grad_norm:g} is not finite ("
            f"{seen or 'losses finite on all ranks, the gradient overflowed in the backward pass'}). "
            "The weights were not changed. Look at these samples, lower optimizer.lr, or resume from "
            "the last checkpoint"
        )


@torch.no_grad()
def _describe(done: Sequence[tuple[HandBatch, Prediction, LossTerms]], loss: HandLoss) -> str:
    """Terms and sample indices of this rank's losses that are not finite, or ''."""
    names: list[str] = []
    indices: list[int] = []
    for batch, prediction, terms in done:
        names += [n for n, v in terms.values.items() if not _finite(v) and n not in names]
        rows = ~torch.isfinite(loss.per_sample(prediction, batch)).cpu()
        indices += batch.sample_index.cpu()[rows].tolist()
    if not names and not indices:
        return ""
    return f"terms {', '.join(names) or 'none'}, sample indices {indices[:10]}"


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())
