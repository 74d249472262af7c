"""Intervals over motions: do they cover, do they refuse, are they the same every time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from src.errors import DataError, ShapeError
from src.evaluation.statistics import bootstrap_mean
from src.runtime.seed import stream


def test_it_draws_motions_and_averages_frames():
    """With three motions all 27 draws can be written down: the percentiles must be theirs. An interval that
    treats frames as independent covers a third of the time, one of motion means is another number's.
    """
    sizes, errors = (90, 10, 1), (0.0, 10.0, 20.0)
    values, groups = np.repeat(errors, sizes), np.repeat(range(3), sizes)
    draws = []
    for draw in itertools.product(range(3), repeat=3):
        frames = np.concatenate([values[groups == group] for group in draw])
        draws.append(frames.mean())
    low, high = np.quantile(draws, [0.025, 0.975], method="inverted_cdf")
    interval = bootstrap_mean(values, groups, seed=0)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)
    assert (interval.mean, interval.groups) == (pytest.approx(120 / 101), 3)


def test_the_same_numbers_every_time_and_in_every_order():
    """Two ranks or two days must print the same interval; the global generator is not touched."""
    groups = np.repeat(np.arange(9), np.arange(20, 29))
    values = 30.0 + stream(2, "errors").normal(0.0, 5.0, 9)[groups] + 0.01 * np.arange(len(groups))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = bootstrap_mean(values, groups, seed=5)
    assert first == bootstrap_mean(values, groups, seed=5)
    assert first != bootstrap_mean(values, groups, seed=6)
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    order = stream(0, "order").permutation(len(values))
    mixed = bootstrap_mean(values[order], groups[order], seed=5)
    assert mixed.mean == first.mean
    assert (mixed.low, mixed.high) == pytest.approx((first.low, first.high), rel=1e-12)


def test_one_motion_has_no_interval():
    """One motion says nothing about others: a narrow interval would be invented."""
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
