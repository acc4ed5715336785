"""What the exclusive probe measured, as sheets: one per (device, precision, engine, threads, batch). Ratios are made within a sheet only."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.store import costs
from bench.store.files import Problem
from bench.store.records import Cost

STUDENT, KD = "student", "kd"


@dataclass
class Sheet:
    """Costs measured under one condition."""

    device: str
    precision: str
    engine: str
    threads: int | None
    batch: int
    memory_kind: str
    versions: set[str] = field(default_factory=set)
    costs: dict[tuple[str | None, str, str], Cost] = field(default_factory=dict)

    def get(self, teacher: str | None, student: str, method: str) -> Cost | None:
        """The cost of a method for a pair; what was measured without a teacher serves every pair with that student."""
        return self.costs.get((teacher, student, method)) or self.costs.get((None, student, method))

    def relative(self, teacher: str | None, student: str, method: str) -> tuple[float, float] | None:
        """(throughput, peak memory) as multiples of the plain student's; None where one of the two was not measured."""
        ours, plain = self.get(teacher, student, method), self.get(teacher, student, STUDENT)
        return (ours.speed / plain.speed, ours.memory / plain.memory) if ours and plain else None

    def without_teacher(self, teacher: str | None, student: str, method: str) -> tuple[float, float] | None:
        """Of a method that knows its teacher but has none in the step: its step's time as a fraction of KD's, measured, and by
        multiply-accumulates, 3 student / (3 student + teacher). None for other methods and where KD was not measured."""
        ours, kd = self.get(teacher, student, method), self.get(teacher, student, KD)
        if not (ours and kd and ours.teacher and not ours.teacher_macs and ours.student_macs and kd.teacher_macs):
            return None
        step = 3 * ours.student_macs
        return kd.speed / ours.speed, step / (step + kd.teacher_macs)

    def pairs(self) -> list[tuple[str | None, str]]:
        """The pairs with a measurement; a student alone only where no pair has it."""
        pairs = {(teacher, student) for teacher, student, _ in self.costs if teacher}
        served = {student for _, student in pairs}
        return sorted(pairs | {(None, student) for _, student, _ in self.costs if student not in served}, key=lambda p: (p[0] or "", p[1]))


def load(results: Path) -> tuple[list[Sheet], list[Problem]]:
    """All cost files below `results`/costs, and those left out with the reason."""
    sheets: dict[tuple[Any, ...], Sheet] = {}
    found, problems = costs.scan(results)
    for c in found:
        key = (c.device.name, c.precision, c.engine, c.threads, c.batch, c.memory_kind)
        sheet = sheets.setdefault(key, Sheet(*key))
        sheet.costs[None if c.method == STUDENT else c.teacher, c.student, c.method] = c
        sheet.versions.add(c.versions.torch)
    return [sheets[key] for key in sorted(sheets, key=repr)], problems


def choose(
    sheets: list[Sheet], precision: str, batch: int, pairs: list[tuple[str | None, str]], methods: list[str], devices: set[str]
) -> Sheet | None:
    """The sheet to stand beside a table: same precision and batch, the runs' own device before others, then the one that covers most cells."""
    fitting = [s for s in sheets if s.precision == precision and s.batch == batch]
    return max(fitting, key=lambda s: (s.device in devices, sum(s.get(t, n, m) is not None for t, n in pairs for m in methods)), default=None)
