"""What all scores share: float64 points in chunks, the one mean, and how sure a mean over frames is.

Legend: N frames, P points, G motions, R replicates. Points are metres, tensors or arrays of any float type
on any device; arithmetic is float64 on the CPU in chunks of fixed size, so a row does not depend on who
computes it or beside which others.

Neighbouring frames are nearly the same picture: counting them as independent makes an interval several times
too narrow. So are the cameras that film one motion. So whole motions are drawn with replacement (cluster
bootstrap), and the mean over the frames of the drawn motions is one replicate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap
from torch import Tensor

from src.errors import DataError, ShapeError
from src.runtime.seed import stream

Points = Tensor | NDArray[np.floating]
"""(N, P, 3) points in metres."""
Rows = NDArray[np.float64]
"""(N,) one number a sample."""

REPLICATES = 2000
FEW_GROUPS = 10
"""With fewer motions a percentile interval is narrower than it says: nothing is sure then. Of 400 intervals
of a true 0, 12 % of those over 9 motions left it out, 16 % over 6, 8 % over 10."""
TOO_FEW_GROUPS = 5
"""With fewer, nothing is even likely: 23 % over 4, 26 % over 3, 50 % over 2."""
LEVEL = 0.95
"""Share of the replicates inside of an interval."""
_CHUNK = 2048
"""Samples computed at a time."""
_CELLS = 2_000_000
"""Replicates are drawn in parts of at most so many motions."""


def mean(rows: Rows) -> float:
    """Mean that does not depend on the order of summation: fsum / N; nan for no rows or a non-finite one."""
    if len(rows) == 0 or not np.isfinite(rows).all():
        return math.nan
    return math.fsum(rows.tolist()) / len(rows)


def check_pair(pred_m: Points, target_m: Points) -> int:
    """N of two (N, P, 3) sets.

    Raises:
        ShapeError: their shapes differ or are not (N, P, 3) with P >= 1.
    """
    pred, target = tuple(pred_m.shape), tuple(target_m.shape)
    if pred != target or len(pred) != 3 or pred[-1] != 3 or pred[1] < 1:
        raise ShapeError(f"metrics need two (N, P, 3) arrays of one shape, got {pred} and {target}")
    return int(pred[0])


def chunks(pred_m: Points, target_m: Points, size: int = _CHUNK) -> Iterator[tuple[Tensor, Tensor]]:
    """Float64 CPU chunks of both, `size` samples at a time; one empty chunk of no samples.

    Raises:
        ShapeError: as `check_pair`.
    """
    count = check_pair(pred_m, target_m)
    pred, target = torch.as_tensor(pred_m), torch.as_tensor(target_m)
    for start in range(0, max(count, 1), size):
        rows = slice(start, start + size)
        yield pred[rows].detach().to("cpu", torch.float64), target[rows].detach().to("cpu", torch.float64)


@dataclass(frozen=True)
class Interval:
    """A mean and how far it could be off had other motions been recorded."""

    mean: float
    """Mean over frames, unit of the values; nan without frames."""
    low: float
    """Lower end; nan with fewer than two motions: they do not say how motions differ."""
    high: float
    """Upper end."""
    groups: int
    """Motions."""

    @property
    def exists(self) -> bool:
        """Whether there is an interval beside the mean."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def certainty(self) -> Literal["sure", "likely", "not sure"]:
        """Whether the mean is on the side of 0 that it seems to be on."""
        if not self.exists or self.low <= 0.0 <= self.high or self.groups < TOO_FEW_GROUPS:
            return "not sure"
        return "likely" if self.groups < FEW_GROUPS else "sure"

    @property
    def text(self) -> str:
        """`11.250 [10.912, 11.601]`, or why there is no interval."""
        if self.exists:
            return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.mean:.3f} (one motion: no interval)" if self.groups else "nan"


def bootstrap_mean(
    values: NDArray[np.floating[Any]], groups: Sequence[Any] | NDArray[Any], *, seed: int
) -> Interval:
    """Mean over frames and its percentile interval over motions, at the level `LEVEL`.

    For a paired comparison of A and B on the same frames, give the differences a - b. Frames without a number
    (no label, a prediction that is not finite) are the caller's to leave out and to count: a nan here is an
    error, because dropping it in silence would flatter whoever failed on it.

    Args:
        values: (N,) any unit, all finite.
        groups: (N,) id of each frame's motion.
        seed: of the stream `bootstrap`; the same seed and motions give the same interval.

    Returns:
        `Interval`; low and high are nan with fewer than two motions. With fewer than about ten it is
        narrower than it says, as percentile intervals are.

    Raises:
        DataError: a value is not finite.
        ShapeError: not (N,) values and N groups.

    Source: Davison and Hinkley 1997, section 3.8 (resampling of whole clusters); Efron 1979.
    """
    numbers = np.asarray(values, dtype=np.float64)
    names = np.asarray(groups)
    if numbers.ndim != 1 or names.shape != numbers.shape:
        raise ShapeError(
            f"bootstrap_mean needs (N,) values and groups, got {numbers.shape} and {names.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        raise DataError(
            f"bootstrap_mean: {bad.size} of {numbers.size} values are not finite (first: row {bad[0]}); "
            f"leave these rows out and say how many"
        )
    _, member = np.unique(names, return_inverse=True)
    sizes = np.bincount(member)
    centre = mean(numbers)
    if len(sizes) < 2:
        return Interval(centre, math.nan, math.nan, len(sizes))
    # Deviations from the mean: an offset of 100 m would eat the digits of the sums.
    sums = np.bincount(member, weights=numbers - centre)
    low, high = bootstrap_groups(lambda times: times @ sums / (times @ sizes), len(sizes), seed=seed)
    return Interval(centre, centre + low, centre + high, len(sizes))


def bootstrap_groups(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], groups: int, *, seed: int
) -> tuple[float, float]:
    """Percentile interval of any statistic of motions, at the level `LEVEL`.

    Args:
        statistic: of (R, G) how often each motion is there, to (R,).
        groups: G, at least two.
        seed: as `bootstrap_mean`.
    """

    def of_drawn(drawn: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        """(R, G) numbers of the motions that were drawn."""
        places = drawn + groups * np.arange(len(drawn))[:, None]
        times = np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape)
        return statistic(times.astype(np.float64))

    interval = bootstrap(
        (np.arange(groups),),
        of_drawn,
        n_resamples=REPLICATES,
        batch=max(1, _CELLS // groups),
        confidence_level=LEVEL,
        method="percentile",
        vectorized=True,
        rng=stream(seed, "bootstrap"),
    ).confidence_interval
    return float(interval.low), float(interval.high)
