"""Crop cache, reading: the pixels around each hand, decoded once and memory-mapped.

A cache of one list is a folder with `crops.json` (what it was made from, written last), one table with a row
per row of the annotation index, and parts that hold the frames one after another. Loader processes map the
parts when they first need them; all processes share the pages. `dataloader/cache_build.py` writes it.
"""

from __future__ import annotations

import json
import mmap
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.cache_codec import decode_depth, decode_rgb
from dataloader.crop import Window
from src.errors import DataError

MARKER = "crops.json"
MAGIC = b"UTNetCrops"
HEADER_BYTES = 64
"""A part begins with MAGIC and the name of its fingerprint; then its rows of the table, then pixels."""

TABLE_DTYPE = np.dtype(
    [
        ("part", "<i4"),
        ("window", "<i4", (4,)),  # x0, y0, x1, y1 in picture pixels
        ("size", "<i4", (2,)),  # H, W of the picture
        ("rgb", "<i8", (2,)),  # first byte in the part, number of bytes
        ("depth", "<i8", (2,)),
        ("crc", "<u4", (2,)),  # of the bytes of rgb and of depth
    ]
)


class CropCache:
    """An opened cache; see `open_cache`."""

    def __init__(self, folder: Path, info: dict[str, Any], table: NDArray[np.void]) -> None:
        self.folder = folder
        self.key: str = info["key"]
        self.kind: str = info["fingerprint"]["kind"]
        self._parts: list[tuple[str, int]] = [(p["name"], p["bytes"]) for p in info["parts"]]
        self._table = table
        self._maps: dict[int, NDArray[np.uint8]] = {}
        self._checked = np.zeros((len(table), 2), np.bool_)

    def frame(self, row: int, where: str) -> CachedFrame:
        """The pixels of one row of the index.

        Args:
            row: row of the index.
            where: the picture's path, for messages.
        """
        return CachedFrame(self, row, self._table[row].item(), where)

    def data(self, row: int, kind: int, part: int, start: int, count: int, crc: int) -> NDArray[np.uint8]:
        """Bytes of one block; its checksum is compared when this process reads it for the first time.

        Raises:
            DataError: they are not what was written.
        """
        block = self._map(part)[start : start + count]
        if not self._checked[row, kind]:
            if len(block) != count or zlib.crc32(block.data) != crc:
                raise DataError(
                    f"crop cache: {self.folder / self._parts[part][0]} is damaged (row {row} does not "
                    f"fit its checksum). Delete {self.folder}; it is written anew."
                )
            self._checked[row, kind] = True
        return block

    def _map(self, part: int) -> NDArray[np.uint8]:
        """A part, memory-mapped read-only."""
        found = self._maps.get(part)
        if found is None:
            name, size = self._parts[part]
            try:
                with (self.folder / name).open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            except (OSError, ValueError) as error:
                raise DataError(
                    f"crop cache: {self.folder / name} cannot be read ({error}). Another run may "
                    "have written the cache anew; start again."
                ) from error
            if len(mapped) != size:
                raise DataError(f"crop cache: {self.folder / name} has {len(mapped):,} bytes, want {size:,}.")
            found = self._maps[part] = np.frombuffer(mapped, np.uint8)
        return found


class CachedFrame:
    """One frame of a cache: what `dataloader.decode.PictureFrame` is of files."""

    def __init__(self, cache: CropCache, row: int, record: tuple[Any, ...], where: str) -> None:
        self._cache, self._row, self._where = cache, row, where
        self._part, window, size, self._rgb, self._depth, self._crc = record
        self._window = Window(*(int(v) for v in window))
        self.size: tuple[int, int] = (int(size[0]), int(size[1]))
        """(H, W) of the whole picture."""

    def rgb(self, window: Window) -> NDArray[np.uint8]:
        """(h, w, 3) RGB pixels of a window of the picture.

        Raises:
            DataError: the cache does not hold it, or is damaged.
        """
        start, count = self._rgb
        block = self._cache.data(self._row, 0, self._part, start, count, self._crc[0])
        return decode_rgb(block, self._shape(), self._cache.kind, self._cut(window))

    def depth(self, window: Window) -> NDArray[np.uint16]:
        """(h, w) depth of a window of the picture, units of DEPTH_UNIT_M, 0 = not measured. As `rgb`."""
        start, count = self._depth
        block = self._cache.data(self._row, 1, self._part, start, count, self._crc[1])
        return decode_depth(block, self._shape(), self._cache.kind, self._cut(window))

    def _shape(self) -> tuple[int, int]:
        """(h, w) of what the cache holds."""
        x0, y0, x1, y1 = self._window
        return y1 - y0, x1 - x0

    def _cut(self, window: Window) -> tuple[slice, slice]:
        """Rows and columns of `window` among the held pixels."""
        mine = self._window
        if not mine.contains(window):
            raise DataError(
                f"{self._where}: a crop looks at {tuple(window)}, the crop cache holds {tuple(mine)}. It was "
                "written for a smaller augmentation; set dataset.cache=off to look farther."
            )
        rows = slice(window.y0 - mine.y0, window.y1 - mine.y0)
        return rows, slice(window.x0 - mine.x0, window.x1 - mine.x0)


def read_marker(folder: Path) -> dict[str, Any] | None:
    """What a finished cache says about itself; None where there is none, or its files are not whole."""
    try:
        info = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        whole = all((folder / part["name"]).stat().st_size == part["bytes"] for part in info["parts"])
        whole &= (folder / info["table"]).is_file() and isinstance(info["fingerprint"]["kind"], str)
        return dict(info) if whole and isinstance(info["key"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def open_cache(folder: Path, rows: int, key: str | None = None) -> CropCache:
    """Open a cache that `dataloader.cache_build.ensure_cache` wrote.

    Args:
        folder: its folder.
        rows: rows of the annotation index.
        key: which cache it must be, where a process opens what another one has chosen; None: any.

    Raises:
        DataError: it is missing, damaged or another one.
    """
    info = read_marker(folder)
    if info is None:
        raise DataError(f"crop cache: {folder} is missing or damaged. Delete it; it is written anew.")
    if key is not None and info["key"] != key:
        raise DataError(f"crop cache: another run has written {folder} anew meanwhile. Start again.")
    try:
        table = np.load(folder / info["table"], mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(
            f"crop cache: {folder / info['table']} is damaged ({error}). Delete {folder}."
        ) from error
    if table.dtype != TABLE_DTYPE or table.shape != (rows,):
        raise DataError(f"crop cache: {folder} does not fit its table. Delete it; it is written anew.")
    return CropCache(folder, info, np.asarray(table))
