"""The jobs of a launch: teachers, groups, costs, and on a cluster the report."""

import dataclasses
import functools
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import data
from bench.errors import DONE, STOPPED_IN_TIME, TROUBLE
from bench.launch.description import task_name
from bench.launch.ledger import Ledger
from bench.launch.options import Run
from bench.launch.tasks import Task
from bench.measure import probes
from bench.plan.expand import TEACHER_SEED, Plan, narrowed
from bench.plan.groups import Group
from bench.plan.identity import digest
from bench.text import clean, say
from bench.train import group_job, teacher_training
from bench.train.execution import Execution
from bench.train.stop import Stop

POLL_SECONDS = 15.0
"""Between two looks at a run that another job of a cluster trains."""


def teacher_tasks(the_plan: Plan, book: Ledger, execution: Execution) -> list[Task]:
    """One job for each teacher that is missing, the largest first. One that the whole plan waits for has the machine to itself."""
    common = {"protocol": the_plan.teacher_protocol, "seed": TEACHER_SEED, "precision": the_plan.precision}
    waiting = len({g.teacher for g in the_plan.groups}) == 1 and all(the_plan.needs_teacher(g) for g in the_plan.groups)
    whole = waiting and execution.threads is None
    execution = dataclasses.replace(execution, keep_epochs=())  # of students
    tasks = []
    for name in book.teachers_missing():
        def there(name=name) -> bool:
            return book.teacher(name) is not None

        def missing(name=name) -> dict[str, bool]:
            return book.missing(teacher_training.group_of(name, **common))

        arguments = {"architecture": name, **common}
        lock = f"teacher-{the_plan.protocol.dataset}-{name}"  # of whatever protocol: a results folder has one
        tasks.append(Task(f"teacher-{name}", teacher_training.train, arguments, execution, there, missing=missing, whole=whole, lock=lock))
    return tasks


def group_tasks(the_plan: Plan, book: Ledger, execution: Execution) -> list[Task]:
    """One job for each group with something left: those whose teacher is there first, else the longest first.

    Only launches of the very same group keep each other from starting it twice. Where groups have some runs in common their jobs meet, and the
    runs' leases part them.
    """
    missing = book.teachers_missing()
    tasks = []
    for group in book.groups_left():
        after = (f"teacher-{group.teacher}",) if group.teacher in missing and the_plan.needs_teacher(group) else ()
        arguments = {"group": group, "teacher_protocol": the_plan.teacher_protocol}
        finished, left = functools.partial(book.finished, group), functools.partial(book.missing, group)
        lock = f"{task_name(group)}-{digest(dataclasses.asdict(group))}"
        tasks.append(Task(task_name(group), group_job.run_group, arguments, execution, finished, after, left, lock=lock))
    return sorted(tasks, key=lambda t: bool(t.after))


def probe_tasks(the_plan: Plan, execution: Execution, devices: Sequence[str], after: tuple[str, ...] = ()) -> list[Task]:
    """One job for each pair with methods whose cost was not measured on one of these devices; it runs alone on it. `devices`: their names; none
    where they are not known before the job runs, which then leaves out what is measured."""
    tasks = []
    for pair in the_plan.pairs:
        whole = next(g for g in the_plan.full_groups if (g.teacher, g.student) == (pair.teacher, pair.student))
        here = [c for c in the_plan.cells if (c.teacher, c.student, c.seed) == (pair.teacher, pair.student, whole.seed)]
        able = [c.row for c in here if not c.skipped and not c.changed]  # costs are those of a method's own settings

        def lacking(whole=whole, able=able) -> list[str]:
            return [m for m in able if not (devices and probes.is_measured(narrowed(whole, [m]), execution, devices))]

        if names := lacking():
            group = narrowed(whole, names)
            tasks.append(Task(f"costs-{pair.name}", run_probes, {"group": group}, execution, lambda lacking=lacking: not lacking(), after))
    return tasks


