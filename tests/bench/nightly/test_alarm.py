"""The alarm on simulated histories with known truth: false alarms, steps, drifts, returns.

Few histories each, so the bounds are loose; docs/nightly.md has the figures of tests/bench/nightly/simulation.py.
"""

from dataclasses import replace

import numpy as np
import pytest

from bench.nightly import alarm
from bench.nightly.noise import Noise, cov_with_level, of_seeds, var_of_mean
from tests.bench.nightly.simulation import ACCURACY, BEYOND, COSTS, MODELS, World, drifts, power, seed_error, simulate


@pytest.mark.parametrize("name", [*MODELS, *BEYOND])
def test_at_most_two_false_alarms_in_100_nights_of_the_suite(name):
    assert simulate(replace({**MODELS, **BEYOND}[name], histories=60)).false_alarms() <= 1.5


def test_the_limits_are_not_so_wide_that_nothing_could_ring():
    assert simulate(World()).false_alarms() > 0.1


def test_without_the_correlation_of_nights_it_would_ring_far_more_often(monkeypatch):
    world = replace(MODELS["AR(1), correlation 0.8"], histories=60)
    monkeypatch.setattr(Noise, "rho", lambda self: np.zeros((*self.prior.shape[:-1], 1)))
    assert simulate(world).false_alarms() > 3


@pytest.mark.parametrize("bits", [False, True], ids=["noise", "bit-equal nights"])
def test_step_of_five_standard_errors_is_found_within_two_nights(bits):
    accuracy, cost = power(World(histories=500, step=5.0, at=20, bits=bits))
    assert accuracy >= 0.91
    assert cost >= 0.91  # of some 190 histories; both are 95 % and more over many


def test_it_rings_once():
    world = World(histories=200, nights=45, step=5.0)
    outcome = simulate(world)
    found = outcome.on_target[world.at - 1 : world.at + 1].any(0)
    assert outcome.on_target[world.at + 1 :, found].mean() < 0.03


@pytest.mark.parametrize("noise", [0.01, 0.05])
@pytest.mark.parametrize("at", [2, 3, 20])
def test_the_smallest_step_that_is_printed_is_found_from_night_2_on(at, noise):
    """A step as large as was printed the night before is found within two nights in 95 of 100 cases, whatever is known by then."""
    accuracy, cost = power(World(histories=400, printed=True, at=at, noise=noise))
    assert accuracy >= 0.92 and cost >= 0.92


@pytest.mark.parametrize("at", [2, 20])
def test_the_smallest_step_that_is_printed_is_found_where_bits_repeat(at):
    assert min(power(World(histories=400, printed=True, at=at, bits=True))) >= 0.92


def test_the_smallest_step_is_not_larger_than_it_need_be():
    outcome = simulate(World(histories=100, nights=30))
    limit = alarm.limits(ACCURACY + COSTS, ACCURACY)
    size = alarm.smallest(outcome.state, limit) / outcome.noise
    assert 3.0 < np.median(size[:, :ACCURACY]) < 6.0
    assert 3.0 < np.median(size[:, ACCURACY:]) < 6.0


@pytest.mark.parametrize(("worse", "noise", "nights"), [(1.2, 0.01, 3), (1.5, 0.01, 2), (1.5, 0.02, 3), (10.0, 0.02, 2)])
def test_a_cost_that_gets_worse_on_the_night_after_the_baseline_is_found(worse, noise, nights):
    world = World(histories=300, step=np.log(worse) / noise, differ=0.0, at=1, noise=noise, nights=nights)
    outcome = simulate(world)
    assert outcome.on_target[:, outcome.target >= ACCURACY].any(0).mean() >= 0.95


def test_all_costs_worse_at_once_on_the_night_after_the_baseline_are_found():
    draw = np.random.default_rng(0)
    nights = [0.2 + draw.normal(0, 0.01, COSTS) for _ in range(3)]
    rang = many(nights)[0]
    assert not rang[0].any()
    assert rang.any(0).mean() > 0.8


def test_a_new_cost_starts_from_the_noise_of_the_others():
    draw = np.random.default_rng(0)
    nights = draw.normal(0, 0.01, (20, COSTS))
    nights[:, 0] = np.nan
    nights[-2:, 0] = draw.normal(0, 0.01, 2) + 0.1
    events, state = many(nights)
    assert events[-1, 0] == alarm.STEP
    assert state.noise.estimate()[0][0] < 0.02


def test_power_grows_with_the_step_and_starts_at_the_false_alarms():
    found = [np.mean(power(World(step=step))) for step in (0.0, 3.0, 8.0)]
    assert found[0] < 0.02 < 0.1 < found[1] < 0.8
    assert found[2] > 0.99


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_slow_drift_is_found_within_the_budget_that_is_printed(rate):
    budget, found = drifts(World(histories=200, drift=rate, at=25))
    assert 2.5 < budget < 4.5
    assert found >= 0.92


def test_drift_needs_the_cumulative_rule(monkeypatch):
    """A drift of 2 standard errors in all is found far more often than by the rules for steps alone."""
    world = World(histories=300, nights=20 + 39, drift=0.05, at=20)
    with_rule = simulate(world).on_target[19:].any(0).mean()
    monkeypatch.setattr(alarm, "SETTLED", 2.0)  # a weight that is never reached
    assert simulate(world).on_target[19:].any(0).mean() < 0.6 * with_rule


