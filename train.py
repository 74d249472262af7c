"""Train UTNet on HO3D and, after every epoch, validate it over every sample exactly once.

    torchrun --nproc_per_node=4 train.py [--config FILE] [--resume auto|PATH] [section.key=value ...]
    torchrun --nproc_per_node=4 train.py --evaluate PATH
    python train.py --config config/demo.yaml

Without --config, --evaluate PATH and --resume PATH work with the settings that the checkpoint keeps.
Without torchrun it is one process, on a GPU if there is one, else on the CPU. A wrong configuration, missing
data or a step that must not be taken prints one line and leaves with status 2.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import src.runtime.ranks.parent  # noqa: F401  (looks who started us, before all that takes seconds)

import torch

from dataloader.batches.loader import DeviceLoader
from dataloader.build import build_eval_loader, build_splits, build_train_loader
from dataloader.crop.augment import epoch_notes
from dataloader.ho3d.leaks import FrameNames, find_leaks
from dataloader.ho3d_dataset import HO3DDataset
from src.config import RunConfig
from src.config_file import config_to_yaml
from src.errors import DataError, UTNetError
from src.evaluation.baselines import BaselineRows, cached_baselines
from src.evaluation.evaluator import CheckedResult, EvaluationShard, evaluate
from src.hand.mano import ManoLayer
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.runtime import log
from src.runtime.command_line import make_parser
from src.runtime.complaint import complaint
from src.runtime.debug import DebugBatches, debug_loss_enabled, trace_enabled
from src.runtime.machine import configure_torch, require_short_temporary_folder
from src.runtime.outlet import optional
from src.runtime.pace import PaceMeter
from src.runtime.progress import progress
from src.runtime.ranks.distributed import DistContext, abandon, setup_distributed, teardown
from src.runtime.ranks.launch import rank_from_environment, starts_again
from src.runtime.ranks.meeting import lost_peer
from src.runtime.seed import seed_everything
from src.runtime.signals import StopRequest, interrupt_on_stop
from src.schema import Shown
from src.training.checkpoints import checkpoint as ckpt
from src.training.checkpoints.folder import FOLDER, LAST, best_so_far, open_checkpoint
from src.training.checkpoints.saver import Saver
from src.training.checkpoints.settings import DEFAULT_CONFIG, Settings, command_settings
from src.training.diagnosis.doctor import Doctor
from src.training.mesh_scorer import MeshScorer
from src.training.optim import describe_rate, global_batch
from src.training.picture_page import PicturePage
from src.training.recorder import Recorder
from src.training.run_folder import open_run_folder
from src.training.setup import build_model
from src.training.step import TrainStep
from src.training.validation import (
    Outcome,
    is_best,
    official_scores,
    report,
    require_finite,
    require_selectable,
)

_log = log.get_logger("train")


@dataclass(frozen=True)
class Scoring:
    """What a validation works with beside the weights."""

    config: RunConfig
    context: DistContext
    dataset: HO3DDataset
    loaders: dict[Shown, DeviceLoader]
    meshes: MeshScorer
    baselines: BaselineRows | None
    """On rank 0."""


@dataclass(frozen=True)
class Judged:
    """A checkpoint that is to be scored."""

    hand: ManoLayer
    model: UTNet
    loss: HandLoss
    state: dict[str, Any]
    scoring: Scoring


@dataclass
class Run:
    """What the loop of a run works with."""

    config: RunConfig
    context: DistContext
    run_dir: Path
    recorder: Recorder
    model: UTNet
    trainer: TrainStep
    train_set: HO3DDataset
    train_loader: DeviceLoader
    scoring: Scoring
    progress: ckpt.Progress
    saver: Saver
    stop: StopRequest
    doctor: Doctor


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line -> namespace."""
    parser = make_parser(None, "Train UTNet on HO3D, or evaluate a checkpoint.")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"YAML file of the run; default: the settings kept in the checkpoint, or {DEFAULT_CONFIG}",
    )
    parser.add_argument(
        "--resume", metavar="auto|PATH", help="go on from a checkpoint; auto: the newest of this name"
    )
    parser.add_argument("--evaluate", type=Path, metavar="PATH", help="only test() this checkpoint")
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and leave"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that win over all others"
    )
    arguments = parser.parse_intermixed_args(argv)
    if arguments.resume not in (None, "", "auto"):  # its folders tell the run, from wherever it is named
        arguments.resume = str(Path(arguments.resume).absolute())
    if arguments.resume and arguments.evaluate:
        parser.error("--resume trains on and --evaluate does not train: give one of them")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    arguments = parse_arguments(argv)
    log.configure(rank=rank_from_environment())
    try:
        settings = command_settings(
            arguments.config,
            arguments.overrides,
            evaluate=arguments.evaluate,
            resume=arguments.resume,
            rank=rank_from_environment(),
        )
        if arguments.print_config:
            print(config_to_yaml(settings.config), end="")
            return 0
        status = run_command(settings, arguments)
    except (UTNetError, OSError, RuntimeError) as error:
        if trace_enabled() or (isinstance(error, RuntimeError) and not lost_peer(error)):
            raise
        if (text := complaint(error)) is not None:
            print(text, file=sys.stderr, flush=True)
        abandon(status=2)
        status = 2
    except KeyboardInterrupt as signal:
        if rank_from_environment() == 0:
            print(f"Stopped by {signal or 'SIGINT'}, nothing was saved", file=sys.stderr, flush=True)
        abandon(status=2)
        status = 2
    teardown()
    return status


