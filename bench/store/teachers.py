"""Teachers in the results folder: results/teachers/<dataset>-<architecture>/ holds `teacher.pt` (a bare state dict) and `teacher.json`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import StoreError, UsageError
from bench.store.files import read_json

FORMAT = 1


@dataclass(frozen=True)
class TeacherFile:
    """A teacher in the results folder and what its record says."""

    architecture: str
    folder: Path
    record: dict[str, Any]

    @property
    def hash(self) -> str:
        return self.record["hash"]

    def facts(self) -> dict[str, Any]:
        """What enters the records of runs that used it."""
        return {"architecture": self.architecture, "hash": self.hash, "test_top1": self.record["test_top1"], "trained": self.record["trained"]}


def folder(results: Path, dataset: str, architecture: str) -> Path:
    return results / "teachers" / f"{dataset}-{architecture}"


def find(results: Path, dataset: str, architecture: str) -> TeacherFile | None:
    """The teacher of that architecture, or None where there is none. Raises UsageError for a damaged record."""
    place = folder(results, dataset, architecture)
    if not (place / "teacher.json").exists():
        return None
    try:
        record = read_json(place / "teacher.json") or {}
        complete = record["architecture"] == architecture and record["format"] == FORMAT
        complete = complete and isinstance(record["hash"], str) and isinstance(record["test_top1"], float) and isinstance(record["trained"], bool)
    except (StoreError, KeyError, TypeError):
        complete = False
    if not complete:
        raise UsageError(f"{place / 'teacher.json'} is damaged or of another version; remove {place} and train or import the teacher again")
    return TeacherFile(architecture, place, record)


def require(results: Path, dataset: str, architecture: str) -> TeacherFile:
    """As `find`, but a missing teacher is a UsageError that names the commands which get one."""
    teacher = find(results, dataset, architecture)
    if teacher is None:
        raise UsageError(
            f"no {architecture} teacher for {dataset} in {results / 'teachers'}; "
            f"run `python -m bench teachers train {architecture}` or `python -m bench teachers import FILE --architecture {architecture}`"
        )
    return teacher


def available(results: Path) -> list[TeacherFile]:
    """All teachers of a results folder, by name."""
    places = sorted(p.parent for p in (results / "teachers").glob("*/teacher.json"))
    return [find(results, *place.name.rsplit("-", 1)) for place in places]
