"""What the jobs of a plan are told before they start."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from bench.errors import DONE, STOPPED_IN_TIME
from bench.launch import jobs, run
from bench.launch.options import Run
from bench.launch.tasks import Slot
from bench.plan import protocols, registries
from bench.plan.expand import expand
from bench.plan.groups import Group
from bench.plan.profiles import Pair, Profile, get_profile
from bench.plan.selection import Selection
from bench.train import environment
from bench.train.execution import Execution
from bench.train.stop import SIGNALS, Stop
from tests.bench.plan.test_plan import FACTS

HERE = environment.device_facts(torch.device("cpu"))["name"]
ONE, TWO = (Pair("mid", "small"),), (Pair("mid", "small"), Pair("big", "tiny"))


@pytest.mark.parametrize(
    ("pairs", "methods", "threads", "whole"),
    [
        (ONE, ("student", "kd"), None, True),
        (ONE, ("student", "kd"), 1, False),  # asked for
        (TWO, ("student", "kd"), None, False),  # two teachers train side by side
    ],
)
def test_a_teacher_that_everything_waits_for_has_all_cores(pairs, methods, threads, whole):
    the_plan = expand(Profile("p", "a test", "crd", pairs, (1, 2), methods), Selection(), FACTS)
    book = SimpleNamespace(teachers_missing=lambda: list(the_plan.teachers), teacher=lambda name: None)
    tasks = jobs.teacher_tasks(the_plan, book, Execution("results", threads=threads))
    assert [t.name for t in tasks] == [f"teacher-{name}" for name in the_plan.teachers]
    assert {t.whole for t in tasks} == {whole} and not any(t.succeeded() for t in tasks)


@pytest.mark.parametrize(
    ("cores", "groups", "threads", "slots"),
    [
        (2, 1, None, [2]),
        (2, 2, None, [1, 1]),
        (2, 3, None, [1, 1, 1]),  # one after the other, the third would leave a core idle
        (2, 4, None, [1, 1]),
        (2, 3, 1, [1, 1]),  # asked for
        (8, 3, None, [2, 2, 2]),
        (4, 7, None, [1] * 7),
        (4, 8, None, [1] * 4),
    ],
)
def test_few_groups_share_the_cores_to_the_end(monkeypatch, cores, groups, threads, slots):
    monkeypatch.setattr(run, "usable_cores", lambda: cores)
    found, device = run.slots_for(Run(device="cpu", threads=threads), groups)
    assert [slot.threads for slot in found] == slots and device["type"] == "cpu"


def test_the_forecast_of_groups_that_share_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "usable_cores", lambda: 2)
    groups = [Group("mid", "small", seed, protocols.get("crd"), "tf32", ("student",)) for seed in (1, 2, 3)]
    book = SimpleNamespace(groups_left=lambda: groups, teachers_missing=lambda: [], results=tmp_path)
    asked = {"needs_teacher": lambda group: False, "before": lambda group: {}}
    the_plan = SimpleNamespace(protocol=protocols.get("crd"), teacher_protocol=None, precision="tf32", **asked)
    monkeypatch.setattr(run.registries, "read", lambda protocol: SimpleNamespace(macs=lambda name: 10**6))
    left = run.forecast(the_plan, book, [Slot(None, 1)] * 3, {"type": "cpu", "name": "here"}, "cpu")
    assert left.elapsed == pytest.approx(1.5 * left.by_group[0])


def test_not_where_some_group_does_not_wait():
    pairs = (Pair("mid", "small"), Pair("mid", "tiny"))
    the_plan = expand(Profile("p", "a test", "crd", pairs, (1,), ("student", "at")), Selection(), FACTS)
    assert [the_plan.needs_teacher(g) for g in the_plan.groups] == [True, False]  # `at` cannot do the tiny student
    book = SimpleNamespace(teachers_missing=lambda: ["mid"], teacher=lambda name: None)
    assert not jobs.teacher_tasks(the_plan, book, Execution("results"))[0].whole


def test_costs_are_measured_once_for_each_condition(tmp_path, monkeypatch):
    """The student is probed once for all pairs at one image size; what another profile measures at another size is its own."""
    measured = []

    def probe(group, execution, **options):
        measured.append((group.teacher, group.student, *group.methods))
        return {"teacher_trained": False}

    monkeypatch.setattr(jobs.probes, "probe", probe)

    def left(profile: str, pair: str, threads: int = 1) -> list:
        chosen = Selection(methods=("student", "kd"), pairs=(pair,), seeds=(1,))
        the_plan = expand(get_profile(profile), chosen, registries.read(protocols.get(get_profile(profile).protocol)))
        return jobs.probe_tasks(the_plan, Execution(str(tmp_path), device="cpu", threads=threads), ("another card", HERE))

    def probed(profile: str, pair: str) -> list:
        measured.clear()
        (task,) = left(profile, pair)
        assert not task.succeeded()
        assert jobs.run_probes(**task.arguments, execution=task.execution) == DONE and task.succeeded()
        assert not left(profile, pair) and left(profile, pair, threads=2)
        return [*measured]

    assert probed("smoke", "resnet20-resnet8") == [("resnet20", "resnet8", "student"), ("resnet20", "resnet8", "kd")]
    assert probed("smoke", "resnet14-resnet8") == [("resnet14", "resnet8", "kd")]
    assert probed("paper", "resnet20-resnet8") == [("resnet20", "resnet8", "student"), ("resnet20", "resnet8", "kd")]
    assert not left("smoke", "resnet20-resnet8") and not left("skd", "resnet20-resnet8")  # the same steps as the paper profile's
    assert len(list((tmp_path / "costs").rglob("*.json"))) == 5


def test_a_signal_between_two_probes_stops_the_job(tmp_path, monkeypatch):
    """A time limit is near: the job is to be queued again, and not to begin with the next method."""
    measured = []

    def probe(group, execution, **options):
        measured.extend(group.methods)
        os.kill(os.getpid(), signal.SIGUSR2)  # when it has just answered
        return {"teacher_trained": False}

    monkeypatch.setattr(jobs.probes, "probe", probe)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr(Stop, "preempted", False)
    chosen = Selection(methods=("student", "kd"), pairs=("resnet14-resnet8",), seeds=(1,))
    the_plan = expand(get_profile("smoke"), chosen, registries.read(protocols.get(get_profile("smoke").protocol)))
    (task,) = jobs.probe_tasks(the_plan, Execution(str(tmp_path), device="cpu", threads=1), ("another card", HERE))
    try:
        assert jobs.run_probes(**task.arguments, execution=task.execution) == STOPPED_IN_TIME
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert measured == ["student"] and Stop.preempted and not task.succeeded()