def run_command(settings: Settings, arguments: argparse.Namespace) -> int:
    """Join the ranks and do what the command line asks; returns the exit status."""
    config = settings.config
    if not arguments.evaluate:
        require_selectable(config.validation)
    require_short_temporary_folder()
    interrupt_on_stop()
    context = setup_distributed(config.runtime.device, config.runtime.timeout_s, config.validation.timeout_s)
    configure_torch(config.runtime)
    with context.naming_the_lost():
        if arguments.evaluate:
            status = run_evaluation(settings, context, arguments.evaluate)
        else:
            status = run_training(settings, context, arguments.resume)
        context.finish()
    return status


def run_training(settings: Settings, context: DistContext, resume: str | None) -> int:
    """Train from scratch or from a checkpoint; 0 when finished, 3 when a signal ended it after saving."""
    config = settings.config
    with open_run_folder(config, context, resume) as folder:
        settings.log()
        run_dir = folder.path
        run = build_run(config, context, run_dir, folder.source)
    run.stop.install()
    finished = True
    try:
        while finished and run.progress.epoch < config.training.num_epochs:
            finished = run_epoch(run)
    finally:
        run.recorder.close()
    if not finished:
        saved = f"after step {run.trainer.step}, saved. Go on with --resume {run.saver.folder / LAST}"
        if run.train_loader.died:
            raise DataError(f"{run.train_loader.died}. Stopped {saved}")
        _log.info(f"Stopped by {run.stop.received or run.doctor.stops or 'another rank'} {saved}")
        if starts_again():
            _log.info("Leaving with status 0: after any other, torchrun --max-restarts would start it again")
            return 0
        return 3
    best = f"best MPJPE {run.progress.best_mpjpe_mm:.3f} mm (epoch {run.progress.best_epoch})"
    if run.progress.best_epoch < 0:
        best = "no epoch was chosen as the best"
    _log.info(f"Finished {config.training.num_epochs} epochs, {best}. Run folder: {run_dir}")
    return 0


def run_evaluation(settings: Settings, context: DistContext, path: Path) -> int:
    """Score a checkpoint on validation.split and write the per-sample file.

    Raises:
        TrainingError: a score is not finite; all that is said of it is written by then.
    """
    config = settings.config
    with open_run_folder(config, context, None) as folder:
        settings.log()
        judged = build_evaluation(config, context, path)
    scoring, state, files = judged.scoring, judged.state, folder.path / "val"
    recorder = Recorder(folder.path, config, context)
    facts = {"evaluated": str(path), "split": scoring.dataset.frames.describe()}
    recorder.write_setup(config, judged.hand, context, facts)
    results = score(judged.model, judged.loss, scoring)
    report(results, scoring.dataset.frames.split_line, context)
    for shown, result in results.items():
        recorder.validation(state["step"], shown, result)
    if (outcome := outcome_of(results, scoring)) is not None:
        outcome.log_summary()
        for shown, file in outcome.write(files, "per_sample").items():
            label = "Per-sample results" if shown == "rgbd" else "Per-sample results without depth"
            _log.info(f"{label}: {file}")
        _log.info(f"Report: {files / 'per_sample.md'}")
    recorder.close()
    require_finite(results, files)
    return 0


