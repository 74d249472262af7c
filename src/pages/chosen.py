"""Which samples of a validation are looked at: the worst, the best, the middle, and a spread of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from src.evaluation.statistics import Rows

KINDS = ("worst", "median", "best", "spread")
NEIGHBOURS = 30
"""Frames of one sequence that are nearer than this are neighbours: nearly the same picture."""


def choose(errors: Rows, sequences: Sequence[str], numbers: Sequence[int], most: int) -> dict[str, list[int]]:
    """Samples to look at; no sample twice, and in no list two neighbours.

    One sequence fills at most a third of a list, as long as there are others.

    Args:
        errors: (N,) what samples are sorted by; those that are not finite are the worst.
        sequences: (N,) sequence of each sample.
        numbers: (N,) frame number of each.
        most: samples in all lists together.

    Returns:
        kind of `KINDS` -> rows, shared out evenly; fewer where the samples are too few or too alike.
    """
    count = len(errors)
    finite = np.isfinite(errors)
    rank = np.where(finite, errors, 1.0 + errors[finite].max(initial=0.0))
    orders: dict[str, Iterable[int]] = {
        "worst": np.argsort(-rank, kind="stable"),
        "best": np.argsort(rank, kind="stable"),
        "median": np.argsort(np.abs(rank - np.median(rank)), kind="stable") if count else (),
        "spread": spread(count, most // len(KINDS)),
    }
    chosen: dict[str, list[int]] = {}
    taken: set[int] = set()
    for place, kind in enumerate(orders):
        wanted = most // len(KINDS) + (place < most % len(KINDS))
        order = [int(row) for row in orders[kind] if int(row) not in taken]
        own = apart(order, sequences, numbers, wanted)
        if kind == "worst":
            own.sort(key=lambda row: -rank[row])
        taken.update(own)
        chosen[kind] = own
    return {kind: chosen[kind] for kind in KINDS}


def apart(order: Sequence[int], sequences: Sequence[str], numbers: Sequence[int], wanted: int) -> list[int]:
    """The first rows of an order of which no two are neighbours.

    Args:
        order: rows, the most wanted first.
        sequences: sequence of each sample.
        numbers: frame number of each sample.
        wanted: rows at most, of which one sequence fills a third as long as there are others.
    """
    own: list[int] = []
    for limit in (max(1, wanted // 3), wanted):
        for row in order:
            if len(own) == wanted:
                return own
            same = [other for other in own if sequences[other] == sequences[row]]
            if len(same) < limit and all(abs(numbers[row] - numbers[o]) >= NEIGHBOURS for o in same):
                own.append(row)
    return own


def spread(count: int, wanted: int) -> list[int]:
    """Rows 0 .. count - 1: first `wanted` that are evenly spread, then those between them, then the rest."""
    rows: dict[int, None] = {}
    parts = max(1, wanted)
    while len(rows) < count:
        rows |= dict.fromkeys((2 * k + 1) * count // (2 * parts) for k in range(parts))
        parts *= 2
    return list(rows)
