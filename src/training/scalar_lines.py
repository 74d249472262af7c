"""scalars.jsonl: one JSON object a line, with the step that it is of. Reading it never ends anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from src.runtime.log import get_logger

LONGEST = 1 << 16
"""Bytes of a line; those of a validation, the longest, have 2,000."""
_MOST_STEPS, _MOST_MINUTES = 1 << 53, 1 << 30
_log = get_logger("scalars")


def read_scalars(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Lines of scalars and what they say, in the file's order.

    A run that was killed leaves a torn last line. Other lines that are none, of another program, another
    encoding, without a step, are passed over with a warning that counts them.

    Args:
        path: the file.

    Returns:
        (line with its end, values by name): `step` a whole number, the others numbers or None.

    Raises:
        OSError: it cannot be read.
    """
    rows, bad, number, first = [], 0, 0, 0
    with path.open("rb") as file:
        while line := file.readline(LONGEST):
            number += 1
            values = _scalars(line)
            if values is not None:
                rows.append((line if line.endswith(b"\n") else line + b"\n", values))
            elif line.endswith(b"\n") or len(line) == LONGEST:
                bad, first = bad + 1, first or number
    if bad:
        _log.warning(f"WARNING: {path}: {bad:,} lines are no scalars (first: line {first:,}), passed over")
    return rows


def _scalars(line: bytes) -> dict[str, Any] | None:
    """Values of one line; None: it is none of ours."""
    try:
        values = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int:
        return None
    if not 0 <= values["step"] < _MOST_STEPS or not _is_time(values.get("minutes", 0.0)):
        return None
    return values if all(_is_number(value) for value in values.values()) else None


def _is_time(minutes: Any) -> bool:
    return isinstance(minutes, int | float) and 0 <= minutes < _MOST_MINUTES


def _is_number(value: Any) -> bool:
    """A number, or null for one that was not finite."""
    return value is None or (type(value) in (int, float) and abs(value) < sys.float_info.max)
