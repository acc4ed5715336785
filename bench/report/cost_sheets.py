"""What the exclusive probe measured, as sheets: one per (device, precision, engine, threads, batch). Ratios are made within a sheet only."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import StoreError
from bench.store.files import read_json
from bench.store.runs import Problem

STUDENT, KD = "student", "kd"


@dataclass(frozen=True, slots=True)
class Cost:
    """One measurement: images a second, peak bytes, seconds and peak bytes of the preparation stage (None: the method has none or it was
    not measured), multiply-accumulates of a forward pass of the student and of the teacher (0: none in the step)."""

    teacher: str | None
    student: str
    method: str
    speed: float
    memory: float
    preparation: float | None
    teacher_trained: bool
    preparation_memory: float | None = None
    student_macs: float = 0.0
    teacher_macs: float = 0.0


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
        pairs = {(c.teacher, c.student) for c in self.costs.values() if c.teacher}
        served = {student for _, student in pairs}
        return sorted(pairs | {(None, c.student) for c in self.costs.values() if c.student not in served}, key=lambda p: (p[0] or "", p[1]))


def _cost(data: dict[str, Any]) -> Cost:
    speed, memory, preparation = float(data["images_per_second"]), float(data["peak_memory_bytes"]), data.get("preparation_seconds")
    if not 0 < speed < float("inf") or not 0 < memory < float("inf"):
        raise ValueError("images_per_second and peak_memory_bytes must be above 0")
    teacher, student, method = data["teacher"], data["student"], data["method"]
    if not isinstance(student, str) or not isinstance(method, str) or not isinstance(teacher, str | None):
        raise ValueError("teacher, student and method must be names")
    preparation, beside = (None if value is None else float(value) for value in (preparation, data.get("preparation_peak_bytes")))
    trained, macs = bool(data.get("teacher_trained", True)), (float(data.get("student_macs") or 0), float(data.get("teacher_macs") or 0))
    return Cost(None if method == STUDENT else teacher, student, method, speed, memory, preparation, trained, beside, *macs)


def load(results: Path) -> tuple[list[Sheet], list[Problem]]:
    """All cost files below `results`/costs, and those left out with the reason."""
    sheets: dict[tuple[Any, ...], Sheet] = {}
    problems: list[Problem] = []
    root = results / "costs"
    folders = sorted(e.path for e in os.scandir(root) if e.is_dir()) if root.is_dir() else []
    for path in (Path(folder) / name for folder in folders for name in sorted(os.listdir(folder))):
        if path.suffix != ".json" or path.name.startswith(".") or path.name == "speed.json":  # step times, no costs
            continue
        where = str(path.relative_to(results))
        try:
            data = read_json(path) or {}
            cost = _cost(data)
            device = str(data["device"].get("name") or data["device"]["type"])
            kind = str(data.get("peak_memory_kind", ""))
            key = (device, str(data["precision"]), str(data["engine"]), data.get("threads"), int(data["batch"]), kind)
        except StoreError as error:
            problems.append(Problem(where, str(error).removeprefix(f"{results}{os.sep}")))
            continue
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(Problem(where, f"not a cost record ({type(error).__name__}: {error})"))
            continue
        sheet = sheets.setdefault(key, Sheet(*key))
        sheet.costs[cost.teacher, cost.student, cost.method] = cost
        versions = data.get("versions")
        sheet.versions.add(str(versions.get("torch", "?")) if isinstance(versions, dict) else "?")
    return [sheets[key] for key in sorted(sheets, key=repr)], problems


def choose(
    sheets: list[Sheet], precision: str, batch: int, pairs: list[tuple[str | None, str]], methods: list[str], devices: set[str]
) -> Sheet | None:
    """The sheet to stand beside a table: same precision and batch, the runs' own device before others, then the one that covers most cells."""
    fitting = [s for s in sheets if s.precision == precision and s.batch == batch]
    return max(fitting, key=lambda s: (s.device in devices, sum(s.get(t, n, m) is not None for t, n in pairs for m in methods)), default=None)
