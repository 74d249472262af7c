"""A list of point sets in JSON, one set at a time: HO3D's ground truth is a gigabyte of text.

As Python objects such a file takes four times its size; here memory holds one block of text and one row. What
the numbers mean (order of joints, axes, units) is not known here.
Legend: a *row* is the list of points of one frame, `[[x, y, z], ...]`; P points.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import ijson
import numpy as np
from numpy.typing import NDArray

from src.errors import DataError

_LEVELS = 3
"""Lists in one another: rows, points, numbers."""
_MOST = 1 << 24
"""Longest text without the end of a row; a row of 778 points has 40 kB."""
_ALLOWED = b"0123456789+-.eE,[] \t\r\n"


class Readable(Protocol):
    """What is asked of a file."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""


class _Guarded:
    """A file whose text can only be lists of numbers: what costs a parser memory without end is refused."""

    def __init__(self, file: Readable, where: str) -> None:
        self._file, self._where = file, where
        self._depth = self._since_row = 0

    def read(self, size: int = -1, /) -> bytes:
        """The next block.

        Raises:
            DataError: a byte that no list of numbers has, lists too deep, or a row without end.
        """
        block = self._file.read(size)
        if strange := block.translate(None, _ALLOWED):
            raise DataError(
                f"{self._where}: holds {strange[:3].decode('latin-1')!r}, so a number that is not finite, or "
                "no list of points at all. Download it again."
            )
        codes = np.frombuffer(block, np.uint8)
        depths = self._depth + np.cumsum((codes == ord("[")).astype(np.int8) - (codes == ord("]")), dtype=int)
        ends = np.flatnonzero((codes == ord("]")) & (depths == 1))
        longest = np.diff([-self._since_row, *ends, len(block)]).max()
        if depths.max(initial=0) > _LEVELS or longest > _MOST:
            raise DataError(
                f"{self._where}: lists more than {_LEVELS} deep, or no end of a row in {_MOST:,} bytes. "
                "Download it again."
            )
        self._depth = int(depths[-1]) if len(depths) else self._depth
        self._since_row = len(block) - int(ends[-1]) if len(ends) else self._since_row + len(block)
        return block


def point_rows(file: Readable, points: int, where: str) -> Iterator[NDArray[np.float64]]:
    """(P, 3) float64 of each row of a file that is one list of rows.

    Rows that were yielded are of no use if an error follows.

    Args:
        file: open for reading, at its start.
        points: P.
        where: what is read, for messages.

    Raises:
        DataError: not JSON, cut short, another structure or shape; names the row.
    """
    index = -1
    try:
        for index, row in enumerate(ijson.items(_Guarded(file, where), "item", use_float=True)):
            if not isinstance(row, list):
                raise DataError(
                    f"{where}: row {index} is not a list of points; want a list of rows of points"
                )
            try:
                values = np.asarray(row, dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{where}: row {index} is not {points} points of 3 numbers: {error}"
                ) from error
            if values.shape != (points, 3):
                raise DataError(f"{where}: row {index} has shape {values.shape}, want ({points}, 3)")
            yield values
    except ijson.JSONError as error:
        raise DataError(
            f"{where}: not JSON, or cut short, after {index + 1} rows ({error!r:.80}). Download it again."
        ) from error
    if index < 0:
        raise DataError(f"{where}: want a list of rows of points, and it holds none")
