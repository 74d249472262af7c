"""Is this data, this model, this machine fit to train?

    python -m src.tools.doctor --config FILE [--checkpoint CKPT] [--steps 5] [section.key=value ...]
    python -m src.tools.doctor --config FILE --leaks [--within 1 5 25] [section.key=value ...]

The first looks at set-up, training and validation batches, and a few training steps at the peak rate of one
rank; with a checkpoint, whose settings it takes without --config, also at what that network answers. No run
folder and no weights are written; the annotation index and the crop cache are built if they are not there.
The second counts how close the validation split is to training. One line per finding: OK, WARN or FAIL, what
was looked at, what was seen and expected, and where to mend it.
Exit status: 0, 1 after a FAIL, 2 with one line for what kept a check from being made.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

from dataloader.build import build_dataset, build_eval_loader, build_train_loader
from dataloader.ho3d.leaks import LeakReport, find_leaks
from dataloader.ho3d_dataset import HO3DDataset
from src.config import RunConfig
from src.errors import TrainingError
from src.hand.mano import ManoLayer
from src.runtime import log
from src.runtime.command_line import exit_status, make_parser
from src.runtime.machine import configure_torch, has_bf16
from src.runtime.ranks.distributed import setup_distributed, teardown
from src.schema import HandBatch
from src.training.checkpoints import checkpoint as ckpt
from src.training.checkpoints.folder import open_checkpoint
from src.training.checkpoints.settings import command_settings
from src.training.diagnosis.doctor import check_data, trained_enough
from src.training.diagnosis.table import Finding, Status, summary
from src.training.diagnosis.training import PROBE, SETTING, STEP, Setting, probe
from src.training.setup import build_model
from src.training.step import TrainStep

_BATCHES = 3


def examine(config: RunConfig, arguments: argparse.Namespace) -> Iterator[Finding | str]:
    """Set-up, data, a network and a few steps; yields findings, and lines that say what they are about."""
    context = setup_distributed(config.runtime.device, config.runtime.timeout_s)
    configure_torch(config.runtime)
    # Loader processes would outlive the few batches that are wanted.
    config = dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, num_workers=0))
    path = arguments.checkpoint
    hand, model, loss = build_model(config, context, fresh=path is None)
    state = None if path is None else open_checkpoint(path)
    if state is not None:
        ckpt.check_hand(state, hand, path)
        ckpt.load_weights(model, state, path)
    train, val = _splits(config)
    yield train.frames.describe()
    yield val.frames.describe()
    yield from SETTING.look(Setting(config, 1, _leaks(train, val), has_bf16(context.device)))
    loader = build_train_loader(config, train, 0, 1, context.device)
    loader.set_epoch(0)
    batches = list(islice(loader, _BATCHES))
    yield f"Training batches: {len(batches)} of {batches[0].size} samples"
    yield from check_data(batches, hand)
    seen = list(islice(build_eval_loader(config, val, 0, 1, context.device), _BATCHES))
    yield f"Validation batches: {len(seen)} of {seen[0].size} samples"
    yield from check_data(seen, hand)
    steps, samples = (0, 0) if state is None else (state["step"], state["step"] * ckpt.global_batch_of(state))
    if state is not None:
        yield f"Checkpoint: {steps} steps, {samples:,} samples"
        answers = probe(model, seen[-1])
        yield from PROBE.look(answers, trained_enough(steps, samples), True) if answers else ()
    if arguments.steps:
        yield f"{arguments.steps} training steps at the peak rate; nothing is written"
        scheduler = dataclasses.replace(config.scheduler, warmup_fraction=0.0)
        total = max(len(train) * config.training.num_epochs, 10 * arguments.steps)
        trainer = TrainStep(model, loss, dataclasses.replace(config, scheduler=scheduler), context, total)
        yield from _trial(trainer, batches, arguments.steps)


def _splits(config: RunConfig) -> tuple[HO3DDataset, HO3DDataset]:
    """Training and validation."""
    hand = ManoLayer.from_file(config.mano.model_path)
    return build_dataset(config, "train", hand), build_dataset(config, config.validation.split, hand)


def _leaks(train: HO3DDataset, val: HO3DDataset, within: Sequence[int] = ()) -> LeakReport:
    """How much of a validation split training holds."""
    return find_leaks(train.frames.names(), val.frames.names(), within)


def _trial(trainer: TrainStep, batches: Sequence[HandBatch], steps: int) -> Iterable[Finding]:
    """A few steps on some batches; of each finding the last."""
    found: dict[str, Finding] = {}
    for batch in islice(cycle(batches), steps):
        try:
            report = trainer([batch])
        except TrainingError as error:
            where = "optimizer.lr, src/losses/loss.py"
            return [*found.values(), Finding("FAIL", "loss not finite", str(error), "finite", where)]
        found |= {finding.what: finding for finding in STEP.look(report, batch)}
    answers = probe(trainer.model, batches[-1])
    return [*found.values(), *(PROBE.look(answers, False, True) if answers else ())]


def check_leaks(config: RunConfig, arguments: argparse.Namespace) -> Iterator[Finding | str]:
    """How much of the validation split training has all but shown."""
    train, val = _splits(config)
    yield train.frames.describe()
    yield val.frames.describe()
    report = _leaks(train, val, arguments.within)
    yield from leak_findings(report)
    yield leak_meaning(report, config)


def leak_findings(report: LeakReport) -> Iterator[Finding]:
    """The counts of a leak report, one finding each; only scored training frames are a FAIL."""
    counts = {"also in training": report.identical}
    for k, count in report.neighbour.items():
        counts[f"training frame of the same sequence within {k} frame{'s' * (k > 1)}"] = count
    counts["same instant from another camera in training"] = report.other_camera
    counts["motion in training, at any instant from any camera"] = report.same_motion
    for what, count in counts.items():
        share = 100.0 * count / max(1, report.total)
        seen = f"{count:,} of {report.total:,} validation frames ({share:.1f} %)"
        worse: Status = "FAIL" if what == "also in training" else "WARN"
        yield Finding(worse if count else "OK", what, seen, "0", "dataloader/ho3d/split.py, split.by")


def leak_meaning(report: LeakReport, config: RunConfig) -> str:
    """What the counts say about a score on this split."""
    if report.identical:
        return "Scores on this split are worthless: frames that were trained on are scored."
    if report.clean:
        return "By their names, no motion is on both sides: scores measure motions that were never seen."
    if config.validation.split == "val" and config.split.by == "frame":
        return (
            "That is what split.by=frame measures: interpolation between frames and cameras that were seen. "
            "Claims about unseen motions need split.by=sequence."
        )
    return "Motions are on both sides: scores on this split partly measure what was seen in training."


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line -> namespace."""
    parser = make_parser("python -m src.tools.doctor", "Is this data, this model, this machine fit to train?")
    parser.add_argument("--config", type=Path, help="YAML file; default: the checkpoint's own settings")
    parser.add_argument("--checkpoint", type=Path, metavar="CKPT", help="look at a trained network too")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="training steps to try; 0: none")
    parser.add_argument("--leaks", action="store_true", help="only how close validation is to training")
    parser.add_argument(
        "--within", nargs="+", default=["1", "5", "25"], metavar="K", help="distances in frames for --leaks"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that win over the file"
    )
    arguments = parser.parse_intermixed_args(argv)
    # A list without end takes the settings that follow it.
    arguments.overrides += [text for text in arguments.within if "=" in text]
    distances = [text for text in arguments.within if "=" not in text]
    if not all(text.isdecimal() and int(text) > 0 for text in distances) or not distances:
        parser.error(f"--within: got {' '.join(distances) or 'nothing'}, want whole numbers from 1 on")
    arguments.within = [int(text) for text in distances]
    if arguments.config is None and arguments.checkpoint is None:
        parser.error("give --config, or --checkpoint, whose own settings are then used")
    if arguments.steps < 0:
        parser.error(f"--steps: got {arguments.steps}, want 0 or more")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Make the checks that the command line asks for; returns the exit status."""
    arguments = parse_arguments(argv)
    log.configure()
    try:
        return exit_status(lambda: _say(arguments))
    finally:
        teardown()


def _say(arguments: argparse.Namespace) -> int:
    """Print the findings; 1 if one is a FAIL."""
    settings = command_settings(arguments.config, arguments.overrides, evaluate=arguments.checkpoint)
    settings.log()
    found: list[Finding] = []
    for item in (check_leaks if arguments.leaks else examine)(settings.config, arguments):
        if isinstance(item, Finding):
            found.append(item)
        print(item.line() if isinstance(item, Finding) else item, flush=True)
    if not arguments.leaks:
        print(summary(found), flush=True)
    return int(any(finding.status == "FAIL" for finding in found))


if __name__ == "__main__":
    sys.exit(main())
