"""The system kills a loader process, memory being short: the run saves, says so in a line, and can go on."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

from src.training.step import TrainStep
from tests.end_to_end.conftest import Embedded

BRIEF = ("name=lost", "dataset.num_workers=1", "training.max_steps_per_epoch=6", "training.num_epochs=1")


def without_loaders() -> None:
    """Rank 1 loses its loader processes in its third step."""
    step = TrainStep.__call__

    def call(self: TrainStep, *arguments: Any, **settings: Any) -> Any:
        if self.step == 2 and os.environ["RANK"] == "1":
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
                child.join(60)
        return step(self, *arguments, **settings)

    TrainStep.__call__ = call  # type: ignore[method-assign]


def test_a_lost_loader_process_ends_a_run_that_has_saved(embedded: Embedded) -> None:
    """61 lines of traceback, and what was trained since the last checkpoint was gone."""
    done = embedded.main(*BRIEF, ranks=2, plant=without_loaders)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "DataError" in line]
    assert "Traceback" not in done.stdout + done.stderr
    assert "a loader process was lost: process " in line
    assert "Stopped after step 4, saved. Go on with --resume " in line
    path = line.rpartition(" ")[2]
    assert "Stopped by another rank after step 4, saved" in done.stdout
    again = embedded.main(*BRIEF, "--resume", path, ranks=2)
    assert again.returncode == 0, again.stderr
    assert "Finished 1 epochs" in again.stdout