def run_probes(group: Group, execution: Execution) -> int:
    """Probe the methods of a group, one after the other; one that fails is reported and the others go on. Returns an exit code."""
    code, stop = DONE, Stop(execution.stop_after_seconds).install()
    for method in group.methods:
        if stop.code is not None:  # between two of them
            return stop.code
        try:
            code = max(code, probes.run_probe(narrowed(group, [method]), execution, stop=stop))
        except Exception as error:  # a stranger's method may raise anything
            why = str(error) if isinstance(error, probes.ProbeFailed) else f"{type(error).__name__}: {error}"
            print(clean(f"cost probe of {method} failed: {why}", 1000), file=sys.stderr, flush=True)
            code = max(code, TROUBLE)
        if code >= STOPPED_IN_TIME:
            break
    return code


def on_cluster(options: Run, the_plan: Plan, book: Ledger, execution: Execution) -> list[Task]:
    """What is submitted to a cluster, the report last; nothing where nothing is left."""
    teachers, groups = teacher_tasks(the_plan, book, execution), group_tasks(the_plan, book, execution)
    everything = tuple(t.name for t in teachers + groups)
    measured = probe_tasks(the_plan, execution, (), everything) if options.costs else []
    if not everything and not measured:
        return []
    teachers = [dataclasses.replace(t, function=train_teacher, arguments=t.arguments | {"the_plan": the_plan}) for t in teachers]
    arguments = {"the_plan": the_plan, "again": options.redo}
    final = Task("report", finish, arguments, execution, lambda: True, tuple(t.name for t in teachers + groups + measured))
    limit = 60 * options.time_budget if options.time_budget else None
    tasks = (*teachers, *groups, *measured, final)
    return [dataclasses.replace(t, execution=dataclasses.replace(t.execution, stop_after_seconds=limit)) for t in tasks]


def train_teacher(the_plan: Plan, execution: Execution, **arguments: Any) -> int:
    """On a cluster, a teacher's job: as `teacher_training.train`, which it waits for where another launch's job does it, so that the groups
    behind this job find the teacher; then the ids of the runs that it makes known. Returns an exit code."""
    started, after = time.monotonic(), execution.stop_after_seconds
    book = _book(the_plan, execution)
    own = teacher_training.group_of(**arguments)
    while (code := teacher_training.train(**arguments, execution=execution)) == TROUBLE and any(book.missing(own).values()):
        say(f"another job trains the {own.student} teacher; waiting for it")
        if after is not None:
            execution = dataclasses.replace(execution, stop_after_seconds=max(0.0, after - (time.monotonic() - started)))
        stop = Stop(execution.stop_after_seconds).install()
        while any(book.missing(own).values()):
            if stop.code is not None:
                return stop.code
            time.sleep(POLL_SECONDS)
    book.complete_plan()
    return code


def finish(the_plan: Plan, execution: Execution, again: bool = False) -> int:
    """On a cluster, the last job: the plan with every run's id, the end of a --redo (`again`), then the report."""
    book = _book(the_plan, execution)
    book.complete_plan()
    if again:
        end_redo(book)
    return write_report(execution)


def _book(the_plan: Plan, execution: Execution) -> Ledger:
    root = Path(execution.data_root) if execution.data_root else None
    return Ledger(Path(execution.results), the_plan, data.load(the_plan.protocol, root), data_root=root)


def end_redo(book: Ledger) -> None:
    """What diverged again keeps its old results; what is not finished is told."""
    for run in book.end_redo():
        print(f"{run} could not be trained again: its old results stay")
    if book.resumes_redo():
        print("the same command with --redo goes on with what is not finished; the old results stay meanwhile")


def write_report(execution: Execution) -> int:
    """The tables and the page, by their own command, which says what is wrong. Returns DONE or TROUBLE."""
    sys.stdout.flush()  # into a file or pipe, too, what was said before stands before
    return TROUBLE if subprocess.run([sys.executable, "-m", "bench.report", execution.results], check=False).returncode else DONE
