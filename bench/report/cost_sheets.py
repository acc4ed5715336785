"""What the exclusive probe measured, as sheets: one for each condition (see `CONDITION`). Ratios are made within a sheet only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.plan.protocols import Protocol
from bench.store import costs
from bench.store.files import Problem
from bench.store.records import Cost

STUDENT, KD = "student", "kd"
Key = tuple[str | None, str, str]  # teacher, student, method
Settings = tuple[int, dict[str, Any]]  # a method's version and hyper-parameters


CONDITION = ("precision", "engine", "threads", "batch", "memory_kind", "dataset", "image_size", "train_images", "momentum", "nesterov", "dropout")
"""What the costs of a sheet have in common, besides the device. None: the records do not say, as old ones do not."""


def condition(cost: Cost) -> tuple[Any, ...]:
    """The device's name and the values of CONDITION."""
    return cost.device.name, *(getattr(cost, name) for name in CONDITION)


@dataclass
class Sheet:
    """Costs measured under one condition; of several of one (teacher, student, method) the newest, or with `of_rows` the rows' own."""

    like: Cost  # one that was measured so
    versions: set[str] = field(default_factory=set)
    costs: dict[Key, Cost] = field(default_factory=dict)
    all: list[Cost] = field(default_factory=list)

    @property
    def condition(self) -> tuple[Any, ...]:
        return condition(self.like)

    def add(self, cost: Cost) -> None:
        self.all.append(cost)
        self.versions.add(cost.versions.torch)
        key = key_of(cost)
        if key not in self.costs or self.costs[key].finished <= cost.finished:
            self.costs[key] = cost

    def of_rows(self, settings: Mapping[Key, list[Settings]]) -> "Sheet":
        """The same sheet with only those costs that were measured with the rows' own settings. Where `settings` holds none, and where a
        record does not say its own, it is taken as it is."""
        own = Sheet(self.like)
        for cost in self.all:
            wanted = settings.get(key_of(cost))
            if not wanted or cost.hyper is None or cost.method_version is None or (cost.method_version, cost.hyper) in wanted:
                own.add(cost)
        return own

    def get(self, teacher: str | None, student: str, method: str) -> Cost | None:
        """The cost of a method for a pair; what was measured without a teacher serves every pair with that student."""
        return self.costs.get((teacher, student, method)) or self.costs.get((None, student, method))

    def relative(self, teacher: str | None, student: str, method: str) -> tuple[float, float] | None:
        """(throughput, peak memory) as multiples of the plain student's; None where one of the two was not measured.

        The throughput is the probe's own ratio, of steps that took turns in one process, where it has one, else that of two records.
        """
        ours, plain = self.get(teacher, student, method), self.get(teacher, student, STUDENT)
        return (ours.relative or ours.speed / plain.speed, ours.memory / plain.memory) if ours and plain else None

    def speed(self, teacher: str | None, student: str, method: str) -> float | None:
        """Images a second in training; None: not measured. Where the probe has its own ratio, this times the plain student's, so that methods
        whose probes met unlike minutes of a machine stand beside each other; as measured where the plain student's was noisy."""
        ours, plain = self.get(teacher, student, method), self.get(teacher, student, STUDENT)
        return ours and (plain.speed * ours.relative if plain and ours.relative and not plain.noisy else ours.speed)

    def noisy(self, teacher: str | None, student: str, method: str) -> str:
        """Why the throughput of a method, or its ratio to the plain student's, is not to be trusted; empty: nothing speaks against it."""
        ours, plain = self.get(teacher, student, method), self.get(teacher, student, STUDENT)
        if ours is None:
            return ""
        return ours.noisy or (f"the plain student: {plain.noisy}" if plain and plain.noisy and ours.relative is None else "")

    def without_teacher(self, teacher: str | None, student: str, method: str) -> tuple[float, float] | None:
        """Of a method that knows its teacher but has none in the step: its step's time as a fraction of KD's, measured, and by
        multiply-accumulates, 3 student / (3 student + teacher). None for other methods and where KD was not measured."""
        ours, kd = self.get(teacher, student, method), self.get(teacher, student, KD)
        if not (ours and kd and ours.teacher and not ours.teacher_macs and ours.student_macs and kd.teacher_macs):
            return None
        step = 3 * ours.student_macs
        ratio = kd.relative / ours.relative if kd.relative and ours.relative else kd.speed / ours.speed
        return ratio, step / (step + kd.teacher_macs)

    def pairs(self) -> list[tuple[str | None, str]]:
        """The pairs with a measurement; a student alone only where no pair has it."""
        pairs = {(teacher, student) for teacher, student, _ in self.costs if teacher}
        served = {student for _, student in pairs}
        return sorted(pairs | {(None, student) for _, student, _ in self.costs if student not in served}, key=lambda p: (p[0] or "", p[1]))


def key_of(cost: Cost) -> Key:
    return None if cost.method == STUDENT else cost.teacher, cost.student, cost.method


def load(results: Path) -> tuple[list[Sheet], list[Problem]]:
    """All cost files below `results`/costs, and those left out with the reason."""
    sheets: dict[tuple[Any, ...], Sheet] = {}
    found, problems = costs.scan(results)
    for cost in found:
        sheets.setdefault(condition(cost), Sheet(cost)).add(cost)
    return [sheets[key] for key in sorted(sheets, key=repr)], problems


def choose(
    sheets: list[Sheet],
    protocol: Protocol,
    precision: str,
    pairs: list[tuple[str | None, str]],
    methods: list[str],
    settings: Mapping[Key, list[Settings]],
    devices: set[str],
) -> Sheet | None:
    """The sheet to stand beside a table, with the costs of its rows' own settings: measured at the table's precision and as its protocol
    has it, on the runs' own device before others, then the one that covers most cells, then the one that says most of how it was made."""
    fitting = [s.of_rows(settings) for s in sheets if s.like.precision == precision and costs.fits(s.like, protocol)]

    def rank(s: Sheet) -> tuple[bool, int, int]:
        covered = sum(s.get(teacher, student, method) is not None for teacher, student in pairs for method in methods)
        return s.like.device.name in devices, covered, sum(value is not None for value in s.condition)

    return max(fitting, key=rank, default=None)
