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
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import src.runtime.ranks.parent  # noqa: F401  (looks who started us, before all that takes seconds)

import torch
from torch import nn

from dataloader.batches.loader import DeviceLoader
from src.build import Run, Scoring, build_evaluation, build_run
from src.config_file import config_to_yaml
from src.errors import ConfigError, DataError, UTNetError
from src.evaluation.evaluator import MODALITY_NAMES, CheckedResult, EvaluationShard, evaluate
from src.geometry.in_view import joints_in_view
from src.losses.loss import HandLoss
from src.runtime import log
from src.runtime.command_line import make_parser
from src.runtime.debug import DebugBatches, trace_enabled
from src.runtime.machine import configure_torch, require_short_temporary_folder
from src.runtime.outlet import optional
from src.runtime.progress import PaceMeter, progress
from src.runtime.ranks.distributed import DistContext, abandon, setup_distributed, teardown
from src.runtime.ranks.launch import complaint, rank_from_environment, starts_again
from src.runtime.ranks.meeting import lost_peer
from src.runtime.signals import interrupt_on_stop
from src.schema import Shown
from src.show import keepers, show
from src.training.checkpoints.checkpoint import named
from src.training.checkpoints.folder import FOLDER, LAST
from src.training.checkpoints.settings import DEFAULT_CONFIG, Settings, command_settings
from src.training.kept_hands import KeptHands
from src.training.recorder import Recorder
from src.training.run_folder import open_run_folder
from src.training.validation import Outcome, is_best, report, require_finite

_log = log.get_logger("train")


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
            arguments.config, arguments.overrides, evaluate=arguments.evaluate, resume=arguments.resume
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
    if config.validation.split == "evaluation" and not arguments.evaluate:
        raise ConfigError(
            "validation.split=evaluation would choose best.pt by its score on HO3D's official split, which "
            "would then measure the choice too. Train with validation.split=val and score the end with "
            "--evaluate CKPT validation.split=evaluation"
        )
    require_short_temporary_folder()
    interrupt_on_stop()
    context = setup_distributed(config.runtime.device, config.runtime.timeout_s)
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
        run = build_run(config, context, folder.path, folder.source)
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
    _log.info(f"Finished {config.training.num_epochs} epochs, {best}. Run folder: {folder.path}")
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
    recorder = Recorder(folder.path, context)
    facts = {"evaluated": str(path), "split": scoring.dataset.frames.describe()}
    recorder.write_setup(config, judged.hand, facts)
    kept = keepers(scoring)
    results = score(judged.model, judged.loss, scoring, kept)
    boxed = score(judged.model, judged.loss, scoring.boxed)
    report(results, scoring.dataset.frames.split_line, context)
    outcome = scoring.outcome(results, boxed)
    record(recorder, state["step"], results, outcome)
    if outcome is not None:
        outcome.log_summary()
        for shown, file in outcome.write(files, "per_sample").items():
            label = "Per-sample results" if shown == "rgbd" else "Per-sample results without depth"
            _log.info(f"{label}: {file}")
        if boxed:
            file = files / "per_sample_boxes.npz"
            _log.info(f"Per-sample results with boxes of {config.validation.boxes}: {file}")
    about = {"Checkpoint": named(state, path), "Epochs trained": str(state["progress"]["epoch"])}
    about |= {"Warning": "; ".join(judged.warnings)} if judged.warnings else {}
    beside = path.absolute().parent
    curves = beside.parent / "scalars.jsonl" if beside.name == FOLDER else None
    if page := show(recorder, scoring, outcome, kept, about, step=state["step"], curves=curves)():
        _log.info(f"Report: {page}")
    recorder.close()
    require_finite(results, files)
    require_finite(boxed, files)
    return 0


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
    run.saver.save(run.trainer, run.progress, best=improved)
    return True


def train_epoch(run: Run) -> float | None:
    """Train for the rest of the present epoch.

    Returns:
        mean loss over all steps of the epoch and all ranks; None if a signal ended it, between two steps.
    """
    config, position, loader = run.config, run.progress, run.train_loader
    loader.set_epoch(position.epoch, position.step_in_epoch)
    steps = len(loader) // config.training.accumulation
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
    model: nn.Module,
    loss: HandLoss,
    scoring: Scoring | None,
    kept: Mapping[Shown, KeptHands] | None = None,
) -> dict[Shown, CheckedResult]:
    """test() with depth and without; nothing where nothing is to be scored."""
    if scoring is None:
        return {}
    return {
        shown: test(model, loss, loader, scoring, (kept or {}).get(shown))
        for shown, loader in scoring.loaders.items()
    }


