"""Running the nightly plan: what each method reaches on the embedded data over seeds, and what a step of it costs.

Accuracy: every registered method on one pair over SEEDS, deterministic, through the same code as any run. Speed: the step of each method
relative to the plain student's, all methods taking turns in one process; the student's own step is relative to a plain torch training
step of this module, which no change of the suite touches. Everything is written below one folder that the caller removes.
"""

import multiprocessing
import os
import re
import statistics
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from bench.errors import DONE, INTERRUPTED, STOPPED_IN_TIME
from bench.measure.meters import Steps
from bench.measure.probes import exclusive
from bench.plan.expand import TEACHER_SEED
from bench.plan.groups import Group
from bench.plan.identity import digest
from bench.plan.profiles import Pair
from bench.plan.protocols import Protocol
from bench.store.runs import scan
from bench.text import clean
from bench.train import teacher_training
from bench.train.context import quick
from bench.train.execution import Execution
from bench.train.group_job import GroupJob, run_group
from bench.train.stop import Stop, Stopped
from methods import registry

PROTOCOL = Protocol(
    "nightly", dataset="shapes100", epochs=12, milestones=(7, 10, 11), lr=0.1, train_images=1600, test_images=2000, image_size=16
)
PAIR = Pair("resnet14", "resnet8")
SEEDS = (1, 2, 3, 4)
PRECISION = "tf32"
ROUNDS, WARM_ROUNDS = 15, 2
TURN = {"cpu": 3, "cuda": 20}
"""Steps of a method before the next one's turn."""
STOPPED = (INTERRUPTED, STOPPED_IN_TIME)
"""Exit codes of what a signal stopped."""


class NightFailed(Exception):
    """The plan could not be run at all: one line that says why."""


class NightStopped(Exception):
    """A signal asked to stop; `code` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__("stopped")
        self.code = code


@dataclass(frozen=True)
class Plan:
    """What a night runs. Its hash is kept with each night: nights of different plans are not compared."""

    protocol: Protocol = PROTOCOL
    pair: Pair = PAIR
    seeds: tuple[int, ...] = SEEDS
    rounds: int = ROUNDS

    def hash(self) -> str:
        return digest({**asdict(self), "version": 1})


@dataclass(frozen=True)
class Parts:
    """What the plan gave: metrics by key, failures by method, facts that may change from night to night."""

    metrics: dict[str, dict[str, Any]]
    failures: dict[str, str]
    facts: dict[str, Any]
    sources: dict[str, str]


def run(plan: Plan, folder: Path, device: str, workers: int, methods: Sequence[str] | None = None) -> Parts:
    """Run the plan below `folder` (`methods`: only these). Raises NightFailed, NightStopped, UsageError."""
    names = tuple(methods or registry.names())
    overrides = tuple((name, field, value) for name in names for field, value in _quick(name, plan.pair).items())
    groups = [Group(plan.pair.teacher, plan.pair.student, seed, plan.protocol, PRECISION, names, overrides) for seed in plan.seeds]
    execution = Execution(str(folder), device=device, threads=1, deterministic=True, checkpoint_seconds=1e9)
    failures = {name: f"cannot be loaded: {error}" for name, error in registry.broken().items()}
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent, (os.getpid(),)) as pool:
            code = pool.submit(teacher_training.train, plan.pair.teacher, plan.protocol, TEACHER_SEED, PRECISION, execution).result()
            _check(code)
            if code != DONE:
                raise NightFailed(f"the teacher {plan.pair.teacher} could not be trained (exit code {code}); --keep leaves its log in {folder}/runs")
            for code in list(pool.map(train, groups, [execution] * len(groups))):  # preparations are built under a lock, by the first
                _check(code)
            costs = pool.submit(speed, groups[0], execution, plan.rounds).result()
            _check(costs["code"])
    except BrokenProcessPool:
        raise NightFailed("a training process died without a word (out of memory?)") from None
    metrics, trouble, versions = accuracy(folder, plan, names)
    failures |= costs["failures"] | trouble
    sources = {name: registry.source_hash(name) for name in names}
    return Parts(metrics | costs["metrics"], failures, versions, sources)


def end_with_parent(parent: int) -> None:
    """In a worker: end when the process that started it is gone, however it went. What it was writing is scrap then."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_stopped = DONE
"""In a worker: the exit code of what a signal stopped here."""


def train(group: Group, execution: Execution) -> int:
    """`run_group` in a worker. Where a signal stopped one before, nothing is begun: the pool has queued more groups than it has workers."""
    global _stopped
    if _stopped:
        return _stopped
    try:
        code = run_group(group, execution)
    except KeyboardInterrupt:  # before it could be caught, or a second one
        code = INTERRUPTED
    if code in STOPPED:
        _stopped = code
    return code


def _quick(name: str, pair: Pair) -> dict[str, Any]:
    """Where a method's hyper-parameters declare `quick()`, the fields in which it differs from the paper's values: preparations of seconds."""
    paper = registry.get(name).hyper_for(pair.teacher, pair.student)
    short = quick(paper)
    return {f.name: value for f in fields(short) if (value := getattr(short, f.name)) != getattr(paper, f.name)}


def _check(code: int) -> None:
    if code in STOPPED:
        raise NightStopped(code)


