"""What `status` says of runs that are trained again."""

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


def test_a_run_to_be_trained_again_is_not_counted_as_done(tmp_path):
    runs = [run_of("student", "resnet56", "resnet20", seed) for seed in (1, 2)]
    for run in runs:
        add_run(tmp_path, run, 70.0)
    add_plan(tmp_path, [("resnet56", "resnet20")], ("student",), (1, 2, 3))
    assert status.counts(tmp_path) == (2, 3)
    redo.begin(tmp_path, [runs[0].id])
    assert status.counts(tmp_path) == (1, 3)
