"""Batches of a rank, made by loader processes and ready on its device, whatever becomes of the processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dataloader.batches.samplers import SampleKey, TrainSampler
from dataloader.crop.prepare import prepare
from dataloader.ho3d_dataset import HO3DDataset
from src.errors import DataError, UTNetError
from src.runtime.log import get_logger
from src.runtime.signals import child_watch, stop_signals_blocked
from src.schema import HandBatch, Packed, RawBatch

_log = get_logger("data")

WORKER_TIMEOUT_S = 300.0
"""Longest wait for one batch of a loader process: longer means a hung file system or a dead process."""

PREFETCH = 2
"""Batches that each loader process keeps ready."""

_MOMENT_S = 1.0
"""Longest wait for a process that closed its connection to end."""

Parcel = Packed[RawBatch]


class DeviceLoader:
    """Iterates `HandBatch`es that are ready on the device: the one place where host and device meet.

    `len` is the number of batches of the next iteration. `died` says that a loader process was lost, and how:
    the rest of that epoch is loaded in this process, so that whoever trains can save and leave.

    Args:
        dataset: what the samples are taken from.
        sampler: the batches of the rank.
        device: where the batches are wanted.
        num_workers: loader processes at most; 0 loads in this one.
        generator: of its own: without one, each epoch takes a number from the global RNG.
    """

    def __init__(
        self,
        dataset: HO3DDataset,
        sampler: TrainSampler | list[list[SampleKey]],
        device: torch.device,
        *,
        num_workers: int,
        generator: torch.Generator,
    ) -> None:
        self.sampler = sampler
        self.device = device
        self.died: str | None = None
        workers = min(num_workers, len(sampler))
        self._fetch = _Fetch(dataset)
        self._loader: DataLoader[Parcel] = DataLoader(
            self._fetch,
            sampler=sampler,
            batch_size=None,  # what the sampler gives is a batch already
            num_workers=workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=_start_worker,
            generator=generator,
            timeout=WORKER_TIMEOUT_S if workers else 0,
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCH if workers else None,
            multiprocessing_context=_context(device) if workers else None,
        )

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
                parcel = self._fetch[list(self.sampler)[number]]
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
        if self._lost_processes():  # since the last epoch, with no batch of this one
            self._forget_processes()
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
            why = self._cause(error)
        yield from self._here(given, why)

    def _here(self, given: int, why: str) -> Iterator[Parcel | UTNetError]:
        """The batches behind the first `given` ones, loaded in this process."""
        advice = "Look at memory and file system, or lower dataset.num_workers"
        if "timed out" in why:
            raise DataError(f"a loader process hangs: {why}. {advice} (0 loads in this process)")
        self.died = f"a loader process was lost: {why.rstrip(' .')}. {advice}"
        _log.warning(f"WARNING: {self.died}. This process loads what is left of the epoch.")
        self._forget_processes()
        return map(self._fetch.__getitem__, list(self.sampler)[given:])

    def _cause(self, error: Exception) -> str:
        """Who died; its connection may be seen to close a moment before it is seen to have ended."""
        text = next(iter(str(error).splitlines()), type(error).__name__)
        if "timed out" not in text:
            connection.wait([process.sentinel for process in self._processes()], _MOMENT_S)
        return self._lost_processes() or text

    def _processes(self) -> Sequence[Any]:
        """The loader processes."""
        return getattr(self._loader._iterator, "_workers", ())

    def _lost_processes(self) -> str:
        """Which loader processes are no more; '' where all live."""
        lost = [process for process in self._processes() if not process.is_alive()]
        return ", ".join(f"process {process.pid} ended by {process.exitcode}" for process in lost)

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
        for tensor in batch.fields().values():  # made on `side`, read here: the allocator must know
            tensor.record_stream(here)
        coming = following()
        yield batch
        batch = coming


class _Fetch(Dataset[Any]):
    """What runs in a loader process: a list of keys in, one parcel out.

    An error of ours is handed over as a value: torch would wrap it in a traceback of its own and lose the one
    line that says what to do.
    """

    def __init__(self, dataset: HO3DDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, keys: Sequence[SampleKey]) -> Parcel | UTNetError:
        try:
            return self.dataset.batch(keys).pack(shared=get_worker_info() is not None)
        except UTNetError as error:
            return error
        except (MemoryError, OSError) as error:
            why = f"{type(error).__name__}: {error}"
            return DataError(f"a batch could not be made ({why}). Look at memory and /dev/shm")


def _context(device: torch.device) -> multiprocessing.context.BaseContext:
    """How loader processes start.

    On the CPU fork: instant, and the index and the imports are shared. Beside a GPU a forkserver: a process
    forked from one that holds CUDA contexts and NCCL connections inherits both, and neither survives a fork.
    """
    if device.type != "cuda":
        return multiprocessing.get_context("fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dataloader.batches.loader"])
    return context


def _start_worker(_: int) -> None:
    """One thread per loader process: they are as many as the machine can feed."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
