"""Configuration -> dataset -> batches on the device. What entry points call."""

from __future__ import annotations

import torch

from dataloader.batches.loader import DeviceLoader
from dataloader.batches.samplers import SampleKey, TrainSampler, validation_batches
from dataloader.cache.build import ensure_cache
from dataloader.crop.augment import Augmenter, Modality
from dataloader.ho3d.frames import open_frames
from dataloader.ho3d.index import AnnotationIndex
from dataloader.ho3d.split import SplitName
from dataloader.ho3d_dataset import HO3DDataset
from src.config import RunConfig
from src.hand.mano import ManoLayer
from src.hand.mano_assets import load_hand_asset
from src.runtime.log import get_logger
from src.runtime.ranks.distributed import DistContext
from src.runtime.seed import torch_stream

_log = get_logger("data")


def build_dataset(
    config: RunConfig,
    split: SplitName,
    hand: ManoLayer | None = None,
    *,
    index: AnnotationIndex | None = None,
    show_progress: bool = True,
) -> HO3DDataset:
    """The dataset of a split; its items are `HandSample`.

    Args:
        config: the run.
        split: train, val or evaluation.
        hand: the hand model that the labels were made with; None reads config.mano.model_path.
        index: of the split's list, where it is open already, for another split; None opens it.
        show_progress: draw a bar while the annotation index or the crop cache is made.

    Raises:
        DataError: see `open_frames` and `ensure_cache`.
        AssetError: the hand model is missing.
    """
    if hand is None:
        hand = ManoLayer.from_file(config.mano.model_path)
    frames = open_frames(config.dataset, config.split, split, hand, index=index, show_progress=show_progress)
    cache = None
    if config.dataset.cache != "off":
        cache = ensure_cache(config, frames.index, show_progress=show_progress)
    augmenter = None
    if split == "train" and config.augmentation.enabled:
        augmenter = Augmenter(config.augmentation, config.seed, config.model.second_look)
    return HO3DDataset(
        frames,
        config.model.image_size,
        config.dataset.box_scale,
        "train" if split == "train" else "rgbd",
        config.dataset.p_drop_depth,
        config.seed,
        augmenter,
        cache,
    )


def build_splits(config: RunConfig, context: DistContext, hand: ManoLayer) -> tuple[HO3DDataset, HO3DDataset]:
    """(training split, configured validation split) of a run, whose labels this hand decodes to.

    All ranks call it; rank 0 builds the index and the crop cache before the others read them.

    Raises:
        DataError: see `build_dataset` and `SplitFrames.require_truth`; on every rank.
    """
    cpu_hand = ManoLayer.from_asset(load_hand_asset(config.mano.model_path)) if hand.faces.is_cuda else hand

    def build() -> tuple[HO3DDataset, HO3DDataset]:
        show = context.is_main
        train_set = build_dataset(config, "train", cpu_hand, show_progress=show)
        split = config.validation.split
        val_set = build_dataset(config, split, cpu_hand, index=train_set.frames.index, show_progress=show)
        val_set.frames.require_truth()
        return train_set, val_set

    train_set, val_set = context.together("opening the data set", build, main_first=True)
    for dataset in (train_set, val_set):
        _log.info(dataset.frames.describe())
    if (
        missing := val_set.frames.missing_truth()
    ) is not None:  # the joints are there, or nothing would be scored
        _log.warning(f"WARNING: no official mesh scores: {missing}")
    return train_set, val_set


def build_train_loader(
    config: RunConfig, dataset: HO3DDataset, rank: int, world: int, device: torch.device
) -> DeviceLoader:
    """This rank's training batches; call `set_epoch` before each epoch.

    Raises:
        ConfigError: the split is smaller than what one optimiser step consumes.
    """
    sampler = TrainSampler(
        len(dataset),
        config.training.batch_size,
        rank,
        world,
        seed=config.seed,
        accumulation=config.training.accumulation,
        max_steps=config.training.max_steps_per_epoch,
    )
    workers, generator = config.dataset.num_workers, torch_stream(config.seed, "train loader", rank)
    return DeviceLoader(dataset, sampler, device, num_workers=workers, generator=generator)


def build_eval_loader(
    config: RunConfig,
    dataset: HO3DDataset,
    rank: int,
    world: int,
    device: torch.device,
    modality: Modality = "rgbd",
) -> DeviceLoader:
    """This rank's validation batches: fixed global batches, no augmentation, depth shown or hidden."""
    batches = validation_batches(len(dataset), config.validation.batch_size, rank, world)
    sampler = [[SampleKey(i) for i in batch] for batch in batches]
    plain = dataset.view(modality=modality, augmented=False)
    workers, generator = config.dataset.num_workers, torch_stream(config.seed, "validation loader", rank)
    return DeviceLoader(plain, sampler, device, num_workers=workers, generator=generator)
