"""The command: exit codes, baselines, what is left behind. The plan itself is made up here and run in test_measure."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.errors import StoreError, UsageError
from bench.nightly import command, history
from bench.nightly.command import Nightly, read_benchmarks
from bench.nightly.trend import trends
from tests.bench.nightly.rows import METHODS, night

ROOT = Path(__file__).parents[3]


@pytest.fixture
def plan(monkeypatch):
    """What the next nights measure: change `plan.worse`, `plan.methods`, `plan.error`."""
    from bench.nightly import measure

    state = SimpleNamespace(worse=None, methods=METHODS, error=None, version="plan", ran=0)

    def run(plan, folder, device, workers, methods=None):
        folder.mkdir(parents=True)
        (folder / "something").touch()
        state.ran += 1
        if state.error:
            raise state.error
        row = night(state.ran, worse=state.worse, methods=state.methods)
        return measure.Parts(row["metrics"], row["failures"], row["facts"], row["sources"])

    monkeypatch.setattr(measure, "run", run)
    monkeypatch.setattr(measure.Plan, "hash", lambda self: state.version)
    return state


def go(tmp_path, **options) -> int:
    return Nightly(results=tmp_path, device="cpu", machine="here", **options).main()


def test_nights_of_a_machine(tmp_path, plan, capsys):
    assert go(tmp_path) == 0
    assert "new baseline on here: first night" in capsys.readouterr().out
    for _ in range(4):
        assert go(tmp_path) == 0
    assert "3 of 3 accuracies bit-equal" in capsys.readouterr().out
    plan.worse = {"kd": 7.0}
    assert go(tmp_path) == 1
    assert "regression: kd" in capsys.readouterr().out
    assert go(tmp_path) == 0
    assert "still open" in capsys.readouterr().out
    assert go(tmp_path, accept="meant") == 0
    assert go(tmp_path) == 0
    assert "still open" not in capsys.readouterr().out
    place = history.folder(tmp_path, "here")
    assert [row["night"] for row in history.read(place)] == list(range(1, 9))
    assert history.read_baseline(place)["reason"] == "meant"
    assert sorted(p.name for p in place.iterdir() if p.name != ".lock") == ["baseline.json", "history.jsonl", "told.json"]  # the runs are gone
    found = trends(tmp_path)["here"]
    assert len(found["nights"]) == 8
    assert [b["reason"] for b in found["baselines"]] == ["first night on this machine class", "meant"]


def killed_when_kd_is_worse(tmp_path, plan, monkeypatch) -> None:
    """Five nights, and a sixth that is killed after its row was appended and before it said anything."""

    def killed(*arguments):
        raise KeyboardInterrupt

    for _ in range(5):
        assert go(tmp_path) == 0
    plan.worse = {"kd": 7.0}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(command, "judge", killed)
        go(tmp_path)


def test_what_a_killed_night_found_rings_on_the_next_one_and_once(tmp_path, plan, capsys, monkeypatch):
    killed_when_kd_is_worse(tmp_path, plan, monkeypatch)
    capsys.readouterr()
    assert go(tmp_path) == 1
    said = capsys.readouterr().out
    assert said.count("regression: kd") == 1 and "night 6" in said and "still open" not in said
    assert go(tmp_path) == 0
    assert "still open (night 6)" in capsys.readouterr().out


def test_what_a_killed_night_found_and_is_gone_again_does_not_ring(tmp_path, plan, capsys, monkeypatch):
    killed_when_kd_is_worse(tmp_path, plan, monkeypatch)
    plan.worse = None
    assert go(tmp_path) == 0
    assert "resolved: kd" in capsys.readouterr().out


def test_a_history_of_an_earlier_version_rings_for_nothing_old(tmp_path, plan):
    for _ in range(5):
        assert go(tmp_path) == 0
    plan.worse = {"kd": 7.0}
    assert go(tmp_path) == 1
    (history.folder(tmp_path, "here") / "told.json").unlink()
    assert go(tmp_path) == 0


def test_a_damaged_note_of_what_was_told_is_named_before_the_work(tmp_path, plan):
    assert go(tmp_path) == 0
    (history.folder(tmp_path, "here") / "told.json").write_text("{}")
    with pytest.raises(StoreError, match="told.json"):
        go(tmp_path)
    assert plan.ran == 1


def full(*arguments):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["append_row", "write_json"])
def test_a_full_disk_is_one_line(tmp_path, plan, monkeypatch, name):
    monkeypatch.setattr(history, name, full)
    with pytest.raises(UsageError, match="cannot write in .*: No space left on device"):
        go(tmp_path)


def test_a_verdict_that_cannot_be_noted_rings_all_the_same(tmp_path, plan, monkeypatch, capsys):
    for _ in range(5):
        assert go(tmp_path) == 0
    plan.worse = {"kd": 7.0}
    with monkeypatch.context() as patch:
        patch.setattr(history, "write_json", full)
        assert go(tmp_path) == 1
    assert "will be new again" in capsys.readouterr().out
    assert go(tmp_path) == 1
    assert go(tmp_path) == 0


def test_another_machine_class_starts_a_new_baseline(tmp_path, plan, capsys):
    go(tmp_path)
    plan.worse = {"kd": 7.0}
    assert Nightly(results=tmp_path, device="cpu", machine="there").main() == 0
    assert "new baseline on there" in capsys.readouterr().out
    assert history.machines(tmp_path) == ["here", "there"]


def test_another_plan_starts_a_new_baseline(tmp_path, plan, capsys):
    go(tmp_path)
    plan.version, plan.worse = "other", {"kd": 7.0}
    assert go(tmp_path) == 0
    assert "the nightly plan itself changed" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [0, 2])
def test_a_history_that_was_lost_or_replaced_is_gone_on_with(tmp_path, plan, capsys, kept):
    for _ in range(6):
        go(tmp_path)
    go(tmp_path, accept="why not")
    path = history.folder(tmp_path, "here") / "history.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]))
    capsys.readouterr()
    plan.worse = {"kd": 7.0}
    codes = [go(tmp_path), go(tmp_path)]
    assert 1 in codes
    out = capsys.readouterr().out
    assert f"{'ends at night 2' if kept else 'has no night'} and the baseline is of night 6" in out and "nights go on from 7" in out
    assert "regression: kd" in out
    assert [row["night"] for row in history.read(path.parent)] == [*range(1, kept + 1), 7, 8]


def test_a_night_older_than_the_baseline_is_not_accepted(tmp_path, plan):
    for _ in range(3):
        go(tmp_path)
    go(tmp_path, accept="why not")
    path = history.folder(tmp_path, "here") / "history.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(UsageError, match="older copy"):
        go(tmp_path, accept="again")


def test_runs_are_kept_on_request(tmp_path, plan):
    go(tmp_path, keep=True)
    assert (history.folder(tmp_path, "here") / "night-1" / "something").exists()


def test_a_stopped_night_leaves_no_row(tmp_path, plan):
    from bench.nightly import measure

    plan.error = measure.NightStopped(130)
    assert go(tmp_path) == 130
    assert history.read(history.folder(tmp_path, "here")) == []
    assert not (history.folder(tmp_path, "here") / "night-1").exists()


def test_a_night_that_cannot_run_is_a_regression(tmp_path, plan, capsys):
    from bench.nightly import measure

    plan.error = measure.NightFailed("the teacher could not be trained")
    assert go(tmp_path) == 1
    assert "teacher" in capsys.readouterr().out


def test_a_night_without_any_metric_is_a_regression_and_leaves_no_row(tmp_path, plan):
    plan.methods = ()
    assert go(tmp_path) == 1
    assert history.read(history.folder(tmp_path, "here")) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [({"accept": " "}, "needs a reason"), ({"accept": "x"}, "no history"), ({"every_hours": 0.0}, "every-hours")],
)
def test_bad_input(tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        go(tmp_path, **options)


def test_a_machine_is_one_folder_name(tmp_path):
    with pytest.raises(UsageError, match="folder name"):
        Nightly(results=tmp_path, device="cpu", machine="../up").main()


def test_accept_finds_the_only_machine(tmp_path, plan):
    go(tmp_path)
    assert Nightly(results=tmp_path, accept="why").main() == 0
    assert history.read_baseline(history.folder(tmp_path, "here"))["reason"] == "why"


def test_benchmark_figures_join_the_night(tmp_path, plan):
    path = tmp_path / "benches.json"
    found = {"fullname": "t.py::test_a", "name": "test_a", "stats": {"median": 0.5}, "extra_info": {}}
    ratio = {**found, "fullname": "t.py::test_b", "name": "test_b", "extra_info": {"group / alone": {"cpu": 0.45, "target": 0.5}}}
    path.write_text(json.dumps({"benchmarks": [found, ratio]}))
    assert go(tmp_path, benchmarks=path) == 0
    row = history.read(history.folder(tmp_path, "here"))[0]
    assert row["metrics"]["t.py::test_a/median"]["values"] == {"0": 0.5}
    assert row["metrics"]["t.py::test_b/group / alone"]["values"] == {"0": 0.45}
    assert go(tmp_path) == 0  # a night without them misses nothing


BENCH = '{"benchmarks": [{"fullname": "a", "name": "a", "stats": {"median": %s}}]}'


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"benchmarks": [{}]}', BENCH % "0", BENCH % ("1" + "0" * 400), BENCH % "1e999"])
def test_a_file_that_is_no_benchmark_json(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"x\.json"):
        read_benchmarks(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_benchmarks(tmp_path / "none.json")


def test_no_torch_until_the_plan_runs():
    modules = ("alarm", "noise", "rows", "verdict", "history", "text", "trend", "command")
    code = "import sys; " + "; ".join(f"import bench.nightly.{m}" for m in modules) + "; import bench.report.tensorboard"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
