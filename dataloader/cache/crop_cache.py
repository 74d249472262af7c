"""Crop cache, reading: the pixels around each hand, decoded once and memory-mapped.

A cache of one list (`src/runtime/files/derived.py`) holds one table with a row per row of the annotation
index, and parts that hold the frames one after another. Loader processes map the parts when they first need
them; all processes share the pages. `dataloader/cache/build.py` writes it.
"""

from __future__ import annotations

import functools
import mmap
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.cache.codec import decode_depth, decode_rgb
from dataloader.crop.camera import Window
from src.errors import DataError
from src.runtime.files.derived import Derived

TABLE = "table.npy"
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
    """An opened cache; a copy in another process maps the very same parts.

    Args:
        derived: the cache's files, see `dataloader.cache.build.ensure_cache`.
        rows: rows of the annotation index.

    Raises:
        DataError: its table is not that of so many rows.
    """

    def __init__(self, derived: Derived, rows: int) -> None:
        self.derived = derived
        self.kind: str = derived.fingerprint["kind"]
        self._parts: list[str] = derived.facts["parts"]
        self._rows = rows
        self._forget()
        assert len(self._table) == rows  # looked at here, in the process that opens it

    def _forget(self) -> None:
        """Nothing is mapped or checked."""
        self._maps: dict[int, NDArray[np.uint8]] = {}
        self._checked = np.zeros((self._rows, 2), np.bool_)

    @functools.cached_property
    def _table(self) -> NDArray[np.void]:
        """(N,) records of TABLE_DTYPE, memory-mapped."""
        table = np.asarray(self.derived.array(TABLE, TABLE_DTYPE, ()))
        if len(table) != self._rows or not _is_sound(table, len(self._parts)):
            raise DataError(
                f"crop cache: {self.derived.path(TABLE)} is damaged, or not of these annotations. Delete "
                f"{self.derived.folder}; it is written anew."
            )
        return table

    def __getstate__(self) -> dict[str, Any]:
        """Without pixels and table, which would be copied whole."""
        mapped = ("_maps", "_checked", "_table")
        return {name: value for name, value in self.__dict__.items() if name not in mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

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
                    f"crop cache: {self.derived.path(self._parts[part])} is damaged (row {row} does not "
                    f"fit its checksum). Delete {self.derived.folder}; it is written anew."
                )
            self._checked[row, kind] = True
        return block

    def _map(self, part: int) -> NDArray[np.uint8]:
        """A part, memory-mapped read-only."""
        found = self._maps.get(part)
        if found is None:
            with self.derived.open(self._parts[part]) as file:
                mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            found = self._maps[part] = np.frombuffer(mapped, np.uint8)
        return found


def _is_sound(table: NDArray[np.void], parts: int) -> bool:
    """Whether every row is one that may have been written: a window inside its picture, bytes in a part."""
    x0, y0, x1, y1 = table["window"].T
    high, wide = table["size"].T
    inside = (x0 >= 0) & (y0 >= 0) & (x0 <= x1) & (y0 <= y1) & (x1 <= wide) & (y1 <= high)
    placed = (table["part"] >= 0) & (table["part"] < parts)
    counted = (table["rgb"] >= 0).all(1) & (table["depth"] >= 0).all(1)
    return bool((inside & placed & counted).all())


class CachedFrame:
    """One frame of a cache: what `dataloader.pictures.decode.PictureFrame` is of files."""

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
