"""What killed saves leave behind goes when the run is next opened, under its lease; what a manifest names stays."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.errors import DONE
from bench.store.lease import LOCK
from bench.store.runs import scan
from bench.train import checkpoint, group_job, loop
from bench.train.run_folder import RunFolder
from tests.bench.train.test_training import execution, group, numbers, records


class Killed(BaseException):
    """The process ends here."""


def test_temporary_files_and_unnamed_checkpoints_go_and_the_run_goes_on(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert group_job.run_group(group("student", teacher=None), execution(whole)) == DONE
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Training, "_finish", lambda *_: (_ for _ in ()).throw(Killed()))
        group_job.run_group(group("student", teacher=None), execution(cut, checkpoint_seconds=0))
    (run,) = (cut / "runs").iterdir()
    kept = sorted(run.glob("checkpoint-*.pt"))
    assert len(kept) == 2
    (manifest,) = (cut / "groups").glob("*/manifest.json")
    left = [run / ".checkpoint-7-aa.pt.0123.tmp", run / "checkpoint-9-bb.pt", manifest.parent / ".manifest.json.4567.tmp"]
    for path in left:
        path.write_bytes(b"x" * 1000)
    assert checkpoint.sweep(cut, run.name) == 3000 and sorted(run.glob("checkpoint-*.pt")) == kept and manifest.exists()
    for path in left:
        path.write_bytes(b"x")
    assert group_job.run_group(group("student", teacher=None), execution(cut)) == DONE
    assert not any(path.exists() for path in left) and not list(run.glob("checkpoint-*")) and {path.name for path in Path(run).glob(".*")} == {LOCK}
    assert numbers(records(cut)["student"]) == numbers(records(whole)["student"]) and not scan(cut)[1]


def test_a_pipe_in_the_place_of_a_log_is_not_waited_for(tmp_path, capsys):
    folder = RunFolder(tmp_path, SimpleNamespace(run=SimpleNamespace(id="r"), method=SimpleNamespace(title="")))
    folder.path.mkdir(parents=True)
    folder.log("what a stranger's error says: \udc80")
    assert (folder.path / "log.txt").read_text().endswith(" what a stranger's error says: \\udc80\n")
    (folder.path / "log.txt").unlink()
    os.mkfifo(folder.path / "log.txt")
    folder.log("a line")
    assert capsys.readouterr().out == "r: a line (log.txt: No such device or address)\n"
