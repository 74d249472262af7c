"""Is this data, this model, this machine fit to train?

    python -m src.tools.doctor --config FILE [--checkpoint CKPT] [--steps 5] [section.key=value ...]
    python -m src.tools.doctor --config FILE --leaks [--within 1 5 25] [section.key=value ...]

The first looks at set-up, training and validation batches, and a few training steps at the peak rate of one
rank; with a checkpoint also at its predictions and its score on the first validation samples. No run folder
and no weights are written; the annotation index and the crop cache are built if they are not there. The
second counts how close the validation split is to training. One line per finding: OK, WARN or FAIL, what was
looked at, what was seen and expected, and where to mend it. --checkpoint alone
also gives the settings.
Exit status: 0, 1 after a FAIL, 2 with one line for what kept a check from being made.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataloader.build import build_dataset, build_eval_loader, build_train_loader
from dataloader.ho3d.leaks import FrameNames, LeakReport, find_leaks
from dataloader.ho3d_dataset import HO3DDataset
from src.config import RunConfig
from src.errors import TrainingError, UTNetError
from src.evaluation.baselines import compute_baselines
from src.evaluation.evaluator import CheckedResult, EvaluationShard, evaluate
from src.hand.mano import ManoLayer
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.runtime import log
from src.runtime.command_line import make_parser
from src.runtime.machine import configure_torch, has_bf16
from src.runtime.ranks.distributed import DistContext, setup_distributed, teardown
from src.schema import HandBatch, LabelTable, Shown
from src.training.checkpoints import checkpoint as ckpt
from src.training.checkpoints.folder import open_checkpoint
from src.training.checkpoints.settings import command_settings
from src.training.diagnosis.doctor import check_data
from src.training.diagnosis.finding import Finding, Status, summary
from src.training.diagnosis.network import check_mean, check_output, check_probe, probe
from src.training.diagnosis.scores import check_scores
from src.training.diagnosis.setting import check_loaded, check_setting
from src.training.diagnosis.steps import Snapshot, check_step
from src.training.setup import build_model
from src.training.step import TrainStep

_SPLIT_CODE = "dataloader/ho3d/split.py, split.by"
_BATCHES = 3
_SCORED = 512
"""Validation samples that a checkpoint is scored on."""

Check = Callable[[RunConfig, argparse.Namespace], Iterator[Finding | str]]
"""Yields findings, and plain lines that say what they are about."""


@dataclasses.dataclass(frozen=True)
class _Patient:
    """What is looked at."""

    config: RunConfig
    context: DistContext
    hand: ManoLayer
    model: UTNet
    loss: HandLoss
    train_set: HO3DDataset
    val_set: HO3DDataset
    state: dict[str, Any] | None
    """Of the checkpoint."""


def examine(config: RunConfig, arguments: argparse.Namespace) -> Iterator[Finding | str]:
    """Set-up, data, network and a few steps; with a checkpoint also its predictions and score."""
    context = setup_distributed(config.runtime.device, config.runtime.timeout_s, config.validation.timeout_s)
    configure_torch(config.runtime)
    # Loader processes would outlive the few batches that are wanted.
    config = dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, num_workers=0))
    hand, model, loss = build_model(config, context, fresh=arguments.checkpoint is None)
    state = None
    if (path := arguments.checkpoint) is not None:
        state = open_checkpoint(path)
        ckpt.check_hand(state, hand, path)
        ckpt.load_weights(model, state, path)
    cpu_hand = ManoLayer.from_file(config.mano.model_path)
    train_set = build_dataset(config, "train", cpu_hand)
    val_set = build_dataset(config, config.validation.split, cpu_hand)
    patient = _Patient(config, context, hand, model, loss, train_set, val_set, state)
    yield train_set.frames.describe()
    yield val_set.frames.describe()
    yield from _setting(patient)
    loader = build_train_loader(config, train_set, 0, 1, context.device)
    loader.set_epoch(0)
    batches = list(islice(loader, _BATCHES))
    yield f"Training batches: {len(batches)} of {batches[0].size} samples"
    yield from check_data(batches, hand)
    seen = list(islice(build_eval_loader(config, val_set, 0, 1, context.device), _BATCHES))
    yield f"Validation batches: {len(seen)} of {seen[0].size} samples"
    yield from check_data(seen, hand)
    if state is not None:
        yield from _checkpoint(patient, batches[-1])
    if arguments.steps:
        yield f"{arguments.steps} training steps at the peak rate; nothing is written"
        yield from _trial(patient, batches, arguments.steps)


def _setting(patient: _Patient) -> Iterator[Finding]:
    """Splits, rates and loaded weights."""
    train, val = patient.train_set, patient.val_set
    report = find_leaks(FrameNames(*train.frames.names()), FrameNames(*val.frames.names()))
    repeated = _repeated(train.frames.labels(), val.frames.labels())
    native = has_bf16(patient.context.device)
    yield from check_setting(patient.config, report, repeated_labels=repeated, native_bf16=native)
    if patient.state is not None:
        yield check_loaded(patient.model, "the checkpoint")
    elif patient.config.model.pretrained is not None:
        yield check_loaded(patient.model.vit, str(patient.config.model.pretrained))


def _repeated(train: LabelTable, val: LabelTable) -> int:
    """Validation samples whose joints are those of a training sample, bit for bit."""
    known = {row.tobytes() for row in np.ascontiguousarray(train.joints_cam_m)}
    return sum(row.tobytes() in known for row in np.ascontiguousarray(val.joints_cam_m))


def _trial(patient: _Patient, batches: Sequence[HandBatch], steps: int) -> Iterator[Finding]:
    """A few steps on some batches: each finding once, as it was at its worst."""
    config = dataclasses.replace(
        patient.config, scheduler=dataclasses.replace(patient.config.scheduler, warmup_fraction=0.0)
    )
    total = config.training.num_epochs * len(patient.train_set) // config.training.batch_size
    trainer = TrainStep(patient.model, patient.loss, config, patient.context, max(total, 10 * steps))
    found: list[Finding] = []
    rates = 0.0
    for k, batch in enumerate(islice(cycle(batches), steps)):
        before = Snapshot.of(patient.model)
        try:
            report = trainer([batch])
        except TrainingError as error:
            yield Finding("FAIL", "loss not finite", str(error), "finite", "optimizer.lr, src/losses/loss.py")
            return
        rates += report.learning_rate
        found += check_output(report.prediction, batch)
        found += check_step(patient.model, before, report, config, first=k == 0)
        if k == 0:
            found += check_mean(patient.loss, report.prediction, batch)
    if (seen := probe(patient.model, batches[-1])) is not None:
        done = steps + (patient.state["step"] if patient.state else 0)
        found += check_probe(seen, steps=done, samples=0, rate_sum=rates)
    yield from _worst(found)


def _worst(findings: Iterable[Finding]) -> list[Finding]:
    """One of each name, those that are not OK first seen first; the last of the others."""
    kept: dict[str, Finding] = {}
    for finding in findings:
        if finding.status == "OK" or finding.what not in kept:
            kept[finding.what] = finding
    return list(kept.values())


@torch.no_grad()
def _checkpoint(patient: _Patient, batch: HandBatch) -> Iterator[Finding | str]:
    """What a trained network answers, and how that scores."""
    state, config, val = patient.state, patient.config, patient.val_set
    assert state is not None
    samples = state["step"] * ckpt.global_batch_of(state)
    yield f"Checkpoint: {state['step']} steps, {samples:,} samples"
    if (seen := probe(patient.model, batch)) is not None:
        yield from check_probe(seen, steps=state["step"], samples=samples, rate_sum=1.0)
        yield from check_output(seen.prediction, seen.batch)
    count = min(len(val), max(1, _SCORED // config.validation.batch_size) * config.validation.batch_size)
    hand = ManoLayer.from_file(config.mano.model_path)
    baselines = compute_baselines(
        patient.train_set.frames.labels(), val.frames.labels(slice(count)), hand
    ).scores()
    patient.model.eval()
    results: dict[Shown, CheckedResult] = {}
    modalities: tuple[Shown, ...] = ("rgbd", "rgb")
    for shown in modalities:
        shard = EvaluationShard(capacity=count)
        loader = build_eval_loader(config, val, 0, 1, patient.context.device, shown)
        for part in islice(loader, -(-count // config.validation.batch_size)):
            prediction = patient.model(part)
            shard.add(
                sample_index=part.sample_index,
                pred_joints_m=part.to_image_camera(prediction.hand.joints_cam_m),
                target_joints_m=part.to_image_camera(part.joints_cam_m),
                conf=part.joints_conf,
                loss=patient.loss.per_sample(prediction, part),
            )
        results[shown] = evaluate(
            shard, num_samples=count, split_hash=f"{val.frames.split.id}, first {count}", baselines=baselines
        )
    yield f"Score on the first {count} of {len(val):,} validation samples"
    yield from check_scores(results, None, steps=state["step"], samples=samples)


def check_leaks(config: RunConfig, arguments: argparse.Namespace) -> Iterator[Finding | str]:
    """How much of the validation split training has all but shown."""
    hand = ManoLayer.from_file(config.mano.model_path)
    train = build_dataset(config, "train", hand)
    val = build_dataset(config, config.validation.split, hand)
    yield train.frames.describe()
    yield val.frames.describe()
    report = find_leaks(FrameNames(*train.frames.names()), FrameNames(*val.frames.names()), arguments.within)
    yield from leak_findings(report)
    yield leak_meaning(report, config)


def leak_findings(report: LeakReport) -> Iterator[Finding]:
    """The counts of a leak report, one finding each."""

    def finding(what: str, count: int, worse: Status) -> Finding:
        share = 100.0 * count / max(1, report.total)
        seen = f"{count:,} of {report.total:,} validation frames ({share:.1f} %)"
        return Finding(worse if count else "OK", what, seen, "0", _SPLIT_CODE)

    yield finding("also in training", report.identical, "FAIL")
    for k, count in report.neighbour.items():
        frames = "frame" if k == 1 else "frames"
        yield finding(f"training frame of the same sequence within {k} {frames}", count, "WARN")
    yield finding("same instant from another camera in training", report.other_camera, "WARN")
    yield finding("motion in training, at any instant from any camera", report.same_motion, "WARN")


def leak_meaning(report: LeakReport, config: RunConfig) -> str:
    """What the counts say about a score on this split."""
    if report.identical:
        return "Scores on this split are worthless: frames that were trained on are scored."
    if report.clean:
        return "No motion is on both sides: scores on this split measure motions that were never seen."
    if config.validation.split == "val" and config.split.by == "frame":
        return (
            "That is what split.by=frame measures: interpolation between frames and cameras that were seen. "
            "Claims about unseen motions need split.by=sequence."
        )
    return "Motions are on both sides: scores on this split partly measure what was seen in training."


CHECKS: dict[str, Check] = {"leaks": check_leaks}
"""Name of the flag -> check; made in this order. Without a flag: `examine`."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line -> namespace."""
    parser = make_parser("python -m src.tools.doctor", "Is this data, this model, this machine fit to train?")
    parser.add_argument("--config", type=Path, help="YAML file; default: the checkpoint's own settings")
    parser.add_argument("--checkpoint", type=Path, metavar="CKPT", help="look at a trained network too")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="training steps to try; 0: none")
    for name, check in CHECKS.items():
        parser.add_argument(f"--{name}", action="store_true", help=f"only this: {check.__doc__}")
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
    asked = [check for name, check in CHECKS.items() if getattr(arguments, name)]
    found: list[Finding] = []
    try:
        settings = command_settings(arguments.config, arguments.overrides, evaluate=arguments.checkpoint)
        settings.log()
        config = settings.config
        for check in asked or [examine]:
            for item in check(config, arguments):
                if isinstance(item, Finding):
                    found.append(item)
                print(item.line() if isinstance(item, Finding) else item, flush=True)
        if not asked:
            print(summary(found), flush=True)
    except (UTNetError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    finally:
        teardown()
    return 1 if any(finding.status == "FAIL" for finding in found) else 0


if __name__ == "__main__":
    sys.exit(main())
