"""Networks trained for equal time on the same data by the same program: what ablation and peers share.

Each arm is `config/learn.yaml` with other settings or another network, the same data and seed. An arm whose
step is cheaper gets more steps; where the data end, all get more epochs. Steps, with the making of their
batch, are timed side by side, in turns, before anything is trained. All are validated at three points.
An arm that has finished at this commit with the very same settings, its number of steps among them, is kept
in runs/ and not trained again, and so are the times, which say how many steps: a comparison that was
interrupted goes on, and one of some arms can be continued with others. With uncommitted changes nothing is
kept.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import re
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
from dataloader.ho3d.split import SplitName
from dataloader.ho3d_dataset import HO3DDataset
from src.config import ModelConfig, RunConfig
from src.config_file import config_to_yaml, load_config
from src.errors import UTNetError
from src.evaluation.evaluator import FILE_ENDS, MODALITY_NAMES, read_per_sample
from src.evaluation.scored import Scored
from src.hand.mano import ManoLayer
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.pages.answers import gain, rows_interval
from src.runtime.files.disk import atomic_write
from src.runtime.machine import worker_count
from src.runtime.ranks.distributed import DistContext
from src.schema import Shown
from src.training.checkpoints.checkpoint import commit
from src.training.run_folder import facts_of
from src.training.setup import backbone_dtype
from src.training.step import TrainStep

CONFIG = Path("config/learn.yaml")
THREADS = worker_count()
TIMED_ROUNDS = 12
POINTS = 3
"""Validations of an arm."""
TIMEOUT_S = 3 * 3600
METRICS = {"mpjpe_mm": "MPJPE", "pa_mpjpe_mm": "PA-MPJPE"}

Network = Callable[[ModelConfig, ManoLayer], nn.Module]


@dataclass(frozen=True)
class Arm:
    """What is trained."""

    settings: tuple[str, ...] = ()
    """Beside those of `CONFIG`."""
    network: Network = UTNet
    program: tuple[str, ...] = ("train.py",)
    """What Python starts: train.py, or a module that calls it with the network."""


@dataclass(frozen=True)
class Plan:
    """How long an arm trains."""

    epochs: int
    steps: int
    """In each of them."""

    @property
    def settings(self) -> tuple[str, ...]:
        """What train.py is told."""
        return (
            f"training.num_epochs={self.epochs}",
            f"training.max_steps_per_epoch={self.steps}",
            f"validation.every_epochs={math.ceil(self.epochs / POINTS)}",
        )


Rows = dict[Shown, Scored]
"""What the held-out frames of one data set scored."""


def compare(title: str, doc: str | None, arms: Mapping[str, Arm], argv: Sequence[str]) -> None:
    """Train the first arm and those that are named on the command line, and report all against the first."""
    first = next(iter(arms))
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{title}", description=doc)
    parser.add_argument("--arms", nargs="+", choices=list(arms), default=list(arms), metavar="ARM")
    help_text = "that the first network sees; cheaper ones see more"
    parser.add_argument("--samples", type=int, default=36_000, help=help_text)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=None, help="default: data/learn/wide-seed<seed>")
    parser.add_argument("--other", type=Path, default=None, help="data set that is scored as well")
    arguments = parser.parse_args(argv)
    data = arguments.data or Path(f"data/learn/wide-seed{arguments.seed}")
    shared = (f"seed={arguments.seed}", f"dataset.root_dir={data}")
    training = load_config(CONFIG, shared).training
    batch, epochs = training.batch_size, training.num_epochs
    if arguments.samples < batch * epochs:  # said now, and not after data are made and steps are timed
        parser.error(f"--samples {arguments.samples}: want at least {batch * epochs}, a step in each epoch")
    if arguments.data is None:
        _run("make", "learn-data", "DOMAIN=wide", f"SEED={arguments.seed}")  # finds whole data if there are
    if arguments.other is not None:  # said now, and not after an arm was trained
        _open(load_config(CONFIG, _elsewhere(arguments.other)), "val")
    names = list(dict.fromkeys([first, *arguments.arms]))
    torch.set_num_threads(THREADS)
    title = f"{title}-{arguments.seed}"
    times = step_times(
        Path(f"runs/bench/{title}-times.json"), data, names, lambda name: _step(arms[name], shared)
    )
    try:
        plans = plans_of_arms(times, arguments.samples, batch, epochs, _epoch_steps(shared, batch))
    except ValueError as error:
        parser.error(str(error))
    scores: dict[Path, dict[str, Rows]] = {}
    for name in names:
        plan = plans[name]
        words = re.findall(r"\w+", name)
        label = "-".join([title, f"{plan.epochs}x{plan.steps}", *words])
        folder = train_arm(arms[name], label, shared, plan)
        for line in curve(folder):
            print(f"{name}: {line}", flush=True)
        scores.setdefault(data, {})[name] = rows_of(folder, _last(plan.epochs))
        if arguments.other is not None:
            scored = score_arm(arms[name], f"{label}-other", folder, arguments.other)
            scores.setdefault(arguments.other, {})[name] = rows_of(scored, "per_sample")
    report(title, [row for where, rows in scores.items() for row in against_first(str(where), rows)])


def against_first(where: str, scores: Mapping[str, Rows]) -> list[Row]:
    """Each arm beside the first: scores, and the first one's lead with its interval over motions.

    A motion that two cameras film is one: the pose that is hard for one is hard for the other.
    """
    table, reference = [], next(iter(scores.values()))
    for name, rows in scores.items():
        for shown, own in rows.items():
            first = reference[shown]
            for metric in ("mpjpe_mm", "pa_mpjpe_mm"):
                mine, base = getattr(own, metric), getattr(first, metric)
                lead = gain(rows_interval(mine - base, first.motions))
                text = f"{where}, {MODALITY_NAMES[shown]}, {METRICS[metric]}: {name} {mine.mean():.2f}"
                against = f"first {base.mean():.2f}, {lead}"
                table.append(Row(text, against, float(base.mean() / mine.mean()), "mm"))
    return table


def step_times(
    path: Path, data: Path, names: Sequence[str], step_of: Callable[[str], Callable[[], object]]
) -> dict[str, float]:
    """Time of a step of each arm, of the first arm's.

    Times that this commit has measured on this machine with these data are taken from `path`: measured
    again, they would differ by the machine's noise, and an arm with another number of steps would be trained
    again.

    Args:
        path: JSON file of times, brought up to date; of one seed and one kind of arms.
        data: what steps are timed with.
        names: the arms, the first one first.
        step_of: makes the step of an arm that is to be timed.
    """
    code = _own_commit()
    made_by = {"commit": code, "machine": platform.node(), "threads": THREADS, "data": str(data)}

    def kept() -> dict[str, float]:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        times: dict[str, float] = content["times"] if code and content.get("made_by") == made_by else {}
        return times

    known = kept()
    first, *others = names
    if missing := [name for name in others if name not in known]:
        seconds = interleaved({name: step_of(name) for name in (first, *missing)}, TIMED_ROUNDS)
        timed = {name: own / seconds[first] for name, own in seconds.items()}
        known = timed | kept()  # another process may have timed its arms meanwhile
        with atomic_write(path) as file:
            file.write(json.dumps({"made_by": made_by, "times": known}, indent=2).encode())
    return {name: known.get(name, 1.0) for name in names}


def _own_commit() -> str | None:
    """The commit that this is, if it is one, unchanged."""
    now = commit()
    return None if now == "unknown" or now.endswith("+") else now


def plans_of_arms(
    times: Mapping[str, float], samples: int, batch: int, epochs: int, there: int
) -> dict[str, Plan]:
    """Epochs and steps of each arm, so that all train for the same time.

    Args:
        times: of a step, by arm, the first network's first; in any unit.
        samples: that the first network sees in all epochs.
        batch: samples of a step.
        epochs: that all have, if no arm's steps need more data.
        there: steps in one pass over the data.

    Raises:
        ValueError: an arm gets no step in an epoch, or the data give none.
    """
    first = next(iter(times.values()))
    steps = {name: samples * first / own / batch for name, own in times.items()}
    if there == 0:
        raise ValueError(f"the data have fewer than {batch} training frames, a step's")
    # One number for all: scores are taken at the same share of the training.
    epochs = max(epochs, math.ceil(max(steps.values()) / there))
    plans = {name: Plan(epochs, round(own / epochs)) for name, own in steps.items()}
    if idle := [name for name, plan in plans.items() if plan.steps == 0]:
        raise ValueError(f"--samples {samples}: '{idle[0]}' has no step in one of {epochs} epochs. Take more")
    return plans


def curve(folder: Path) -> list[str]:
    """A run's validations over its minutes of training, in words."""
    lines, now, validating = [], 0.0, 0.0
    for line in (folder / "scalars.jsonl").read_text(encoding="utf-8").splitlines():
        before, now = now, (row := json.loads(line)).get("minutes", now)
        if any(name.startswith("Val/") for name in row):
            validating += now - before
        minutes = now - validating
        for prefix, name in (("Val", "RGB-D"), ("Val/RGB-only", "RGB-only")):
            if (pa := row.get(f"{prefix}/PA-MPJPE")) is not None:
                mpjpe = row[f"{prefix}/MPJPE"]
                lines.append(f"{minutes:.1f} minutes, {name}, MPJPE {mpjpe:.2f}, PA-MPJPE {pa:.2f} mm")
    return lines