def test_noise_and_correlation_are_learned_from_the_nights():
    for rho in (0.0, 0.5, 0.8):
        outcome = simulate(World(histories=100, nights=80, rho=rho))
        s, _, learned = outcome.state.noise.estimate()
        ratio = s / outcome.noise
        assert 0.9 < np.median(ratio[:, :ACCURACY]) < 1.1
        assert 0.8 < np.median(ratio[:, ACCURACY:]) < 1.2
        assert abs(learned[:, ACCURACY:].mean() - rho) < 0.12
        assert not learned[:, :ACCURACY].any()
        assert np.array_equal(seed_error(outcome.state.noise), s[:, :ACCURACY])  # what the simulation takes is what is estimated


def test_variances_of_means_of_an_ar1_series():
    """Against sums over the correlation matrix."""
    for rho in (0.0, 0.3, 0.8):
        for count, gap in ((1, 1), (5, 2), (20, 4)):
            matrix = rho ** np.abs(np.subtract.outer(np.arange(count + gap), np.arange(count + gap))) if rho else np.eye(count + gap)
            n, r, g = (np.array(float(x)) for x in (count, rho, gap))
            assert var_of_mean(n, r) == pytest.approx(matrix[:count, :count].mean())
            assert cov_with_level(n, r, g) == pytest.approx(matrix[:count, -1].mean())


def test_one_seed_alone_moves_a_night_little():
    s = np.array(0.5)  # four seeds of standard deviation 1
    assert of_seeds(np.array([0.1, 0.2, -0.1, 50.0]), s) < 0.9
    assert of_seeds(np.array([5.0, 5.1, 4.9, 5.2]), s) == pytest.approx(5.05)


def many(nights):
    """Events of many costs at once, (nights, metrics), and the state after."""
    count = len(nights[0])
    noise = Noise(np.full(count, 0.03**2), np.full(count, 4.0), np.ones(count, bool))
    state, none = alarm.State(np.zeros(count, bool), noise), np.zeros(count, bool)
    limit = alarm.limits(count, 0)
    events = [alarm.step(state, alarm.Night(np.array(v), np.full(count, np.nan), np.zeros(count), ~none, none), limit) for v in nights]
    return np.array(events), state


def one(values, single=True, spread=0.25, bits=None):
    """Events of one metric over nights; `bits` names each night's, the baseline's being "a"."""
    state = alarm.State(np.array([single]), Noise(np.array([0.25]), np.array([30.0]), np.array([not single])))
    limit = alarm.limits(22, 11)
    events, last = [], "a"
    for i, value in enumerate(values):
        mine = bits[i] if bits else str(i)
        night = alarm.Night(*(np.array([v]) for v in (value, spread if single else np.nan, 3.0, mine != last, mine == "a")))
        events.append(int(alarm.step(state, night, limit)[0]))
        last = mine
    return events, state


def test_one_noisy_night_of_a_cost_never_rings():
    assert one([0.0] * 15 + [50.0] + [0.0] * 15, single=False)[0] == [alarm.NONE] * 31


def test_a_cost_rings_on_the_second_night_and_once():
    events, state = one([0.1, -0.1] * 10 + [5.0] * 20, single=False)
    assert events.index(alarm.STEP) == 21
    assert events.count(alarm.STEP) == 1 and alarm.DRIFT not in events
    assert state.open[0]
    assert state.size[0] == pytest.approx(5.0, rel=0.05)


def test_bit_equal_nights_are_no_second_witness():
    """A value between the limits of one and of two nights does not ring by being repeated bit for bit, and does by being drawn again."""
    steady = [0.1, -0.1] * 10
    drawn = one(steady + [1.6] * 3)[0]
    same = one(steady + [1.6] * 3, bits=[*map(str, range(20)), "x", "x", "x"])[0]
    assert same == [alarm.NONE] * 23
    assert drawn.index(alarm.STEP) == 21


def test_a_changed_night_after_many_unchanged_ones_may_spend_what_they_saved():
    early = one([2.2], bits=["b"])[0]
    late = one([0.0] * 9 + [2.2], bits=["a"] * 9 + ["b"])[0]
    assert early == [alarm.NONE]
    assert late[-1] == alarm.STEP


def test_return_closes_and_a_second_regression_rings_again():
    events, state = one([0.1, -0.1] * 10 + [9.0] * 3 + [0.1, -0.1] * 3 + [9.0] * 3)
    assert [e for e in events if e != alarm.NONE] == [alarm.STEP, alarm.BACK, alarm.STEP]
    assert state.open[0]


def test_the_baselines_own_bits_close_at_once():
    events, state = one([9.0, 0.0], bits=["b", "a"])
    assert events == [alarm.STEP, alarm.BACK]
    assert not state.open[0]


def test_an_open_regression_that_gets_worse_rings_again():
    events, state = one([0.1, -0.1] * 10 + [9.0] * 4 + [20.0] * 4)
    assert [e for e in events if e != alarm.NONE] == [alarm.STEP, alarm.STEP]
    assert state.size[0] == pytest.approx(20.0, rel=0.1)  # since the baseline, not since the last report


def test_nights_without_a_value_change_nothing():
    steady = [0.1, -0.1] * 8
    with_gap = steady[:10] + [np.nan] * 3 + steady[10:]
    events, state = one(with_gap, single=False)
    assert events == [alarm.NONE] * len(with_gap)
    plain = one(steady, single=False)[1]
    assert state.noise.estimate()[0] == plain.noise.estimate()[0] and state.level[0] == plain.level[0]


def test_improvement_does_not_ring():
    events, state = one([0.0] * 5 + [-20.0] * 20)
    assert set(events) == {alarm.NONE}
    assert state.better[0]
