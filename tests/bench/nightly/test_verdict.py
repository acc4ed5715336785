"""Verdicts on made-up histories: what rings, what is said, how often."""

import math

import pytest

from bench.nightly.text import verdict_lines
from bench.nightly.trend import trend
from bench.nightly.verdict import DRIFTED, VANISHED, WORSE, chance, judge
from tests.bench.nightly.rows import METHODS, PAIR, baseline, night


def steady(count: int) -> list[dict]:
    return [night(n) for n in range(1, count + 1)]


def told(rows) -> str:
    return "\n".join(verdict_lines(judge(rows, baseline(rows[0])), baseline(rows[0]), "a-machine"))


def by_night(rows) -> list[list[tuple[str, str]]]:
    """New findings of each night, each judged with what was known then."""
    return [[(f.kind, f.key) for f in judge(rows[: i + 1], baseline(rows[0])).new] for i in range(len(rows))]


def test_unchanged_runs_are_bit_equal_and_quiet():
    rows = steady(40)
    verdict = judge(rows, baseline(rows[0]))
    assert (verdict.unchanged, verdict.deterministic, verdict.metrics, verdict.code) == (len(METHODS), len(METHODS), 2 * len(METHODS), 0)
    assert not any(by_night(rows))
    assert "no regression" in told(rows)


def test_a_step_in_accuracy_rings_once_and_names_everything():
    rows = [*steady(12), *(night(n, worse={"kd": 6.0}) for n in range(13, 17))]
    rows[12]["facts"] = rows[13]["facts"] = {"torch": "2.10.0"}
    rows[12]["sources"] = {**rows[12]["sources"], "kd": "other"}
    assert by_night(rows)[12:] == [[(WORSE, "kd/p/test top-1")], [], [], []]
    assert 'python -m bench nightly --accept "REASON" --machine a-machine moves' in told(rows[:13])
    finding = judge(rows[:13], baseline(rows[0])).new[0]
    assert finding.size == pytest.approx(6.0, abs=1.5)
    assert finding.size - finding.half > 0
    text = told(rows[:13])
    for part in ("kd", PAIR, "test top-1", "points worse", "since commit commit13", "last good commit12", "95 % interval", "nights (z ="):
        assert part in text
    assert "torch 2.9.0 -> 2.10.0" in text and "source of kd" in text
    later = judge(rows, baseline(rows[0]))
    assert later.code == 0
    assert [f.key for f in later.open] == ["kd/p/test top-1"]
    assert "still open (night 13)" in told(rows)


def test_going_back_is_told_and_rings_no_more():
    rows = [*steady(5), night(6, worse={"at": 6.0}), night(7)]
    verdict = judge(rows, baseline(rows[0]))
    assert [f.key for f in verdict.resolved] == ["at/p/test top-1"]
    assert (verdict.open, verdict.code) == ([], 0)
    assert "resolved: at" in told(rows)


def test_a_slower_step_rings_within_two_nights_since_its_first():
    rows = [*steady(25), *(night(n, worse={"at/speed": 0.1}) for n in range(26, 30))]
    assert by_night(rows)[25:] == [[], [(WORSE, "at/p/step time")], [], []]
    finding = judge(rows[:27], baseline(rows[0])).new[0]
    assert (finding.commit, finding.good) == ("commit26", "commit25")
    assert finding.size == pytest.approx(0.1, abs=0.03)
    assert " % worse than the baseline" in told(rows[:27])


@pytest.mark.parametrize("factor", [1.2, 1.5, 2.0, 10.0])
def test_a_cost_that_is_worse_from_the_second_night_on_is_suspicious_at_once_and_rings_soon(factor):
    rows = [night(1), *(night(n, worse={"kd/speed": math.log(factor)}) for n in range(2, 8))]
    first = judge(rows[:2], baseline(rows[0]))
    assert [f.key for f in first.suspicious] == ["kd/p/step time"] and first.code == 0
    assert "suspicious, not confirmed: kd" in told(rows[:2])
    rung = [found for found in by_night(rows) if found]
    assert rung == [[(WORSE, "kd/p/step time")]]  # once
    assert any(by_night(rows)[: 4 if factor > 1.4 else 6])
    finding = judge(rows, baseline(rows[0])).open[0]
    assert (finding.night, finding.good) == (2, "commit1")
    assert "suspicious" not in told(rows)