def build_evaluation(config: RunConfig, context: DistContext, path: Path) -> Judged:
    """A checkpoint's network and what it is scored on."""
    hand, model, loss = build_model(config, context, fresh=False)
    state = context.together(
        "reading the checkpoint", lambda: open_checkpoint(path, look_around=context.is_main)
    )
    context.together("checking the hand model", lambda: ckpt.check_hand(state, hand, path))
    context.together("loading the weights", lambda: ckpt.load_weights(model, state, path))
    train_set, val_set = build_splits(config, context, hand)
    ckpt.log_changes(state["config"], config, ("dataset", "split", "model"))
    if state["split_hash"] != train_set.frames.split.id:
        _log.warning(
            "WARNING: the checkpoint was trained on another training split: it may have seen these samples"
        )
    ckpt.log_labels(state["progress"].get("labels_hash", ""), train_set.frames.index.labels_sha256, path)
    _log.info(f"Evaluating {ckpt.named(state, path)}")
    scoring = build_scoring(config, context, train_set, val_set, hand)
    return Judged(hand, model, loss, state, scoring)


def build_scoring(
    config: RunConfig, context: DistContext, train_set: HO3DDataset, val_set: HO3DDataset, hand: ManoLayer
) -> Scoring:
    """Loaders, mesh scores, and what predictors that learned nothing score (computed by rank 0)."""

    def baselines() -> BaselineRows | None:
        if not context.is_main:
            return None
        train, val, place = (
            train_set.frames.labels(),
            val_set.frames.labels(),
            val_set.frames.index.derived.folder.parent,
        )
        return cached_baselines(train, val, hand, cache_dir=place, show_progress=True)

    shown: tuple[Shown, ...] = ("rgbd", "rgb") if config.validation.rgb_only else ("rgbd",)
    rank, world, device = context.rank, context.world, context.device
    return Scoring(
        config=config,
        context=context,
        dataset=val_set,
        loaders={as_: build_eval_loader(config, val_set, rank, world, device, as_) for as_ in shown},
        meshes=MeshScorer(hand, val_set.frames, official=config.validation.split == "evaluation"),
        baselines=context.together("scoring the baselines", baselines),
    )


def build_run(config: RunConfig, context: DistContext, run_dir: Path, source: Path | None) -> Run:
    """Everything that training needs, in the state of the checkpoint if there is one."""
    hand, model, loss = build_model(config, context, fresh=source is None)
    train_set, val_set = build_splits(config, context, hand)
    rank, world, device = context.rank, context.world, context.device
    train_loader = build_train_loader(config, train_set, rank, world, device)
    seed_everything(config.seed, rank)
    total_steps = config.training.num_epochs * len(train_loader) // config.training.accumulation
    trainer = TrainStep(model, loss, config, context, total_steps, trace_loss=debug_loss_enabled())
    position = ckpt.Progress()
    if source is not None:
        position = context.together(
            "resuming",
            lambda: ckpt.restore(source, trainer, config, hand, train_set.frames.split.id, context),
        )
        best = best_so_far(run_dir / FOLDER, val_set.frames.split.id, context)
        position.best_mpjpe_mm, position.best_epoch = best
        _log.info(f"Resumed {source} at epoch {position.epoch}, step {trainer.step}")
        ckpt.log_labels(position.labels_hash, train_set.frames.index.labels_sha256, source)
    position.judged_by, position.labels_hash = val_set.frames.split.id, train_set.frames.index.labels_sha256
    recorder = Recorder(run_dir, config, context, resume_step=trainer.step)
    parameters = sum(p.numel() for p in model.parameters())
    _log.info(
        f"UTNet {config.model.preset}: {parameters / 1e6:.2f} M parameters, {world} {context.devices_label}, "
        f"global batch {global_batch(config, world)}, {total_steps} steps, backbone in {model.backbone_dtype}"
    )
    _log.info(describe_rate(config, world))
    _log.info(f"Run folder: {run_dir}")
    facts = {
        "train": train_set.frames.describe(),
        "val": val_set.frames.describe(),
        "parameters": parameters,
        "global_batch": global_batch(config, world),
    }
    recorder.write_setup(config, hand, context, facts)
    doctor = Doctor(config, context, hand)
    doctor.setting(
        trainer,
        lambda: find_leaks(FrameNames(*train_set.frames.names()), FrameNames(*val_set.frames.names())),
    )
    return Run(
        config=config,
        context=context,
        run_dir=run_dir,
        recorder=recorder,
        model=model,
        trainer=trainer,
        train_set=train_set,
        train_loader=train_loader,
        scoring=build_scoring(config, context, train_set, val_set, hand),
        progress=position,
        saver=Saver(run_dir / FOLDER, config, hand, train_set.frames.split.id, context),
        stop=StopRequest(),
        doctor=doctor,
    )


