"""Networks trained for equal time on the same data by the same program: what ablation and peers share.

Each arm is `config/learn.yaml` with other settings or another network, the same data, seed and ranks. An arm
whose step is cheaper gets more steps: steps are timed side by side, in turns, before anything is trained. An
arm that has finished at this commit with the very same settings, its number of steps among them, is kept in
runs/ and not trained again; with uncommitted changes none is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import Row, interleaved, report
from dataloader.batches.samplers import SampleKey
from dataloader.build import build_dataset
from dataloader.crop.prepare import prepare
from src.config import ModelConfig, RunConfig
from src.config_file import config_to_yaml, load_config
from src.hand.mano import ManoLayer
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.runtime.ranks.distributed import DistContext
from src.training.checkpoints.checkpoint import commit
from src.training.setup import backbone_dtype
from src.training.step import TrainStep

CONFIG = Path("config/learn.yaml")
RANKS = 2
EPOCHS = 5
TIMED_ROUNDS = 12
TIMEOUT_S = 3 * 3600
SAMPLES_HELP = f"that the first network sees; the cheapest arm may see the data {EPOCHS} times at most"

Network = Callable[[ModelConfig, ManoLayer], nn.Module]


@dataclass(frozen=True)
class Arm:
    """What is trained."""

    settings: tuple[str, ...] = ()
    """Beside those of `CONFIG`."""
    network: Network = UTNet
    program: tuple[str, ...] = ("train.py",)
    """What torchrun starts: train.py, or a module that calls it with the network."""


@dataclass(frozen=True)
class Score:
    """Means over the held-out frames, mm."""

    rgbd_mpjpe: float
    rgbd_pa: float
    rgb_mpjpe: float
    rgb_pa: float
    minutes: float
    """Of training, without validation."""


def compare(title: str, doc: str | None, arms: Mapping[str, Arm], argv: Sequence[str]) -> None:
    """Train the first arm and those that are named on the command line, and report all against the first."""
    first = next(iter(arms))
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{title}", description=doc)
    parser.add_argument("--arms", nargs="*", choices=list(arms), default=list(arms), metavar="ARM")
    parser.add_argument("--samples", type=int, default=36_000, help=SAMPLES_HELP)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=None, help="default: data/learn/wide-seed<seed>")
    arguments = parser.parse_args(argv)
    data = arguments.data or Path(f"data/learn/wide-seed{arguments.seed}")
    shared = (f"seed={arguments.seed}", f"dataset.root_dir={data}")
    batch = RANKS * load_config(CONFIG, shared).training.batch_size
    if arguments.samples < batch * EPOCHS:
        parser.error(f"--samples {arguments.samples}: want at least {batch * EPOCHS}, a step in each epoch")
    if arguments.data is None:
        make = ["make", "learn-data", f"SEED={arguments.seed}"]  # finds whole data if they are there
        subprocess.run(make, check=True, timeout=TIMEOUT_S)
    names = list(dict.fromkeys([first, *arguments.arms]))
    torch.set_num_threads(1)
    seconds = interleaved({name: _step(arms[name], shared) for name in names}, TIMED_ROUNDS)
    try:
        steps = steps_of_arms(seconds, arguments.samples, batch, _epoch_steps(shared, batch))
    except ValueError as error:
        parser.error(str(error))
    scores: dict[str, Score] = {}
    for name in names:
        label = f"{title}-{arguments.seed}-{steps[name]}-" + name.replace(" ", "-").replace(",", "")
        scores[name] = train_arm(arms[name], label, shared, steps[name])
        print(f"{name}: {scores[name]}", flush=True)
    rows = []
    for name, score in scores.items():
        best = scores[first]
        rows += [
            Row(
                f"{name}, {kind} PA {pa:.2f}, MPJPE {mpjpe:.2f}",
                f"{first}: PA {reference:.2f}",
                reference / pa,
                "mm",
            )
            for kind, pa, mpjpe, reference in (
                ("RGB-D", score.rgbd_pa, score.rgbd_mpjpe, best.rgbd_pa),
                ("RGB-only", score.rgb_pa, score.rgb_mpjpe, best.rgb_pa),
            )
        ]
    report(title, rows)


def steps_of_arms(seconds: Mapping[str, float], samples: int, batch: int, there: int) -> dict[str, int]:
    """Steps of each arm in one of EPOCHS epochs, so that all train for the same time.

    Args:
        seconds: of a step, by arm.
        samples: that the first network sees in all epochs.
        batch: samples of a step.
        there: steps in one pass over the data.

    Raises:
        ValueError: an arm needs more than the data give: its epochs would end early, and it would get less
            time than the others.
    """
    first = next(iter(seconds.values()))
    steps = {name: max(1, round(samples * first / s / (batch * EPOCHS))) for name, s in seconds.items()}
    most = max(steps, key=steps.__getitem__)
    if steps[most] > there:
        few = samples * there * 95 // steps[most] // 100  # the next timing may find that step cheaper still
        raise ValueError(
            f"--samples {samples}: '{most}' needs {steps[most]} steps in each of {EPOCHS} epochs, the data "
            f"give {there}. Take at most {few}"
        )
    return steps


def _step(arm: Arm, shared: tuple[str, ...]) -> Callable[[], object]:
    """One training step of an arm on one batch of its data, in this process."""
    config = load_config(CONFIG, (*shared, *arm.settings))
    hand = ManoLayer.from_file(config.mano.model_path)
    data = build_dataset(config, "train", hand, show_progress=False)
    torch.manual_seed(config.seed)
    model = arm.network(config.model, hand)
    model.backbone_dtype = backbone_dtype(config, torch.device("cpu"))
    alone = DistContext(0, 1, 0, torch.device("cpu"), None)
    step = TrainStep(model, HandLoss(config.loss, hand), config, alone, total_steps=10 * TIMED_ROUNDS)
    batch = prepare(data.batch([SampleKey(i) for i in range(config.training.batch_size)]))
    return lambda: step([batch])


def _epoch_steps(shared: tuple[str, ...], batch: int) -> int:
    """Steps of `batch` samples in one pass over the training split."""
    config = load_config(CONFIG, shared)
    hand = ManoLayer.from_file(config.mano.model_path)
    return len(build_dataset(config, "train", hand, show_progress=False)) // batch


def train_arm(arm: Arm, label: str, shared: tuple[str, ...], steps: int) -> Score:
    """Train an arm in two processes, `steps` an epoch, unless its run is there, and read its scores."""
    overrides = [
        *shared,
        *arm.settings,
        f"name={label}",
        f"training.num_epochs={EPOCHS}",
        f"training.max_steps_per_epoch={steps}",
        f"validation.every_epochs={EPOCHS}",
        "runtime.threads=1",
    ]
    wanted, now = load_config(CONFIG, overrides), commit()
    changed = now == "unknown" or now.endswith("+")
    found = None if changed else finished(wanted, now)
    if found is None:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*torchrun, f"--nproc_per_node={RANKS}", *arm.program, "--config", str(CONFIG), *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, timeout=TIMEOUT_S, env=environment)
        found = finished(wanted)
    assert found is not None, f"{label}: the run ended without its last validation"
    return found


def finished(arm: RunConfig, code: str | None = None, runs: Path = Path("runs")) -> Score | None:
    """Scores of the newest finished run of this name and of these settings to the last key.

    A run from before the recipe or the network changed has the same name: its scores would stand beside those
    of another one.

    Args:
        arm: the run's whole configuration.
        code: commit that the run must be of; None: any.
        runs: folder of run folders.
    """
    for folder in sorted(runs.glob(f"*-{arm.name}"), reverse=True):
        settings, meta, scalars = (folder / name for name in ("config.yaml", "meta.json", "scalars.jsonl"))
        if not (settings.is_file() and meta.is_file() and scalars.is_file()):
            continue
        if settings.read_text(encoding="utf-8") != config_to_yaml(arm):
            continue
        if code not in (None, json.loads(meta.read_text(encoding="utf-8"))["commit"]):
            continue
        rows = [json.loads(line) for line in scalars.read_text(encoding="utf-8").splitlines()]
        last = {name: value for row in rows for name, value in row.items()}
        trained = [row["minutes"] for row in rows if "Train/epoch_loss" in row]
        if len(trained) == EPOCHS and "Val/RGB-only/PA-MPJPE" in last:
            print(f"{arm.name}: scores of {folder}", flush=True)
            names = ("Val/MPJPE", "Val/PA-MPJPE", "Val/RGB-only/MPJPE", "Val/RGB-only/PA-MPJPE")
            return Score(*(last[name] for name in names), trained[-1])
    return None