def test_a_new_methods_cost_starts_from_the_noise_of_the_others():
    more = (*METHODS, "skd")
    rows = [*steady(15), night(16, methods=more), *(night(n, methods=more, worse={"skd/speed": 0.1}) for n in (17, 18))]
    assert by_night(rows)[15:] == [[], [], [(WORSE, "skd/p/step time")]]


def test_noise_of_nights_before_the_baseline_still_counts():
    rows = steady(25)
    fresh, moved = judge(rows[-1:], baseline(rows[-1])), judge(rows, baseline(rows[-1]))
    assert math.isnan(fresh.smallest["step time / student"][2])
    assert moved.smallest["step time / student"][2] < 0.1
    rows += [night(n, worse={"kd/speed": 0.1}) for n in (26, 27)]
    assert [f.key for f in judge(rows, baseline(rows[24])).new] == ["kd/p/step time"]


def test_one_slow_night_does_not_ring():
    rows = [*steady(25), night(26, worse={f"{m}/speed": 0.2 for m in METHODS}), *(night(n) for n in range(27, 32))]
    assert not any(by_night(rows))


def test_a_slow_drift_rings_by_the_cumulative_rule():
    rows = [*steady(25), *(night(n, worse={"kd/speed": 0.001 * (n - 25)}) for n in range(26, 75))]
    found = [(i, f) for i, fs in enumerate(by_night(rows)) for f in fs]
    assert found
    assert found[0][1] == (DRIFTED, "kd/p/step time")
    assert 0.001 * (found[0][0] + 1 - 25) < 0.04  # the budget: 4 standard errors of 1 %
    finding = judge(rows[: found[0][0] + 1], baseline(rows[0])).new[0]
    assert 20 <= finding.night <= finding.reported


def test_a_vanished_metric_is_reported_once_with_its_reason():
    rows = [*steady(3), *(night(n, methods=("student", "at"), failures={"kd": "seed 1: failed, ValueError"}) for n in (4, 5))]
    assert by_night(rows)[3:] == [[(VANISHED, "kd/p/test top-1"), (VANISHED, "kd/p/step time")], []]
    text = told(rows[:4])
    assert "kd" in text and "no longer measured since commit commit4" in text and "ValueError" in text
    assert len(judge(rows, baseline(rows[0])).open) == 2
    back = [*rows, night(6)]
    assert len(judge(back, baseline(rows[0])).resolved) == 2


@pytest.mark.parametrize("returns", ["as the baseline", "still worse"])
def test_a_regression_that_is_open_when_its_metric_vanishes_stays_open(returns):
    first, bad = night(1), {"worse": {"kd": 6.0}}
    rows = [first, night(2), *(night(n, **bad) for n in (3, 4)), night(5, methods=("student", "at"), failures={"kd": "failed"})]
    verdict = judge(rows, baseline(first))
    assert {(f.kind, f.key) for f in verdict.new} == {(VANISHED, "kd/p/test top-1"), (VANISHED, "kd/p/step time")}
    assert [(f.kind, f.key, f.night) for f in verdict.open] == [(WORSE, "kd/p/test top-1", 3)]
    rows.append(night(6, **({} if returns == "as the baseline" else bad)))
    verdict = judge(rows, baseline(first))
    gone = {(f.kind, f.key) for f in verdict.resolved}
    assert gone >= {(VANISHED, "kd/p/test top-1"), (VANISHED, "kd/p/step time")}
    if returns == "as the baseline":
        assert (WORSE, "kd/p/test top-1") in gone
        assert (verdict.new, verdict.open) == ([], [])
    else:
        assert [(f.kind, f.key, f.night) for f in verdict.open] == [(WORSE, "kd/p/test top-1", 3)]
        assert "no regression" not in told(rows)
        fixed = judge([*rows, night(7)], baseline(first))
        assert [(f.kind, f.key) for f in fixed.resolved] == [(WORSE, "kd/p/test top-1")]
        assert not fixed.open


def test_a_renamed_metric_is_vanished_and_appeared():
    rows = [*steady(3), night(4, methods=("student", "at", "kd2"))]
    verdict = judge(rows, baseline(rows[0]))
    assert {f.key for f in verdict.new} == {"kd/p/test top-1", "kd/p/step time"}
    assert verdict.appeared == ["kd2/p/test top-1", "kd2/p/step time"]
    assert "renamed?" in told(rows)


def test_a_part_that_was_not_run_has_not_vanished():
    rows = steady(4)
    rows[3] = {**rows[3], "parts": ["accuracy"], "metrics": {k: m for k, m in rows[3]["metrics"].items() if m["part"] == "accuracy"}}
    assert judge(rows, baseline(rows[0])).code == 0


