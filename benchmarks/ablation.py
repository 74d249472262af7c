"""What each part of UTNet brings on motions that it has never seen, for equal time of training.

    python -m benchmarks.ablation [--arms "no depth" ...] [--samples 36000] [--seed 0] [--data DIR]

Each arm is `config/learn.yaml` with one part changed, the same data, seed and ranks. An arm whose step is
cheaper gets more steps: steps are timed side by side, in turns, before anything is trained. Writes the data
if they are not there; prints RGB-D and RGB-only scores on the held-out motions and their ratios to the full
network's. An arm that has finished at this commit with the very same settings, its number of steps among
them, is kept in runs/ and not trained again; with uncommitted changes none is. "no depth" computes its depth
branch all the same.
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

from benchmarks.common import Row, interleaved, report
from dataloader.batches.samplers import SampleKey
from dataloader.build import build_dataset
from dataloader.crop.prepare import prepare
from src.config import RunConfig
from src.config_file import config_to_yaml, load_config
from src.hand.mano import ManoLayer
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.runtime.ranks.distributed import DistContext
from src.training.checkpoints.checkpoint import commit
from src.training.setup import backbone_dtype
from src.training.step import TrainStep

FULL = "full"
ARMS: dict[str, tuple[str, ...]] = {
    FULL: (),
    "no depth": ("dataset.p_drop_depth=1",),
    "no modality sampling": ("dataset.p_drop_depth=0",),
    "no refinement": ("model.refine_iterations=0",),
    "refinement without depth residual": ("model.depth_residual=false",),
    "patch embedding instead of the stem": ("model.stem=patch",),
    "direct joints instead of the hand model": ("model.joints=direct",),
    "AdamW instead of Muon, rate 8e-4": ("optimizer.name=adamw", "optimizer.lr=8e-4"),
    "no canonical joints in the loss": ("loss.joints_canonical=0",),
    "no heat maps in the loss": ("loss.heatmap=0",),
    "no average of the weights": ("training.ema_decay=0",),
    "no calm last epoch": ("augmentation.calm_share=0",),
    "scenes turned by up to 25 degrees": ("augmentation.view_deg=25",),
}
CONFIG = Path("config/learn.yaml")
RANKS = 2
EPOCHS = 5
TIMED_ROUNDS = 12
TIMEOUT_S = 3 * 3600
SAMPLES_HELP = f"that the full network sees; the cheapest arm may see the data {EPOCHS} times at most"


@dataclass(frozen=True)
class Score:
    """Means over the held-out frames, mm."""

    rgbd_mpjpe: float
    rgbd_pa: float
    rgb_mpjpe: float
    rgb_pa: float
    minutes: float
    """Of training, without validation."""


def main(argv: Sequence[str] = ()) -> None:
    """Train the arms and compare them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--samples", type=int, default=36_000, help=SAMPLES_HELP)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=None, help="default: data/learn/seed<seed>")
    arguments = parser.parse_args(argv)
    data = arguments.data or Path(f"data/learn/seed{arguments.seed}")
    shared = (f"seed={arguments.seed}", f"dataset.root_dir={data}")
    batch = RANKS * load_config(CONFIG, shared).training.batch_size
    if arguments.samples < batch * EPOCHS:
        parser.error(f"--samples {arguments.samples}: want at least {batch * EPOCHS}, a step in each epoch")
    _write_data(data, arguments.seed)
    names = list(dict.fromkeys([FULL, *arguments.arms]))
    torch.set_num_threads(1)
    seconds = interleaved(
        {name: _step(load_config(CONFIG, (*shared, *ARMS[name]))) for name in names}, TIMED_ROUNDS
    )
    try:
        steps = steps_of_arms(seconds, arguments.samples, batch, _epoch_steps(shared, batch))
    except ValueError as error:
        parser.error(str(error))
    scores: dict[str, Score] = {}
    for name in names:
        scores[name] = _train(name, shared, steps[name])
        print(f"{name}: {scores[name]}", flush=True)
    _table(names, seconds, scores)
    full = scores[FULL]
    rows = [
        Row(
            f"{name}, {kind} PA {getattr(score, attribute):.2f}, MPJPE {getattr(score, other):.2f}",
            f"{FULL}: PA {getattr(full, attribute):.2f}, MPJPE {getattr(full, other):.2f}",
            getattr(full, attribute) / getattr(score, attribute),
            "mm",
        )
        for name, score in scores.items()
        for kind, attribute, other in (
            ("RGB-D", "rgbd_pa", "rgbd_mpjpe"),
            ("RGB-only", "rgb_pa", "rgb_mpjpe"),
        )
    ]
    report("ablation", rows)


