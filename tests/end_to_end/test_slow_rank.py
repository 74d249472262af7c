"""A rank that works alone for longer than any collective may take: the others wait, and the run goes on."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src import build
from src.runtime.ranks import meeting
from tests.end_to_end.conftest import Embedded

LIMIT_S = 1.0
WORK_S = 1.3
"""Longer than a collective may wait."""
LIMIT = f"runtime.timeout_s={LIMIT_S}"
BRIEF = ("training.num_epochs=2", "training.max_steps_per_epoch=4")


def slow(*places: str) -> None:
    """Make rank 0 slow at `module:function`s, each the first time that it comes there."""
    for place in places:
        module, _, name = place.partition(":")
        owner: Any = importlib.import_module(module)
        *path, last = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, last, _slowly(getattr(owner, last), place))


def _slowly(work: Callable[..., Any], place: str) -> Callable[..., Any]:
    rested = os.environ["RANK"] != "0"

    @functools.wraps(work)
    def slowly(*arguments: Any, **settings: Any) -> Any:
        nonlocal rested
        if not rested:
            rested = True
            sys.stdout.write(f"slow at {place}\n")
            time.sleep(WORK_S)
        return work(*arguments, **settings)

    return slowly


TRAINING = (
    "src.build:cached_baselines",
    "src.runtime.debug:batch_lines",
    "src.training.recorder:Recorder.step",
    "src.training.diagnosis.doctor:Doctor._close",
    "src.training.checkpoints.checkpoint:save_tensors",
    "src.evaluation.evaluator:_score",
    "src.training.validation:Outcome.write",
    "src.pages.page:Page.write",
)
"""What rank 0 does alone in a training run, in order."""
EVALUATION = (
    "dataloader.build:build_dataset",
    "src.training.mesh_scorer:official_mesh_rows",
    "src.build:official_scores",
)


@pytest.fixture(scope="module")
def trained(embedded: Embedded) -> Path:
    """A run whose rank 0 was slow everywhere; its checkpoint."""
    arguments = ("name=slow", LIMIT, *BRIEF, "logging.every=2")
    done = embedded.main(*arguments, ranks=2, plant=functools.partial(slow, *TRAINING))
    assert [line for line in done.stdout.splitlines() if line.startswith("slow at ")] == [
        f"slow at {place}" for place in TRAINING
    ], done.stderr
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("  Evaluated on 16 samples from all 2 CPU ranks") == 2
    return embedded.newest("slow") / "checkpoints" / "last.pt"


def test_training_waits_for_what_rank_0_does_alone(trained: Path) -> None:
    """A minute of baselines, a slow disk under a checkpoint: NCCL's watchdog would end the run for it."""
    assert trained.is_file()


def test_evaluation_waits_for_what_rank_0_does_alone(embedded: Embedded, trained: Path) -> None:
    """20,137 official meshes take longer on one rank than on another; a first index takes minutes."""
    arguments = ("name=slow-score", LIMIT, "--evaluate", str(trained), "validation.split=evaluation")
    plant = functools.partial(slow, *EVALUATION)
    done = embedded.main(*arguments, ranks=2, plant=plant)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("slow at ") == len(EVALUATION)
    assert "  Evaluated on 16 samples from all 2 CPU ranks" in done.stdout.splitlines()


def stopped_in_the_baselines(folder: Path) -> None:
    """Rank 0, which holds the store, is stopped; it is ended when rank 1 has left or a minute is over."""
    meeting.LEAST_SILENCE_S = 1.0
    process = folder / "rank 1"
    if os.environ["RANK"] == "1":
        process.write_text(str(os.getpid()))
        return

    def stop(*_: Any, **__: Any) -> None:
        stopped = os.getpid()
        if os.fork() == 0:
            with contextlib.suppress(ProcessLookupError):
                for _ in range(600):
                    os.kill(int(process.read_text()), 0)
                    time.sleep(0.1)
                (folder / "rank 1 stayed").touch()
            os.kill(stopped, signal.SIGKILL)
            os._exit(0)
        os.kill(stopped, signal.SIGSTOP)

    build.cached_baselines = stop  # type: ignore[assignment]


def test_a_stopped_rank_is_named_and_nobody_stays(embedded: Embedded, tmp_path: Path) -> None:
    """The wait has no limit, but silence has: the others must say whom they lost, and leave."""
    plant = functools.partial(stopped_in_the_baselines, tmp_path)
    done = embedded.main("name=stopped", LIMIT, *BRIEF, ranks=2, plant=plant)
    assert done.returncode == -signal.SIGKILL
    # Which of the two is seen first hangs on when rank 0 last ran; torch may say before that its poll failed.
    silent = "(the ranks' store has not answered for 1 s: rank 0|no sign of life of rank 0 for 1 s)"
    assert re.search(f"^LostRankError: scoring the baselines: {silent}", done.stderr, re.MULTILINE)
    assert [file.name for file in tmp_path.iterdir()] == ["rank 1"]
