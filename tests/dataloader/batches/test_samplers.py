"""Samplers: which samples a rank sees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloader.batches.samplers import SampleKey, TrainSampler, validation_batches
from src.errors import ConfigError


@given(st.integers(0, 400), st.integers(1, 70), st.integers(1, 9))
def test_validation_shards_hold_every_sample_once(num_samples: int, batch_size: int, world: int) -> None:
    """A sample that is padded in or left out moves the metric of a run (lesson 11).

    Batches are the same for any world: predictions differ in the last bit when one is composed otherwise.
    """
    dealt = [validation_batches(num_samples, batch_size, rank, world) for rank in range(world)]
    batches = sorted((batch for part in dealt for batch in part), key=lambda batch: batch.start)
    assert [i for batch in batches for i in batch] == list(range(num_samples))
    assert batches == validation_batches(num_samples, batch_size, 0, 1)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@given(st.integers(40, 200), st.integers(1, 5), st.integers(1, 4), st.integers(1, 2))
def test_training_ranks_share_an_epoch(num_samples: int, batch: int, world: int, accumulation: int) -> None:
    """A sample seen by two ranks, or ranks with different step counts, would bias or hang training."""
    samplers = [
        TrainSampler(num_samples, batch, rank, world, seed=3, accumulation=accumulation)
        for rank in range(world)
    ]
    batches = [list(sampler) for sampler in samplers]
    steps = num_samples // (batch * world * accumulation)
    assert {len(b) for b in batches} == {steps * accumulation} == {len(s) for s in samplers}
    rows = [key.index for part in batches for micro in part for key in micro]
    assert len(set(rows)) == len(rows) == steps * accumulation * batch * world


def test_one_step_sees_the_same_samples_for_any_ranks_and_accumulation() -> None:
    """The global batch must not depend on how it is divided, or runs at 1 and 4 ranks differ."""

    def steps(world: int, accumulation: int, batch: int) -> list[set[SampleKey]]:
        found: list[set[SampleKey]] = [set() for _ in range(6)]
        for rank in range(world):
            for k, micro in enumerate(
                TrainSampler(96, batch, rank, world, seed=0, accumulation=accumulation)
            ):
                found[k // accumulation] |= set(micro)
        return found

    assert steps(1, 1, 16) == steps(4, 1, 4) == steps(2, 2, 4) == steps(1, 4, 4)


def test_epochs_differ_and_repeat() -> None:
    """The same epoch again must be the same (resume), another epoch another order; keys carry it."""
    sampler = TrainSampler(64, 4, 0, 2, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert [[k.index for k in b] for b in first] != [[k.index for k in b] for b in second]
    assert {k.epoch for b in second for k in b} == {1}


def test_every_sample_has_its_turn() -> None:
    """What does not fill a last step is another part in each epoch: 67 samples in steps of 16."""
    sampler = TrainSampler(67, 4, 0, 1, seed=0, accumulation=4)
    seen: set[int] = set()
    for epoch in range(12):
        sampler.set_epoch(epoch)
        seen |= {key.index for micro in sampler for key in micro}
    # A sample is left out of an epoch with probability 3 / 67, of twelve with 1e-16.
    assert seen == set(range(67))


def test_too_few_samples_is_an_error() -> None:
    """An epoch of zero steps would train nothing and say nothing."""
    with pytest.raises(ConfigError, match="63 samples but one optimiser step consumes 64"):
        TrainSampler(63, 16, 0, 4, seed=0)
