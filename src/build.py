"""Configuration -> what a run, or the scoring of a checkpoint, works with. What train.py calls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.batches.loader import DeviceLoader
from dataloader.build import build_eval_loader, build_splits, build_train_loader
from dataloader.crop.camera import Window
from dataloader.ho3d.frames import SplitFrames
from dataloader.ho3d.leaks import find_leaks
from dataloader.ho3d_dataset import HO3DDataset
from dataloader.pictures.decode import PictureFrame
from src.config import RunConfig
from src.errors import DataError
from src.evaluation.baselines.scores import BaselineRows, cached_baselines
from src.evaluation.evaluator import CheckedResult
from src.hand.mano import ManoLayer
from src.losses.loss import HandLoss
from src.models.utnet import UTNet
from src.predict.boxes import open_finder
from src.predict.crops import box_to_show, raw_crops
from src.predict.frame import Frame
from src.runtime import log
from src.runtime.debug import debug_loss_enabled
from src.runtime.progress import progress
from src.runtime.ranks.distributed import DistContext
from src.runtime.seed import seed_everything
from src.runtime.signals import StopRequest
from src.schema import DEPTH_UNIT_M, Shown
from src.training.checkpoints import checkpoint as ckpt
from src.training.checkpoints.folder import FOLDER, Saver, best_so_far, open_checkpoint
from src.training.diagnosis.doctor import Doctor
from src.training.mesh_scorer import MeshScorer
from src.training.optim import describe_rate, global_batch
from src.training.recorder import Recorder
from src.training.setup import build_model
from src.training.step import TrainStep
from src.training.validation import Outcome, official_scores

_log = log.get_logger("train")


@dataclass(frozen=True)
class Scoring:
    """What a validation works with beside the weights."""

    config: RunConfig
    context: DistContext
    dataset: HO3DDataset
    hand: ManoLayer
    loaders: dict[Shown, DeviceLoader]
    meshes: MeshScorer | None
    """None: joints alone are scored."""
    baselines: BaselineRows | None
    """On rank 0."""
    boxed: Scoring | None = None
    """The same samples with the boxes of validation.boxes, where these are not the labels'."""

    def outcome(
        self, results: dict[Shown, CheckedResult], boxed: dict[Shown, CheckedResult]
    ) -> Outcome | None:
        """Results with what their report needs; None on ranks that have no rows."""
        if self.baselines is None:
            return None
        frames = self.dataset.frames
        names = [frames.frame_id(i) for i in range(len(self.dataset))]
        official = official_scores(results, frames.truth_joints())
        validation = self.config.validation
        return Outcome(results, names, validation.split, self.baselines, official, validation.boxes, boxed)


@dataclass(frozen=True)
class Judged:
    """A checkpoint that is to be scored."""

    hand: ManoLayer
    model: UTNet
    loss: HandLoss
    state: dict[str, Any]
    scoring: Scoring
    warnings: list[str]
    """What whoever reads the score must know."""


@dataclass
class Run:
    """What the loop of a run works with."""

    config: RunConfig
    context: DistContext
    recorder: Recorder
    trainer: TrainStep
    train_loader: DeviceLoader
    scoring: Scoring
    progress: ckpt.Progress
    saver: Saver
    stop: StopRequest
    doctor: Doctor


def build_evaluation(config: RunConfig, context: DistContext, path: Path) -> Judged:
    """A checkpoint's network and what it is scored on."""
    hand, model, loss = build_model(config, context, fresh=False)
    state = context.together("reading the checkpoint", lambda: open_checkpoint(path))
    context.together("checking the hand model", lambda: ckpt.check_hand(state, hand, path))
    context.together("loading the weights", lambda: ckpt.load_weights(model, state, path))
    train_set, val_set = build_splits(config, context, hand)
    ckpt.log_changes(state["config"], config, ("dataset", "split", "model"))
    warnings, trained_on = [], Path(state["config"]["dataset"]["root_dir"])
    same_split = state["split_hash"] == train_set.frames.split.id
    same_data = trained_on == config.dataset.root_dir
    if not same_split:
        another = "another training split" if same_data else f"another data set ({trained_on})"
        warnings.append(f"the checkpoint was trained on {another}: it may have seen these samples")
        _log.warning(f"WARNING: {warnings[0]}")
    if same_split or same_data:  # labels of other frames are others
        labels = train_set.frames.index.labels_sha256
        warnings.append(ckpt.log_labels(state["progress"].get("labels_hash", ""), labels, path))
    _log.info(f"Evaluating {ckpt.named(state, path)}")
    scoring = build_scoring(config, context, train_set, val_set, hand)
    return Judged(hand, model, loss, state, scoring, [text for text in warnings if text])


