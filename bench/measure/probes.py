"""Costs: what one training step of a (pair, method) takes on this device, measured with the device to itself.

Training groups share a device and a teacher pass, so their times say nothing of one method. A probe trains the method alone, with a
live teacher, through the trainer's own step (gather and augmentation, teacher, student, losses, backward, SGD), in turns with the plain
student's step, so that their ratio is one of the same minute, and leaves a record in results/costs/<device>/. Probes of a machine take
turns on each device by a lock; that no training runs beside them is the launcher's part.
"""

import contextlib
import dataclasses
import multiprocessing
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

import models
from bench import data
from bench.errors import DONE, TROUBLE, StoreError, UsageError
from bench.measure import meters
from bench.measure.meters import Steps
from bench.plan import datasets, members
from bench.plan.expand import images as planned_images
from bench.plan.groups import Group
from bench.plan.members import Member
from bench.store import costs, teachers
from bench.store.files import read_json, write_json
from bench.store.lease import waited_for
from bench.train import engine, environment
from bench.train.context import Context
from bench.train.execution import Execution
from bench.train.learner import Learner
from bench.train.stop import Stop, Stopped

FORMAT = 1
OURS, PLAIN = "ours", "student"
STEPS = {"cpu": (60, 3), "cuda": (120, 20)}
"""Timed steps, of the method and of the plain student each, and warm-up steps, where none are asked for."""
SKETCH = 20
"""Timed steps on embedded data, whose costs are an example of the table's columns and no measurement of the protocol."""


class ProbeFailed(RuntimeError):
    """Why a probe's process gave no record: what was raised in it, in words."""


def of_one(group: Group) -> Group:
    """A group of one method as it is probed: under the probes' own seed. Raises UsageError for a group of several."""
    if len(group.methods) != 1:
        raise UsageError(f"a probe measures one method, not {', '.join(group.methods)}")
    return dataclasses.replace(group, seed=meters.SEED)


