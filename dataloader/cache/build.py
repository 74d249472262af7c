"""Crop cache, writing: once, in parallel, resumable, never half.

Each part (a run of rows of the index) is written by one process of a pool and moved into place when it is
whole. After a kill, finished parts are kept. The store (`src/runtime/files/derived.py`) admits one writer;
whoever waited for it finds the cache made.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.cache.crop_cache import TABLE, TABLE_DTYPE, CropCache
from dataloader.cache.part import (
    ALIGN,
    Plan,
    disk_errors,
    encode_frame,
    part_table,
    start_worker,
    write_part,
    write_part_in_pool,
)
from dataloader.cache.window import MARGIN_PX, Geometry, geometry_of, reach
from dataloader.ho3d.index import AnnotationIndex, index_store, root_digest
from dataloader.ho3d.layout import file_stamp, read_list
from dataloader.ho3d.meta import ListName
from src.config import RunConfig
from src.errors import DataError
from src.runtime.files.derived import Derived, Store
from src.runtime.files.disk import atomic_write, sync_file
from src.runtime.log import get_logger
from src.runtime.progress import progress

FORMATS = {"raw": 3, "compact": 4}
"""By dataset.cache_format; raised when the files' layout, the windows or the meaning of a pixel changes."""

_PROBES = 8
_PROBE_BYTES = 8 << 20
_RESERVE_BYTES = 64 << 20
"""Space left free on the disk, for what else a run writes."""
_log = get_logger("data")

