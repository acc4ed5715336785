"""Costs: what one training step of a (pair, method) takes on this device, measured with the device to itself.

Training groups share a device and a teacher pass, so their times say nothing of one method. A probe trains the method alone, with a
live teacher, through the trainer's own step (gather and augmentation, teacher, student, losses, backward, SGD), and leaves a record in
results/costs/<device>/. Probes of a machine take turns on each device by a lock; that no training runs beside them is the launcher's part.
"""

import contextlib
import multiprocessing
import re
import signal
import statistics
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import filelock
import torch

import models
from bench import data
from bench.data import augment
from bench.errors import DONE, TROUBLE, StoreError, UsageError
from bench.measure import meters
from bench.plan import datasets, members
from bench.plan.expand import images as planned_images
from bench.plan.groups import Group
from bench.plan.members import Member
from bench.plan.protocols import Protocol
from bench.store import teachers
from bench.store.files import read_json, write_json
from bench.train import engine, environment, preparations
from bench.train.context import Context
from bench.train.execution import Execution
from bench.train.learner import Learner
from bench.train.stop import Stop, Stopped

FORMAT = 1
SEED = 1
STEPS = {"cpu": (100, 3), "cuda": (200, 20)}
"""Timed steps and warm-up steps where none are asked for."""
SKETCH = 30
"""Timed steps on embedded data, whose costs are an example of the table's columns and no measurement of the protocol."""


@dataclass(frozen=True)
class Request:
    """What to probe; crosses a process boundary."""

    group: Group  # of one method
    execution: Execution
    steps: int
    warmup: int


