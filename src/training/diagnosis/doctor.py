"""The doctor beside a training run: looks at few steps, says little, changes nothing.

It looks at the first three batches, at step 50, after each validation and at the step that follows it; on
rank 0, for which the others wait. Of its findings the log shows those that are not OK and one summary line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
from src.training.diagnosis.pictures import DATA
from src.training.diagnosis.samples import Samples
from src.training.diagnosis.table import Finding, summary
from src.training.diagnosis.training import PROBE, SCORES, SETTING, STEP, Setting, probe
from src.training.optim import global_batch
from src.training.step import StepReport, TrainStep

_log = get_logger("doctor")

FIRST_STEPS = 3
LATER_STEP = 50
ENOUGH_STEPS, ENOUGH_SAMPLES = 300, 8000
"""From here on predictions should vary: networks from scratch leave the mean hand after 3000-8000 samples."""
WARM_RATE = 1e-4
"""Sum of learning rates below which a depth branch that starts at zero may still round to nothing."""


def check_data(batches: Sequence[HandBatch], hand: ManoLayer) -> list[Finding]:
    """All checks of some batches of one split together, on any device, for the configuration's hand."""
    return DATA.look(Samples.of(batches, hand))


def trained_enough(steps: int, samples: int) -> bool:
    """Whether predictions should vary after so many optimiser steps on so many samples."""
    return steps >= ENOUGH_STEPS and samples >= ENOUGH_SAMPLES


class Doctor:
    """Watches one run, from rank 0; every rank calls it."""

    def __init__(self, config: RunConfig, context: DistContext, hand: ManoLayer) -> None:
        self.stops: str | None = None
        """Why the run should end, where `logging.doctor_stops` asks for that; None: go on."""
        self._config = config
        self._context = context
        self._hand = hand
        self._active = context.is_main
        self._table = debug_loss_enabled() and context.is_main
        self._batches: list[HandBatch] = []
        self._round: dict[str, Finding] = {}
        self._watched = 0
        self._after_validation = False
        self._rate_sum = 0.0
        self._joints: NDArray[np.floating] | None = None
        """(n, J, 3) wrist-relative predictions of the first scored samples at the last validation, metres."""

    def setting(self, trainer: TrainStep, leaks: Callable[[], Any]) -> None:
        """Look at the set-up before the first step; `leaks` makes a `dataloader.ho3d.leaks.LeakReport`."""
        if self._active:
            native = has_bf16(trainer.context.device)
            self._add(SETTING.look(Setting(self._config, self._context.world, leaks(), native)))

    def after(self, trainer: TrainStep, report: StepReport, batches: Sequence[HandBatch]) -> None:
        """Call after each optimiser step with its report and batches."""
        if self._table and trainer.step % self._config.logging.every == 0:
            for line in loss_table_lines(trainer.step, report.terms):
                _log.info(line)
        self._rate_sum += report.learning_rate
        due = self._watched < FIRST_STEPS or self._after_validation or trainer.step == LATER_STEP
        if not due:
            return
        self._watched += 1
        self._after_validation = False
        if self._active and report.finite:  # on a GPU the next step refuses one that is not
            self._look(trainer, report, batches[-1])
        self._context.barrier("the doctor's look at a step")

    def validation(self, trainer: TrainStep, results: Mapping[Shown, CheckedResult]) -> None:
        """Call after each validation, with the trained weights back in the model."""
        self._after_validation = True
        result = results["rgbd"]
        if not self._active or not result.is_finite:
            return
        assert result.rows is not None, "rank 0 has the rows"
        joints, moved = result.rows.pred_joints_cam_m[:1024], None
        before, self._joints = self._joints, np.asarray(joints - joints[:, :1])
        if before is not None:
            moved = float(np.linalg.norm(self._joints - before, axis=-1).mean()) * 1000
        self._add(SCORES.look(result, moved))
        self._probe(trainer)
        self._close("validation")

    def _look(self, trainer: TrainStep, report: StepReport, batch: HandBatch) -> None:
        """Look at a step's data, at what it did, and at what the network answers after it."""
        self._batches = [*(self._batches if self._watched <= FIRST_STEPS else []), batch]
        self._add(check_data(self._batches, self._hand))
        found = STEP.look(report, batch)
        self._add(found)
        if all(finding.status != "FAIL" for finding in found):
            self._probe(trainer)
        if self._watched >= FIRST_STEPS:
            self._batches = [batch]
            self._close(f"step {trainer.step}")

    def _probe(self, trainer: TrainStep) -> None:
        """Exchange pictures and depths of the last batch that was looked at."""
        seen = probe(trainer.model, self._batches[-1]) if self._batches else None
        if seen is not None:
            samples = trainer.step * global_batch(self._config, self._context.world)
            enough = trained_enough(trainer.step, samples)
            self._add(PROBE.look(seen, enough, self._rate_sum >= WARM_RATE))

    def _add(self, findings: Sequence[Finding]) -> None:
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
