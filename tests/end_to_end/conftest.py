"""A small embedded data set, made by the commands that users run, and a way to run train.py on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests import processes
from tests.end_to_end.forked import run_ranks
from tests.rooms.sources import ROOT

TIMEOUT_S = 200


def command(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a Python command line in the project's root; TimeoutError, and all of it ended, after TIMEOUT_S."""
    environment = {**os.environ, **(env or {})}
    return processes.run([sys.executable, *arguments], cwd=ROOT, env=environment, timeout_s=TIMEOUT_S)


def _is_setting(text: str) -> bool:
    """Whether an argument is of the form section.key=value."""
    return "=" in text and not text.startswith(("-", "/"))


@dataclass(frozen=True)
class Embedded:
    """The embedded data set and where runs on it go."""

    root: Path
    hand: Path
    runs: Path

    def settings(self, *more: str) -> list[str]:
        """Arguments of a run of seconds on this data.

        A setting in `more` takes the place of one here, or of an earlier one: a command line takes each once.
        """
        settings = [
            f"dataset.root_dir={self.root}",
            f"mano.model_path={self.hand}",
            f"logging.runs_dir={self.runs}",
            "dataset.num_workers=0",
            "model.image_size=[64, 64]",
            "model.refine_iterations=1",  # all parts of the network
            "training.batch_size=4",
            "validation.batch_size=4",
            "validation.pictures=0",  # drawing takes seconds
            *more,
        ]
        last = {text.partition("=")[0]: text for text in settings if _is_setting(text)}
        options = [text for text in settings if not _is_setting(text)]
        return ["--config", "config/demo.yaml", *options, *last.values()]

    def torchrun(
        self, ranks: int, *more: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """train.py under torchrun."""
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        return command(*launch, "train.py", *self.settings(*more), env=env)

    def main(
        self,
        *more: str,
        ranks: int = 1,
        env: dict[str, str] | None = None,
        plant: Callable[[], None] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """What `python train.py` does, or each rank of torchrun, without the start of an interpreter."""
        return run_ranks(ranks, self.settings(*more), env, TIMEOUT_S, plant)

    def bare(self, *more: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
        """`main` without --config: with the settings of the checkpoint that is named, but where to write."""
        return run_ranks(ranks, [f"logging.runs_dir={self.runs}", *more], None, TIMEOUT_S)

    def newest(self, name: str) -> Path:
        """The newest run folder of a name."""
        return sorted(self.runs.glob(f"*-{name}"))[-1]


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Embedded:
    """6 sequences x 8 frames for training, 2 x 4 for evaluation; each test process has its own runs."""
    own = tmp_path_factory.getbasetemp()
    # Test processes have neighbouring folders: the first one makes the data for all.
    shared = (own if worker_id == "master" else own.parent) / "embedded"
    data = Embedded(shared / "HO3D", shared / "STANDIN_RIGHT.pkl", tmp_path_factory.mktemp("runs"))
    with FileLock(f"{shared}.lock", timeout=TIMEOUT_S):
        if not data.root.is_dir():
            _make(data)
    return data


def _make(data: Embedded) -> None:
    made = command("-m", "dataloader.synthetic.hand", "--out", str(data.hand))
    assert made.returncode == 0, made.stderr
    made = command(
        "-m", "dataloader.synthetic", "--out", str(data.root), "--sequences", "6", "--frames", "8",
        "--evaluation-sequences", "2", "--cameras", "2", "--seed", "1", "--workers", "2",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