def build_scoring(
    config: RunConfig, context: DistContext, train_set: HO3DDataset, val_set: HO3DDataset, hand: ManoLayer
) -> Scoring:
    """Loaders, mesh scores, and what predictors that learned nothing score (computed by rank 0)."""

    def baselines() -> BaselineRows | None:
        if not context.is_main:
            return None
        train, val = train_set.frames.labels(), val_set.frames.labels()
        place = val_set.frames.index.derived.folder.parent
        return cached_baselines(train, val, hand, cache_dir=place, show_progress=True)

    shown: tuple[Shown, ...] = ("rgbd", "rgb")
    rank, world, device = context.rank, context.world, context.device
    scoring = Scoring(
        config=config,
        context=context,
        dataset=val_set,
        hand=hand,
        loaders={as_: build_eval_loader(config, val_set, rank, world, device, as_) for as_ in shown},
        meshes=MeshScorer(
            hand,
            val_set.frames,
            official=config.validation.split == "evaluation",
            refined=config.model.refine_iterations > 0,
        ),
        baselines=context.together("scoring the baselines", baselines),
    )
    if (boxes := config.validation.boxes) == "labels":
        return scoring
    found = find_boxes(scoring)
    seen = shown[:1] if boxes == "depth" else shown  # without depth nobody would have these boxes
    cut = {as_: val_set.with_boxes(found[as_]) for as_ in seen}
    loaders = {as_: build_eval_loader(config, cut[as_], rank, world, device, as_) for as_ in seen}
    other = replace(scoring, dataset=cut["rgbd"], loaders=loaders, meshes=None, baselines=None)
    return replace(scoring, boxed=other)


def find_boxes(scoring: Scoring) -> dict[Shown, NDArray[np.float64]]:
    """Where the finder of validation.boxes sees the hand of each sample that this rank will score.

    HO3D's hand is a right one: of several the box of the right hand that the finder is surest of counts,
    never the one that is nearest to the label; a right hand that is taken for a left one is not found.

    Returns:
        for each way of showing a sample (N, 4) x0, y0, x1, y1 in the pictures; nan where no hand was found,
        and for samples of other ranks. With depth they are sized by it: `src.predict.crops.box_to_show`.

    Raises:
        DataError: a box cannot be cut out, or no sample has one; on every rank, as what a finder raises.
    """
    config, context, frames = scoring.config, scoring.context, scoring.dataset.frames
    boxes, count = config.validation.boxes, len(scoring.dataset)
    own = [key.index for batch in scoring.loaders["rgbd"].sampler for key in batch]

    def find() -> dict[Shown, NDArray[np.float64]]:
        names = [listed(frames.index.frame_id(row)) for row in range(len(frames.index.rows))]
        finder, scale = open_finder(boxes, names), config.dataset.box_scale
        found: dict[Shown, NDArray[np.float64]] = {
            as_: np.full((count, 4), np.nan) for as_ in scoring.loaders
        }
        for i in progress(own, total=len(own), desc=f"boxes of {boxes}", enabled=context.is_main):
            frame = read_frame(frames, i)
            seen = [box for box in finder.find(frame) if not box.left]
            if seen:
                best = max(seen, key=lambda box: box.score)
                raw_crops([(frame, best)], config.model.image_size, scale)
                found["rgbd"][i] = box_to_show(frame, best, scale)
                found["rgb"][i] = best.box_px
        return found

    found = context.together("finding boxes", find)
    with_box = sum(context.gather_objects(int(np.isfinite(found["rgbd"][:, 0]).sum()), "counting boxes"))
    error = DataError(f"validation.boxes={boxes}: no right hand was found in any of {count:,} samples")
    context.agree(error if context.is_main and not with_box else None, "counting boxes")
    _log.info(f"Boxes of {boxes}: {with_box:,} of {count:,} samples have one")
    return found


def listed(frame_id: str) -> str:
    """`train/ABF10/0042` -> `ABF10/0042`: a frame as HO3D's lists call it."""
    return frame_id.partition("/")[2]


def read_frame(frames: SplitFrames, sample: int) -> Frame:
    """A sample as whoever has no labels sees it."""
    picture = PictureFrame(frames.path(sample, "rgb"), frames.path(sample, "depth"))
    whole = Window(0, 0, picture.size[1], picture.size[0])
    depth_m = picture.depth(whole) * np.float32(DEPTH_UNIT_M)
    k = frames.labels(np.array([sample])).intrinsics_img_px[0].astype(np.float64)
    return Frame(listed(frames.frame_id(sample)), picture.rgb(whole), depth_m, k)


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
    recorder = Recorder(run_dir, context, resume_step=trainer.step)
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
    recorder.write_setup(config, hand, facts)
    doctor = Doctor(config, context, hand)
    doctor.setting(
        trainer,
        lambda: find_leaks(train_set.frames.names(), val_set.frames.names()),
    )
    return Run(
        config=config,
        context=context,
        recorder=recorder,
        trainer=trainer,
        train_loader=train_loader,
        scoring=build_scoring(config, context, train_set, val_set, hand),
        progress=position,
        saver=Saver(run_dir / FOLDER, config, hand, train_set.frames.split.id, context),
        stop=StopRequest(),
        doctor=doctor,
    )
