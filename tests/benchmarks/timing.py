"""Timing of sides that take turns: CPU and wall time, ratios by round, and the floor of a group's step."""

import contextlib
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.train.engine import Native
from bench.train.learner import teacher_forward
from methods.base import NOTHING, Batch
from models import native
from tests.benchmarks import reference
from tests.benchmarks.sides import Sides

ROOT = Path(__file__).resolve().parents[2]
SLACK = 3.0
"""How much looser than its target an assertion is."""

ONCE = os.environ.get("KD_BENCH_ROUNDS") == "1"
"""One round, not warmed up where that takes long: a look, for bounds that are loose."""

STEP_IMAGES = 16 if ONCE else reference.BATCH
"""Of a step that takes long."""

Times = tuple[float, float]  # CPU seconds, wall seconds


def timed(action: Callable[[], object]) -> Times:
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.process_time() - cpu, time.perf_counter() - wall


def child(*arguments: str) -> Times:
    """Times of a Python process of its own, from its start to its end."""

    def run() -> None:
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _, wall = timed(run)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def total(parts: list[Times]) -> Times:
    return sum(p[0] for p in parts), sum(p[1] for p in parts)


def ratio(ours: list[Times], theirs: list[Times]) -> Times:
    """Median over rounds, for CPU and wall time."""
    return tuple(statistics.median(a[i] / b[i] for a, b in zip(ours, theirs, strict=True)) for i in (0, 1))


def at_most(capsys, benchmark, rows: list[tuple[str, float, float, float]], counts: str = "cpu") -> None:
    """Print (what, target, CPU ratio, wall ratio), keep them with the benchmark's result, and assert that the ratio that `counts` ("cpu" or
    "wall") is not above SLACK times its target: ours / theirs, so that higher is worse for the nightly too.

    The nightly finds a figure by `what` again: raises ValueError where that holds a decimal fraction, as something measured does.
    """
    for what, *_ in rows:
        if re.search(r"\d\.\d", what):
            raise ValueError(f"{what}: the name of a figure must be the same every night, and holds a measurement")
    with capsys.disabled():
        print(f"\n{'ratio':<64}{'target':>8}{'CPU':>8}{'wall':>8}")
        for what, target, cpu, wall in rows:
            print(f"{what:<64}{target:>8.2f}{cpu:>8.3f}{wall:>8.3f}")
    found = {what: {"target": target, "cpu": cpu, "wall": wall, "counts": counts} for what, target, cpu, wall in rows}
    benchmark.extra_info |= found
    above = {what: one for what, one in found.items() if not one[counts] <= SLACK * one["target"]}  # nan too
    assert not above, above


class BareSteps:
    """The floor: one teacher forward, and each learner's forward, loss, backward and SGD on a batch that lies ready, with the operators
    that the group's engine uses."""

    def __init__(self, sides: Sides) -> None:
        self.sides = sides
        index = sides.draws.order[: sides.size]
        self.images = sides.batch(index)
        self.batch = Batch(sides.data.train_labels[index], index)
        self.needs = NOTHING
        for learner in sides.bare:
            self.needs = self.needs | learner.teacher_needs
        self.optimizers = [
            torch.optim.SGD(learner.parameters, lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True) for learner in sides.bare
        ]

    def run(self) -> None:
        with native.switched_on() if isinstance(self.sides.group, Native) else contextlib.nullcontext():
            self._run()

    def _run(self) -> None:
        shared = teacher_forward(self.sides.group.teacher, self.images, self.needs, self.sides.precision)
        for learner, optimizer in zip(self.sides.bare, self.optimizers, strict=True):
            _, losses = learner.forward(self.images, shared if learner.teacher_needs else None, self.batch)
            optimizer.zero_grad(set_to_none=True)
            sum(losses.values()).backward()
            optimizer.step()
