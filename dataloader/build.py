"""Configuration -> dataset -> batches on the device. What entry points call."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from typing import Any, cast

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dataloader.batches.collate import collate
from dataloader.batches.modality import Modality
from dataloader.batches.parcel import Parcel
from dataloader.batches.samplers import SampleKey, ShardSampler, TrainSampler
from dataloader.crop.prepare import prepare
from dataloader.ho3d.index import AnnotationIndex
from dataloader.ho3d.split import SplitName
from dataloader.ho3d_dataset import HO3DDataset
from src.config import RunConfig
from src.errors import DataError, UTNetError
from src.hand.mano import ManoLayer
from src.hand.mano_assets import load_hand_asset
from src.runtime.log import get_logger
from src.runtime.ranks.distributed import DistContext
from src.runtime.seed import torch_stream
from src.runtime.signals import child_watch, stop_signals_blocked
from src.schema import HandBatch

_log = get_logger("data")

WORKER_TIMEOUT_S = 300.0
"""Longest wait for one batch of a loader process: longer means a hung file system or a dead process."""

PREFETCH = 2
"""Batches that each loader process keeps ready."""


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
        index: as for `HO3DDataset`.
        show_progress: draw a bar while the annotation index is built.

    Raises:
        DataError: see `HO3DDataset`.
        AssetError: the hand model is missing.
    """
    if hand is None:
        hand = ManoLayer.from_file(config.mano.model_path)
    return HO3DDataset(config, split, hand, index=index, show_progress=show_progress)


def build_splits(config: RunConfig, context: DistContext, hand: ManoLayer) -> tuple[HO3DDataset, HO3DDataset]:
    """(training split, configured validation split) of a run, whose labels this hand decodes to.

    All ranks call it; rank 0 builds the index and the crop cache before the others read them.

    Raises:
        DataError: see `HO3DDataset` and `HO3DDataset.require_truth`; on every rank.
    """
    cpu_hand = ManoLayer.from_asset(load_hand_asset(config.mano.model_path)) if hand.faces.is_cuda else hand

    def build() -> tuple[HO3DDataset, HO3DDataset]:
        show = context.is_main
        train_set = build_dataset(config, "train", cpu_hand, show_progress=show)
        split = config.validation.split
        val_set = build_dataset(config, split, cpu_hand, index=train_set.index, show_progress=show)
        val_set.require_truth()
        return train_set, val_set

    train_set, val_set = context.together("opening the data set", build, main_first=True)
    for dataset in (train_set, val_set):
        _log.info(dataset.describe())
    if (missing := val_set.missing_truth()) is not None:  # the joints are there, or nothing would be scored
        _log.warning(f"WARNING: no official mesh scores: {missing}")
    return train_set, val_set


