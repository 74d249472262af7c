"""A batch that crosses in one block arrives as it left."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch

from src.schema import RawBatch
from tests.training.test_step import raw


@pytest.mark.parametrize("shared", [False, True])
def test_every_field_arrives_bit_for_bit(shared: bool) -> None:
    """A field at a wrong place would be another sample's label, and nobody would notice."""
    batch = raw(1)
    parcel = batch.pack(shared=shared)
    assert parcel.block.is_shared() is shared
    there = pickle.loads(pickle.dumps(parcel)).unpack(torch.device("cpu"))
    for field in dataclasses.fields(RawBatch):
        a, b = getattr(batch, field.name), getattr(there, field.name)
        assert a.dtype == b.dtype, field.name
        assert torch.equal(a, b), field.name


def test_a_parcel_is_a_copy() -> None:
    """Pixels are written into arrays that the next batch takes over."""
    batch = raw(1)
    parcel = batch.pack(shared=False)
    kept = parcel.unpack(torch.device("cpu")).rgb_u8.clone()
    batch.rgb_u8.zero_()
    assert torch.equal(parcel.unpack(torch.device("cpu")).rgb_u8, kept)


@pytest.mark.gpu
def test_batches_made_ahead_on_a_gpu_are_those_of_the_cpu() -> None:
    """A batch read before its copy has ended, or overwritten while it is read, is a wrong batch."""
    from dataloader.batches.loader import _one_ahead
    from dataloader.crop.prepare import prepare

    device, cpu = torch.device("cuda"), torch.device("cpu")
    parcels = [raw(k).pack(shared=False).pin_memory() for k in range(8)]
    for k, batch in enumerate(_one_ahead((prepare(p.unpack(device)) for p in parcels), device)):
        want = prepare(parcels[k].unpack(cpu))
        assert torch.allclose(batch.rgb.cpu(), want.rgb, atol=1e-5)
        assert torch.allclose(batch.depth.cpu(), want.depth, atol=1e-5)
        assert torch.equal(batch.sample_index.cpu(), want.sample_index)
