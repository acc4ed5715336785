"""The alarm on simulated histories with known truth: false alarms, steps, drifts, returns."""

import numpy as np
import pytest

from bench.nightly import alarm
from tests.bench.nightly.simulation import ACCURACY, World, simulate


@pytest.mark.parametrize("world", [World(), World(bits=True)], ids=["noise", "bit-equal nights"])
def test_at_most_one_false_alarm_in_100_nights_of_the_suite(world):
    rung = simulate(world).rings.any(-1)  # (nights, histories): nights with exit code 1
    assert rung.sum() / world.histories <= 1.0
    assert rung.any()  # the limits are not so wide that nothing could ever ring


def test_heavy_tails_hardly_add_false_alarms():
    assert simulate(World(histories=500, heavy=True)).rings.any(-1).sum() / 500 <= 1.2


@pytest.mark.parametrize("bits", [False, True], ids=["noise", "bit-equal nights"])
def test_step_of_five_standard_errors_is_found_within_two_nights(bits):
    world = World(nights=33, step=5.0, bits=bits)
    outcome = simulate(world)
    found = outcome.on_target[world.at - 1 : world.at + 1].any(0)
    assert found.mean() >= 0.95
    of_accuracy = outcome.target < ACCURACY
    assert found[of_accuracy].mean() >= 0.94
    assert found[~of_accuracy].mean() >= 0.92  # of some 370 histories
    again = outcome.on_target[world.at + 1 :, found]
    assert again.mean() < 0.03  # it rings once


def test_power_grows_with_the_step_and_starts_at_the_false_alarms():
    found = [simulate(World(histories=300, nights=31, step=step)).on_target[29:].any(0).mean() for step in (0.0, 3.0, 8.0)]
    assert found[0] < 0.02 < 0.1 < found[1] < 0.8
    assert found[2] > 0.99


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_slow_drift_is_found_within_its_budget(rate):
    at = 20
    nights = at + int(alarm.DRIFT_BUDGET / rate) - 1
    outcome = simulate(World(histories=300, nights=nights, drift=rate, at=at))
    assert outcome.on_target[at - 1 :].any(0).mean() >= 0.95


def test_drift_needs_the_cumulative_rule(monkeypatch):
    """A drift of 2 standard errors in all is found far more often than by the rules for steps alone."""
    world = World(histories=300, nights=20 + 39, drift=0.05, at=20)
    with_rule = simulate(world).on_target[19:].any(0).mean()
    monkeypatch.setattr(alarm, "SETTLED", 2.0)  # a weight that is never reached
    assert simulate(world).on_target[19:].any(0).mean() < 0.6 < 0.75 < with_rule


def test_noise_is_learned_from_the_nights():
    outcome = simulate(World(histories=200, nights=60))
    ratio = outcome.state.noise / outcome.noise
    assert 0.9 < np.median(ratio[:, :ACCURACY]) < 1.1
    assert 0.9 < np.median(ratio[:, ACCURACY:]) < 1.15


def one(values, single=True, spread=0.25, bits=None):
    """Events of one metric over nights; `bits` names each night's, the baseline's being "a"."""
    state = alarm.State(np.array([single]), np.array([0.25]), np.array([30.0]))
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
    assert state.noise[0] == plain.noise[0] and state.level[0] == plain.level[0]


def test_improvement_does_not_ring():
    events, state = one([0.0] * 5 + [-20.0] * 20)
    assert set(events) == {alarm.NONE}
    assert state.better[0]


@pytest.mark.parametrize("bits", [False, True], ids=["noise", "bit-equal nights"])
def test_the_smallest_step_that_is_printed_is_found(bits):
    """Steps of the printed size, after 29 nights, are found within two nights in about 95 of 100 cases."""
    before = simulate(World(histories=400, nights=29, bits=bits))
    printed = alarm.smallest(before.state, alarm.limits(35, ACCURACY)) / before.noise / np.where(bits & (np.arange(35) < ACCURACY), np.sqrt(2), 1)
    size = float(np.median(printed[np.arange(400), before.target]))
    found = simulate(World(histories=400, nights=31, step=size, bits=bits)).on_target[29:].any(0)
    assert 0.9 <= found.mean() <= 1.0
    assert 3.0 < size < 6.5
