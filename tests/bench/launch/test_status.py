"""What `status` says of runs that are trained again."""

import pytest

from bench.launch import status
from bench.store import redo
from bench.store.runs import write_config, write_status
from tests.bench.synthetic import add_plan, add_run, run_of


def test_runs_that_are_trained_again_are_told(tmp_path, capsys):
    runs = [run_of("student", "resnet56", "resnet20", seed) for seed in (1, 2, 3)]
    for run in runs:
        add_run(tmp_path, run, 70.0)
    assert status.show(tmp_path, False) == 0 and "--redo" not in capsys.readouterr().out.replace("with --redo --methods", "")
    redo.begin(tmp_path, [run.id for run in runs])
    diverged, stopped, waiting = runs
    for run, said in ((diverged, "diverged"), (stopped, "interrupted")):
        folder = redo.root(tmp_path) / "runs" / run.id
        write_config(folder, run.identity(), "x", "Student")
        write_status(folder, said, epoch=5, reason=f"was {said}")
    assert status.show(tmp_path, False) == 0
    said = capsys.readouterr().out
    assert "3 done" in said and "to be trained again (--redo); the old results stay meanwhile: 3" in said
    lines = {line.split()[0]: line for line in said.splitlines() if line.startswith("resnet")}
    assert "diverged" in lines[diverged.id] and "was diverged" in lines[diverged.id]
    assert "interrupted" in lines[stopped.id] and "5/" in lines[stopped.id] and "planned" in lines[waiting.id]


def test_the_terminal_is_given_back(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(status.Progress, "close", lambda self: closed.append(self))

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        status.watch(tmp_path)
    assert len(closed) == 1


def test_rows_of_one_method_are_told_apart(tmp_path, capsys):
    for temperature in (2.0, 8.0):
        run = run_of("kd", "resnet56", "resnet20", 1, hyper={"temperature": temperature})
        add_run(tmp_path, run, 70.0, status="diverged", rows=2, changed={"temperature": temperature})
    assert status.show(tmp_path, False) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "-kd-s1-" in line]
    assert [line.split()[4] for line in lines] in (["temperature=2.0", "temperature=8.0"], ["temperature=8.0", "temperature=2.0"])
    add_run(tmp_path, run_of("kd", "resnet56", "resnet20", 2, hyper={"temperature": 2.0}), 70.0, changed={"temperature": 2.0})
    assert status.show(tmp_path, False) == 0  # its source is not today's
    assert "run them again with --redo --methods kd:temperature=2.0, or raise its version" in capsys.readouterr().out


def test_a_run_to_be_trained_again_is_not_counted_as_done(tmp_path):
    runs = [run_of("student", "resnet56", "resnet20", seed) for seed in (1, 2)]
    for run in runs:
        add_run(tmp_path, run, 70.0)
    add_plan(tmp_path, [("resnet56", "resnet20")], ("student",), (1, 2, 3))
    assert status.counts(tmp_path) == (2, 3)
    redo.begin(tmp_path, [runs[0].id])
    assert status.counts(tmp_path) == (1, 3)
