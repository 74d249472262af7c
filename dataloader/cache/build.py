"""Crop cache, writing: once, in parallel, resumable, never half.

Each part (a run of rows of the index) is written by one process of a pool and moved into place when it is
whole: its rows of the table, then their pixels. After a kill, finished parts are kept. The store
(`src/runtime/files/derived.py`) admits one writer; whoever waited for it finds the cache made.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import shutil
import signal
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.cache.codec import BLOCK_PX, pack_depth, pack_rgb
from dataloader.cache.crop_cache import PART, TABLE, TABLE_DTYPE, CropCache
from dataloader.cache.window import Geometry, geometry_of, reach
from dataloader.crop.camera import Window
from dataloader.ho3d.index import AnnotationIndex, index_store, root_digest
from dataloader.ho3d.labels import hands_of
from dataloader.ho3d.layout import file_stamp, read_list
from dataloader.ho3d.meta import ListName
from dataloader.pictures.decode import PictureFrame
from src.config import DatasetConfig, RunConfig
from src.errors import DataError
from src.runtime.files.derived import Derived, Store
from src.runtime.files.disk import atomic_write
from src.runtime.log import get_logger
from src.runtime.machine import worker_count
from src.runtime.progress import progress

FORMATS = {"raw": 3, "compact": 5}
"""By dataset.cache_format; raised when the files' layout, the windows or the meaning of a pixel changes."""

_ALIGN = 64
"""Blocks of pixels start at multiples of this many bytes."""
_LONGEST_PART, _SHORTEST_PART = 256, 16
_PROBES = 8
_RESERVE_BYTES = 64 << 20
"""Space left free on the disk, for what else a run writes."""
_log = get_logger("data")


def cache_store(config: RunConfig, name: ListName) -> Store:
    """Where the cache of a list is kept."""
    data = config.dataset
    place, stem = Path(data.cache).expanduser(), f"{name}-{root_digest(data)}"
    if data.cache == "auto":
        beside = index_store(data, name)
        place, stem = beside.place, beside.name
    return Store(
        place,
        f"{stem}-crops-{data.cache_format}",
        "crop cache",
        mend="Set dataset.cache=PATH to a folder",
        unsummed="part-",  # each block has a checksum of its own
        resumable=True,
    )


def ensure_cache(config: RunConfig, index: AnnotationIndex, *, show_progress: bool = True) -> CropCache:
    """An up-to-date crop cache, written if need be by one process while others wait.

    Args:
        config: the run; dataset.cache is not `off`.
        index: the opened annotation index.
        show_progress: draw a progress bar while writing.

    Raises:
        DataError: a picture is missing or unreadable, the disk is too small, or no place to write.
    """
    store, geometry = cache_store(config, index.name), geometry_of(config, index.name)
    wanted = _fingerprint(config.dataset, index, geometry)

    def find(say: bool) -> Derived | None:
        """One that reaches far enough, whatever it was written for."""
        reason = None
        for found in store.all(say=say):
            reason = _why_not(found, wanted, geometry)
            if reason is None:
                return found
        if say and reason is not None:
            _log.info(f"Crop cache: what {store.place} holds cannot be used ({reason}); writing it anew.")
        return None

    def make(folder: Path) -> dict[str, Any]:
        try:
            _write(config.dataset, index, geometry, folder, show_progress)
        except BrokenProcessPool as error:
            raise DataError(
                "crop cache: a writing process died (out of memory?). Finished parts are kept; start again, "
                "on fewer cores (taskset) if memory is short."
            ) from error
        except OSError as error:
            raise DataError(
                f"crop cache: cannot write to {folder} ({error.strerror}). Finished parts are kept: free "
                "some space and start again, or set dataset.cache=PATH elsewhere, or dataset.cache=off."
            ) from error
        return {}

    return CropCache(store.ensure(wanted, make, find=find))


