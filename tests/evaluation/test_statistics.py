"""Intervals over sequences: do they cover, do they refuse, are they the same every time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import bootstrap

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
    for repeat in range(150):
        values, groups = clustered(30, seed=repeat)
        interval = bootstrap_mean(values, groups, replicates=400, seed=repeat)
        covered += interval.low <= 30.0 <= interval.high
    # 30 sequences: nominal 95 %, somewhat less for a percentile interval; 150 repeats: +- 4 %.
    assert 0.86 <= covered / 150 <= 0.99


def test_it_is_scipys_bootstrap_when_sequences_have_one_frame():
    """Sequences of one frame are independent samples, for which there is a reference."""
    values = stream(3, "single").gamma(2.0, 10.0, 80)
    ours = bootstrap_mean(values, np.arange(80), replicates=20000, seed=0)
    theirs = bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", rng=stream(4, "scipy")
    ).confidence_interval
    # 20000 replicates fix a percentile to about 1 % of the interval's width.
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


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
    low, high = np.quantile(draws, [0.25, 0.75], method="inverted_cdf")
    interval = bootstrap_mean(values, groups, replicates=20000, seed=0, level=0.5)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)


def test_repeated_frames_do_not_make_it_surer():
    """Showing each frame ten times is no evidence; a bootstrap over frames would shrink threefold."""
    values, groups = clustered(12, seed=1)
    once = bootstrap_mean(values, groups, seed=0)
    tenfold = bootstrap_mean(np.tile(values, 10), np.tile(groups, 10), seed=0)
    assert tenfold.high - tenfold.low == pytest.approx(once.high - once.low, rel=1e-9)


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
    wider = bootstrap_mean(values, groups, seed=5, level=0.99)
    assert wider.low < first.low < first.mean < first.high < wider.high


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
    with pytest.raises(DataError, match="level"):
        bootstrap_mean(np.ones(2), list("ab"), seed=0, level=95)
    with pytest.raises(ShapeError):
        bootstrap_mean(np.ones(3), list("ab"), seed=0)


def test_more_counts_than_fit_at_once():
    """Parts are an implementation's business: the stream must go on where it stopped."""
    values = stream(1, "many").normal(0.0, 1.0, 3000)
    interval = bootstrap_mean(values, np.arange(3000), replicates=2000, seed=0)
    assert interval.groups == 3000
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(3000), rel=0.1)
