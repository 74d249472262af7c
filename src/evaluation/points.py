"""What all metrics share: the types of points and rows, float64 chunks of them, and the one mean.

Legend: N samples, P points. Points are metres, tensors or arrays of any float type on any device; arithmetic
is float64 on the CPU in chunks of fixed size, so a row does not depend on who computes it or beside which
others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.errors import ShapeError

Points = Tensor | NDArray[np.floating]
"""(N, P, 3) points in metres."""
Rows = NDArray[np.float64]
"""(N,) one number a sample."""

CHUNK = 2048
"""Samples computed at a time."""


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


def chunks(pred_m: Points, target_m: Points, size: int = CHUNK) -> Iterator[tuple[Tensor, Tensor]]:
    """Float64 CPU chunks of both, `size` samples at a time.

    Raises:
        ShapeError: as `check_pair`.
    """
    count = check_pair(pred_m, target_m)
    pred, target = torch.as_tensor(pred_m), torch.as_tensor(target_m)
    for start in range(0, count, size):
        rows = slice(start, start + size)
        yield pred[rows].detach().to("cpu", torch.float64), target[rows].detach().to("cpu", torch.float64)
