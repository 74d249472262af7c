"""One optimiser step over all ranks: forward, backward, a check that all ranks share, clip, update, average.

No rank ever steps on a value that another rank would refuse: the loss and the stop flags of a step are summed
over ranks, the gradients are averaged by DDP, and only then is anything decided.

On a GPU nothing in a step waits for the device. Whether its values are finite is decided there: a step that
is not changes no weight, nor does any after it, and the host hears of it one step later (`TrainStep.lag`);
the averages that optimiser and EMA keep are then of no use, and the error ends the run before they are saved.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from src.config import RunConfig
from src.errors import TrainingError
from src.losses.loss import HandLoss
from src.runtime.ranks.distributed import DistContext
from src.schema import HandBatch, LossTerms, Prediction
from src.training.muon import Share
from src.training.optim import Ema, Optimizer, learning_rate, peak_rate


class Numbers:
    """A few numbers of a step, on their way from the device to the host."""

    def __init__(self, values: Tensor) -> None:
        """Start the copy; a GPU is not waited for."""
        self._host, self._copied = values, None
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    @cached_property
    def values(self) -> list[float]:
        """The numbers; waits until the device has come that far."""
        if self._copied is not None:
            self._copied.synchronize()
        return [float(value) for value in self._host.tolist()]


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did, the same on every rank but for `terms` and what follows it."""

    step: int
    """Optimiser steps done before it."""
    numbers: Numbers
    """Loss, gradient norm, ranks asked to stop: read only when one of the properties is."""
    clip_norm: float
    """training.clip_grad_norm."""
    learning_rate: float
    """Rate that the step used."""
    batches: Sequence[tuple[HandBatch, Prediction, LossTerms]]
    """All of this rank's."""

    @property
    def terms(self) -> LossTerms:
        """Of this rank's last batch."""
        return self.batches[-1][2]

    @property
    def prediction(self) -> Prediction:
        """Of this rank's last batch."""
        return self.batches[-1][1]

    @property
    def loss(self) -> float:
        """Mean over ranks and accumulated batches."""
        return self.numbers.values[0]

    @property
    def grad_norm(self) -> float:
        """Global norm before clipping."""
        return self.numbers.values[1]

    @property
    def clipped(self) -> bool:
        """The norm was above training.clip_grad_norm."""
        return self.grad_norm > self.clip_norm

    @property
    def stop_requested(self) -> bool:
        """A rank was asked to stop."""
        return self.numbers.values[2] > 0

    @property
    def finite(self) -> bool:
        """The step was one that may be taken."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def wrap_for_ranks(model: nn.Module, context: DistContext, accumulation: int) -> nn.Module:
    """The model in DistributedDataParallel, or itself with one rank.

    Buffers are constants here and are not broadcast in forward passes, and every parameter takes part in
    every step in the same way (find_unused_parameters=False, static_graph=True): DDP starts the exchange of
    gradients from the tensors in the output, which it finds because `Prediction` is registered. Where a step
    accumulates gradients the graph is not declared static: torch fails in a backward pass without exchange.
    """
    if context.world == 1:
        return model
    # Newer torch warns about the switch's old name, and torch 2.11 knows no other.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DistributedDataParallel(
        model,
        device_ids=[context.device.index] if context.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=accumulation == 1,
        **{switch: False},  # type: ignore[arg-type]
    )


class TrainStep:
    """Holds what changes from step to step: weights, optimiser, average, step counter.

    Attributes:
        step: optimiser steps done.
        schedule_step: where the learning rate stands, of `total_steps`: `step`, unless a resume changed how
            many steps an epoch has.
        lag: steps by which the host's checks stay behind: 1 on a GPU, which goes on meanwhile, 0 elsewhere.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: HandLoss,
        config: RunConfig,
        context: DistContext,
        total_steps: int,
        *,
        trace_loss: bool = False,
        lag: int | None = None,
    ) -> None:
        """Wrap the model and start at step 0.

        Args:
            model: bare, on its device.
            loss: what is minimised.
            config: training, optimizer and scheduler.
            context: ranks.
            total_steps: optimiser steps of the whole run.
            trace_loss: log the lines of [Debug 3D Loss] on rank 0.
            lag: see the class; None: as the device has it.
        """
        self.model = model
        self.wrapped = wrap_for_ranks(model, context, config.training.accumulation)
        self.loss = loss
        self.config = config
        self.context = context
        self.total_steps = total_steps
        ranks = Share(context.rank, context.world, dist.all_reduce) if context.world > 1 else None
        self.optimizer = Optimizer(model, config.optimizer, context.device, ranks)
        self.ema = Ema(model, config.training.ema_decay) if config.training.ema_decay > 0 else None
        self.peak_rate = peak_rate(config, context.world)
        self.step = 0
        self.schedule_step = 0
        self.lag = int(context.device.type == "cuda") if lag is None else lag
        self._trace = trace_loss and context.is_main
        # 1 until a step is refused on the device.
        self._alive = torch.ones((), device=context.device)
        self._waiting: deque[StepReport] = deque()
        self._settled: list[StepReport] = []
        self._warm = context.world == 1

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

        Returns:
            the report of this step; reading its numbers waits for the device.

        Raises:
            TrainingError: a loss or gradient of any rank is not finite, in this step or `lag` steps ago; on
                every rank, before the weights changed; names the rank, the loss terms and the sample
                indices.
        """
        report = self._gradients(batches, stop, on_backward)
        if self.lag == 0:
            self._settle(report)
        self.optimizer.step(report.learning_rate, self._alive if self.lag else None)
        if self.ema is not None:
            self.ema.update()
        self.step += 1
        self.schedule_step += 1
        if self.lag:
            self._waiting.append(report)
            if len(self._waiting) > self.lag:
                self._settle(self._waiting.popleft())
        return report

    @property
    def unsettled(self) -> int:
        """Steps that were done and not yet checked."""
        return len(self._waiting)

    def settled(self, *, everything: bool = False) -> list[StepReport]:
        """Reports of steps that were checked since the last call, the oldest first.

        Args:
            everything: wait for the device and check all steps.

        Raises:
            TrainingError: see `__call__`.
        """
        while everything and self._waiting:
            self._settle(self._waiting.popleft())
        found, self._settled = self._settled, []
        return found

    def _gradients(
        self,
        batches: Sequence[HandBatch],
        stop: bool,
        on_backward: Callable[[HandBatch, Prediction], None] | None,
    ) -> StepReport:
        """Forward and backward passes and clipping; the report of the step to come."""
        rate = learning_rate(self.schedule_step, self.total_steps, self.peak_rate, self.config.scheduler)
        clip = self.config.training.clip_grad_norm
        self.wrapped.train()
        if not self._warm:
            self._warm_up(batches[0])
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
        shared = self._share(done, stop)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        numbers = torch.stack([shared[0], norm, shared[1]])
        self._alive = self._alive * numbers[:2].isfinite().all()
        return StepReport(self.step, Numbers(numbers), clip, rate, tuple(done))

    def _warm_up(self, batch: HandBatch) -> None:
        """Two passes whose gradients nobody uses, before the first step of a process that is one of several.

        In the first backward pass DDP exchanges gradients otherwise than later, and by what it saw in the
        second it lays out its buckets anew. Sums in another order have other last bits: a run that was
        resumed would end elsewhere than one that nobody disturbed.
        """
        cuda = [self.context.device] if self.context.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            for _ in range(2):
                self.loss(self.wrapped(batch), batch).total.backward()
        self._warm = True

    def _share(self, done: Sequence[tuple[HandBatch, Prediction, LossTerms]], stop: bool) -> Tensor:
        """(2,) mean loss over ranks and batches, and share of ranks asked to stop; equal on every rank."""
        mean = torch.stack([terms.total.detach() for _, _, terms in done]).mean()
        shared = torch.stack([mean, torch.full_like(mean, float(stop))])
        if self.context.world > 1:
            dist.all_reduce(shared)
            shared = shared / self.context.world
        return shared

    def _settle(self, report: StepReport) -> None:
        """Read a report's numbers and refuse what is not finite."""
        if not report.finite:
            self._refuse(report)
        self._settled.append(report)

    def _refuse(self, report: StepReport) -> None:
        """Raise on every rank, with what each rank saw."""
        self.optimizer.zero_grad()
        self._waiting.clear()
        reports = self.context.gather_objects(_describe(report.batches, self.loss))
        seen = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(reports) if text)
        raise TrainingError(
            f"step {report.step}: loss {report.loss:g}, gradient norm {report.grad_norm:g} is not finite ("
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
        names += [n for n, v in terms.values.items() if not v.isfinite().all() and n not in names]
        rows = ~torch.isfinite(loss.per_sample(prediction, batch)).cpu()
        indices += batch.sample_index.cpu()[rows].tolist()
    if not names and not indices:
        return ""
    return f"terms {', '.join(names) or 'none'}, sample indices {indices[:10]}"
