"""Samples of a loader process -> one batch of tensors, still integers for pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from src.schema import RawBatch, RawSample


def collate(samples: Sequence[RawSample]) -> RawBatch:
    """Stack each field along a new first axis; dtypes are kept: pixels stay uint8 and uint16.

    Fields that stand in one array already, as `HO3DDataset.raws` makes pixels, are not copied.
    """
    return RawBatch(
        **{
            field.name: torch.from_numpy(_stack([getattr(sample, field.name) for sample in samples]))
            for field in dataclasses.fields(RawSample)
        }
    )


def _stack(rows: list[NDArray[Any]]) -> NDArray[Any]:
    """The rows as one array: the one whose rows they are, in this order, or a copy."""
    base = rows[0].base
    if not isinstance(base, np.ndarray) or base.shape != (len(rows), *rows[0].shape):
        return np.stack(rows)
    start, step = base.ctypes.data, base.strides[0]
    in_order = all(
        row.base is base
        and row.ctypes.data == start + k * step
        and (row.dtype, row.strides) == (base.dtype, base.strides[1:])
        for k, row in enumerate(rows)
    )
    return base if in_order and base.flags.c_contiguous else np.stack(rows)
