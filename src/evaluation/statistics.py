"""How sure a mean over frames is, when frames of one sequence resemble each other.

Legend: N frames, G sequences, R replicates. Neighbouring frames are nearly the same picture: counting them as
independent makes an interval several times too narrow. So whole sequences are drawn with replacement (cluster
bootstrap), and the mean over the frames of the drawn sequences is one replicate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.errors import DataError, ShapeError
from src.evaluation.points import mean
from src.runtime.seed import stream

_CELLS = 2_000_000
"""Replicates are drawn in parts of at most this many counts."""


@dataclass(frozen=True)
class Interval:
    """A mean and how far it could be off had other sequences been recorded."""

    mean: float
    """Mean over frames, unit of the values; nan without frames."""
    low: float
    """Lower end; nan with fewer than two sequences: they do not say how sequences differ."""
    high: float
    """Upper end."""
    groups: int
    """Sequences."""

    @property
    def exists(self) -> bool:
        """Whether there is an interval beside the mean."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def bootstrap_mean(
    values: NDArray[np.floating[Any]],
    groups: Sequence[Any] | NDArray[Any],
    *,
    replicates: int = 2000,
    seed: int,
    level: float = 0.95,
) -> Interval:
    """Mean over frames and its percentile interval over sequences.

    For a paired comparison of A and B on the same frames, give the differences a - b. Frames without a number
    (no label, a prediction that is not finite) are the caller's to leave out and to count: a nan here is an
    error, because dropping it in silence would flatter whoever failed on it.

    Args:
        values: (N,) any unit, all finite.
        groups: (N,) id of each frame's sequence.
        replicates: R >= 1.
        seed: of the stream `bootstrap`; the same seed and sequences give the same interval.
        level: share of replicates inside, in (0, 1).

    Returns:
        `Interval`; low and high are nan with fewer than two sequences. With fewer than about ten it is
        narrower than it says, as percentile intervals are.

    Raises:
        DataError: a value is not finite, or `replicates` or `level` is out of range.
        ShapeError: not (N,) values and N groups.

    Source: Davison and Hinkley 1997, section 3.8 (resampling of whole clusters); Efron 1979.
    """
    numbers = np.asarray(values, dtype=np.float64)
    names = np.asarray(groups)
    if numbers.ndim != 1 or names.shape != numbers.shape:
        raise ShapeError(
            f"bootstrap_mean needs (N,) values and groups, got {numbers.shape} and {names.shape}"
        )
    if replicates < 1 or not 0.0 < level < 1.0:
        raise DataError(f"bootstrap_mean: got replicates={replicates}, level={level}; want >= 1, in (0, 1)")
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        raise DataError(
            f"bootstrap_mean: {bad.size} of {numbers.size} values are not finite (first: row {bad[0]}); "
            f"leave these rows out and say how many"
        )
    _, member = np.unique(names, return_inverse=True)
    sizes = np.bincount(member)
    if len(sizes) < 2:
        return Interval(mean(numbers), math.nan, math.nan, len(sizes))
    # Deviations from the mean: an offset of 100 m would eat the digits of the sums.
    centre = mean(numbers)
    sums = np.asarray(np.bincount(member, weights=numbers - centre), dtype=np.float64)
    drawn = _replicates(sums, np.asarray(sizes, dtype=np.float64), replicates, seed)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return Interval(centre, float(centre + low), float(centre + high), len(sizes))


def _replicates(sums: NDArray[np.float64], sizes: NDArray[np.float64], count: int, seed: int) -> Any:
    """(R,) means over the frames of G sequences drawn with replacement."""
    random = stream(seed, "bootstrap")
    groups = len(sums)
    share = np.full(groups, 1.0 / groups)
    part = max(1, _CELLS // groups)
    means = []
    for start in range(0, count, part):
        times = random.multinomial(groups, share, size=min(part, count - start)).astype(np.float64)
        # Not BLAS: its threads would change the last bits.
        means.append(np.einsum("rg,g->r", times, sums) / np.einsum("rg,g->r", times, sizes))
    return np.concatenate(means)