def test_a_new_method_is_compared_from_its_first_night_on():
    rows = [*steady(3), *(night(n, methods=(*METHODS, "skd")) for n in (4, 5, 6)), night(7, methods=(*METHODS, "skd"), worse={"skd": 8.0})]
    rung = by_night(rows)
    assert not any(rung[:-1])
    assert rung[-1] == [(WORSE, "skd/p/test top-1")]


def test_missing_nights_show_as_a_gap_and_break_nothing():
    rows = [r for r in steady(12) if r["night"] not in (6, 7, 8)]
    verdict = judge(rows, baseline(rows[0]))
    assert verdict.gaps == [(rows[4]["date"], rows[5]["date"], 3)]
    assert verdict.code == 0
    assert "gap: 3 nights missing" in told(rows)
    assert judge(rows, baseline(rows[0]), every_hours=24 * 7).gaps == []


def test_an_improvement_is_told_and_does_not_ring():
    rows = [*steady(5), night(6, worse={"kd": -9.0})]
    verdict = judge(rows, baseline(rows[0]))
    assert (verdict.code, verdict.better) == (0, ["kd/p/test top-1"])


def test_another_plan_and_earlier_nights_are_not_compared():
    rows = [night(1, worse={"kd": -9.0}), night(2), night(3, plan="other", worse={"kd": 9.0}), night(4)]
    verdict = judge(rows, baseline(rows[1]))
    assert (verdict.code, verdict.open, verdict.unchanged) == (0, [], 3)


def test_a_baseline_moved_to_tonight_closes_what_was_open():
    rows = [*steady(5), *(night(n, worse={"kd": 6.0}) for n in (6, 7))]
    assert judge(rows, baseline(rows[0])).open
    accepted = judge(rows, baseline(rows[-1]))
    assert (accepted.new, accepted.open, accepted.unchanged) == ([], [], 3)


def test_the_smallest_changes_are_printed_for_accuracy_and_speed():
    verdict = judge(steady(30), baseline(night(1)))
    unit, scale, low, high, slow, slowest = verdict.smallest["test top-1"]
    assert (unit, scale) == ("points", "linear")
    assert 1.0 < low <= high < 10.0  # four seeds of one point: a standard error of 0.7 for a comparison
    assert 0 < slow <= slowest
    assert 0.03 < verdict.smallest["step time / student"][2] < 0.1  # nights of 1 %
    assert "step time / student: more nights are needed" in told(steady(1))
    text = told(steady(30))
    assert "more nights" not in text
    assert "smallest change seen" in text and "points (within two nights)" in text and "%" in text


def test_chance_is_that_of_the_suite():
    assert chance(0.0, 1) == pytest.approx(2.0)
    assert chance(3.0, 10) == pytest.approx(1 / 0.0135, rel=0.01)
    assert chance(40.0, 10) > 1e300


def test_trend_has_every_night_and_what_was_reported():
    rows = [*steady(5), *(night(n, worse={"kd": 6.0}) for n in (6, 8))]
    data = trend(rows, baseline(rows[0]))
    series = {s["key"]: s for s in data["series"]}
    kd = series["kd/p/test top-1"]
    assert [p[0] for p in kd["points"]] == [1, 2, 3, 4, 5, 6, 8]
    assert kd["points"][0][1] == pytest.approx(sum(rows[0]["metrics"]["kd/p/test top-1"]["values"].values()) / 4)
    assert kd["reported"] == [{"night": 6, "kind": WORSE, "since": "commit6", "open": True}]
    assert series["at/p/test top-1"]["reported"] == []
    assert data["gaps"] == [[rows[5]["date"], rows[6]["date"], 1]]
    assert [b["night"] for b in data["baselines"]] == [1]


def test_trend_draws_no_line_across_plans():
    rows = [*steady(3), *(night(n, plan="other", worse={"kd": 20.0}) for n in (4, 5))]
    data = trend(rows, baseline(rows[3]))
    kd = next(s for s in data["series"] if s["key"] == "kd/p/test top-1")
    assert [p[0] for p in kd["points"]] == [4, 5]
    assert ([n["night"] for n in data["nights"]], data["other_plans"], data["gaps"]) == ([4, 5], 3, [])


def test_trend_of_nothing():
    assert trend([]) == {"nights": [], "other_plans": 0, "series": [], "gaps": [], "baselines": []}
