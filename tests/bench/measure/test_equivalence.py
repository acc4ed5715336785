"""The equivalence study: its tests against simulation and scipy, and the reading of finished runs, from made-up results."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
from scipy import stats

from bench.errors import DONE, STOPPED_IN_TIME, TROUBLE, UsageError
from bench.measure import equivalence
from bench.measure.equivalence import Equivalence, judge, power
from bench.store.files import write_json
from bench.train import group_job
from tests.bench.synthetic import SHORT, add_run, run_of

PAIR = ("resnet56", "resnet20")


def fill(results: Path, shift: float, sigma: float, seeds=range(1, 9), precisions=("fp32", "bf16"), **changes) -> None:
    """Runs of both precisions; the second is `shift` points better on average."""
    draw = random.Random(5)
    for method in ("student", "kd"):
        for seed in seeds:
            for i, precision in enumerate(precisions):
                run = run_of(method, *PAIR, seed, precision=precision, **changes)
                add_run(results, run, round(70 + i * shift + draw.gauss(0, sigma), 2))


def options(results: Path, **changes) -> Equivalence:
    return Equivalence(candidate="bf16", results=results, epochs=SHORT.epochs, train=False, **changes)


def outcome(results: Path) -> dict:
    return json.loads((results / "equivalence" / "resnet56-resnet20-bf16-fp32-3epochs.json").read_text())


def test_judge_is_two_one_sided_t_tests():
    draw = random.Random(1)
    for shift in (0.0, 0.2, -0.25, 0.6):
        d = [draw.gauss(shift, 0.3) for _ in range(12)]
        upper, lower = stats.ttest_1samp(d, 0.3, alternative="less").pvalue, stats.ttest_1samp(d, -0.3, alternative="greater").pvalue
        verdict = judge(d, 0.3)
        assert verdict.p == pytest.approx(max(upper, lower)) and (verdict.word == "equivalent") == (max(upper, lower) < 0.05)
        low, high = stats.ttest_1samp(d, 0).confidence_interval(0.9)
        assert verdict.interval == pytest.approx((low, high))
        assert (verdict.word == "equivalent") == (-0.3 < low and high < 0.3)


def test_judge_at_the_edges():
    assert judge([], 0.3).word == judge([0.1], 0.3).word == "cannot tell"
    assert judge([0.0, 0.0], 0.3).word == "equivalent" and judge([0.4, 0.4], 0.3).word == "different"
    assert judge([1.0, 1.1, 0.9, 1.05], 0.3).word == "different"
    assert judge([0.6, -0.5, 0.2], 0.3).word == "not shown equivalent"


@pytest.mark.parametrize("n, sd, true", [(5, 0.35, 0.0), (16, 0.3536, 0.0), (16, 0.3, 0.15), (8, 0.2, -0.1), (16, 0.3, 0.3)])
def test_power_agrees_with_simulation(n, sd, true):
    draw = random.Random(n)
    rounds = 3000
    shown = sum(judge([draw.gauss(true, sd) for _ in range(n)], 0.3).word == "equivalent" for _ in range(rounds)) / rounds
    assert power(n, 0.3, sd, true) == pytest.approx(shown, abs=4 * (shown * (1 - shown) / rounds) ** 0.5 + 0.005)


def test_power_at_the_margin_is_the_error_rate_and_grows_with_n():
    assert power(200, 0.3, 0.3, 0.3) == pytest.approx(0.05, abs=0.002)
    assert power(1, 0.3, 0.3) == 0 < power(4, 0.3, 0.3) < power(8, 0.3, 0.3) < power(32, 0.3, 0.3) <= 1
    with pytest.raises(ValueError):
        power(8, 0.3, 0.0)


CASES = [(0.0, 0.1, "equivalent"), (0.1, 0.1, "equivalent"), (0.0, 1.5, "not shown"), (-1.0, 0.1, "different")]


@pytest.mark.parametrize("shift, sigma, word", CASES)
def test_study_of_made_up_runs(tmp_path, capsys, shift, sigma, word):
    fill(tmp_path, shift, sigma)
    fill(tmp_path, 5.0, 0.1, precisions=("tf32",))  # not asked for
    fill(tmp_path, 5.0, 0.1, protocol=dataclasses.replace(SHORT, lr=0.1))  # another protocol
    assert options(tmp_path).main() == DONE
    said = capsys.readouterr().out
    assert said.index("paired runs, margin 0.3") < said.index(f"bf16 against fp32: {word}")
    found = outcome(tmp_path)
    assert found["n"] == 16 == found["planned"] and found["word"].startswith(word) and not found["missing"]
    assert found["mean"] == pytest.approx(sum(d["difference"] for d in found["differences"]) / 16)
    assert all(d["difference"] == pytest.approx(d["candidate"] - d["reference"]) for d in found["differences"])
    assert abs(found["mean"] - shift) < 3 * sigma * 2**0.5 / 4


def test_a_method_named_twice_counts_once(tmp_path, capsys):
    fill(tmp_path, 0.0, 0.1)
    assert options(tmp_path, methods=("kd", "kd")).main() == DONE
    assert "8 paired runs" in capsys.readouterr().out and len(outcome(tmp_path)["differences"]) == 8


def test_what_is_missing_is_named_and_not_paired(tmp_path, capsys):
    fill(tmp_path, 0.0, 0.1, seeds=range(1, 6))
    add_run(tmp_path, run_of("kd", *PAIR, 6, precision="bf16"), 70.0)
    add_run(tmp_path, run_of("kd", *PAIR, 6, precision="fp32", teacher_hash="another"), 60.0)  # not the same teacher
    add_run(tmp_path, run_of("student", *PAIR, 6, precision="bf16"), 70.0, status="diverged")
    for precision in ("bf16", "fp32"):  # of another row of the method
        add_run(tmp_path, run_of("kd", *PAIR, 6, precision=precision, hyper={"temperature": 2.0}), 70.0, changed={"temperature": 2.0})
    assert options(tmp_path, seeds=("1-6",)).main() == DONE
    assert "left out: kd with seed 6" in capsys.readouterr().out
    found = outcome(tmp_path)
    assert found["n"] == 10 and found["planned"] == 12 and len(found["missing"]) == 2


def test_two_teachers_for_one_cell_are_refused(tmp_path):
    fill(tmp_path, 0.0, 0.1, seeds=[1, 2])
    fill(tmp_path, 0.0, 0.1, seeds=[1], teacher_hash="another")
    with pytest.raises(UsageError, match="kd with seed 1"):
        options(tmp_path, seeds=("1,2",)).main()


def test_runs_of_an_older_version_or_another_teacher_are_not_compared(tmp_path):
    fill(tmp_path, 0.0, 0.1, seeds=[1, 2])
    present = options(tmp_path, seeds=("1,2",))
    assert present.main() == DONE
    before = outcome(tmp_path)["differences"]
    fill(tmp_path, 5.0, 0.1, seeds=[1, 2], method_version=0)
    fill(tmp_path, 5.0, 0.1, seeds=[1, 2], teacher_hash="another")
    with pytest.raises(UsageError, match="kd with seed 1"):  # which of the two teachers nothing says
        present.main()
    facts = {"architecture": "resnet56", "dataset": "cifar100", "hash": "resnet56-hash", "source": "imported", "trained": True}
    place = tmp_path / "teachers" / "cifar100-resnet56"
    place.mkdir(parents=True)
    write_json(place / "teacher.json", facts | {"format": 1, "test_top1": 72.0, "test_top5": 92.0, "test_top1_data": "d" * 16})
    assert present.main() == DONE and outcome(tmp_path)["differences"] == before


def test_what_cannot_be_compared_is_refused_before_the_training(tmp_path, monkeypatch):
    fill(tmp_path, 0.0, 0.1, seeds=[1])
    fill(tmp_path, 0.0, 0.1, seeds=[1], data_hash="e" * 16)
    monkeypatch.setattr(group_job, "run_group", launched := Launched(tmp_path))
    with pytest.raises(UsageError, match="seed 1 was trained with two"):
        dataclasses.replace(options(tmp_path), train=True).main()
    assert not launched.groups


class Launched:
    """Stands in for run_group: writes the runs of a group."""

    def __init__(self, results: Path, codes: dict[int, int] | None = None) -> None:
        self.results, self.codes, self.groups = results, codes or {}, []

    def __call__(self, group, where) -> int:
        self.groups.append((group.seed, group.precision))
        code = self.codes.get(len(self.groups), DONE)
        if code != STOPPED_IN_TIME:
            for method in group.methods:
                add_run(self.results, run_of(method, group.teacher, group.student, group.seed, group.protocol, precision=group.precision), 70.0)
        return code


def test_missing_runs_are_trained_seed_by_seed_after_the_power_is_said(tmp_path, capsys, monkeypatch):
    launched = Launched(tmp_path, {2: TROUBLE})
    monkeypatch.setattr(group_job, "run_group", lambda *a: (print("training"), launched(*a))[1])
    assert dataclasses.replace(options(tmp_path, seeds=("1-2",)), train=True).main() == TROUBLE
    assert launched.groups == [(1, "fp32"), (1, "bf16"), (2, "fp32"), (2, "bf16")]
    said = capsys.readouterr().out
    assert said.index("probability") < said.index("training") and outcome(tmp_path)["word"] == "equivalent"


def test_a_stop_is_passed_on_and_nothing_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(group_job, "run_group", Launched(tmp_path, {3: STOPPED_IN_TIME}))
    assert dataclasses.replace(options(tmp_path, seeds=("1-2",)), train=True).main() == STOPPED_IN_TIME
    assert not (tmp_path / equivalence.FOLDER).exists()
    monkeypatch.setattr(group_job, "run_group", Launched(tmp_path))
    assert dataclasses.replace(options(tmp_path), train=True, time_budget=1e-9).main() == STOPPED_IN_TIME


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"candidate": "fp64"}, "unknown precision"),
        ({"candidate": "fp32"}, "same precision"),
        ({"margin": 0.0}, "above 0"),
        ({"pair": "resnet56"}, "teacher-student"),
        ({"seeds": ("1",), "methods": ("kd",)}, "two paired runs"),
        ({"protocol": "crdd"}, "did you mean crd"),
        ({"epochs": 0}, "--epochs 0: at least 1"),
        ({"methods": ("student", "kdd")}, "unknown method 'kdd'"),
    ],
)
def test_bad_input(tmp_path, changes, text):
    with pytest.raises(UsageError, match=text):
        dataclasses.replace(options(tmp_path), **changes).main()