def accuracy(folder: Path, plan: Plan, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Metrics, failures and facts from the records. A method that has not finished every seed has no metric and a failure."""
    views, problems = scan(folder)
    metrics: dict[str, Any] = {}
    failures = {p.where: p.reason for p in problems}
    changing: dict[str, Any] = {}
    for name in names:
        runs = {v.seed: v for v in views if v.method == name and v.student == plan.pair.student and v.seed in plan.seeds}
        done = {seed: v.record for seed, v in sorted(runs.items()) if v.record}
        if len(done) < len(plan.seeds):
            reasons = [f"seed {seed}: {v.status}, {v.reason}" for seed, v in sorted(runs.items()) if not v.record]
            if runs:  # a method that cannot do the pair has no runs, and no metric to miss
                failures[name] = "; ".join(reasons)[:300] or "some seeds did not run"
            continue
        bits = {str(seed): record.weights_sha256 for seed, record in done.items()}
        common = {"method": name, "pair": plan.pair.title, "part": "accuracy", "scale": "linear", "bits": bits}
        for metric, field, unit, worse in (("test top-1", "test_top1", "points", "lower"), ("test loss", "test_loss", "nats", "higher")):
            values = {str(seed): getattr(record, field) for seed, record in done.items()}
            metrics[f"{name}/{plan.pair.name}/{metric}"] = {**common, "metric": metric, "unit": unit, "worse": worse, "values": values}
        first = next(iter(done.values()))
        data = next(iter(runs.values())).identity["data_hash"]
        changing = {**msgspec.structs.asdict(first.versions), "engine": first.engine, "data": data, "driver": first.device.driver}
    return metrics, failures, changing


class _Yardstick:
    """A training step in plain torch, the same for ever."""

    def __init__(self, size: int, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()]
            network = nn.Sequential(*layers, nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * ((size + 1) // 2) ** 2, 100))
            self.images = torch.randn(64, 3, size, size).to(device)
        self.labels = torch.arange(64, device=device)
        self.network = network.to(device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self.network(self.images), self.labels).backward()
        self.optimizer.step()


def speed(group: Group, execution: Execution, rounds: int) -> dict[str, Any]:
    """Cost metrics and failures by method, measured in this process with the device to itself, and the exit code: a signal stops it between
    turns, and then there are none.

    CPU: the process's CPU time, which neighbours disturb less than the clock; CUDA: the clock, synchronised. A value is the median over rounds
    of the ratio within a round.
    """
    stop = Stop()
    if threading.current_thread() is threading.main_thread():
        stop.install()
    try:
        return {"code": DONE, **_speed(group, execution, rounds, stop)}
    except Stopped:
        return {"code": stop.code, "metrics": {}, "failures": {}}


def _speed(group: Group, execution: Execution, rounds: int, stop: Stop) -> dict[str, Any]:
    settings = Execution(**{**asdict(execution), "deterministic": False, "engine": "auto"})
    job = GroupJob(group, settings, stop)
    count, batch = len(job.dataset.train_labels), group.protocol.batch
    turns: dict[str, Any] = {"yardstick": _Yardstick(group.protocol.image_size, job.device)}
    failures: dict[str, str] = {}
    for member in job.members:
        stop.check()
        if member.skipped:
            continue
        try:
            learner, _ = job.learner(member, lambda message: None)
            learner.begin_epoch(1)
            runner = job.engine(job.images, job.teacher() if learner.teacher_needs else None, [learner], group.precision)
            turns[member.run.method] = Steps(runner, count, batch)
        except Exception as error:  # a method may raise anything; the others are measured all the same
            failures[member.run.method] = _said(error)
    times: dict[str, list[float]] = {name: [] for name in turns}
    with exclusive(job.device, stop.check):
        for number in range(WARM_ROUNDS + rounds):
            order = list(turns) if number % 2 else list(reversed(turns))
            for name in order:
                stop.check()
                if name in failures:
                    continue
                try:
                    spent = _timed(turns[name], TURN[job.device.type], job.device)
                except Exception as error:  # as above
                    failures[name] = _said(error)
                    continue
                if number >= WARM_ROUNDS:
                    times[name].append(spent)
    pair = f"{group.teacher} -> {group.student}"
    metrics = {}
    for name in turns:
        base = "yardstick" if name == "student" else "student"
        if name == "yardstick" or name in failures or base in failures or base not in times:
            continue
        ratios = [a / b for a, b in zip(times[name], times[base], strict=True)]
        median = statistics.median(ratios)
        noise = 1.86 * statistics.median(abs(r / median - 1) for r in ratios) / len(ratios) ** 0.5  # of a median, from the median deviation
        what = "step time / plain torch step" if name == "student" else "step time / student"
        common = {"method": name, "pair": pair, "metric": what, "unit": "ratio", "part": "speed", "worse": "higher", "scale": "log"}
        metrics[f"{name}/{group.teacher}-{group.student}/step time"] = {**common, "values": {"0": median}, "noise": noise}
    return {"metrics": metrics, "failures": failures}


def _timed(step, steps: int, device: torch.device) -> float:
    """Seconds of so many steps."""
    on_gpu = device.type == "cuda"
    clock, wait = (time.perf_counter, torch.cuda.synchronize) if on_gpu else (time.process_time, lambda device: None)
    wait(device)
    began = clock()
    for _ in range(steps):
        step()
    wait(device)
    return clock() - began


def _said(error: Exception) -> str:
    execution = traceback.extract_tb(error.__traceback__)[-1]
    text = clean(re.sub(r"\s+", " ", str(error)), 200)
    return f"{type(error).__name__}: {text} ({Path(execution.filename).name}:{execution.lineno})"