def run_epoch(run: Run) -> bool:
    """One epoch: train, validate, save. False if a signal ended it."""
    epoch = run.progress.epoch
    train_loss = train_epoch(run)
    if train_loss is None:
        run.saver.save(run.trainer, run.progress)
        return False
    _log.info(f"Epoch {epoch}: Train Loss: {train_loss:.3f}")
    run.recorder.scalars(run.trainer.step, {"Train/epoch_loss": train_loss, "Train/epoch": epoch})
    # A validation can be long: what was trained is safe before it starts.
    run.saver.save(run.trainer, run.progress, wait=False)
    last_epoch = epoch == run.config.training.num_epochs - 1
    improved = False
    if last_epoch or (epoch + 1) % run.config.validation.every_epochs == 0:
        improved = validate(run)
    run.progress.epoch, run.progress.step_in_epoch = epoch + 1, 0
    run.progress.loss_sum, run.progress.clipped_steps = 0.0, 0
    run.saver.save(run.trainer, run.progress, best=improved, epoch=epoch)
    return True


def train_epoch(run: Run) -> float | None:
    """Train for the rest of the present epoch.

    Returns:
        mean loss over all steps of the epoch and all ranks; None if a signal ended it, between two steps.
    """
    config, position, loader = run.config, run.progress, run.train_loader
    loader.set_epoch(position.epoch, position.step_in_epoch)
    steps = len(loader) // config.training.accumulation
    for note in epoch_notes(config.augmentation, position.epoch, config.training.num_epochs):
        _log.info(note)
    batches = iter(loader)
    bar = progress(range(steps), total=steps, desc=f"epoch {position.epoch}", enabled=run.context.is_main)
    show = None
    if position.epoch == 0:
        show = DebugBatches(position.step_in_epoch * config.training.accumulation, run.context)
    save_every, meter = config.training.save_every_steps, PaceMeter()
    for _ in bar:
        with meter.waiting():
            group = list(islice(batches, config.training.accumulation))
        stop = bool(run.stop.received or run.doctor.stops or run.train_loader.died)
        report = run.trainer(group, stop=stop, on_backward=show)
        run.doctor.after(run.trainer, report, group)
        position.step_in_epoch += 1
        due = save_every > 0 and run.trainer.step % save_every == 0
        due |= run.saver.tries_again(run.trainer.step)
        asked = position.count(run.trainer.settled(everything=due))
        if run.trainer.step % config.logging.every == 0:
            counted = position.step_in_epoch - run.trainer.unsettled
            share = position.clipped_steps / max(1, counted)
            run.recorder.step(run.trainer.step, report, share, meter.read())
            run.context.barrier("recording a step")
        if asked:
            position.count(run.trainer.settled(everything=True))
            return None
        if due:
            run.saver.save(run.trainer, position, wait=False)
    if position.count(run.trainer.settled(everything=True)):
        return None
    return position.loss_sum / max(1, position.step_in_epoch)


