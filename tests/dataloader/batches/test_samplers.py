"""Samplers: which samples a rank sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataloader.batches.samplers import ShardSampler, TrainSampler, validation_batches
from src.errors import ConfigError


@given(st.integers(0, 400), st.integers(1, 70), st.integers(1, 9))
def test_validation_shards_hold_every_sample_once(num_samples: int, batch_size: int, world: int) -> None:
    """A sample that is padded in or left out moves the metric of a run (lesson 11)."""
    seen = [
        i
        for rank in range(world)
        for batch in validation_batches(num_samples, batch_size, rank, world)
        for i in batch
    ]
    assert sorted(seen) == list(range(num_samples))


def test_validation_batches_are_the_same_for_any_world() -> None:
    """Predictions differ in the last bit when a batch is composed otherwise."""
    alone = validation_batches(8332, 64, 0, 1)
    for world in (2, 3, 4):
        dealt = [validation_batches(8332, 64, rank, world) for rank in range(world)]
        assert sorted((b for part in dealt for b in part), key=lambda b: b.start) == alone
        assert dealt[1][0] == range(64, 128)
    assert len(alone[-1]) == 8332 % 64


def test_ranks_without_batches_are_allowed() -> None:
    """Three samples on five ranks must still be scored."""
    assert [len(ShardSampler(3, 2, rank, 5)) for rank in range(5)] == [1, 1, 0, 0, 0]


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

    def step_sets(world: int, accumulation: int, batch: int) -> list[set[int]]:
        parts = [
            list(TrainSampler(96, batch, rank, world, seed=0, accumulation=accumulation))
            for rank in range(world)
        ]
        steps = len(parts[0]) // accumulation
        return [
            {k.index for p in parts for micro in p[s * accumulation : (s + 1) * accumulation] for k in micro}
            for s in range(steps)
        ]

    assert step_sets(1, 1, 16) == step_sets(4, 1, 4) == step_sets(2, 2, 4) == step_sets(1, 4, 4)


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


def test_resume_inside_an_epoch_continues_it() -> None:
    """A run killed at step 3 must go on with step 3's samples."""
    sampler = TrainSampler(100, 4, 1, 2, seed=5, accumulation=2, max_steps=5)
    sampler.set_epoch(2)
    whole = list(sampler)
    assert len(whole) == 5 * 2
    sampler.set_epoch(2, start_step=3)
    assert list(sampler) == whole[6:]
    assert len(sampler) == 4
    with pytest.raises(ConfigError, match="start_step=6"):
        sampler.set_epoch(2, start_step=6)


def test_too_few_samples_is_an_error() -> None:
    """An epoch of zero steps would train nothing and say nothing."""
    with pytest.raises(ConfigError, match="consumes 64"):
        TrainSampler(63, 16, 0, 4, seed=0)


def test_samplers_leave_global_randomness_alone() -> None:
    """Weights and dropped paths must not depend on how often a sampler was iterated."""
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002 - the global state is what is watched
    list(TrainSampler(64, 4, 0, 1, seed=0))
    list(ShardSampler(64, 4, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002
