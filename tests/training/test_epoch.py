"""The loop of train.py around a network of two layers: what it counts, when it saves, when it validates."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import train
from src.config import AugmentationConfig, LoggingConfig, RunConfig, TrainingConfig, ValidationConfig
from src.schema import HandBatch
from src.training.checkpoints.checkpoint import Progress
from src.training.step import StepReport, TrainStep
from tests.log_lines import log_lines
from tests.training.toy import ALONE, toy_batch, toy_trainer

STEPS = 5
"""Of an epoch."""


class Batches:
    """A loader of STEPS accumulated pairs, other ones in each epoch."""

    died = None

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        self.asked.append((epoch, start_step))

    def __len__(self) -> int:
        return 2 * (STEPS - self.asked[-1][1])

    def __iter__(self) -> Iterator[HandBatch]:
        epoch, start = self.asked[-1]
        return (toy_batch(100 * epoch + k) for k in range(2 * start, 2 * STEPS))


class Watched:
    """What a `Run` is to the loop; everything that happens to it is written down."""

    def __init__(self, *, lag: int, epochs: int = 2, stop_after: int = 99, **training: Any):
        settings = {"accumulation": 2, "num_epochs": epochs, "save_every_steps": 0, **training}
        self.config = RunConfig(
            training=TrainingConfig(**settings),
            augmentation=AugmentationConfig(enabled=False),
            validation=ValidationConfig(every_epochs=2),
            logging=LoggingConfig(every=1),
        )
        self.context = ALONE
        self.trainer = toy_trainer(
            lag=lag, total_steps=epochs * STEPS, accumulation=2, clip_grad_norm=settings["clip_grad_norm"]
        )
        self.progress = Progress()
        self.train_loader = Batches()
        self.stop = SimpleNamespace(received=None)
        self.doctor = SimpleNamespace(stops=None, before=lambda *_: None, after=self._after)
        self.recorder = SimpleNamespace(step=self._step, scalars=self._scalars)
        self.stop_after = stop_after
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.shares: list[float] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.events: list[Any] = []
        self.saver: Any = None
        self.missed: set[int] = set()

    def _after(self, trainer: object, report: StepReport, batches: object) -> None:
        self.losses.append(report.loss)
        self.norms.append(report.grad_norm)
        if len(self.losses) == self.stop_after:
            self.stop.received = "SIGTERM"

    def _step(self, step: int, report: StepReport, share: float, pace: object) -> None:
        assert step == report.step + 1 == len(self.losses), "steps done, over all epochs"
        self.shares.append(share)

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        self.logged.append((step, dict(values)))


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes runs whose saves and validations are events."""

    def make(lag: int, **settings: Any) -> Watched:
        run = Watched(lag=lag, **{"clip_grad_norm": 1e6, **settings})

        def save(trainer: TrainStep, at: Progress, *, best: bool = False, wait: bool = True) -> None:
            assert (trainer, at) == (run.trainer, run.progress)
            run.events.append(("save", trainer.step, at.epoch, at.step_in_epoch, best, wait))

        def validate(_: object) -> bool:
            run.events.append(("validate", run.trainer.step))
            return run.progress.epoch == 1

        run.saver = SimpleNamespace(save=save, tries_again=lambda step: step in run.missed)
        monkeypatch.setattr(train, "validate", validate)
        return run

    return make


LAGS = pytest.mark.parametrize("lag", [0, 1], ids=["CPU", "as on a GPU"])


@LAGS
def test_loss_and_clipped_share_are_of_this_epochs_checked_steps(watched: Any, lag: int) -> None:
    """A sum that goes on into the next epoch doubles the printed loss; and on a GPU the newest step is not
    read yet: counted as not clipped, the share would be too low.
    """
    limit = 8.0
    run, expected = watched(lag, clip_grad_norm=limit), []
    for epoch in range(2):
        assert train.run_epoch(run)
        own = slice(epoch * STEPS, (epoch + 1) * STEPS)
        ((step, values),) = run.logged[epoch:]
        assert (step, values["Train/epoch"]) == ((epoch + 1) * STEPS, epoch)
        assert values["Train/epoch_loss"] == pytest.approx(sum(run.losses[own]) / STEPS), f"epoch {epoch}"
        above = [norm > limit for norm in run.norms[own]]
        read = [above[: step - lag] for step in range(1, STEPS + 1)]
        expected += [sum(part) / max(1, len(part)) for part in read]
    assert 0 < sum(norm > limit for norm in run.norms) < 2 * STEPS, (
        f"the test wants some clipped: {run.norms}"
    )
    assert run.shares == pytest.approx(expected)


def test_epochs_are_saved_before_and_after_their_validation(watched: Any) -> None:
    """Three epochs, a validation every second one and after the last: the best is told."""
    run = watched(0, epochs=3)
    for _ in range(3):
        assert train.run_epoch(run)
    wanted: list[Any] = []
    for k, step in enumerate((5, 10, 15)):
        judged = [("validate", step)] if k else []
        wanted += [("save", step, k, 5, False, False), *judged, ("save", step, k + 1, 0, k == 1, True)]
    assert run.events == wanted
    assert run.train_loader.asked == [(0, 0), (1, 0), (2, 0)]


@LAGS
def test_last_pt_is_written_every_so_many_steps_of_the_run(watched: Any, lag: int) -> None:
    """A run that dies loses save_every_steps at most, also where an epoch has fewer steps than that."""
    run = watched(lag, save_every_steps=4)
    for _ in range(2):
        assert train.train_epoch(run) is not None
        run.progress.epoch, run.progress.step_in_epoch = 1, 0
    assert [event[1] for event in run.events] == [4, 8]
    assert [event[3:] for event in run.events] == [(4, False, False), (3, False, False)], "inside the epoch"
    run = watched(lag, save_every_steps=4)
    run.missed = {5}
    assert train.train_epoch(run) is not None
    assert [event[1] for event in run.events] == [4, 5], "a save that failed is tried again"


@LAGS
def test_a_stop_ends_the_epoch_after_the_step_that_learned_of_it(watched: Any, lag: int) -> None:
    """All ranks leave after the same step, everything counted, saved once, the epoch not printed as done."""
    run = watched(lag, stop_after=2)
    assert not train.run_epoch(run)
    # Asked for before step 3, known to all ranks when step 3 is read: at once, or a step later.
    done = 3 + lag
    assert (run.trainer.step, run.progress.step_in_epoch, run.progress.epoch) == (done, done, 0)
    assert run.progress.loss_sum == pytest.approx(sum(run.losses[:done]))
    assert run.events == [("save", done, 0, done, False, True)]
    assert run.logged == []


@pytest.mark.parametrize(("done", "shown"), [(0, [0, 1, 2]), (1, [2]), (2, [])])
def test_a_resumed_epoch_shows_the_debug_batches_that_were_not_shown(
    watched: Any, done: int, shown: list[int]
) -> None:
    """The first three batches of the first epoch, numbered as batches are and not as optimiser steps."""
    run = watched(0)
    run.progress.step_in_epoch = done
    with log_lines("debug") as lines:
        train.train_epoch(run)
        run.progress.epoch, run.progress.step_in_epoch = 1, 0
        train.train_epoch(run)
    assert [line for line in lines if line.startswith("[")] == [f"[Debug Batch {k}]" for k in shown]
    assert run.train_loader.asked == [(0, done), (1, 0)]
