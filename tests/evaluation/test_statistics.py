"""Intervals over sequences: do they cover, do they refuse, are they the same every time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from src.errors import DataError, ShapeError
from src.evaluation.statistics import bootstrap_mean
from src.runtime.seed import stream


def clustered(groups: int, seed: int, between: float = 5.0, within: float = 1.0):
    """Errors of `groups` sequences of 20 to 60 frames; frames of a sequence share their mean."""
    random = stream(seed, "clustered")
    sizes = random.integers(20, 61, groups)
    centres = 30.0 + random.normal(0.0, between, groups)
    member = np.repeat(np.arange(groups), sizes)
    return centres[member] + random.normal(0.0, within, len(member)), member


def test_the_interval_covers_as_often_as_it_says():
    """An interval that treats frames as independent covers a third of the time here and looks convincing."""
    covered = 0
    for repeat in range(100):
        values, groups = clustered(30, seed=repeat)
        interval = bootstrap_mean(values, groups, seed=repeat)
        covered += interval.low <= 30.0 <= interval.high
    # 30 sequences: nominal 95 %, somewhat less for a percentile interval; 100 repeats: +- 5 %.
    assert 0.85 <= covered / 100 <= 0.99


def test_long_sequences_weigh_by_their_frames():
    """The interval belongs to the mean over frames that is reported, not to a mean of sequence means."""
    values = np.array([0.0] * 90 + [10.0] * 10)
    interval = bootstrap_mean(values, ["a"] * 90 + ["b"] * 10, seed=0)
    assert (interval.mean, interval.low, interval.high, interval.groups) == (1.0, 0.0, 10.0, 2)


def test_it_draws_sequences_and_averages_frames():
    """With three sequences all 27 draws can be written down: the percentiles must be theirs."""
    sizes, errors = (90, 10, 1), (0.0, 10.0, 20.0)
    values, groups = np.repeat(errors, sizes), np.repeat(range(3), sizes)
    draws = []
    for draw in itertools.product(range(3), repeat=3):
        frames = np.concatenate([values[groups == group] for group in draw])
        draws.append(frames.mean())
    low, high = np.quantile(draws, [0.025, 0.975], method="inverted_cdf")
    interval = bootstrap_mean(values, groups, seed=0)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)


def test_the_same_numbers_every_time_and_in_every_order():
    """Two ranks or two days must print the same interval; the global generator is not touched."""
    values, groups = clustered(9, seed=2)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = bootstrap_mean(values, groups, seed=5)
    assert first == bootstrap_mean(values, groups, seed=5)
    assert first != bootstrap_mean(values, groups, seed=6)
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    order = stream(0, "order").permutation(len(values))
    mixed = bootstrap_mean(values[order], groups[order], seed=5)
    assert mixed.mean == first.mean
    assert (mixed.low, mixed.high) == pytest.approx((first.low, first.high), rel=1e-12)


def test_one_sequence_has_no_interval():
    """One sequence says nothing about others: a narrow interval would be invented."""
    interval = bootstrap_mean(np.array([1.0, 2.0, 6.0]), ["s"] * 3, seed=0)
    assert (interval.mean, interval.groups, interval.exists) == (3.0, 1, False)
    assert math.isnan(interval.low)
    empty = bootstrap_mean(np.empty(0), [], seed=0)
    assert math.isnan(empty.mean)
    assert empty.groups == 0


def test_bad_values_are_refused_with_their_count():
    """Dropping nan in silence rewards the network that fails on hard frames."""
    with pytest.raises(DataError, match="2 of 4 values are not finite \\(first: row 1\\)"):
        bootstrap_mean(np.array([1.0, np.nan, 2.0, np.inf]), list("aabb"), seed=0)
    with pytest.raises(ShapeError):
        bootstrap_mean(np.ones(3), list("ab"), seed=0)
