"""A teacher that another launch leaves while this one runs is taken only where it fits what this one trains its own under."""

import dataclasses
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import models
from bench import data
from bench.errors import DONE, STOPPED_IN_TIME, TROUBLE, UsageError
from bench.launch import jobs
from bench.launch import run as launch
from bench.launch.description import describe
from bench.launch.ledger import Ledger
from bench.launch.options import Run
from bench.launch.tasks import Slot
from bench.plan import protocols
from bench.plan.expand import TEACHER_SEED, Plan, expand
from bench.plan.profiles import Pair, Profile
from bench.plan.protocols import Protocol
from bench.plan.registries import read
from bench.plan.selection import Selection
from bench.store import teachers
from bench.store.files import read as read_record
from bench.store.lease import Lease
from bench.store.records import PlanRecord
from bench.train import group_job, loop, teacher_networks, teacher_training
from bench.train.context import runs_of
from bench.train.execution import Execution
from bench.train.stop import SIGNALS
from tests.bench import synthetic

TINY = Protocol("tiny", dataset="shapes100", epochs=2, milestones=(1,), train_images=200, test_images=100, image_size=16, batch=64)
PROFILE = Profile("tiny", "", "tiny", (Pair("resnet14", "resnet8"),), (1,), ("student", "kd"))
SAID = r"was trained under tiny \(1 of 2 epochs\), this plan trains its own under tiny; remove that folder .* or use another --results"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(protocols, "PROTOCOLS", {"tiny": TINY})
    torch.set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(False)


def execution(results: Path, **changes) -> Execution:
    return Execution(str(results), device="cpu", threads=1, deterministic=True, **changes)


def leave(results: Path, protocol: Protocol, **facts) -> None:
    """What another launch leaves that trains its teachers under this protocol."""
    dataset, state = data.load(TINY), models.build("resnet14").state_dict()
    record = {"source": "trained", "trained": True, "protocol": protocol.name, "trial": protocol.trial}
    teacher_networks.publish(results, dataset.name, dataset.hash, "resnet14", state, {"top1": 1.0, "top5": 5.0}, record | facts)


def plan_of(**changes) -> Plan:
    return expand(PROFILE, Selection(**changes), read(TINY))


def launched(results: Path, the_plan: Plan):
    """The teacher's task and the group's, of a launch that has looked at its teachers."""
    book = Ledger(results, the_plan, data.load(the_plan.protocol))
    book.check_teachers()
    (first,), (second,) = jobs.teacher_tasks(the_plan, book, execution(results)), jobs.group_tasks(the_plan, book, execution(results))
    return book, first, second


def test_a_trial_launchs_teacher_teaches_no_whole_schedule(tmp_path):
    book, first, second = launched(tmp_path, plan_of())
    leave(tmp_path, TINY.scaled(1))
    assert not first.succeeded() and not second.succeeded() and book.teachers_missing() == ["resnet14"]
    assert [run for cell, run in book.runs().items() if cell.method == "kd"] == [None]  # plan.json names no run of that teacher
    for task in (first, second):
        with pytest.raises(UsageError, match=SAID):
            task.function(**task.arguments, execution=task.execution)
    assert not (tmp_path / "runs").exists()


def test_the_whole_schedules_teacher_teaches_a_trial(tmp_path):
    _, first, _ = launched(tmp_path, plan_of(epochs=1))
    leave(tmp_path, TINY)
    assert first.succeeded() and first.function(**first.arguments, execution=first.execution) == DONE
    assert not (tmp_path / "runs").exists()


def test_one_that_comes_while_another_is_trained_stays(tmp_path, monkeypatch):
    """`teachers train` in another terminal: no lock keeps it apart from the launch."""
    finish = loop.Training._finish
    monkeypatch.setattr(loop.Training, "_finish", lambda self, place: (finish(self, place), leave(tmp_path, TINY.scaled(1))))
    common = ("resnet14", TINY, TEACHER_SEED, "tf32")
    with pytest.raises(UsageError, match=SAID):
        teacher_training.train(*common, execution(tmp_path))
    assert teachers.find(tmp_path, "shapes100", "resnet14").record.trial == "1 of 2 epochs"
    assert teacher_training.train(*common, execution(tmp_path, redo=True)) == DONE  # asked for
    assert not teachers.find(tmp_path, "shapes100", "resnet14").record.trial