def score(
    model: UTNet, loss: HandLoss, scoring: Scoring, page: PicturePage | None = None
) -> dict[Shown, CheckedResult]:
    """test() with depth, and without where that is asked for."""
    return {
        shown: test(model, loss, loader, scoring, page if shown == "rgbd" else None)
        for shown, loader in scoring.loaders.items()
    }


@torch.no_grad()
def test(
    model: UTNet, loss: HandLoss, loader: DeviceLoader, scoring: Scoring, page: PicturePage | None
) -> CheckedResult:
    """Evaluate the bare model over every sample of a split exactly once.

    Each rank predicts its share of fixed global batches without any collective; then an all_gather of sizes
    and send/recv bring all rows to rank 0, which checks that each sample is there once and scores them in
    float64. Of the meshes only their errors travel.

    Args:
        model: not wrapped in DDP; its mode is restored.
        loss: per-sample loss.
        loader: this rank's batches of the split.
        scoring: the split, ranks, timeouts and baselines.
        page: receives this rank's batches and predictions, for pictures.

    Returns:
        the same result on every rank; per-sample rows on rank 0.

    Raises:
        CollectError: on every rank, naming the rank and the cause.
    """
    context, meshes = scoring.context, scoring.meshes
    was_training = model.training
    model.eval()
    shard = EvaluationShard(capacity=sum(len(batch) for batch in loader.sampler), columns=meshes.columns)
    with shard.guard():
        for batch in progress(loader, total=len(loader), desc="validation", enabled=context.is_main):
            prediction = model(batch)
            shard.add(
                sample_index=batch.sample_index,
                pred_joints_m=batch.to_image_camera(prediction.hand.joints_cam_m),
                target_joints_m=batch.to_image_camera(batch.joints_cam_m),
                conf=batch.joints_conf,
                loss=loss.per_sample(prediction, batch),
                columns=meshes(batch, prediction),
            )
            if page is not None:
                page.add(batch, prediction)
    model.train(was_training)
    return evaluate(
        shard,
        num_samples=len(scoring.dataset),
        split_hash=scoring.dataset.frames.split.id,
        group=context.side_group,
        timeout_s=scoring.config.validation.timeout_s,
        baselines=scoring.baselines.scores() if scoring.baselines is not None else None,
        device_label=context.devices_label,
        meet=context.barrier,
    )


def validate(run: Run) -> bool:
    """Score the averaged weights with and without depth; True if this is the best epoch so far.

    Raises:
        TrainingError: predictions are not finite and validation.on_nonfinite is stop.
    """
    trainer, scoring, epoch = run.trainer, run.scoring, run.progress.epoch
    batches = len(scoring.loaders["rgbd"])
    page = PicturePage(run.config.validation.pictures, batches) if run.context.is_main else None
    with trainer.ema.applied() if trainer.ema is not None else contextlib.nullcontext():
        results = score(run.model, trainer.loss, scoring, page)
    report(results, scoring.dataset.frames.split_line, run.context)
    run.doctor.validation(trainer, results)
    for shown, result in results.items():
        run.recorder.validation(trainer.step, shown, result)
    folder = run.run_dir / "val"
    if (outcome := outcome_of(results, scoring)) is not None:
        with optional("the validation's report"):
            outcome.write(folder, f"epoch_{epoch:04d}")
    if page is not None:
        path = folder / f"epoch_{epoch:04d}.jpg"
        with optional("the validation's pictures"):
            if (picture := page.write(path)) is not None:
                run.recorder.picture(trainer.step, "Val/pictures", path, picture)
    run.context.barrier("the validation's report and pictures")
    return is_best(results, run.progress, run.config.validation)


def outcome_of(results: dict[Shown, CheckedResult], scoring: Scoring) -> Outcome | None:
    """Results with what their report needs; None on ranks that have no rows."""
    if scoring.baselines is None:
        return None
    data = scoring.dataset
    frames = [data.frames.frame_id(i) for i in range(len(data))]
    official = official_scores(results, data.frames.truth_joints())
    return Outcome(results, frames, scoring.config.validation.split, scoring.baselines, official)


if __name__ == "__main__":
    sys.exit(main())
