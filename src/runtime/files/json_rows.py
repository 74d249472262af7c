"""Lists of point sets in JSON, one set at a time: HO3D's ground truth and submissions are gigabytes of text.

As Python objects such a file takes four times its size; here memory holds one block of text and one row. What
the numbers mean (order of joints, axes, units) is not known here.
Legend: a *row* is the list of points of one frame, `[[x, y, z], ...]`; P points.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from src.errors import DataError

_BLOCK = 1 << 22
"""Bytes of text at work at a time."""
_MOST = 1 << 24
"""Longest row, and most text that is in no row; a row of 778 points has 40 kB."""
_OPEN, _CLOSE = ord("["), ord("]")


class Readable(Protocol):
    """What is asked of a file."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""


def json_rows(file: Readable, where: str, *, lists: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Text of each row of `[row, row, ...]`, or of several such lists in one.

    Args:
        file: open for reading, at its start.
        where: what is read, for messages.
        lists: None: the file is one list of rows; a number: a list of so many lists of rows.

    Yields:
        (number of the list, text of the row), in the file's order. Rows that were yielded are of no use if
        an error follows.

    Raises:
        DataError: not JSON, cut short, or another structure; after the rows in front of it.
    """
    level = 1 if lists is None else 2
    # All text outside of rows, each row standing there as null: the structure, checked as JSON at the end.
    outside: list[bytes] = []
    pending = b""
    depth = finished_lists = between = 0
    inside = False
    while block := file.read(_BLOCK):
        text = pending + block
        codes = np.frombuffer(block, np.uint8)
        places = np.flatnonzero((codes == _OPEN) | (codes == _CLOSE))
        opens = codes[places] == _OPEN
        depths = np.cumsum(np.where(opens, 1, -1)) + depth
        depth = int(depths[-1]) if len(depths) else depth
        edges = (opens & (depths == level + 1)) | (~opens & (depths == level))
        list_ends = ~opens & (depths == level - 1)
        begin = 0
        for place, is_open, is_list_end in zip(
            (places[edges | list_ends] + len(pending)).tolist(),
            opens[edges | list_ends].tolist(),
            list_ends[edges | list_ends].tolist(),
            strict=True,
        ):
            if is_list_end:
                finished_lists += 1
            elif is_open:
                outside.append(text[begin:place])
                begin, inside = place, True
            elif inside:
                yield finished_lists, text[begin : place + 1]
                outside.append(b"null")
                begin, inside = place + 1, False
        pending = text[begin:]
        if not inside:
            outside.append(pending)
            pending = b""
        between += 0 if inside else len(outside[-1])
        if max(len(pending), between) > _MOST:
            raise DataError(f"{where}: no end of a row in {_MOST:,} bytes. Download it again.")
    _check_structure(b"".join([*outside, pending]), where, lists)


def parse_points(text: bytes, points: int, where: str) -> NDArray[np.float64]:
    """One row as numbers.

    Args:
        text: from `json_rows`.
        points: P.
        where: which row of what, for messages.

    Returns:
        (P, 3) float64, in the file's unit and frame; may hold numbers that are not finite.

    Raises:
        DataError: not JSON, or another shape.
    """
    try:
        values = np.asarray(json.loads(text), dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{where} is not {points} points of 3 numbers: {error}") from error
    if values.shape != (points, 3):
        raise DataError(f"{where} has shape {values.shape}, want ({points}, 3)")
    return values


def point_rows(file: Readable, points: int, where: str) -> Iterator[NDArray[np.float64]]:
    """(P, 3) float64 of each row of a file that is one list of rows.

    Raises:
        DataError: what `json_rows` and `parse_points` raise; names the row.
    """
    for index, (_, text) in enumerate(json_rows(file, where)):
        yield parse_points(text, points, f"{where}: row {index}")


def _check_structure(outside: bytes, where: str, lists: int | None) -> None:
    """Raise unless the text around the rows makes a list of rows, or `lists` such lists."""
    try:
        shape = json.loads(outside)
    except (ValueError, RecursionError) as error:
        rows = outside.count(b"null")
        raise DataError(f"{where}: not JSON, or cut short, after {rows} rows. Download it again.") from error
    groups = [shape] if lists is None else shape
    want = "a list of rows of points" if lists is None else f"a list of {lists} lists of rows of points"
    if not isinstance(groups, list) or (lists is not None and len(groups) != lists):
        raise DataError(f"{where}: want {want}")
    for group in groups:
        if not isinstance(group, list):
            raise DataError(f"{where}: want {want}, got {type(group).__name__}")
        strangers = [index for index, row in enumerate(group) if row is not None]
        if strangers:
            raise DataError(f"{where}: row {strangers[0]} is not a list of points; want {want}")