def _step(arm: Arm, shared: tuple[str, ...]) -> Callable[[], object]:
    """One training step of an arm, in this process, each time on the next of some batches of its data."""
    config = load_config(CONFIG, (*shared, *arm.settings))
    hand = ManoLayer.from_file(config.mano.model_path)
    data = _open(config, "train")
    torch.manual_seed(config.seed)
    model = arm.network(config.model, hand)
    model.backbone_dtype = backbone_dtype(config, torch.device("cpu"))
    alone = DistContext(0, 1, 0, torch.device("cpu"), None)
    step = TrainStep(model, HandLoss(config.loss, hand), config, alone, total_steps=10 * TIMED_ROUNDS)
    size = config.training.batch_size
    starts = range(0, size * (TIMED_ROUNDS + 1), size)
    batches = [[SampleKey(i % len(data)) for i in range(start, start + size)] for start in starts]
    for keys in batches:  # from the disk now: whoever comes first would wait for it in all others' place
        data.batch(keys)
    turns = itertools.cycle(batches)
    return lambda: step([prepare(data.batch(next(turns)))])


def _epoch_steps(shared: tuple[str, ...], batch: int) -> int:
    """Steps of `batch` samples in one pass over the training split."""
    return len(_open(load_config(CONFIG, shared), "train")) // batch


