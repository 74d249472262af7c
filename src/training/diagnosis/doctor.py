"""The doctor beside a training run: looks at few steps, says little, changes nothing.

It looks at the first three batches, at step 50, after each validation and at the step that follows it; on
rank 0, for which the others wait. Of its findings the log shows those that are not OK and one summary line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from src.config import RunConfig
from src.evaluation.evaluator import CheckedResult
from src.hand.mano import ManoLayer
from src.runtime.debug import debug_loss_enabled, loss_table_lines
from src.runtime.log import get_logger
from src.runtime.machine import has_bf16
from src.runtime.ranks.distributed import DistContext
from src.schema import HandBatch, Shown
from src.training.diagnosis.alignment import check_alignment
from src.training.diagnosis.batches import merge, part
from src.training.diagnosis.finding import Finding, summary
from src.training.diagnosis.labels import check_labels
from src.training.diagnosis.network import check_mean, check_output, check_probe, probe
from src.training.diagnosis.pictures import check_pictures
from src.training.diagnosis.scores import check_scores, kept_rows
from src.training.diagnosis.setting import Leaks, check_loaded, check_setting
from src.training.diagnosis.steps import STILL, Snapshot, check_clipped, check_step
from src.training.optim import global_batch
from src.training.step import Numbers, StepReport, TrainStep

_log = get_logger("doctor")

FIRST_STEPS = 3
LATER_STEP = 50
MOST_SAMPLES = 64
"""Samples that the checks of data look at together: enough for their statistics."""
_STILL = frozenset({*STILL, "learning rate zero"})
_SCALE = "depth scale"
_NO_DEPTH = frozenset({"depth all invalid", "depth digits mixed"})


def check_data(batches: Sequence[HandBatch], hand: ManoLayer) -> list[Finding]:
    """All checks of some batches of samples, taken together.

    What rests on labels is looked at only where these are sound: a second FAIL would name a consequence.

    Args:
        batches: of one split, on any device.
        hand: of the configuration.
    """
    share = max(1, MOST_SAMPLES // len(batches))
    samples = merge([batch if batch.size <= share else part(batch, share) for batch in batches])
    found = list(check_labels(samples, hand))
    sound = all(f.status == "OK" for f in found)
    pixels = list(check_pictures(samples, labels_sound=sound))
    wrong = {f.what for f in pixels if f.status != "OK"}
    if sound and not wrong & _NO_DEPTH:
        placed, explained = check_alignment(samples, depth_wrong=_SCALE in wrong)
        if explained:
            pixels = [f for f in pixels if f.what != _SCALE]
        pixels += placed
    return found + pixels


class Doctor:
    """Watches one run, from rank 0; every rank calls it. With `logging.doctor: false` it does nothing."""

    def __init__(self, config: RunConfig, context: DistContext, hand: ManoLayer) -> None:
        self.stops: str | None = None
        """Why the run should end, where `logging.doctor_stops` asks for that; None: go on."""
        self._config = config
        self._context = context
        self._active = config.logging.doctor and context.is_main
        self._table = debug_loss_enabled() and context.is_main
        self._world = context.world
        self._global_batch = global_batch(config, context.world)
        self._hand = hand
        self._batches: list[HandBatch] = []
        self._round: dict[str, Finding] = {}
        self._snapshot: Snapshot | None = None
        self._due = False
        self._watched = 0
        self._after_validation = False
        self._norms: deque[Numbers] = deque(maxlen=LATER_STEP)
        self._rate_sum = 0.0
        self._rows: NDArray[np.floating] | None = None

    def setting(self, trainer: TrainStep, leaks: Callable[[], Leaks]) -> None:
        """Look at splits, rates and loaded weights before the first step."""
        if not self._active:
            return
        native = has_bf16(trainer.context.device)
        found = list(check_setting(self._config, leaks(), world=self._world, native_bf16=native))
        if trainer.step:
            found.append(check_loaded(trainer.model, "the checkpoint"))
        elif self._config.model.pretrained is not None:
            backbone = getattr(trainer.model, "vit", trainer.model)
            found.append(check_loaded(backbone, str(self._config.model.pretrained)))
        self._add(found)

    def before(self, trainer: TrainStep) -> None:
        """Call before each optimiser step: remembers some weights where the step is to be looked at."""
        self._due = self._config.logging.doctor and self._is_due(trainer.step)
        if self._due and self._active:
            self._snapshot = Snapshot.of(trainer.model)
        if self._due:
            self._context.barrier("the doctor's copy of weights")

    def after(self, trainer: TrainStep, report: StepReport, batches: Sequence[HandBatch]) -> None:
        """Call after each optimiser step with its report and batches."""
        if self._table and trainer.step % self._config.logging.every == 0:
            for line in loss_table_lines(trainer.step, report.terms):
                _log.info(line)
        if self._active:
            self._norms.append(report.numbers)
            self._rate_sum += report.learning_rate
        if not self._due:
            return
        self._watched += 1
        probed, self._after_validation = self._after_validation, False
        before, self._snapshot = self._snapshot, None
        # On a GPU the next step refuses such a step; weights that stood still are only its consequence.
        if before is not None and report.finite:
            self._look(trainer, before, report, batches, probed=probed)
        self._context.barrier("the doctor's look at a step")

    def _look(
        self,
        trainer: TrainStep,
        before: Snapshot,
        report: StepReport,
        batches: Sequence[HandBatch],
        *,
        probed: bool,
    ) -> None:
        """Look at a step; `probed`: the network was looked at since the step before."""
        early = self._watched <= FIRST_STEPS
        self._batches = [*(self._batches if early else []), batches[-1]]
        self._add(check_data(self._batches, self._hand))
        self._add(check_output(report.prediction, batches[-1]))
        first = trainer.step == 1
        self._add(check_step(trainer.model, before, report, self._config, first=first))
        if self._watched == 1:
            self._add(check_mean(trainer.loss, report.prediction, batches[-1]))
        clip = self._config.training.clip_grad_norm
        self._add(check_clipped([numbers.values[1] > clip for numbers in self._norms]))
        if early and self._watched < FIRST_STEPS:
            return
        if not probed:
            self._probe(trainer)
        self._batches = self._batches[-1:]
        self._close(f"step {trainer.step}")

    def validation(self, trainer: TrainStep, results: Mapping[Shown, CheckedResult]) -> None:
        """Call after each validation, with the trained weights back in the model."""
        self._after_validation = True
        if not self._active:
            return
        samples = trainer.step * self._global_batch
        self._add(check_scores(results, self._rows, steps=trainer.step, samples=samples))
        self._rows = kept_rows(results["rgbd"])
        self._probe(trainer)
        self._close("validation")

    def _is_due(self, steps_done: int) -> bool:
        return self._watched < FIRST_STEPS or self._after_validation or steps_done + 1 == LATER_STEP

    def _probe(self, trainer: TrainStep) -> None:
        """Exchange pictures and depths of the last batch that was looked at."""
        seen = probe(trainer.model, self._batches[-1]) if self._batches else None
        if seen is not None:
            samples = trainer.step * self._global_batch
            rates = 0.0 if self._round.keys() & _STILL else self._rate_sum
            self._add(check_probe(seen, steps=trainer.step, samples=samples, rate_sum=rates))

    def _add(self, findings: Iterable[Finding]) -> None:
        """Take findings into this round; each that is not OK is logged once a round."""
        for finding in findings:
            known = self._round.get(finding.what)
            self._round[finding.what] = finding
            if finding.status != "OK" and (known is None or known.status != finding.status):
                _log.warning(f"  Doctor {finding.line()}")
            if finding.status == "FAIL" and self._config.logging.doctor_stops and self.stops is None:
                self.stops = f"the doctor ({finding.what}; logging.doctor_stops)"

    def _close(self, when: str) -> None:
        """End a round with its summary."""
        _log.info(f"{summary(self._round.values())} ({when})")
        self._round = {}