def test_a_group_without_need_of_the_teacher_does_not_mind(tmp_path):
    leave(tmp_path, TINY.scaled(1))
    (group,) = plan_of(methods=("student",)).groups
    assert group_job.run_group(group, execution(tmp_path), TINY) == DONE


def test_a_teacher_is_watched_on_its_own_data(tmp_path):
    """Students see half of the images, their teacher all of them: what `teachers train` in another terminal trains is waited for."""
    _, first, _ = launched(tmp_path, plan_of(sample_rate=0.5))
    (member,) = runs_of(teacher_training.group_of("resnet14", TINY, TEACHER_SEED, "tf32"), data.load(TINY), None)
    assert first.missing() == {member.run.id: False}
    folder = tmp_path / "runs" / member.run.id
    folder.mkdir(parents=True)
    live = Lease(folder)
    assert live.acquire() and first.missing() == {member.run.id: True}
    live.release()


def test_the_data_of_teachers_are_loaded_once_and_only_where_they_are_others(tmp_path, monkeypatch):
    loaded, load = [], data.load
    monkeypatch.setattr(data, "load", lambda protocol, *rest: loaded.append(protocol) or load(protocol, *rest))
    for the_plan, seen in ((plan_of(), []), (plan_of(sample_rate=0.5), [TINY])):
        book = Ledger(tmp_path, the_plan, load(the_plan.protocol))
        (first,) = jobs.teacher_tasks(the_plan, book, execution(tmp_path))
        assert not loaded
        assert first.missing() and first.missing() and loaded == seen
        loaded.clear()


@pytest.mark.parametrize(("precision", "said"), [("bf16", ", trained in bf16"), ("tf32", ""), (None, "")])
def test_the_plan_says_where_a_teacher_was_trained_in_another_precision(tmp_path, precision, said):
    the_plan = plan_of()
    leave(tmp_path, TINY, **({"precision": precision} if precision else {}))
    book = Ledger(tmp_path, the_plan, data.load(TINY))
    book.check_teachers()
    assert not book.teachers_missing()  # students in one precision may learn from a teacher of another
    left = launch.forecast(the_plan, book, [Slot(None, 1)], None, "cuda")
    lines = describe(the_plan, book, [Slot(None, 1)], None, "here", left).splitlines()
    assert f"  teacher resnet14: trained, 1.00 % top-1, under tiny{said}" in lines