Hands = Callable[[], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Gives K (N, 3, 3) and hand boxes (N, 4) of all rows of the index, pixels; asked only to build."""


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
        facts={"parts": list},
    )


def ensure_cache(
    config: RunConfig,
    index: AnnotationIndex,
    hands: Hands,
    *,
    show_progress: bool = True,
) -> CropCache:
    """An up-to-date crop cache, written if need be by one process while others wait.

    Args:
        config: the run; dataset.cache is not `off`.
        index: the opened annotation index.
        hands: K and boxes of all its rows.
        show_progress: draw a progress bar while writing.

    Raises:
        DataError: a picture is missing or unreadable, the disk is too small, or no place to write.
    """
    store, geometry = cache_store(config, index.name), geometry_of(config, index.name)
    wanted = _fingerprint(config, index, geometry)

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
        seen_by = hands()
        plan = Plan(config, index, folder, wanted, reach(*seen_by, geometry), seen_by, geometry)
        return _write(plan, show_progress)

    derived = store.ensure(wanted, make, find=find)
    return CropCache(derived, len(index.rows))


def _fingerprint(config: RunConfig, index: AnnotationIndex, geometry: Geometry) -> dict[str, Any]:
    """Everything that a cache depends on. Ground truth that comes later changes no picture and no box."""
    pictures = file_stamp(config.dataset, read_list(config.dataset, index.name), ["rgb", "depth"])
    return {
        "format": FORMATS[config.dataset.cache_format],
        "margin_px": MARGIN_PX,
        "kind": config.dataset.cache_format,
        "data": {
            "version": config.dataset.version,
            "frames": index.sha256,
            "hands": index.hands_sha256,
            "pictures": pictures,
        },
        "geometry": geometry.as_dict(),
    }


def _why_not(cache: Derived, wanted: dict[str, Any], geometry: Geometry) -> str | None:
    """Why a cache does not serve; None if it does."""
    found = cache.fingerprint
    if any(found.get(key) != wanted[key] for key in ("format", "margin_px", "kind")):
        return "it was written by another version of this program"
    if found.get("data") != wanted["data"]:
        return "the data set has changed since"
    try:
        covers = Geometry(**found["geometry"]).covers(geometry)
    except (KeyError, TypeError):
        return "it does not say how far its crops reach"
    if not covers:
        return (
            "its crops reach less far than model.image_size, dataset.box_scale and augmentation.{roll_deg, "
            f"scale, shift}} now ask for: {found['geometry']}, want {geometry.as_dict()}"
        )
    return None


def _write(plan: Plan, show: bool) -> dict[str, Any]:
    """Write the parts that are missing, then the table."""
    parts = plan.parts()
    _remove_leftovers(plan)
    missing = [k for k in range(len(parts)) if part_table(plan, k, parts[k]) is None]
    _estimate(plan, [parts[k] for k in missing], kept=len(parts) - len(missing))
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        results: Iterator[None]
        if _workers(plan) == 1 or len(missing) < 2:
            results = map(functools.partial(write_part, plan), missing)
        else:
            # fork: the plan and its index are shared, and a worker would import torch for seconds otherwise.
            pool = ProcessPoolExecutor(
                _workers(plan),
                mp_context=multiprocessing.get_context("fork"),
                initializer=start_worker,
                initargs=(os.getpid(), plan),
            )
            results = stack.enter_context(pool).map(write_part_in_pool, missing)
        try:
            title = f"crop cache ({plan.index.name})"
            for _ in progress(results, total=len(missing), desc=title, enabled=show):
                pass
        except BrokenProcessPool as error:
            raise DataError(
                "crop cache: a writing process died (out of memory?). Finished parts are kept; lower "
                "dataset.index_workers and start again."
            ) from error
    facts = _finish(plan, parts)
    size = sum(path.stat().st_size for path in plan.folder.iterdir())
    _log.info(
        f"Crop cache: {len(plan.windows):,} frames, {size / 2**30:.2f} GiB written to {plan.folder.parent} "
        f"in {time.monotonic() - began:.0f} s."
    )
    return facts


def _finish(plan: Plan, parts: list[range]) -> dict[str, Any]:
    """Gather the parts' tables."""
    table = np.empty(len(plan.windows), TABLE_DTYPE)
    for part, rows in enumerate(parts):
        rows_of_part = part_table(plan, part, rows)
        if rows_of_part is None:
            raise DataError(f"crop cache: {plan.part_path(part)} vanished while it was made. Start again.")
        table[rows.start : rows.stop] = rows_of_part
    with disk_errors(plan.folder), atomic_write(plan.folder / TABLE) as file:
        np.save(file, table)
    return {"parts": [plan.part_path(part).name for part in range(len(parts))]}


def _remove_leftovers(plan: Plan) -> None:
    """What a killed writer left half; the lock is held."""
    for path in plan.folder.iterdir():
        if path.name.endswith(".part"):
            path.unlink(missing_ok=True)


def _workers(plan: Plan) -> int:
    """Processes that write."""
    return min(plan.config.dataset.index_workers, os.cpu_count() or 1)


def _estimate(plan: Plan, missing: list[range], kept: int) -> None:
    """Say what is to come, from a few frames; refuse a disk that is too small.

    Raises:
        DataError: less space than the frames will take.
    """
    rows = np.concatenate([np.arange(part.start, part.stop) for part in missing]) if missing else np.arange(0)
    if not len(rows):
        return
    probes = rows[np.linspace(0, len(rows) - 1, min(_PROBES, len(rows))).astype(int)]
    began = time.perf_counter()
    samples = [encode_frame(plan, row) for row in probes.tolist()]
    decoding = (time.perf_counter() - began) / _workers(plan)
    stored = sum(len(rgb) + len(depth) for _, rgb, depth in samples)
    writing = stored * _seconds_per_byte(plan.folder, samples[0][1])
    seconds = (decoding + writing) / len(probes) * len(rows)
    size = samples[-1][0]["size"]
    area, probed = _area(plan.windows[rows], size), _area(plan.windows[probes], size)
    need = area * stored / max(probed, 1.0) + len(rows) * (2 * TABLE_DTYPE.itemsize + ALIGN)
    free = shutil.disk_usage(plan.folder).free
    kept_text = f"; {kept} finished parts of an interrupted run are kept" if kept else ""
    _log.info(
        f"Crop cache ({plan.index.name}, {plan.kind}): {len(rows):,} frames to decode once into "
        f"{plan.folder}: about {seconds / 60:.1f} min with {_workers(plan)} processes and "
        f"{need / 2**30:.2f} GiB ({free / 2**30:.1f} GiB free){kept_text}."
    )
    if need + _RESERVE_BYTES > free:
        other = "" if plan.kind == "compact" else "dataset.cache_format=compact (about a fifth of it), "
        raise DataError(
            f"crop cache: needs about {need / 2**30:.2f} GiB, {plan.folder} has {free / 2**30:.2f} GiB free. "
            f"Set {other}dataset.cache=PATH on a larger disk, or dataset.cache=off."
        )


def _seconds_per_byte(folder: Path, block: NDArray[np.uint8]) -> float:
    """What it takes to get a byte onto the disk; the file has a name that no link could have been put at."""
    times = -(-_PROBE_BYTES // max(len(block), 1))
    began = time.perf_counter()
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(times):
            file.write(block.data)
        file.flush()
        sync_file(file.file)
    return (time.perf_counter() - began) / max(times * len(block), 1)


def _area(windows: NDArray[np.int64], size: NDArray[np.int32]) -> float:
    """Pixels of (N, 4) windows inside a picture of `size` (H, W)."""
    clipped = np.clip(windows, 0, [size[1], size[0], size[1], size[0]])
    return float(np.prod(clipped[:, 2:] - clipped[:, :2], axis=1).sum())