def probe(
    teacher: str | None,
    student: str,
    method: str,
    precision: str,
    execution: Execution,
    protocol: Protocol,
    *,
    steps: int | None = None,
    warmup: int | None = None,
    hyper: tuple[tuple[str, str, object], ...] = (),
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Measure one (pair, method) alone on the device and return its record (times in ms, memory in bytes).

    A teacher that is not in the results folder is replaced by an untrained one and recorded so (`teacher_trained` false). On a CPU the
    measuring is done by a fresh process, whose high-water mark is the probe's own. `check` is called while waiting and may raise to stop.
    Raises UsageError for bad input and for a pair that the method cannot do.
    """
    device = environment.select(execution.device)
    timed, warm = STEPS[device.type]
    if protocol.train_images is not None:
        timed = SKETCH
    steps, warmup = timed if steps is None else steps, warm if warmup is None else warmup
    if steps < 1 or warmup < 0:
        raise UsageError(f"a probe of {steps} steps after {warmup} warm-ups; at least 1 after 0")
    request = Request(Group(teacher, student, SEED, protocol, precision, (method,), hyper), execution, steps, warmup)
    with exclusive(device, check):
        return _in_fresh_process(request, check) if device.type == "cpu" else measure(request)


def run_probe(
    teacher: str | None,
    student: str,
    method: str,
    precision: str,
    execution: Execution,
    protocol: Protocol,
    steps: int | None = None,
    warmup: int | None = None,
    hyper: tuple[tuple[str, str, object], ...] = (),
) -> int:
    """Probe and write the record below results/costs; a cost that was measured the same way is kept unless `execution.redo`.

    Returns an exit code. Raises UsageError for bad input, before anything is written.
    """
    device = environment.select(execution.device)
    classes = datasets.get(protocol.dataset).classes
    group = Group(teacher, student, SEED, protocol, precision, (method,), hyper)
    member = members.resolve(group, "", classes, protocol.image_size, planned_images(protocol), None)[0]
    _reject_unsupported(member)
    path = record_path(Path(execution.results), device, member.run.teacher, student, method, precision)
    if not execution.redo and _measured(path, protocol, member.run.teacher):
        return DONE
    stop = Stop(execution.stop_after_seconds).install()
    try:
        record = probe(teacher, student, method, precision, execution, protocol, steps=steps, warmup=warmup, hyper=hyper, check=stop.check)
    except Stopped:
        return stop.code or TROUBLE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return DONE


def record_path(results: Path, device: torch.device, teacher: str | None, student: str, method: str, precision: str) -> Path:
    """Where the cost of a (pair, method, precision) on this device stands; `teacher` None for a method that uses none."""
    name = "-".join(part for part in (teacher, student, method, precision) if part)
    return results / "costs" / slug(environment.device_facts(device)["name"]) / f"{name}.json"


def slug(name: str) -> str:
    """A folder's name for a device, e.g. `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("(r)", "").replace("(tm)", "")).strip("-")


def _reject_unsupported(member: Member) -> None:
    if member.skipped:
        raise UsageError(f"{member.run.method} cannot be probed on {member.setting.pair}: {member.skipped}")


def _measured(path: Path, protocol: Protocol, teacher: str | None) -> bool:
    """Whether the record there was measured under this protocol, and with the teacher where there is one by now."""
    try:
        record = read_json(path)
    except StoreError:
        return False  # damaged: measured again and replaced
    if record is None:
        return False
    trained = teacher is not None and teachers.find(path.parents[2], protocol.dataset, teacher) is not None
    wanted = {"protocol": protocol.name, "dataset": protocol.dataset, "batch": protocol.batch, "teacher_trained": trained}
    return all(record.get(name) == value for name, value in wanted.items())


@contextlib.contextmanager
def exclusive(device: torch.device, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """The machine-wide lock of a device; waits for other probes, calling `check` once a second."""
    name = "cpu" if device.type == "cpu" else f"gpu-{torch.cuda.get_device_properties(device).uuid}"
    # Other users' probes count too: the file can be opened by everyone.
    lock = filelock.FileLock(Path(tempfile.gettempdir()) / f"kd-bench-probe-{name}.lock", mode=0o666)
    while True:
        check()
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=1.0)
            break
    try:
        yield
    finally:
        lock.release()


def _in_fresh_process(request: Request, check: Callable[[], None]) -> dict[str, Any]:
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
        raise RuntimeError(f"the probe's process ended without a result, exit code {process.exitcode}") from None
    finally:
        if process.is_alive():
            process.terminate()
        process.join()
        ours.close()
    if isinstance(result, Exception):
        raise result
    return result


def _child(request: Request, pipe) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    try:
        pipe.send(measure(request))
    except UsageError as error:
        pipe.send(error)
    except Exception:  # whatever a method raised, told to the parent as text: not every exception can be pickled
        pipe.send(RuntimeError(f"the probe failed:\n{traceback.format_exc()}"))


@lru_cache(maxsize=1)
def _load(protocol: Protocol, data_root: str | None, download: bool):
    """One data set in a process: probes of a device follow each other."""
    return data.load(protocol, Path(data_root) if data_root else None, download)


def measure(request: Request) -> dict[str, Any]:
    """The probe itself, in this process, on a device that is ours."""
    group, execution = request.group, request.execution
    dataset = _load(group.protocol, execution.data_root, execution.download)
    context = Context(group.protocol, group.precision, execution, group.teacher, untrained=True, dataset=dataset)
    device, images, chosen = context.device, context.images, context.engine
    size, count, classes = dataset.image_size, len(dataset.train_labels), len(dataset.classes)
    member = context.resolved(group)[0]
    _reject_unsupported(member)
    hyper, prepared, built = context.timed_preparation(member)
    spent = _spent(built, device)
    context.release_teacher()  # it is part of what the step holds

    memory = meters.Memory(device, images)
    needs = member.method.main_teacher_needs(member.hyper, member.setting)
    teacher = context.teacher() if needs else None
    learner = Learner(member.run, member.method, hyper, member.setting, prepared, device)
    positions = _Positions(count, group.protocol.batch)
    recorded = issubclass(chosen, engine.Static)  # its pools do not show a step's peak
    plain = (engine.Eager if recorded else chosen)(images, teacher, [learner], group.precision)
    learner.begin_epoch(1)

    def step(runner) -> None:
        for _, error in runner.step(*positions.next(runner)):
            raise error

    for _ in range(2):  # the first steps make optimiser state and, on CUDA, try algorithms in scratch memory that training does not need
        step(plain)
    memory.restart()
    for _ in range(2):
        step(plain)
    peaks = memory.peaks()
    runner = chosen(images, teacher, [learner], group.precision) if recorded else plain
    positions.rewind()
    for _ in range(request.warmup):
        step(runner)
    times = meters.timed(lambda: step(runner), request.steps, device)
    peaks |= memory.end()
    if not learner.finite() and (context.teacher_file or teacher is None):
        raise UsageError(f"{member.run.method} on {member.setting.pair} gives losses that are not finite; a probe of it says nothing")

    batch = group.protocol.batch
    first, median, third = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {
        "format": FORMAT,
        "teacher": member.run.teacher,
        "student": group.student,
        "method": member.run.method,
        "method_version": member.run.method_version,
        "hyper": member.run.hyper,
        "precision": group.precision,
        "protocol": group.protocol.name,
        "dataset": group.protocol.dataset,
        "device": environment.device_facts(device),
        "versions": environment.versions(),
        "commit": environment.commit(),
        "images_per_second": 1000 * batch / median,
        "step_ms_median": median,
        "step_ms_iqr": [first, third],
        "steps_timed": len(times),
        "warmup_steps": request.warmup,
        "batch": batch,
        **peaks,
        "preparation_seconds": spent[0],
        "preparation_peak_bytes": spent[1],
        "student_macs": models.macs(group.student, classes, size),
        "teacher_macs": models.macs(group.teacher, classes, size) if needs else 0,
        "teacher_trained": bool(member.run.teacher and context.teacher_file),
        "threads": torch.get_num_threads(),
        "engine": runner.ran(learner),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


class _Positions:
    """Full batches of the epochs' orders, one after the other; the remainder of an epoch is left out, a step being one batch."""

    def __init__(self, count: int, batch: int) -> None:
        if count < batch:
            raise UsageError(f"a probe needs a full batch of {batch} images, the training set has {count}")
        self.count, self.batch = count, batch
        self.rewind()

    def rewind(self) -> None:
        self.epoch, self.start = 0, self.count

    def next(self, runner) -> tuple[int, int]:
        if self.start + self.batch > self.count:
            self.epoch, self.start = self.epoch + 1, 0
            runner.begin_epoch(augment.draws(SEED, self.epoch, self.count))
        start, self.start = self.start, self.start + self.batch
        return start, self.start


Spent = tuple[float | None, int | None]  # seconds and peak bytes of a preparation


def _spent(built: preparations.Built | None, device: torch.device) -> Spent:
    """What a stored preparation cost, if it was built on this device."""
    here = built is not None and built.device in (None, environment.device_facts(device)["name"])
    return (built.seconds, built.peak_bytes) if here else (None, None)
