"""Crop cache, reading: the pixels around each hand, decoded once and memory-mapped.

A cache of one list (`src/runtime/files/derived.py`) holds one table with a row per row of the annotation
index, and parts that hold the frames one after another. Loader processes map the parts when they first need
them; all processes share the pages. `dataloader/cache/build.py` writes it.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataloader.cache.codec import unpack_depth, unpack_rgb
from dataloader.crop.camera import Window
from src.errors import DataError
from src.runtime.files.derived import Derived

TABLE, PART = "table.npy", "part-{:05d}.bin"
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
_RGB, _DEPTH = 0, 1


class CropCache:
    """An opened cache; a copy in another process maps the very same parts.

    Args:
        derived: the cache's files, see `dataloader.cache.build.ensure_cache`.
    """

    def __init__(self, derived: Derived) -> None:
        self.derived = derived
        self._parts: dict[int, NDArray[np.uint8]] = {}

    def __reduce__(self) -> tuple[type[CropCache], tuple[Derived]]:
        """Without pixels and table, which would be copied whole."""
        return CropCache, (self.derived,)

    @functools.cached_property
    def table(self) -> NDArray[np.void]:
        """(N,) records of TABLE_DTYPE, one for each row of the annotation index, memory-mapped."""
        return np.asarray(self.derived.array(TABLE, TABLE_DTYPE, ()))

    @functools.cached_property
    def _checked(self) -> NDArray[np.bool_]:
        """(N, 2) whether the checksums of RGB and of depth were compared."""
        return np.zeros((len(self.table), 2), np.bool_)

    def frame(self, row: int, where: str) -> CachedFrame:
        """The pixels of one row of the index.

        Args:
            row: row of the index.
            where: the picture's path, for messages.
        """
        return CachedFrame(self, row, where)

    def read(self, row: int, kind: int, window: Window, where: str) -> NDArray[Any]:
        """The pixels of a window of a row's picture; kind: 0 RGB, 1 depth.

        Raises:
            DataError: the cache does not hold the window, or the pixels are not what was written: a checksum
                is compared at the first reading.
        """
        number, held, _, *places, crc = self.table[row].item()
        x0, y0, x1, y1 = held.tolist()
        if not Window(x0, y0, x1, y1).contains(window):
            raise DataError(
                f"{where}: a crop looks at {tuple(window)}, the crop cache holds {(x0, y0, x1, y1)}. It was "
                "written for a smaller augmentation; set dataset.cache=off to look farther."
            )
        cut = slice(window.y0 - y0, window.y1 - y0), slice(window.x0 - x0, window.x1 - x0)
        if (part := self._parts.get(number)) is None:
            with self.derived.open(PART.format(number)) as file:
                part = self._parts[number] = np.asarray(np.memmap(file, np.uint8, "r"))
        start, count = places[kind]
        block = part[start : start + count]
        try:
            if not self._checked[row, kind]:
                if zlib.crc32(block.data) != crc[kind]:
                    raise ValueError("it does not fit its checksum")
                self._checked[row, kind] = True
            unpack = unpack_rgb if kind == _RGB else unpack_depth
            return unpack(block, self.derived.fingerprint["kind"], (y1 - y0, x1 - x0), cut)
        except ValueError as error:
            raise DataError(
                f"crop cache: {self.derived.path(PART.format(number))} is damaged (row {row}: {error}). "
                f"Delete {self.derived.folder}; it is written anew."
            ) from error


class CachedFrame:
    """One frame of a cache: what `dataloader.pictures.decode.PictureFrame` is of files."""

    def __init__(self, cache: CropCache, row: int, where: str) -> None:
        self._cache, self._row, self._where = cache, row, where
        self.size: tuple[int, int] = tuple(cache.table["size"][row].tolist())
        """(H, W) of the whole picture."""

    def rgb(self, window: Window) -> NDArray[np.uint8]:
        """(h, w, 3) RGB pixels of a window of the picture.

        Raises:
            DataError: the cache does not hold it, or is damaged.
        """
        return self._cache.read(self._row, _RGB, window, self._where)

    def depth(self, window: Window) -> NDArray[np.uint16]:
        """(h, w) depth of a window of the picture, units of DEPTH_UNIT_M, 0 = not measured. As `rgb`."""
        return self._cache.read(self._row, _DEPTH, window, self._where)
