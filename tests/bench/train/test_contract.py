"""What methods.base promises a method, through the trainer: a stage before the main one, resumed and killed; what is kept; groups that do not fit."""

import os
import re
import signal

import pytest
import torch
from torch.nn import functional as F

from bench.errors import DONE, INTERRUPTED, STOPPED_IN_TIME, TROUBLE
from bench.plan.protocols import Protocol
from bench.store.files import read_json
from bench.store.rows import read_rows
from bench.store.runs import scan
from bench.train import checkpoint, engine, group_job, teacher_training
from bench.train.learner import Learner
from bench.train.loop import Training
from methods.base import Method
from tests.bench import groups
from tests.bench.train.test_training import Interrupting, numbers, records, statuses
from tests.bench.train.test_training import execution as execution_of
from tests.bench.train.test_training import group as group_of
from tests.bench.train.toys import Everything, Plain, registered

TINY = Protocol("tiny", dataset="shapes100", epochs=2, milestones=(1,), train_images=150, test_images=60, image_size=16, batch=64)
STEPS = 3  # an epoch
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@pytest.fixture(autouse=True)
def alone_with_toys():
    with groups.deterministic(), registered(everything=Everything, plain=Plain):
        yield


def execution(folder, **changes):
    return execution_of(folder, **{"engine": "eager", **changes})


def group(*methods: str):
    return group_of(*methods, teacher="resnet8", protocol=TINY)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    with groups.deterministic():
        assert teacher_training.train("resnet8", TINY, 0, "tf32", execution(folder)) == DONE
    return folder / "teachers"


@pytest.fixture
def fresh(tmp_path, teachers):
    """Makes results folders with the teacher in them."""

    def make(name: str):
        (tmp_path / name).mkdir()
        (tmp_path / name / "teachers").symlink_to(teachers)
        return tmp_path / name

    return make


