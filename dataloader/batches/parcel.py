"""A batch as one block of bytes: what crosses from a loader process, and on to a GPU, in one piece.

Each tensor that crosses a process costs a file descriptor and a mapping, each that goes to a GPU a transfer
of its own: for eighteen small fields that takes longer than the pixels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from src.schema import RawBatch

ALIGN = 64
"""Bytes at whose multiples fields begin; every dtype may be viewed there."""


@dataclass(frozen=True)
class Parcel:
    """One block and where each field of a `RawBatch` stands in it."""

    block: Tensor
    """(bytes,) uint8."""
    fields: tuple[tuple[str, torch.dtype, tuple[int, ...], int], ...]
    """Name, dtype, shape and first byte."""

    @classmethod
    def of(cls, batch: RawBatch, *, shared: bool) -> Parcel:
        """Pack a CPU batch.

        Args:
            batch: copied.
            shared: into memory that other processes can map, so that handing it over copies nothing more.
        """
        fields, end = [], 0
        for field in dataclasses.fields(RawBatch):
            tensor = getattr(batch, field.name)
            fields.append((field.name, tensor.dtype, tuple(tensor.shape), end))
            end += -(-tensor.nbytes // ALIGN) * ALIGN
        block = torch.empty(end, dtype=torch.uint8)
        if shared:
            block.share_memory_()  # type: ignore[no-untyped-call]
        parcel = cls(block, tuple(fields))
        for name, view in parcel._views():
            view.copy_(getattr(batch, name))
        return parcel

    def pin_memory(self) -> Parcel:
        """The same in page-locked memory (the DataLoader calls this by name)."""
        return Parcel(self.block.pin_memory(), self.fields)

    def unpack(self, device: torch.device) -> RawBatch:
        """The batch on `device`, its fields views of one block there; a GPU is not waited for."""
        there = Parcel(self.block.to(device, non_blocking=True), self.fields)
        return RawBatch(**dict(there._views()))

    def _views(self) -> list[tuple[str, Tensor]]:
        """Fields by name, sharing the block's memory."""
        found = []
        for name, dtype, shape, start in self.fields:
            count = dtype.itemsize * int(torch.Size(shape).numel())
            found.append((name, self.block[start : start + count].view(dtype).view(shape)))
        return found
