"""The statistics against scipy, and the pooled interval against simulation."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench import statistics as ours

VALUES = st.lists(st.floats(60, 80), min_size=2, max_size=8)


def test_one_value_has_no_deviation():
    assert ours.summarise([70.0]) == ours.Summary(70.0, None, 1)
    with pytest.raises(ValueError):
        ours.summarise([])


def test_the_deviation_is_the_sample_one():
    assert ours.summarise([70.0, 71.0, 72.0]).sd == 1.0


@pytest.mark.parametrize("df", [1, 2, 2.5, 4, 17, 200])
def test_quantiles(df):
    assert ours.t_quantile(df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-9)


@given(VALUES)
def test_the_interval_of_a_difference(values):
    d = ours.difference(values)
    assert d.n == len(values)
    if d.half is None:
        assert max(values) - min(values) < 1e-7
    else:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=math.fsum(values) / len(values), scale=stats.sem(values))
        assert (d.mean - d.half, d.mean + d.half) == pytest.approx((low, high), abs=1e-6)


def test_differences_without_an_interval():
    assert ours.difference([]) is None
    assert ours.difference([0.4]) == ours.Difference(0.4, None, 1)


def test_pairing_is_by_seed():
    assert ours.paired({1: 70.0, 2: 71.0, 5: 60.0}, {2: 70.0, 1: 70.0, 3: 1.0}) == {1: 0.0, 2: 1.0}


def test_one_pair_pooled_is_its_own_difference():
    values = {1: 0.3, 2: 0.8, 3: 0.1}
    alone, pooled = ours.difference(list(values.values())), ours.pooled({"a": values}, {"a": "s"})
    assert (pooled.mean, pooled.half, pooled.n) == pytest.approx((alone.mean, alone.half, alone.n))


def test_pairs_that_share_everything_are_no_news():
    """A second pair with the very same differences under the same baseline adds nothing; taken as independent it would narrow the interval."""
    values = {1: 0.3, 2: 0.8, 3: 0.1}
    alone = ours.pooled({"a": values}, {"a": "s"})
    twice = ours.pooled({"a": values, "b": values}, {"a": "s", "b": "s"})
    apart = ours.pooled({"a": values, "b": values}, {"a": "s", "b": "t"})
    assert twice.half == pytest.approx(alone.half)
    assert apart.half < 0.6 * alone.half


def test_pooled_with_holes():
    assert ours.pooled({"a": {}}, {"a": "s"}) is None
    one = ours.pooled({"a": {1: 1.0, 2: 2.0}, "b": {1: 3.0}, "c": {}}, {"a": "s", "b": "t", "c": "u"})
    assert (one.mean, one.half, one.n) == (2.25, None, 3)
    assert ours.pooled({"a": {1: 1.0, 2: 1.0}}, {"a": "s"}).half is None


def test_the_pooled_interval_covers():
    """Six pairs, three seeds, two pairs with one student, effects that differ between pairs: near 95 % of intervals hold the mean effect."""
    draw = random.Random(7)
    effects = [0.2, 0.5, 0.9, 1.1, 1.6, 2.0]
    shared = {str(i): str(max(i, 1)) for i in range(6)}  # pairs 0 and 1 share a student
    held = 0
    for _ in range(2000):
        students = {(str(k), seed): draw.gauss(0, 0.2) for k in range(1, 6) for seed in (1, 2, 3)}
        found = {str(i): {s: effects[i] + draw.gauss(0, 0.2) - students[shared[str(i)], s] for s in (1, 2, 3)} for i in range(6)}
        pooled = ours.pooled(found, shared)
        held += abs(pooled.mean - sum(effects) / 6) <= pooled.half
    assert 0.93 <= held / 2000 <= 0.985


@given(VALUES, st.floats(60, 80), st.floats(0.05, 0.5), st.integers(2, 8))
def test_welch_against_scipy(values, mean, sd, n):
    s = ours.summarise(values)
    if s.sd < 1e-6:
        return
    verdict = ours.against_published(s, mean, sd, n)
    test = stats.ttest_ind_from_stats(s.mean, s.sd, s.n, mean, sd, n, equal_var=False)
    if abs(test.pvalue - 0.05) > 1e-6:
        assert (verdict.word == "differs") == (test.pvalue < 0.05)
    assert verdict.mean == pytest.approx(s.mean - mean)


def test_verdicts():
    s = ours.summarise([70.4, 70.6, 70.8])
    assert ours.against_published(s, 70.66, 0.24, 5).word == "agrees"
    assert ours.against_published(s, 72.00, 0.24, 5).word == "differs"
    assert ours.against_published(s, 70.66, None, 5).word == "cannot tell"
    assert ours.against_published(ours.summarise([70.6]), 70.66, 0.24, 5).word == "cannot tell"
    wide = ours.against_published(ours.summarise([69.0, 72.0]), 70.66, 0.24, 5)
    assert wide.word == "cannot tell" and wide.half > ours.TOO_WIDE


def test_geometric_mean():
    assert ours.geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert ours.geometric_mean([]) is None


def test_the_noise_of_a_test_set_comes_from_its_size():
    assert ours.binomial_error(70.0, 10_000) == pytest.approx(0.458, abs=5e-4)
    assert ours.binomial_error(50.0, 400) == pytest.approx(2.5)
    assert ours.binomial_error(100.0, 400) == 0.0


def test_an_interval_over_seeds_wants_the_same_seeds():
    one, other = {1: 0.1, 2: 0.3, 3: 0.2}, {1: 0.5, 2: 0.9, 3: 0.4}
    assert ours.pooled({"a": one}, {"a": "s"}).common is None
    assert ours.pooled({"a": one, "b": {1: 0.1, 2: 0.2}}, {"a": "s", "b": "t"}).common is None
    found = ours.pooled({"a": one, "b": other}, {"a": "s", "b": "t"})
    assert found.common == pytest.approx(ours.difference([0.3, 0.6, 0.3]).half)