def probe(
    group: Group, execution: Execution, *, steps: int | None = None, warmup: int | None = None, check: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Measure a group's one method alone on the device and return its record (times in ms, memory in bytes).

    A teacher that is not in the results folder is replaced by an untrained one and recorded so (`teacher_trained` false). The
    measuring is done by a fresh process, whose memory is the probe's own. `check` is called while waiting and may raise to stop.
    Raises UsageError for bad input and for a pair that the method cannot do.
    """
    device = environment.select(execution.device)
    timed, warm = STEPS[device.type]
    if group.protocol.train_images is not None:
        timed = SKETCH
    steps, warmup = timed if steps is None else steps, warm if warmup is None else warmup
    if steps < 1 or warmup < 0:
        raise UsageError(f"a probe of {steps} steps after {warmup} warm-ups; at least 1 after 0")
    request = of_one(group), execution, steps, warmup
    with exclusive(device, check):
        return _in_fresh_process(request, check)


def run_probe(
    group: Group, execution: Execution, *, steps: int | None = None, warmup: int | None = None, stop: Stop | None = None
) -> int:
    """Probe and write the record below results/costs; a cost that was measured the same way is kept unless `execution.redo`.

    `stop`: of several probes one after the other. Returns an exit code. Raises UsageError for bad input, before anything is written.
    """
    group = of_one(group)
    member = _member(group)
    _reject_unsupported(member)
    path = _path(member, execution)
    if not execution.redo and is_measured(group, execution):
        return DONE
    stop = stop or Stop(execution.stop_after_seconds).install()
    try:
        record = probe(group, execution, steps=steps, warmup=warmup, check=stop.check)
    except Stopped:
        return stop.code or TROUBLE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return DONE


def is_measured(group: Group, execution: Execution, devices: Sequence[str] = ()) -> bool:
    """Whether the cost of a group's one method stands in the results folder as it would be measured, with the teacher where there is one.
    `devices`: names of those that may have measured it; none: this process's."""
    member = _member(group)
    teacher, results = member.run.teacher, Path(execution.results)
    trained = teacher is not None and teachers.find(results, group.protocol.dataset, teacher) is not None
    for device in devices or (None,):
        with contextlib.suppress(StoreError):  # damaged: measured again and replaced
            record = read_json(_path(member, execution, device))
            if record is not None and record.get("teacher_trained") == trained:
                return True
    return False


def _member(group: Group) -> Member:
    """The one run of a group as far as its cost depends on it: neither data nor teacher are read."""
    p = group.protocol
    return members.resolve(group, "", datasets.get(p.dataset).classes, p.image_size, planned_images(p), None)[0]


def _path(member: Member, execution: Execution, name: str | None = None) -> Path:
    """Where the cost of a run stands, measured on the device of that name (none: this process's). Raises UsageError for a device or engine that is
    not there."""
    device = environment.select(execution.device)
    what = costs.measured(member.run, execution.threads or torch.get_num_threads(), _engine(execution.engine, device))
    return costs.record_path(Path(execution.results), name or environment.device_facts(device)["name"], what)


@cache
def _engine(name: str, device: torch.device) -> str:
    """The engine's name; kept, since a choice may be said aloud."""
    return engine.choose(name, device).name


def _reject_unsupported(member: Member) -> None:
    if member.skipped:
        raise UsageError(f"{member.run.method} cannot be probed on {member.setting.pair}: {member.skipped}")


@contextlib.contextmanager
def exclusive(device: torch.device, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """The machine-wide lock of a device; waits for other probes, calling `check` once a second."""
    name = "cpu" if device.type == "cpu" else f"gpu-{torch.cuda.get_device_properties(device).uuid}"
    # Other users' probes count too: the file can be opened by everyone.
    with waited_for(Path(tempfile.gettempdir()) / f"kd-bench-probe-{name}.lock", check, mode=0o666):
        yield


def _in_fresh_process(request: tuple[Any, ...], check: Callable[[], None]) -> dict[str, Any]:
    """`measure` in a process of its own, which ends with ours or when `check` raises."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(request, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        while not ours.poll(1.0):
            check()
        result = ours.recv()
    except EOFError:
        process.join()
        check()  # a signal to the whole process group ends it too
        raise ProbeFailed(f"the probe's process ended without a result, exit code {process.exitcode}") from None
    finally:
        if process.is_alive():
            process.terminate()
        process.join()
        ours.close()
    if isinstance(result, Exception):
        raise result
    return result


def _child(request: tuple[Any, ...], pipe) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    try:
        pipe.send(measure(*request))
    except UsageError as error:
        pipe.send(error)
    except Exception as error:  # whatever a method raised, told to the parent as text: not every exception can be pickled
        traceback.print_exc()
        pipe.send(ProbeFailed(f"{type(error).__name__}: {error}"))


def measure(group: Group, execution: Execution, timed: int, warmup: int) -> dict[str, Any]:
    """The probe itself, of a group of one method, in this process, on a device that is ours: so many `timed` steps after `warmup`."""
    dataset = data.load(group.protocol, Path(execution.data_root) if execution.data_root else None, execution.download)
    context = Context(group.protocol, group.precision, execution, group.teacher, untrained=True, dataset=dataset)
    device, images, chosen = context.device, context.images, context.engine
    size, count, classes = dataset.image_size, len(dataset.train_labels), len(dataset.classes)
    member = context.resolved(group)[0]
    _reject_unsupported(member)
    hyper, prepared, built = context.timed_preparation(member)
    # Else its cost is none of this device, or of other threads.
    here = built is not None and built.device in (None, environment.device_facts(device)["name"])
    here = here and (device.type == "cuda" or built.threads in (None, torch.get_num_threads()))
    context.release_teacher()  # it is part of what the step holds

    memory = meters.Memory(device, images)
    needs = member.method.main_teacher_needs(member.hyper, member.setting)
    learner = Learner(member.run, member.method, hyper, member.setting, prepared, device)
    recorded = issubclass(chosen, engine.Static)  # its pools do not show a step's peak
    batch = group.protocol.batch

    def steps_of(kind: type[engine.Eager]) -> Steps:
        made = Steps(kind(images, context.teacher() if needs else None, [learner], group.precision), count, batch)
        context.release_teacher()  # the engine has a folded copy, and a step holds one teacher
        return made

    eager = steps_of(engine.Eager if recorded else chosen)
    learner.begin_epoch(1)

    for _ in range(2):  # the first steps make optimiser state and, on CUDA, try algorithms in scratch memory that training does not need
        eager()
    memory.restart()
    for _ in range(2):
        eager()
    peaks = memory.peaks()
    if recorded:
        del eager
    step = steps_of(chosen) if recorded else eager
    for _ in range(warmup):
        step()
    peaks |= memory.end()  # the method's alone: the plain student comes after
    steps = {OURS: step}
    if group.methods != (PLAIN,):
        steps[PLAIN] = _plain_steps(context, group, warmup)
    figures = _timed(steps, timed, device)
    if figures["noisy"]:
        figures = _timed(steps, timed, device) | {"repeated": True}
    if not learner.finite() and (context.teacher_file or not needs):
        raise UsageError(f"{member.run.method} on {member.setting.pair} gives losses that are not finite; a probe of it says nothing")

    return {
        "format": FORMAT,
        **costs.measured(member.run, torch.get_num_threads(), chosen.name),
        "protocol": group.protocol.name,
        "device": environment.device_facts(device),
        "versions": environment.versions(),
        "commit": environment.commit(),
        "images_per_second": 1000 * batch / figures["step_ms_median"],
        **figures,
        "steps_timed": timed,
        "warmup_steps": warmup,
        **peaks,
        "preparation_seconds": built.seconds if here else None,
        "preparation_peak_bytes": built.peak_bytes if here else None,
        "student_macs": models.macs(group.student, classes, size),
        "teacher_macs": models.macs(group.teacher, classes, size) if needs else 0,
        "teacher_trained": bool(member.run.teacher and context.teacher_file),
        "engine": step.runner.ran(learner),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _plain_steps(context: Context, group: Group, warmup: int) -> Steps:
    """The plain student's step on the same student network, engine and data, warmed up."""
    member = context.resolved(dataclasses.replace(group, methods=(PLAIN,), hyper=()))[0]
    learner = Learner(member.run, member.method, member.hyper, member.setting, None, context.device)
    steps = Steps(context.engine(context.images, None, [learner], group.precision), len(context.dataset.train_labels), group.protocol.batch)
    learner.begin_epoch(1)
    for _ in range(max(2, warmup)):
        steps()
    return steps


def _timed(steps: dict[str, Steps], count: int, device: torch.device) -> dict[str, Any]:
    """The record's part about time. `relative`: the plain student's step time over this one's, as the table shows throughput."""
    turns = meters.in_turns(steps, count, device)
    first, median, third = meters.quartiles(turns.steps[OURS])
    found = {"step_ms_median": median, "step_ms_iqr": [first, third], "cpu_over_clock": turns.busy}
    if PLAIN not in steps:
        return found | {"noisy": turns.noisy(turns.steps[OURS], "step times")}
    ratios = turns.ratios(PLAIN, OURS)
    first, median, third = meters.quartiles(ratios)
    found |= {"student_step_ms_median": meters.quartiles(turns.steps[PLAIN])[1], "relative": median, "relative_iqr": [first, third]}
    return found | {"noisy": turns.noisy(ratios, "ratios to the plain student")}