@pytest.fixture(scope="module")
def unbroken(teachers, tmp_path_factory):
    """Plain and everything, trained as a group: the records by method, the folder."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "teachers").symlink_to(teachers)
    with groups.deterministic(), registered(everything=Everything, plain=Plain):
        assert group_job.run_group(group("plain", "everything"), execution(folder)) == DONE
        return records(folder), folder


def test_group_equals_single_bit_for_bit(fresh, unbroken):
    folder = fresh("alone")
    for method in ("everything", "plain"):
        assert group_job.run_group(group(method), execution(folder)) == DONE
    found = records(folder)
    assert {m: numbers(r) for m, r in found.items()} == {m: numbers(r) for m, r in unbroken[0].items()}
    assert numbers(found["plain"])[0] != numbers(found["everything"])[0]


@pytest.mark.parametrize("name", ["static", "native"])
def test_other_engines(fresh, unbroken, name):
    folder = fresh(name)
    assert group_job.run_group(group("plain", "everything"), execution(folder, engine=name)) == DONE
    found = records(folder)
    assert {r["engine"] for r in found.values()} == {name}
    if name == "static":  # the native operator rounds otherwise
        assert {m: numbers(r) for m, r in found.items()} == {m: numbers(r) for m, r in unbroken[0].items()}


@pytest.mark.parametrize("steps", [1, 3, 5, 6, 7, 11])
def test_resumed_equals_unbroken_bit_for_bit(fresh, unbroken, monkeypatch, steps):
    """Six steps of the stage, then six of the group: stopped in the stage, between its epochs, at its end, in the main stage."""
    folder = fresh("broken")
    with monkeypatch.context() as patch:
        Interrupting(patch, steps)
        assert group_job.run_group(group("plain", "everything"), execution(folder)) == STOPPED_IN_TIME
    assert set(statuses(folder).values()) == {"interrupted"}
    (view,) = (v for v in scan(folder)[0] if v.method == "everything")
    position = checkpoint.restore(folder, view.id)[1].position
    done = divmod(steps, STEPS)
    assert position == checkpoint.Position(-1 + done[0], done[1])
    torch.manual_seed(12345)
    assert group_job.run_group(group("plain", "everything"), execution(folder)) == DONE
    found = records(folder)
    assert {m: numbers(r) for m, r in found.items()} == {m: numbers(r) for m, r in unbroken[0].items()}
    assert not list(folder.glob("runs/*/checkpoint-*")) and not list(folder.glob("groups/*"))


class Killed(BaseException):
    """The end of a process, for those that catch no more than exceptions."""


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7])
def test_a_kill_while_a_run_moves_to_the_main_group_loses_nothing(fresh, unbroken, monkeypatch, number):
    """Killed at each rename of the first save after the stage: the state from its end is found again, or the newer one is."""
    folder = fresh("killed")
    seen = {"main": False, "renames": 0}
    save, replace = checkpoint.GroupCheckpoint.save, os.replace

    def saving(self, position, states):
        seen["main"] = seen["main"] or position > checkpoint.START
        return save(self, position, states)

    def renaming(*arguments, **named):
        if seen["main"]:
            seen["renames"] += 1
            if seen["renames"] == number:
                raise Killed
        return replace(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.GroupCheckpoint, "save", saving)
        patch.setattr(os, "replace", renaming)
        with pytest.raises(Killed):
            group_job.run_group(group("plain", "everything"), execution(folder, checkpoint_seconds=0))
    (view,) = (v for v in scan(folder)[0] if v.method == "everything")
    restored = checkpoint.restore(folder, view.id)[1]
    assert restored.position >= checkpoint.START and restored.state is not None
    assert group_job.run_group(group("plain", "everything"), execution(folder)) == DONE
    assert {m: numbers(r) for m, r in records(folder).items()} == {m: numbers(r) for m, r in unbroken[0].items()}


def test_what_is_kept(unbroken):
    found, folder = unbroken
    (view,) = (v for v in scan(folder)[0] if v.method == "everything")
    rows = read_rows(view.folder / "epochs.jsonl", view.id).rows
    assert [row.epoch for row in rows] == [1, 2]  # of the main stage only
    assert set(rows[0].losses) == {"ce", "own", "bank"}
    stage = found["everything"]["pretraining"]
    assert (stage["epochs"], stage["rate"]) == (2, 0.02) and stage["seconds"] > 0
    log = (view.folder / "log.txt").read_text()
    assert "pre-training epoch 1/2 loss" in log and "pre-training epoch 2/2 loss" in log
    assert found["everything"]["inference"] == {"parameters": 67 * 100, "macs": 64 * 100}
    assert found["plain"]["pretraining"] is None and found["plain"]["inference"] is None
    kept = torch.load(view.folder / "method.pt", weights_only=True)
    assert {name.split(".")[0] for name in kept} == {"project", "connect", "scale"}
    assert "bank" not in torch.load(view.folder / "student.pt", weights_only=True)
    assert not list(folder.glob("runs/*plain*/method.pt"))


def test_start_comes_once_before_a_state_is_loaded(fresh, monkeypatch):
    calls = []
    start, load = Everything.start, Learner.load
    monkeypatch.setattr(Everything, "start", lambda self, labels: (calls.append(("start", tuple(labels.shape), labels.dtype)), start(self, labels)))
    monkeypatch.setattr(Learner, "load", lambda self, state: (calls.append("load"), load(self, state)))
    folder = fresh("started")
    assert group_job.run_group(group("everything"), execution(folder)) == DONE
    begun = ("start", (150,), torch.int64)
    assert calls == [begun, begun, "load"]  # the stage's learner, then the main one's


# Trouble.
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("shared", [True, False], ids=["of all", "of one"])
def test_a_group_that_does_not_fit_is_split(fresh, unbroken, monkeypatch, capsys, at, shared):
    """No memory for more than one member in the `at`-th step of a training, whoever asks for it."""
    step, taken = engine.Eager.step, {}

    def short(runner, start, stop):
        taken[runner] = taken.get(runner, 0) + 1
        if len(runner.learners) > 1 and taken[runner] == at:
            error = torch.OutOfMemoryError("CUDA out of memory")
            if shared:
                raise error
            return [(runner.learners[-1], error)]
        return step(runner, start, stop)

    monkeypatch.setattr(engine.Eager, "step", short)
    folder = fresh("split")
    assert group_job.run_group(group("plain", "everything", "student"), execution(folder, checkpoint_seconds=0 if at == 3 else 60)) == DONE
    found = records(folder)
    assert {m: numbers(found[m]) for m in ("plain", "everything")} == {m: numbers(r) for m, r in unbroken[0].items()}
    assert numbers(found["student"]) == numbers(found["plain"])
    said = [line for line in capsys.readouterr().out.splitlines() if "more memory" in line]
    assert [line.split(": ")[1].split()[0] for line in said] == ["3", "2"]
    for view in scan(folder)[0]:
        assert view.seed == 0 or (view.record.attempts, len(read_rows(view.folder / "epochs.jsonl", view.id).rows)) == (1, 2)
    assert not list(folder.glob("groups/*"))


def test_one_that_does_not_fit_alone_fails_in_one_line(fresh, unbroken, monkeypatch, capsys):
    def losses(self, student, teacher, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation")

    folder = fresh("large")
    with registered(large=type("Large", (Plain,), {"losses": losses})):
        assert group_job.run_group(group("plain", "large"), execution(folder)) == TROUBLE
        found = statuses(folder)
        assert found == {"plain": "done", "large": "failed"} and numbers(records(folder)["plain"]) == numbers(unbroken[0]["plain"])
    assert len(re.findall("large.* failed: out of memory", capsys.readouterr().out)) == 1


def test_no_memory_to_build_a_member_splits_too(fresh, unbroken, monkeypatch):
    add, building = Training.add, {}

    def short(training, *arguments):
        building[training] = building.get(training, 0) + 1
        if building[training] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return add(training, *arguments)

    monkeypatch.setattr(group_job.Training, "add", short)
    folder = fresh("built")
    assert group_job.run_group(group("plain", "everything"), execution(folder)) == DONE
    assert {m: numbers(r) for m, r in records(folder).items()} == {m: numbers(r) for m, r in unbroken[0].items()}


def test_a_stop_leaves_a_failure_its_reason(fresh, monkeypatch):
    """The second of three members fails when it is built, the job is stopped while the third is."""
    learner = group_job.GroupJob.learner

    def made(job, member, *rest, **named):
        if member.run.method == "everything":
            raise RuntimeError("went wrong")
        if member.run.method == "kd":
            job.stop._caught(signal.SIGTERM, None)
            job.stop.check()
        return learner(job, member, *rest, **named)

    monkeypatch.setattr(Everything, "pretraining", classmethod(lambda cls, hyper, setting: None))
    monkeypatch.setattr(group_job.GroupJob, "learner", made)
    folder = fresh("stopped")
    assert group_job.run_group(group("plain", "everything", "kd"), execution(folder)) == INTERRUPTED
    found = {view.method: (view.status, view.reason) for view in scan(folder)[0]}
    assert found["everything"][0] == "failed" and "went wrong" in found["everything"][1]
    assert found["plain"] == found["kd"] == ("interrupted", "SIGTERM")


def test_a_failure_names_file_and_line(fresh, capsys):
    class Broken(Method):
        title = paper = "broken"

        def losses(self, student, teacher, batch):
            return {"ce": F.cross_entropy(student.logits.T, batch.labels)}  # the line

    folder = fresh("broken")
    with registered(broken=Broken):
        assert group_job.run_group(group("broken"), execution(folder)) == TROUBLE
    line = next(i for i, text in enumerate(open(__file__, encoding="utf-8"), 1) if text.rstrip().endswith("# the line"))
    (status,) = (read_json(path) for path in folder.glob("runs/*broken*/status.json"))
    where = f"tests/bench/train/test_contract.py:{line}: "
    assert status["status"] == "failed" and status["reason"].startswith(where) and "Error: " in status["reason"]
    assert where in capsys.readouterr().out
