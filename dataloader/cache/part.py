"""Crop cache, writing: one part, whole or not at all. `dataloader/cache/build.py` decides which.

A part holds a run of rows of the index: a header, their rows of the table, their pixels.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from dataloader.cache.codec import BLOCK_PX, encode_depth, encode_rgb
from dataloader.cache.crop_cache import HEADER_BYTES, MAGIC, TABLE_DTYPE
from dataloader.cache.window import Geometry, within_reach
from dataloader.crop.camera import Window
from dataloader.ho3d.index import AnnotationIndex
from dataloader.ho3d.layout import frame_path
from dataloader.pictures.decode import PictureFrame
from src.config import RunConfig
from src.errors import DataError
from src.runtime.files.disk import atomic_write

ALIGN = 64
"""Blocks of pixels start at multiples of this many bytes."""
_LONGEST_PART = 256
_SHORTEST_PART = 16


@dataclass(frozen=True)
class Plan:
    """What is written where."""

    config: RunConfig
    index: AnnotationIndex
    folder: Path
    """Where it is made."""
    fingerprint: dict[str, Any]
    windows: NDArray[np.int64]
    """(N, 4) not clipped to the pictures."""
    hands: tuple[NDArray[np.float64], NDArray[np.float64]]
    """K (N, 3, 3) and boxes (N, 4) that the windows were made from, with"""
    geometry: Geometry
    """these ranges."""

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
        return self.folder / f"part-{part:05d}.bin"

    def frame(self, row: int) -> PictureFrame:
        """The files of a row."""
        data, (sequence, frame) = self.config.dataset, self.index.sequence_frame(row)
        rgb, depth = (
            frame_path(data.root_dir, self.index.name, sequence, frame, kind, data.version)
            for kind in ("rgb", "depth")
        )
        return PictureFrame(rgb, depth)


_plan_of_pool: Plan | None = None
"""What this pool process writes; inherited, because a plan that travels would copy the whole index."""


def start_worker(parent: int, plan: Plan) -> None:
    """A pool process ends with its parent: one that outlived it would hold the lock for ever."""
    global _plan_of_pool
    _plan_of_pool = plan
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(AttributeError, OSError):  # Linux only
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)
    cv2.setNumThreads(0)


def write_part_in_pool(part: int) -> None:
    """`write_part` of the plan that this process inherited."""
    assert _plan_of_pool is not None
    write_part(_plan_of_pool, part)


def write_part(plan: Plan, part: int) -> None:
    """One part, whole or not at all."""
    rows = plan.parts()[part]
    table = np.zeros(len(rows), TABLE_DTYPE)
    table["part"] = part
    with disk_errors(plan.folder), atomic_write(plan.part_path(part)) as file:
        file.write(bytes(HEADER_BYTES + table.nbytes))
        for k, row in enumerate(rows):
            record, rgb, depth = encode_frame(plan, row)
            for name in ("window", "size", "crc"):
                table[k][name] = record[name]
            table[k]["rgb"] = _append(file, rgb)
            table[k]["depth"] = _append(file, depth)
        file.seek(0)
        file.write(_header(plan))
        file.write(table.tobytes())


def encode_frame(plan: Plan, row: int) -> tuple[NDArray[np.void], NDArray[np.uint8], NDArray[np.uint8]]:
    """What is stored of one frame: window, size and checksums, bytes of RGB, bytes of depth.

    Raises:
        DataError: as without a cache.
    """
    frame = plan.frame(row)
    window = frame.clip(plan.windows[row].tolist())
    seen, quality = None, None
    if plan.kind == "compact" and window.x1 > window.x0 and window.y1 > window.y0:
        window = frame.clip(_along_blocks(window))
        intrinsics, boxes = plan.hands
        seen = within_reach(intrinsics[row], boxes[row], plan.geometry, window)
        quality = frame.jpeg_quality
    rgb = encode_rgb(frame.rgb(window), plan.kind, quality, seen)
    depth = encode_depth(frame.depth(window), plan.kind, seen)
    record = np.zeros((), TABLE_DTYPE)
    record["window"], record["size"] = window, frame.size
    record["crc"] = zlib.crc32(rgb.data), zlib.crc32(depth.data)
    return record, rgb, depth


def _along_blocks(window: Window) -> tuple[int, int, int, int]:
    """The smallest rectangle of whole JPEG blocks around a window."""
    down = [start // BLOCK_PX * BLOCK_PX for start in (window.x0, window.y0)]
    up = [-(-end // BLOCK_PX) * BLOCK_PX for end in (window.x1, window.y1)]
    return down[0], down[1], up[0], up[1]


def _append(file: BinaryIO, block: NDArray[np.uint8]) -> tuple[int, int]:
    """Write a block at the next aligned place; (first byte, number of bytes)."""
    start = -(-file.tell() // ALIGN) * ALIGN
    file.write(bytes(start - file.tell()))
    file.write(block.data)
    return start, len(block)


def _header(plan: Plan) -> bytes:
    """First bytes of a part."""
    return (MAGIC + plan.key.encode()).ljust(HEADER_BYTES, b"\0")


def part_table(plan: Plan, part: int, rows: range) -> NDArray[np.void] | None:
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
def disk_errors(folder: Path) -> Iterator[None]:
    """What the operating system says about writing, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"crop cache: cannot write to {folder} ({error.strerror}). Finished parts are kept: free some "
            "space and start again, or set dataset.cache=PATH elsewhere, or dataset.cache=off."
        ) from error