def steps_of_arms(seconds: Mapping[str, float], samples: int, batch: int, there: int) -> dict[str, int]:
    """Steps of each arm in one of EPOCHS epochs, so that all train for the same time.

    Args:
        seconds: of a step, by arm.
        samples: that the full network sees in all epochs.
        batch: samples of a step.
        there: steps in one pass over the data.

    Raises:
        ValueError: an arm needs more than the data give: its epochs would end early, and it would get less
            time than the others.
    """
    steps = {
        name: max(1, round(samples * seconds[FULL] / s / (batch * EPOCHS))) for name, s in seconds.items()
    }
    most = max(steps, key=steps.__getitem__)
    if steps[most] > there:
        few = samples * there * 95 // steps[most] // 100  # the next timing may find that step cheaper still
        raise ValueError(
            f"--samples {samples}: '{most}' needs {steps[most]} steps in each of {EPOCHS} epochs, the data "
            f"give {there}. Take at most {few}"
        )
    return steps


def _write_data(data: Path, seed: int) -> None:
    """The data of `make learn`, which finds them whole if they are."""
    subprocess.run(["make", "learn-data", f"SEED={seed}", f"LEARN={data}"], check=True, timeout=TIMEOUT_S)


def _step(config: RunConfig) -> Callable[[], object]:
    """One training step of an arm on one batch of its data, in this process."""
    hand = ManoLayer.from_file(config.mano.model_path)
    data = build_dataset(config, "train", hand, show_progress=False)
    torch.manual_seed(config.seed)
    model = UTNet(config.model, hand)
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


def _train(name: str, shared: tuple[str, ...], steps: int) -> Score:
    """Train an arm in two processes, `steps` an epoch, unless its run is there, and read its scores."""
    config = load_config(CONFIG, shared)
    label = f"ablation-{config.seed}-{steps}-" + name.replace(" ", "-").replace(",", "")
    overrides = [
        *shared,
        *ARMS[name],
        f"name={label}",
        f"training.num_epochs={EPOCHS}",
        f"training.max_steps_per_epoch={steps}",
        f"validation.every_epochs={EPOCHS}",
        "runtime.threads=1",
    ]
    arm, now = load_config(CONFIG, overrides), commit()
    changed = now == "unknown" or now.endswith("+")
    found = None if changed else finished(arm, now)
    if found is None:
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={RANKS}",
        ]
        subprocess.run(
            [*torchrun, "train.py", "--config", str(CONFIG), *overrides],
            check=True,
            timeout=TIMEOUT_S,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        found = finished(arm)
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
        settings, meta = folder / "config.yaml", folder / "meta.json"
        if not settings.is_file() or settings.read_text(encoding="utf-8") != config_to_yaml(arm):
            continue
        if not meta.is_file() or code not in (None, json.loads(meta.read_text(encoding="utf-8"))["commit"]):
            continue
        path = folder / "scalars.jsonl"
        rows = (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if path.is_file()
            else []
        )
        last = {name: value for row in rows for name, value in row.items()}
        trained = [row["minutes"] for row in rows if "Train/epoch_loss" in row]
        if len(trained) == EPOCHS and "Val/RGB-only/PA-MPJPE" in last:
            print(f"{arm.name}: scores of {folder}", flush=True)
            return Score(
                last["Val/MPJPE"],
                last["Val/PA-MPJPE"],
                last["Val/RGB-only/MPJPE"],
                last["Val/RGB-only/PA-MPJPE"],
                trained[-1],
            )
    return None


def _table(names: Sequence[str], seconds: dict[str, float], scores: dict[str, Score]) -> None:
    """A table for reading, in Markdown."""
    print("| arm | RGB-D MPJPE / PA | RGB-only MPJPE / PA | a step | minutes |")
    print("|---|---|---|---|---|")
    for name in names:
        s = scores[name]
        print(
            f"| {name} | {s.rgbd_mpjpe:.2f} / {s.rgbd_pa:.2f} | {s.rgb_mpjpe:.2f} / {s.rgb_pa:.2f} | "
            f"{seconds[name] / seconds[FULL]:.2f} | {s.minutes:.1f} |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
