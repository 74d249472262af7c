"""Crop cache, writing: once, in parallel, resumable, never half.

Each part (a run of rows of the index) is written by one process of a pool and moved into place when it is
whole; the marker comes last. After a kill, finished parts are kept. A lock admits one writer; whoever waited
for it finds the cache made.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.cache import HEADER_BYTES, MAGIC, MARKER, TABLE_DTYPE, read_marker
from dataloader.cache_codec import encode_depth, encode_rgb
from dataloader.cache_window import MARGIN_PX, Geometry, geometry_of, reach
from dataloader.decode import PictureFrame
from dataloader.index import AnnotationIndex
from dataloader.layout import frame_path
from src.config import RunConfig
from src.errors import DataError
from src.runtime.files import atomic_write
from src.runtime.lock import file_lock
from src.runtime.log import get_logger
from src.runtime.progress import progress

FORMAT = 1
"""Raised whenever the files' layout, the windows or the meaning of a pixel changes."""

_LONGEST_PART = 256
_SHORTEST_PART = 16
_ALIGN = 64
_PROBES = 8
_RESERVE_BYTES = 64 << 20
"""Space left free on the disk, for what else a run writes."""
_log = get_logger("data")

Hands = Callable[[], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Gives K (N, 3, 3) and hand boxes (N, 4) of all rows of the index, pixels; asked only to build."""


@dataclass(frozen=True)
class _Plan:
    """What is written where."""

    config: RunConfig
    index: AnnotationIndex
    folder: Path
    fingerprint: dict[str, Any]
    windows: NDArray[np.int64]
    """(N, 4) not clipped to the pictures."""

    @property
    def key(self) -> str:
        """Name of the fingerprint."""
        return hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def kind(self) -> str:
        """raw or compact."""
        return str(self.fingerprint["kind"])

    def parts(self) -> list[range]:
        """Rows of each part; a function of their number alone, so that finished parts fit a later run."""
        rows = len(self.windows)
        length = min(_LONGEST_PART, max(_SHORTEST_PART, -(-rows // 32)))
        return [range(start, min(start + length, rows)) for start in range(0, rows, length)]

    def part_path(self, part: int) -> Path:
        """File of a part."""
        return self.folder / f"part-{part:05d}-{self.key}.bin"

    def frame(self, row: int) -> PictureFrame:
        """The files of a row."""
        data, (sequence, frame) = self.config.dataset, self.index.sequence_frame(row)
        rgb, depth = (
            frame_path(data.root_dir, self.index.name, sequence, frame, kind, data.version)
            for kind in ("rgb", "depth")
        )
        return PictureFrame(rgb, depth)


def cache_folder(config: RunConfig, index_path: Path) -> Path:
    """Folder of the cache that belongs to an index; a shared folder may serve several data sets."""
    data = config.dataset
    if data.cache == "auto":
        return index_path.parent / f"{index_path.stem}-crops-{data.cache_format}"
    root = hashlib.sha256(str(data.root_dir.resolve()).encode()).hexdigest()[:8]
    return Path(data.cache).expanduser() / f"{index_path.stem.split('-')[0]}-{root}-crops-{data.cache_format}"


def ensure_cache(
    config: RunConfig, index: AnnotationIndex, index_path: Path, hands: Hands, *, show_progress: bool = True
) -> Path:
    """Folder of an up-to-date crop cache, written if need be by one process while others wait.

    Args:
        config: the run; dataset.cache is not `off`.
        index: the opened annotation index, and
        index_path: its file.
        hands: K and boxes of all its rows.
        show_progress: draw a progress bar while writing.

    Raises:
        DataError: a picture is missing or unreadable, the disk is too small, or no place to write.
    """
    folder = cache_folder(config, index_path)
    geometry = geometry_of(config, index.name)
    wanted = _fingerprint(config, index, index_path, geometry)
    if _why_not(folder, wanted, geometry) is None:
        return folder
    with file_lock(folder.with_name(f"{folder.name}.lock"), "crop cache"):
        reason = _why_not(folder, wanted, geometry)  # another process may have written it meanwhile
        if reason is None:
            return folder
        if (folder / MARKER).exists():
            _log.info(f"Crop cache: {folder} cannot be used ({reason}); writing it anew.")
            (folder / MARKER).unlink()
        windows = reach(*hands(), geometry)
        _write(_Plan(config, index, folder, wanted, windows), show_progress)
    return folder


def _fingerprint(
    config: RunConfig, index: AnnotationIndex, index_path: Path, geometry: Geometry
) -> dict[str, Any]:
    """Everything that a cache depends on. Ground truth that comes later changes no picture and no box."""
    made_from = json.loads(index_path.read_text(encoding="utf-8"))["fingerprint"]
    data = {key: value for key, value in made_from.items() if key not in ("truth_sha256", "max_unreadable")}
    return {
        "format": FORMAT,
        "margin_px": MARGIN_PX,
        "kind": config.dataset.cache_format,
        "data": {"index": index.sha256, "rows": len(index.rows), **data},
        "geometry": geometry.as_dict(),
    }


def _why_not(folder: Path, wanted: dict[str, Any], geometry: Geometry) -> str | None:
    """Why the cache at `folder` does not serve; None if it does."""
    info = read_marker(folder)
    if info is None:
        return "its files are damaged or incomplete"
    found = info["fingerprint"]
    if any(found.get(key) != wanted[key] for key in ("format", "margin_px", "kind")):
        return "it was written by another version of this program"
    if found.get("data") != wanted["data"]:
        return "the data set has changed since"
    try:
        covered = Geometry(**found["geometry"]).covers(geometry)
    except (KeyError, TypeError):
        return "its files are damaged or incomplete"
    if not covered:
        return (
            "its crops reach less far than model.image_size, dataset.box_scale and augmentation.{roll_deg, "
            f"scale, shift}} now ask for: {found['geometry']}, want {geometry.as_dict()}"
        )
    return None


def _write(plan: _Plan, show: bool) -> None:
    """Write the parts that are missing, then the table, then the marker."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    parts = plan.parts()
    _remove_leftovers(plan)
    missing = [k for k in range(len(parts)) if _part_table(plan, k, parts[k]) is None]
    _estimate(plan, [parts[k] for k in missing], kept=len(parts) - len(missing))
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        jobs = [(plan, part, parts[part]) for part in missing]
        results: Iterator[None]
        if _workers(plan) == 1 or len(jobs) < 2:
            results = map(_write_part, jobs)
        else:
            # fork: the plan and its index are shared, and a worker would import torch for seconds otherwise.
            pool = ProcessPoolExecutor(
                _workers(plan),
                mp_context=multiprocessing.get_context("fork"),
                initializer=_start_worker,
                initargs=(os.getpid(),),
            )
            results = stack.enter_context(pool).map(_write_part, jobs)
        try:
            for _ in progress(results, total=len(jobs), desc=f"crop cache ({plan.index.name})", enabled=show):
                pass
        except BrokenProcessPool as error:
            raise DataError(
                "crop cache: a writing process died (out of memory?). Finished parts are kept; lower "
                "dataset.index_workers and start again."
            ) from error
    _finish(plan, parts)
    size = sum(path.stat().st_size for path in plan.folder.iterdir())
    _log.info(
        f"Crop cache: {len(plan.windows):,} frames, {size / 2**30:.2f} GiB written to {plan.folder} "
        f"in {time.monotonic() - began:.0f} s."
    )


def _finish(plan: _Plan, parts: list[range]) -> None:
    """Gather the parts' tables and write the marker."""
    table = np.empty(len(plan.windows), TABLE_DTYPE)
    for part, rows in enumerate(parts):
        rows_of_part = _part_table(plan, part, rows)
        if rows_of_part is None:
            raise DataError(f"crop cache: {plan.part_path(part)} vanished while it was made. Start again.")
        table[rows.start : rows.stop] = rows_of_part
    name = f"table-{plan.key}.npy"
    info = {
        "key": plan.key,
        "table": name,
        "parts": [
            {"name": path.name, "bytes": path.stat().st_size}
            for path in map(plan.part_path, range(len(parts)))
        ],
        "fingerprint": plan.fingerprint,
    }
    with _disk_errors(plan.folder):
        with atomic_write(plan.folder / name) as file:
            np.save(file, table)
        with atomic_write(plan.folder / MARKER) as file:
            file.write(json.dumps(info, indent=1).encode())


def _remove_leftovers(plan: _Plan) -> None:
    """Files of another fingerprint, and what a killed writer left half; the lock is held."""
    for path in plan.folder.iterdir():
        if path.name.endswith(".part") or plan.key not in path.name:
            path.unlink(missing_ok=True)


def _workers(plan: _Plan) -> int:
    """Processes that write."""
    return min(plan.config.dataset.index_workers, os.cpu_count() or 1)


def _estimate(plan: _Plan, missing: list[range], kept: int) -> None:
    """Say what is to come, from a few frames; refuse a disk that is too small.

    Raises:
        DataError: less space than the frames will take.
    """
    rows = np.concatenate([np.arange(part.start, part.stop) for part in missing]) if missing else np.arange(0)
    if not len(rows):
        return
    probes = rows[np.linspace(0, len(rows) - 1, min(_PROBES, len(rows))).astype(int)]
    began, stored, pixels = time.perf_counter(), 0, 0
    for row in probes.tolist():
        record, rgb, depth = _encode(plan, row)
        stored += len(rgb) + len(depth)
        pixels += _area(record["window"])
        size = record["size"]
    seconds = (time.perf_counter() - began) / len(probes) * len(rows) / _workers(plan)
    clipped = np.clip(plan.windows[rows], 0, [size[1], size[0], size[1], size[0]])
    area = float(np.prod(clipped[:, 2:] - clipped[:, :2], axis=1).sum())
    need = area * stored / max(pixels, 1) + len(rows) * (2 * TABLE_DTYPE.itemsize + _ALIGN)
    free = shutil.disk_usage(plan.folder).free
    kept_text = f"; {kept} finished parts of an interrupted run are kept" if kept else ""
    _log.info(
        f"Crop cache ({plan.index.name}, {plan.kind}): {len(rows):,} frames to decode once into "
        f"{plan.folder}: about {seconds / 60:.1f} min with {_workers(plan)} processes and "
        f"{need / 2**30:.2f} GiB ({free / 2**30:.1f} GiB free){kept_text}."
    )
    if need + _RESERVE_BYTES > free:
        other = "" if plan.kind == "compact" else "dataset.cache_format=compact (about a quarter of it), "
        raise DataError(
            f"crop cache: needs about {need / 2**30:.2f} GiB, {plan.folder} has {free / 2**30:.2f} GiB free. "
            f"Set {other}dataset.cache=PATH on a larger disk, or dataset.cache=off."
        )


def _area(window: NDArray[np.int32]) -> int:
    """Pixels of a window."""
    x0, y0, x1, y1 = window.tolist()
    return int((x1 - x0) * (y1 - y0))


def _start_worker(parent: int) -> None:
    """A pool process ends with its parent: one that outlived it would hold the lock for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(AttributeError, OSError):  # Linux only
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
    cv2.setNumThreads(0)


def _write_part(job: tuple[_Plan, int, range]) -> None:
    """One part, whole or not at all; runs in a pool process."""
    plan, part, rows = job
    table = np.zeros(len(rows), TABLE_DTYPE)
    table["part"] = part
    with _disk_errors(plan.folder), atomic_write(plan.part_path(part)) as file:
        file.write(bytes(HEADER_BYTES + table.nbytes))
        for k, row in enumerate(rows):
            record, rgb, depth = _encode(plan, row)
            for name in ("window", "size", "crc"):
                table[k][name] = record[name]
            table[k]["rgb"] = _append(file, rgb)
            table[k]["depth"] = _append(file, depth)
        file.seek(0)
        file.write(_header(plan))
        file.write(table.tobytes())


def _encode(plan: _Plan, row: int) -> tuple[NDArray[np.void], NDArray[np.uint8], NDArray[np.uint8]]:
    """What is stored of one frame: window, size and checksums, bytes of RGB, bytes of depth.

    Raises:
        DataError: as without a cache.
    """
    frame = plan.frame(row)
    window = frame.clip(plan.windows[row].tolist())
    rgb = encode_rgb(frame.rgb(window), plan.kind)
    depth = encode_depth(frame.depth(window), plan.kind)
    record = np.zeros((), TABLE_DTYPE)
    record["window"], record["size"] = window, frame.size
    record["crc"] = zlib.crc32(rgb.data), zlib.crc32(depth.data)
    return record, rgb, depth


def _append(file: BinaryIO, block: NDArray[np.uint8]) -> tuple[int, int]:
    """Write a block at the next aligned place; (first byte, number of bytes)."""
    start = -(-file.tell() // _ALIGN) * _ALIGN
    file.write(bytes(start - file.tell()))
    file.write(block.data)
    return start, len(block)


def _header(plan: _Plan) -> bytes:
    """First bytes of a part."""
    return (MAGIC + plan.key.encode()).ljust(HEADER_BYTES, b"\0")


def _part_table(plan: _Plan, part: int, rows: range) -> NDArray[np.void] | None:
    """Table of a finished part; None where it is missing or not whole."""
    path = plan.part_path(part)
    try:
        with path.open("rb") as file:
            if file.read(HEADER_BYTES) != _header(plan):
                return None
            table = np.frombuffer(file.read(len(rows) * TABLE_DTYPE.itemsize), TABLE_DTYPE)
            size = file.seek(0, os.SEEK_END)
    except (OSError, ValueError):
        return None
    whole = len(table) == len(rows) and size == int(table["depth"][-1].sum())
    return table if whole else None


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """What the operating system says about writing, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"crop cache: cannot write to {folder} ({error.strerror}). Finished parts are kept: free some "
            "space and start again, or set dataset.cache=PATH elsewhere, or dataset.cache=off."
        ) from error