class DeviceLoader:
    """Iterates `HandBatch`es that are ready on the device: the one place where host and device meet.

    `sampler` is the batch sampler of the rank; `len` is the number of batches of the next iteration.
    `died` says that a loader process was lost, and how: the rest of that epoch is loaded in this process, so
    that whoever trains can save and leave.
    """

    def __init__(
        self, loader: DataLoader[Parcel], sampler: TrainSampler | ShardSampler, device: torch.device
    ) -> None:
        self.sampler = sampler
        self.device = device
        self.died: str | None = None
        self._loader = loader

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch, and the optimiser step to start from; see `TrainSampler.set_epoch`."""
        if isinstance(self.sampler, TrainSampler):
            self.sampler.set_epoch(epoch, start_step)

    def __iter__(self) -> Iterator[HandBatch]:
        """Batches in the sampler's order.

        On a GPU the next batch is copied and prepared on a stream of its own while this one is at work.

        Raises:
            DataError: what a loader process met, with its own message; or a process that hung.
        """
        ready = (prepare(parcel.unpack(self.device)) for parcel in self._parcels())
        return _one_ahead(ready, self.device) if self.device.type == "cuda" else ready

    def _parcels(self) -> Iterator[Parcel]:
        """Batches of the loader processes, or of this one.

        What cannot be read is tried once more, here: a network or a memory may have come back. If it cannot
        then, a validation ends, and a training step takes the batch before it once more, so that all ranks
        can save before the run ends for it (`died`).
        """
        before: Parcel | None = None
        for number, parcel in enumerate(self._fetched()):
            if isinstance(parcel, UTNetError):
                error = parcel
                parcel = cast(_Fetch, self._loader.dataset).__getitems__(list(self.sampler)[number])
                if isinstance(parcel, UTNetError):
                    if before is None or not isinstance(self.sampler, TrainSampler):
                        raise parcel
                    self.died = f"{error}. The last step took the batch before it twice"
                    parcel = before
                else:
                    _log.warning(f"WARNING: {error}. Read at the second try.")
            before = parcel
            yield parcel

    def _fetched(self) -> Iterator[Parcel | UTNetError]:
        """Each batch of an epoch once, whatever becomes of the loader processes."""
        self.died, given = None, 0
        if self._lost_processes():
            self._forget_processes()  # since the last epoch, with no batch of this one
        try:
            with stop_signals_blocked():
                batches = iter(self._loader)
            watch = child_watch()
            while True:
                with watch:  # it hears of those that die from here on
                    if lost := self._lost_processes():
                        raise RuntimeError(lost)
                    parcel = next(batches, None)
                if parcel is None:
                    return
                given += 1
                yield parcel
        except (RuntimeError, EOFError, OSError) as error:  # a process died, in a batch or not, or hangs
            if self._loader.num_workers == 0:
                raise
            why = self._lost_processes() or next(iter(str(error).splitlines()), type(error).__name__)
        yield from self._here(given, why)

    def _here(self, given: int, why: str) -> Iterator[Parcel | UTNetError]:
        """The batches behind the first `given` ones, loaded in this process."""
        advice = "Look at memory and file system, or lower dataset.num_workers"
        if "timed out" in why:
            raise DataError(f"a loader process hangs: {why}. {advice} (0 loads in this process)")
        self.died = f"a loader process was lost: {why.rstrip(' .')}. {advice}"
        _log.warning(f"WARNING: {self.died}. This process loads what is left of the epoch.")
        self._forget_processes()
        rest = list(self.sampler)[given:]
        return iter(DataLoader(self._loader.dataset, batch_sampler=rest, collate_fn=_as_is))

    def _lost_processes(self) -> str:
        """Which loader processes are no more; '' where all live."""
        processes = getattr(self._loader._iterator, "_workers", ())
        return ", ".join(f"process {p.pid} ended by {p.exitcode}" for p in processes if not p.is_alive())

    def _forget_processes(self) -> None:
        """End the loader processes that are left; the next epoch starts others."""
        lost, self._loader._iterator = self._loader._iterator, None
        if lost is not None:
            lost._shutdown_workers()  # type: ignore[attr-defined]


def _one_ahead(batches: Iterator[HandBatch], device: torch.device) -> Iterator[HandBatch]:
    """The same batches, each made on a side stream before the one in front of it is handed out."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def following() -> HandBatch | None:
        with torch.cuda.stream(side):
            return next(batches, None)

    batch = following()
    while batch is not None:
        here = torch.cuda.current_stream(device)
        here.wait_stream(side)
        batch.record_stream(here)
        coming = following()
        yield batch
        batch = coming


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
    return _device_loader(config, dataset, sampler, device, "train loader", rank)


def build_eval_loader(
    config: RunConfig,
    dataset: HO3DDataset,
    rank: int,
    world: int,
    device: torch.device,
    modality: Modality = "rgbd",
) -> DeviceLoader:
    """This rank's validation batches: fixed global batches, no augmentation, depth shown or hidden."""
    sampler = ShardSampler(len(dataset), config.validation.batch_size, rank, world)
    plain = dataset.view(modality=modality, augmented=False)
    return _device_loader(config, plain, sampler, device, "validation loader", rank)


class _Fetch(Dataset[Any]):
    """What runs in a loader process: a list of keys in, one parcel out.

    An error of ours is handed over as a value: torch would wrap it in a traceback of its own and lose the one
    line that says what to do.
    """

    def __init__(self, dataset: HO3DDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: Sequence[SampleKey]) -> Parcel | UTNetError:
        try:
            return Parcel.of(collate(self.dataset.raws(keys)), shared=get_worker_info() is not None)
        except UTNetError as error:
            return error
        except (MemoryError, OSError) as error:
            why = f"{type(error).__name__}: {error}"
            return DataError(f"a batch could not be made ({why}). Look at memory and /dev/shm")


def _device_loader(
    config: RunConfig,
    dataset: HO3DDataset,
    sampler: TrainSampler | ShardSampler,
    device: torch.device,
    name: str,
    rank: int,
) -> DeviceLoader:
    """A DataLoader that leaves the global RNG alone, behind a `DeviceLoader`."""
    workers = min(config.dataset.num_workers, len(sampler))
    loader: DataLoader[Parcel] = DataLoader(
        _Fetch(dataset),
        batch_sampler=sampler,
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        # A generator of its own: without one, each epoch takes a number from the global RNG.
        generator=torch_stream(config.seed, name, rank),
        timeout=WORKER_TIMEOUT_S if workers else 0,
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCH if workers else None,
        multiprocessing_context=_context(device) if workers else None,
    )
    return DeviceLoader(loader, sampler, device)


def _context(device: torch.device) -> multiprocessing.context.BaseContext:
    """How loader processes start.

    On the CPU fork: instant, and the index and the imports are shared. Beside a GPU a forkserver: a process
    forked from one that holds CUDA contexts and NCCL connections inherits both, and neither survives a fork.
    """
    if device.type != "cuda":
        return multiprocessing.get_context("fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dataloader.build"])
    return context


def _start_worker(_: int) -> None:
    """One thread per loader process: they are as many as the machine can feed."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _as_is(batch: Any) -> Any:
    """Batches are made by `_Fetch`, whole."""
    return batch
