"""A small embedded data set, made by the commands that users run, and a way to run train.py on it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.rooms.sources import ROOT

TIMEOUT_S = 200


def command(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a Python command line in the project's root."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        check=False,
    )


@dataclass(frozen=True)
class Embedded:
    """The embedded data set and where runs on it go."""

    root: Path
    hand: Path
    runs: Path

    def settings(self, *more: str) -> list[str]:
        """Arguments of a run of seconds on this data."""
        return [
            "--config",
            "config/demo.yaml",
            f"dataset.root_dir={self.root}",
            f"mano.model_path={self.hand}",
            f"logging.runs_dir={self.runs}",
            "dataset.num_workers=0",
            "model.image_size=[64, 64]",
            "training.batch_size=4",
            "validation.batch_size=4",
            *more,
        ]

    def torchrun(
        self, ranks: int, *more: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """train.py under torchrun."""
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        return command(*launch, "train.py", *self.settings(*more), env=env)

    def python(self, *more: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """train.py in one process."""
        return command("train.py", *self.settings(*more), env=env)

    def newest(self, name: str) -> Path:
        """The newest run folder of a name."""
        return sorted(self.runs.glob(f"*-{name}"))[-1]


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Embedded:
    """6 sequences x 8 frames for training, 2 x 4 for evaluation."""
    folder = tmp_path_factory.mktemp("embedded")
    data = Embedded(folder / "HO3D", folder / "STANDIN_RIGHT.pkl", folder / "runs")
    made = command("-m", "src.hand.standin", "--out", str(data.hand))
    assert made.returncode == 0, made.stderr
    made = command(
        "-m", "dataloader.synthetic", "--out", str(data.root), "--sequences", "6", "--frames", "8",
        "--evaluation-sequences", "2", "--cameras", "2", "--seed", "1", "--workers", "2",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return data