def _fingerprint(data: DatasetConfig, index: AnnotationIndex, geometry: Geometry) -> dict[str, Any]:
    """Everything that a cache depends on. Ground truth that comes later changes no picture and no box."""
    return {
        "format": FORMATS[data.cache_format],
        "kind": data.cache_format,
        "data": {
            "version": data.version,
            "frames": index.sha256,
            "hands": index.hands_sha256,
            "pictures": file_stamp(data, read_list(data, index.name), ["rgb", "depth"]),
        },
        "geometry": asdict(geometry),
    }


def _why_not(cache: Derived, wanted: dict[str, Any], geometry: Geometry) -> str | None:
    """Why a cache does not serve; None if it does."""
    found = cache.fingerprint
    if found.get("format") != wanted["format"]:
        return "it was written by another version of this program"
    if found.get("data") != wanted["data"]:
        return "the data set has changed since"
    if not Geometry(**found["geometry"]).covers(geometry):
        return (
            "its crops reach less far than model.image_size, dataset.box_scale and augmentation.{roll_deg, "
            f"scale}} now ask for: {found['geometry']}, want {wanted['geometry']}"
        )
    return None


@dataclass(frozen=True)
class _Part:
    """A run of rows of the index, written by one process."""

    path: Path
    number: int
    frames: list[tuple[Path, Path]]
    """Picture and depth of each row."""
    windows: NDArray[np.int64]
    """(n, 4) x0, y0, x1, y1: what is held of them."""