def test_on_a_cluster_a_teachers_job_waits_for_another_launchs_and_names_the_runs(tmp_path, monkeypatch, capsys):
    the_plan = plan_of()
    book = Ledger(tmp_path, the_plan, data.load(TINY))
    book.write_plan()
    first = jobs.on_cluster(Run(costs=False), the_plan, book, execution(tmp_path))[0]
    (member,) = runs_of(teacher_training.group_of("resnet14", TINY, TEACHER_SEED, "tf32"), data.load(TINY), None)
    folder = tmp_path / "runs" / member.run.id
    folder.mkdir(parents=True)
    live, looks = Lease(folder), []
    assert live.acquire()

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:  # the other one is done
            leave(tmp_path, TINY)
            live.release()

    monkeypatch.setattr(jobs, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    assert first.function(**first.arguments, execution=first.execution) == DONE and len(looks) == 3
    assert "another job trains the resnet14 teacher; waiting for it" in capsys.readouterr().out
    cells = {cell.method: cell.run for cell in read_record(tmp_path / "plan.json", PlanRecord).cells}
    assert cells == {cell.method: run for cell, run in Ledger(tmp_path, the_plan, data.load(TINY)).runs().items()} and all(cells.values())


def test_on_a_cluster_too_teachers_keep_no_epochs_of_students(tmp_path):
    the_plan = plan_of()
    kept = dataclasses.replace(execution(tmp_path), keep_epochs=(1,))
    tasks = jobs.on_cluster(Run(costs=False, time_budget=1.0), the_plan, Ledger(tmp_path, the_plan, data.load(TINY)), kept)
    assert [task.execution.keep_epochs for task in tasks] == [(), *[(1,)] * (len(tasks) - 1)]
    assert {task.execution.stop_after_seconds for task in tasks} == {60.0}


def test_a_job_that_waits_for_a_teacher_stops_when_asked(tmp_path, monkeypatch):
    the_plan = plan_of()
    first = jobs.on_cluster(Run(costs=False), the_plan, Ledger(tmp_path, the_plan, data.load(TINY)), execution(tmp_path))[0]
    monkeypatch.setattr(teacher_training, "train", lambda *rest, **named: TROUBLE)
    monkeypatch.setattr(Ledger, "missing", lambda self, group: {"its run": True})
    hurried = dataclasses.replace(first.execution, stop_after_seconds=0.01)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        assert first.function(**first.arguments, execution=hurried) == STOPPED_IN_TIME
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_job_of_an_older_launch_leaves_the_plan_of_a_later_one(tmp_path):
    older, later = (Ledger(tmp_path, plan_of(seeds=seeds), data.load(TINY)) for seeds in ((1,), (1, 2)))
    later.write_plan()
    written = (tmp_path / "plan.json").read_bytes()
    leave(tmp_path, TINY)
    older.complete_plan()
    assert (tmp_path / "plan.json").read_bytes() == written
    later.complete_plan()
    assert (tmp_path / "plan.json").read_bytes() != written
    (tmp_path / "plan.json").write_bytes(b"{")
    older.complete_plan()  # one that cannot be read is nobody's
    assert read_record(tmp_path / "plan.json", PlanRecord).seeds == [1]


def test_students_of_a_teacher_that_is_gone_are_not_passed_over(tmp_path):
    """Their ids hang on the teacher: nothing could be marked, and the old runs would count as done."""
    book = SimpleNamespace(results=tmp_path, teachers_missing=lambda: ["resnet14"], plan=plan_of())
    launch._refuse_unknown(Run(redo=True), book)  # nobody has learnt from it
    synthetic.add_run(tmp_path, synthetic.run_of("kd", "resnet14", "resnet8", 1), 50.0)
    launch._refuse_unknown(Run(redo=True), book)  # those are of another data set
    book.plan = SimpleNamespace(protocol=synthetic.CRD, precision="tf32")
    launch._refuse_unknown(Run(redo=True), book)  # or of another schedule
    book.plan.protocol = synthetic.SHORT
    launch._refuse_unknown(Run(), book)
    with pytest.raises(UsageError, match="learnt from a resnet14 teacher are here and the teacher is not"):
        launch._refuse_unknown(Run(redo=True), book)


def test_only_the_very_same_group_is_locked(tmp_path):
    def locks(**changes) -> list[tuple[str, str]]:
        return [(task.name, task.lock) for task in launched(tmp_path, plan_of(**changes))[1:]]

    (teacher, (name, lock)) = locks()
    assert (name, teacher) == ("resnet14-resnet8-s1", ("teacher-resnet14", "teacher-shapes100-resnet14")) and lock.startswith(f"{name}-")
    assert locks() == [teacher, (name, lock)]
    others = [
        locks(methods=("student", "at")),
        locks(methods=("kd",)),
        locks(precision="bf16"),
        locks(hyper=(("kd", "temperature", "2"),)),
        locks(epochs=1),
        locks(sample_rate=0.5),
    ]
    assert {first for first, _ in others} == {teacher}  # one teacher stands in a results folder, whoever trains it
    assert {one for _, (one, _) in others} == {name} and len({lock, *(its for _, (_, its) in others)}) == 7