def _open(config: RunConfig, split: SplitName) -> HO3DDataset:
    """One side of a data set."""
    hand = ManoLayer.from_file(config.mano.model_path)
    return build_dataset(config, split, hand, show_progress=False)


def train_arm(arm: Arm, label: str, shared: tuple[str, ...], plan: Plan) -> Path:
    """Train an arm as planned, unless its run is there; the run's folder."""
    overrides = [*shared, *arm.settings, *plan.settings, f"name={label}", f"runtime.threads={THREADS}"]
    wanted, now = load_config(CONFIG, overrides), _own_commit()
    found = None if now is None else finished(wanted, now)
    if found is None:
        _start(arm, "--config", str(CONFIG), *overrides)
        found = finished(wanted)
    assert found is not None, f"{label}: the run ended without its last validation"
    print(f"{label}: {found}", flush=True)
    return found


def score_arm(arm: Arm, label: str, trained: Path, data: Path) -> Path:
    """Score an arm's last weights on the held-out frames of another data set; the folder of the scores."""
    checkpoint = str(trained / "checkpoints" / "last.pt")
    _start(arm, "--evaluate", checkpoint, f"name={label}", *_elsewhere(data))
    return max(Path("runs").glob(f"*-{label}"))


def _elsewhere(data: Path) -> tuple[str, ...]:
    """Settings of a data set that is scored once."""
    return f"dataset.root_dir={data}", "dataset.cache=off"


def _start(arm: Arm, *arguments: str) -> None:
    """Run train.py, or what stands for it."""
    _run(sys.executable, *arm.program, *arguments)


def _run(*command: str) -> None:
    """Run a program to its end, with as many threads as were timed.

    Raises:
        UTNetError: it failed, and has said why; or it takes longer than `TIMEOUT_S`.
    """
    try:
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
        subprocess.run(command, check=True, timeout=TIMEOUT_S, env=environment)
    except subprocess.CalledProcessError as error:
        said = "its message stands above; arms that have finished are kept, so call this again"
        raise UTNetError(f"{command[0]} {command[1]} ended with status {error.returncode}: {said}") from error
    except subprocess.TimeoutExpired as error:
        raise UTNetError(f"{command[0]} {command[1]} was stopped after {TIMEOUT_S} s") from error


def rows_of(folder: Path, stem: str) -> Rows:
    """What a run's per-sample files say."""
    return {shown: Scored.of_file(read_per_sample(_rows_file(folder, stem, shown))) for shown in FILE_ENDS}


def _rows_file(folder: Path, stem: str, shown: Shown) -> Path:
    """A run's per-sample file."""
    return folder / "val" / f"{stem}{FILE_ENDS[shown]}.npz"


def _last(epochs: int) -> str:
    """Stem of the per-sample files of the last validation."""
    return f"epoch_{epochs - 1:04d}"


def finished(arm: RunConfig, code: str | None = None, runs: Path = Path("runs")) -> Path | None:
    """The newest finished run of this name and of these settings to the last key.

    A run from before the recipe or the network changed has the same name: its scores would stand beside those
    of another one.

    Args:
        arm: the run's whole configuration.
        code: commit that the run must be of; None: any.
        runs: folder of run folders.
    """
    for folder in sorted(runs.glob(f"*-{arm.name}"), reverse=True):
        settings = folder / "config.yaml"
        validated = [_rows_file(folder, _last(arm.training.num_epochs), shown) for shown in FILE_ENDS]
        if not all(path.is_file() for path in (settings, *validated)):
            continue
        if settings.read_text(encoding="utf-8") != config_to_yaml(arm):
            continue
        if code in (None, facts_of(folder).get("commit")):
            return folder
    return None