def _parts(data: DatasetConfig, index: AnnotationIndex, geometry: Geometry, folder: Path) -> Iterator[_Part]:
    """All rows; how they are parted depends on their number alone, so that finished parts fit a later run."""
    length = min(_LONGEST_PART, max(_SHORTEST_PART, -(-len(index.rows) // 32)))
    for number, start in enumerate(range(0, len(index.rows), length)):
        rows = index.rows[start : start + length]
        windows = reach(*hands_of(rows), geometry)
        if data.cache_format == "compact":  # in whole blocks of JPEG
            windows[:, :2] -= windows[:, :2] % BLOCK_PX
            windows[:, 2:] += -windows[:, 2:] % BLOCK_PX
        windows = np.clip(windows, 0, rows["picture_hw"].astype(np.int64)[:, [1, 0, 1, 0]])
        frames = [
            (index.path(row, "rgb"), index.path(row, "depth")) for row in range(start, start + len(rows))
        ]
        yield _Part(folder / PART.format(number), number, frames, windows)


def _write(data: DatasetConfig, index: AnnotationIndex, geometry: Geometry, folder: Path, show: bool) -> None:
    """Write the parts that are missing, then the table of all."""
    for leftover in folder.glob(".*.part"):  # of a killed writer; the store's lock is held
        leftover.unlink()
    parts = list(_parts(data, index, geometry, folder))
    missing = [part for part in parts if _finished(part) is None]
    workers = min(worker_count(), len(missing))
    write = functools.partial(_write_part, data.cache_format)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        if missing:
            _estimate(missing, data.cache_format, index.name, workers, kept=len(parts) - len(missing))
        written: Iterator[None] = map(write, missing)
        if workers > 1:
            fork = multiprocessing.get_context("fork")  # a worker would import torch for seconds otherwise
            pool = stack.enter_context(ProcessPoolExecutor(workers, fork, _start_worker, (os.getpid(),)))
            written = pool.map(write, missing)
        title = f"crop cache ({index.name})"
        for _ in progress(written, total=len(missing), desc=title, enabled=show and bool(missing)):
            pass
    with atomic_write(folder / TABLE) as file:
        np.save(file, np.concatenate([np.zeros(0, TABLE_DTYPE), *map(_finished, parts)]))
    size = sum(path.stat().st_size for path in folder.iterdir())
    _log.info(
        f"Crop cache: {len(index.rows):,} frames, {size / 2**30:.2f} GiB written to {folder.parent} in "
        f"{time.monotonic() - began:.0f} s."
    )


def _finished(part: _Part) -> NDArray[np.void] | None:
    """Table of a finished part; None where it is missing or not whole."""
    try:
        table = np.fromfile(part.path, TABLE_DTYPE, len(part.frames))
        whole = len(table) == len(part.frames) and part.path.stat().st_size == table["depth"][-1].sum()
    except OSError:
        return None
    return table if whole else None


def _start_worker(parent: int) -> None:
    """A pool process ends with its parent: one that outlived it would hold the lock for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(AttributeError, OSError):  # Linux only
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
    cv2.setNumThreads(0)


def _write_part(kind: str, part: _Part) -> None:
    """One part, whole or not at all: its rows of the table, then their pixels."""
    table = np.zeros(len(part.frames), TABLE_DTYPE)
    table["part"] = part.number
    with atomic_write(part.path) as file:
        file.write(table.tobytes())
        for k, (paths, window) in enumerate(zip(part.frames, part.windows, strict=True)):
            table[k]["window"], table[k]["size"], *blocks = encode_frame(paths, window, kind)
            table[k]["crc"] = [zlib.crc32(block.data) for block in blocks]
            for name, block in zip(("rgb", "depth"), blocks, strict=True):
                start = file.seek(-(-file.tell() // _ALIGN) * _ALIGN)
                file.write(block.data)
                table[k][name] = start, len(block)
        file.truncate()  # up to the last block, be it empty
        file.seek(0)
        file.write(table.tobytes())


def encode_frame(
    paths: tuple[Path, Path], window: NDArray[np.int64], kind: str
) -> tuple[Window, tuple[int, int], NDArray[np.uint8], NDArray[np.uint8]]:
    """What is stored of one frame: the window that is held, (H, W) of the picture, bytes of RGB and of depth.

    Raises:
        DataError: as without a cache.
    """
    frame = PictureFrame(*paths)
    height, width = frame.size  # of one that was replaced since it was checked: the loader says so
    held = Window(*np.clip(window, 0, [width, height, width, height]).tolist())
    return held, frame.size, pack_rgb(frame.rgb(held), kind), pack_depth(frame.depth(held), kind)


def _estimate(missing: list[_Part], kind: str, name: str, workers: int, kept: int) -> None:
    """Say what is to come, from a few frames; refuse a disk that is too small.

    Raises:
        DataError: less space than the frames will take.
    """
    frames, folder = [frame for part in missing for frame in part.frames], missing[0].path.parent
    windows = np.concatenate([part.windows for part in missing])
    probes = np.linspace(0, len(frames) - 1, min(_PROBES, len(frames))).astype(int)
    began = time.perf_counter()
    blocks = [block for k in probes for block in encode_frame(frames[k], windows[k], kind)[2:]]
    seconds = (time.perf_counter() - began) / workers / len(probes) * len(frames)
    area = np.prod(windows[:, 2:] - windows[:, :2], axis=1)
    stored = sum(map(len, blocks)) / max(int(area[probes].sum()), 1) * int(area.sum())
    need, free = stored + len(frames) * (2 * TABLE_DTYPE.itemsize + _ALIGN), shutil.disk_usage(folder).free
    _log.info(
        f"Crop cache ({name}, {kind}): {len(frames):,} frames to decode once into {folder}: about "
        f"{seconds / 60:.1f} min with {workers} processes and {need / 2**30:.2f} GiB ({free / 2**30:.1f} GiB "
        "free)" + (f"; {kept} finished parts of an interrupted run are kept." if kept else ".")
    )
    if need + _RESERVE_BYTES > free:
        other = "" if kind == "compact" else "dataset.cache_format=compact (about a quarter of it), "
        raise DataError(
            f"crop cache: needs about {need / 2**30:.2f} GiB, {folder} has {free / 2**30:.2f} GiB free. "
            f"Set {other}dataset.cache=PATH on a larger disk, or dataset.cache=off."
        )
