"""Boxes from a file, CSV or JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from src.errors import DataError
from src.predict.frame import Frame, HandBox
from src.predict.frames.files import PICTURES
from src.runtime.files.disk import read_plain

CORNERS = ("x0", "y0", "x1", "y1")
FIELDS = ("frame", *CORNERS)
OPTIONAL = ("hand", "score")
WANTED = "frame,x0,y0,x1,y1[,hand][,score]"

_MOST_BYTES = 1 << 28


class FileBoxes:
    """The boxes of a file; a `BoxFinder`.

    Several rows of a frame are several hands; a frame without a row has none. Whether a box lies in its
    picture is seen when it is cropped.

    Args:
        path: a .csv with the header `frame,x0,y0,x1,y1[,hand][,score]` (pixels; hand: left or right, right if
            it is not said); a .json with these fields, as a list of objects or as {frame: [x0, y0, x1, y1],
            an object, or a list of those}. A frame is written as its name, with or
            without a picture's ending, or as the last part of its name where no other frame has the same.
        names: all frames of the run.

    Raises:
        DataError: the file cannot be read, a row is no box, or its frame is not among `names`.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._boxes: dict[str, list[HandBox]] = {}
        rows = list(_rows(path))
        if not rows:
            raise DataError(f"{path}: there is no box in it, want rows of {WANTED}")
        found = [(place, str(row["frame"]), _hand_box(f"{path} {place}", row)) for place, row in rows]
        if all(0 <= value <= 1 for _, _, box in found for value in box.box_px):
            raise DataError(
                f"{path}: all boxes lie within 0 to 1, want x0, y0, x1, y1 in pixels: multiply them by the "
                "picture's width and height"
            )
        called = _Names(names)
        strange, seen = [], set()
        for place, text, box in found:
            frame = called.find(f"{path} {place}", text)
            if frame is None:
                strange.append(f"{text!r}, {place}")
                continue
            if (frame, box.box_px) in seen:
                raise DataError(f"{path} {place}: {text!r} has this box already. Keep one of the two rows")
            seen.add((frame, box.box_px))
            self._boxes.setdefault(frame, []).append(box)
        if strange:
            raise DataError(
                f"{path}: {len(strange)} of {len(found)} rows are of frames that are not there (first: "
                f"{strange[0]}). The frames are called like {', '.join(map(repr, names[:2]))}"
            )

    def find(self, frame: Frame) -> list[HandBox]:
        """Boxes of a frame, in the order of their rows."""
        return list(self._boxes.get(frame.name, ()))


class _Names:
    """Frames by the ways in which their names may be written."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = set(names)
        self._spelled: dict[str, set[str]] = {}
        for name in names:
            bare = PurePosixPath(name).name
            for text in (name, _stem(name), bare, _stem(bare)):
                self._spelled.setdefault(text, set()).add(name)

    def find(self, place: str, text: str) -> str | None:
        """The frame that is meant; None: there is no such frame. DataError: several could be meant."""
        if text in self._names:
            return text
        meant = self._spelled.get(text) or {
            name for name in self._spelled.get(_stem(text), ()) if name == _stem(name)
        }
        if len(meant) > 1:
            first, second = sorted(meant)[:2]
            raise DataError(
                f"{place}: {text!r} can be {first!r} and {second!r}. Write the whole name of the frame"
            )
        return next(iter(meant), None)


def _stem(name: str) -> str:
    """A name without a picture's ending."""
    ending = PurePosixPath(name).suffix
    return name[: -len(ending)] if ending.lower() in PICTURES else name


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where it stands, fields) of each box of a file."""
    kind = path.suffix.lower()
    if kind not in (".csv", ".json"):
        raise DataError(f"{path}: boxes are read from .csv and .json, got {kind or 'no ending'!r}")
    try:
        text = read_plain(path, _MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: the boxes cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text (byte {error.start}). Save it as UTF-8") from error
    yield from _csv_rows(path, text) if kind == ".csv" else _json_rows(path, text)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.reader(text.splitlines(), strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            place, cells = f"line {reader.line_num}", [cell.strip() for cell in cells]
            if not header:
                header = cells
                _require_fields(f"{path} {place}", header)
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path} {place}: got {len(cells)} cells, want {len(header)} as in the header"
                )
            yield place, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: this is no CSV: {error}") from error


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(content := dict(pairs)) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands in it twice")
        return content

    try:
        content = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: this is no JSON of boxes: {error}") from error
    if isinstance(content, dict):
        entries = [
            (f"frame {frame!r}", box) for frame, value in content.items() for box in _entries(frame, value)
        ]
    else:
        listed = content if isinstance(content, list) else [content]
        entries = [(f"entry {number}", entry) for number, entry in enumerate(listed, start=1)]
    for place, entry in entries:
        if not isinstance(entry, dict):
            got = json.dumps(entry)[:40]
            raise DataError(f"{path} {place}: got {got}, want [x0, y0, x1, y1] or the fields {WANTED}")
        _require_fields(f"{path} {place}", list(entry))
        yield place, entry


def _entries(frame: str, value: Any) -> list[Any]:
    """The boxes that stand under a frame's name, as objects where they are boxes."""
    several = isinstance(value, list) and all(isinstance(part, list | dict) for part in value)
    boxes = []
    for box in value if several else [value]:
        corners = isinstance(box, list) and len(box) == len(CORNERS)
        fields = dict(zip(CORNERS, box, strict=True)) if corners else box
        boxes.append({"frame": frame, **fields} if isinstance(fields, dict) else fields)
    return boxes


def _require_fields(place: str, fields: Sequence[str]) -> None:
    """DataError: the names of the fields are not those of a box."""
    missing = [name for name in FIELDS if name not in fields]
    other = [name for name in fields if name not in (*FIELDS, *OPTIONAL)]
    if not missing and not other and len(set(fields)) == len(fields):
        return
    line, remedy = ",".join(fields), "Name the columns so"
    if ";" in line or "\t" in line:
        remedy = "Separate the columns by commas, and write numbers with a point"
    elif {"w", "h"} <= set(fields) or {"width", "height"} <= set(fields):
        remedy = "Give corners: x1 = x + width, y1 = y + height"
    raise DataError(f"{place}: got the fields {line[:80]}, want {WANTED}. {remedy}")


def _hand_box(place: str, row: Mapping[str, Any]) -> HandBox:
    """A row as a box."""
    numbers = [_number(f"{place}: {name}", row[name]) for name in CORNERS]
    x0, y0, x1, y1 = numbers
    if x1 <= x0 or y1 <= y0:
        raise DataError(
            f"{place}: the box {numbers} has no size; want x0 < x1 and y0 < y1: two opposite corners, not "
            "a corner with width and height"
        )
    hand = row.get("hand") or "right"
    if hand not in ("left", "right"):
        raise DataError(f"{place}: hand is {hand!r}, want left or right")
    score = 1.0 if row.get("score") in (None, "") else _number(f"{place}: score", row["score"])
    if not 0 <= score <= 1:
        raise DataError(f"{place}: score is {score}, want 0 to 1")
    return HandBox((x0, y0, x1, y1), hand == "left", score)


def _number(what: str, value: Any) -> float:
    """A finite number."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{what} is {value!r}, want a finite number")
    return number