def record(
    recorder: Recorder, step: int, results: dict[Shown, CheckedResult], outcome: Outcome | None
) -> None:
    """Scalars of a validation, official ones too; scores of other boxes beside the labels', in words too."""
    for shown, result in results.items():
        recorder.validation(step, shown, result)
    if outcome is None:
        return
    for name, scores in outcome.official.items():
        prefix = "Eval" if name == MODALITY_NAMES["rgbd"] else f"Eval/{name}"
        recorder.scalars(step, {f"{prefix}/{score}": value for score, value in scores.items()})
    for line in outcome.boxes_lines():
        _log.info(line)
    for shown, scores in outcome.beside_labels().items():
        prefix = "Val/boxes" if shown == "rgbd" else "Val/boxes/RGB-only"
        recorder.scalars(step, {f"{prefix}/{name}": value for name, value in scores.items()})


@torch.no_grad()
def test(
    model: nn.Module, loss: HandLoss, loader: DeviceLoader, scoring: Scoring, kept: KeptHands | None
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
        kept: keeps this rank's predictions, for pictures.

    Returns:
        the same result on every rank; per-sample rows on rank 0.

    Raises:
        CollectError: on every rank, naming the rank and the cause.
    """
    context, meshes = scoring.context, scoring.meshes
    was_training = model.training
    model.eval()
    columns = () if meshes is None else meshes.columns
    shard = EvaluationShard(capacity=sum(len(batch) for batch in loader.sampler), columns=columns)
    with shard.guard():
        for batch in progress(loader, total=len(loader), desc="validation", enabled=context.is_main):
            prediction = model(batch)
            shard.add(
                sample_index=batch.sample_index,
                pred_joints_m=batch.to_image_camera(prediction.hand.joints_cam_m),
                target_joints_m=batch.to_image_camera(batch.joints_cam_m),
                conf=batch.joints_conf,
                loss=loss.per_sample(prediction, batch),
                in_view=joints_in_view(batch),
                columns=None if meshes is None else meshes(batch, prediction),
            )
            if kept is not None:
                kept.add(batch, prediction)
    model.train(was_training)
    return evaluate(
        shard,
        num_samples=len(scoring.dataset),
        split_hash=scoring.dataset.frames.split.id,
        group=context.side_group,
        timeout_s=scoring.config.runtime.timeout_s,
        baselines=scoring.baselines.scores() if scoring.baselines is not None else None,
        device_label=context.devices_label,
        meet=context.barrier,
    )


def validate(run: Run) -> bool:
    """Score the averaged weights with and without depth; True if this is the best epoch so far.

    Raises:
        TrainingError: predictions are not finite.
    """
    trainer, scoring, epoch = run.trainer, run.scoring, run.progress.epoch
    kept = keepers(scoring)
    with trainer.ema.applied() if trainer.ema is not None else contextlib.nullcontext():
        results = score(trainer.model, trainer.loss, scoring, kept)
        boxed = score(trainer.model, trainer.loss, scoring.boxed)
    report(results, scoring.dataset.frames.split_line, run.context)
    outcome = scoring.outcome(results, boxed)
    record(run.recorder, trainer.step, results, outcome)
    run.doctor.validation(trainer, results)
    if outcome is not None:
        with optional("the validation's per-sample files"):
            outcome.write(run.recorder.run_dir / "val", f"epoch_{epoch:04d}")
    weights = f"epoch {epoch}, step {trainer.step}, {'plain' if trainer.ema is None else 'averaged'} weights"
    about = {"Run": run.recorder.run_dir.name, "Epoch": weights}
    curves = run.recorder.run_dir / "scalars.jsonl"
    make_page = show(run.recorder, scoring, outcome, kept, about, step=trainer.step, curves=curves)
    run.recorder.later(make_page)  # training goes on
    return is_best(results, run.progress)


if __name__ == "__main__":
    sys.exit(main())
