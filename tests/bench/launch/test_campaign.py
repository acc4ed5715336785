"""What the jobs of a plan are told before they start."""

from types import SimpleNamespace

import pytest

from bench.launch import run
from bench.plan.expand import expand
from bench.plan.profiles import Pair, Profile
from bench.plan.selection import Selection
from bench.train.execution import Execution
from tests.bench.plan.test_plan import FACTS

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
    tasks = run.teacher_tasks(the_plan, book, Execution("results", threads=threads))
    assert [t.name for t in tasks] == [f"teacher-{name}" for name in the_plan.teachers]
    assert {t.whole for t in tasks} == {whole} and not any(t.succeeded() for t in tasks)


def test_not_where_some_group_does_not_wait():
    pairs = (Pair("mid", "small"), Pair("mid", "tiny"))
    the_plan = expand(Profile("p", "a test", "crd", pairs, (1,), ("student", "at")), Selection(), FACTS)
    assert [the_plan.needs_teacher(g) for g in the_plan.groups] == [True, False]  # `at` cannot do the tiny student
    book = SimpleNamespace(teachers_missing=lambda: ["mid"], teacher=lambda name: None)
    assert not run.teacher_tasks(the_plan, book, Execution("results"))[0].whole
