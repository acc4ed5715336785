"""A teacher that another launch leaves while this one runs is taken only where it fits what this one trains its own under."""

from pathlib import Path

import pytest
import torch

import models
from bench import data
from bench.errors import DONE, UsageError
from bench.launch import run as launch
from bench.launch.ledger import Ledger
from bench.plan import protocols
from bench.plan.expand import TEACHER_SEED, Plan, expand
from bench.plan.profiles import Pair, Profile
from bench.plan.protocols import Protocol
from bench.plan.registries import read
from bench.plan.selection import Selection
from bench.store import teachers
from bench.train import group_job, loop, teacher_networks, teacher_training
from bench.train.execution import Execution

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


def leave(results: Path, protocol: Protocol) -> None:
    """What another launch leaves that trains its teachers under this protocol."""
    dataset, state = data.load(TINY), models.build("resnet14").state_dict()
    record = {"source": "trained", "trained": True, "protocol": protocol.name, "trial": protocol.trial}
    teacher_networks.publish(results, dataset.name, dataset.hash, "resnet14", state, {"top1": 1.0, "top5": 5.0}, record)


def plan_of(**changes) -> Plan:
    return expand(PROFILE, Selection(**changes), read(TINY))


def launched(results: Path, the_plan: Plan):
    """The teacher's task and the group's, of a launch that has looked at its teachers."""
    book = Ledger(results, the_plan, data.load(TINY))
    book.check_teachers()
    (first,), (second,) = launch.teacher_tasks(the_plan, book, execution(results)), launch.group_tasks(the_plan, book, execution(results))
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
