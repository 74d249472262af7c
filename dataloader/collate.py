"""Samples of a loader process -> one batch of tensors, still integers for pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from src.schema import RawBatch, RawSample


def collate(samples: Sequence[RawSample]) -> RawBatch:
    """Stack each field along a new first axis; dtypes are kept: pixels stay uint8 and uint16."""
    return RawBatch(
        **{
            field.name: torch.from_numpy(np.stack([getattr(sample, field.name) for sample in samples]))
            for field in dataclasses.fields(RawSample)
        }
    )
