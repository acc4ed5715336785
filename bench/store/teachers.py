"""Teachers in the results folder: results/teachers/<dataset>-<architecture>/ holds `teacher.pt` (a bare state dict) and `teacher.json`."""

import shlex
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from bench.errors import StoreError, UsageError
from bench.plan.profiles import PROFILES
from bench.plan.protocols import PROTOCOLS, Protocol
from bench.store.files import Problem, folders, read
from bench.store.records import Teacher


@dataclass(frozen=True)
class TeacherFile:
    """A teacher in the results folder and what its record says."""

    folder: Path
    record: Teacher

    architecture = property(attrgetter("record.architecture"))
    hash = property(attrgetter("record.hash"))

    def facts(self) -> dict[str, Any]:
        """What enters the records of runs that used it."""
        r = self.record
        return {"architecture": r.architecture, "hash": r.hash, "test_top1": r.test_top1, "trained": r.trained}


def folder(results: Path, dataset: str, architecture: str) -> Path:
    return results / "teachers" / f"{dataset}-{architecture}"


def redo_mark(place: Path) -> Path:
    """The file beside a teacher's folder that names the run which is trained again for it, from the beginning until the weights are published."""
    return place.parent / f".{place.name}.redo"


def open_teacher(place: Path) -> TeacherFile | None:
    """The teacher in a folder, or None where there is no record. Raises StoreError for one that is damaged or another folder's."""
    record = read(place / "teacher.json", Teacher)
    if record is None:
        return None
    if place.name != f"{record.dataset}-{record.architecture}":
        raise StoreError(f"{place / 'teacher.json'}: is the record of a {record.architecture} for {record.dataset}")
    return TeacherFile(place, record)


def find(results: Path, dataset: str, architecture: str) -> TeacherFile | None:
    """The teacher of that architecture, or None where there is none. Raises UsageError for a damaged record."""
    place = folder(results, dataset, architecture)
    try:
        return open_teacher(place)
    except StoreError as error:
        raise UsageError(
            f"{place / 'teacher.json'} is damaged or of another version ({str(error).partition(': ')[2]}); "
            f"remove {place} and train or import the teacher again"
        ) from None


def require(results: Path, dataset: str, architecture: str) -> TeacherFile:
    """As `find`, but a missing teacher is a UsageError that names the commands which get one."""
    teacher = find(results, dataset, architecture)
    if teacher is None:
        words = [["train", architecture], ["import", "FILE", "--architecture", architecture]]
        options = [*of_data(dataset), "--results", str(results)]
        train, bring = (shlex.join(["python", "-m", "bench", "teachers", *way, *options]) for way in words)
        raise UsageError(f"no {architecture} teacher for {dataset} in {results / 'teachers'}; run `{train}` or `{bring}`")
    return teacher


def of_data(dataset: str) -> list[str]:
    """What makes a command about teachers mean that data: the protocol under which the first profile of that data trains its own; nothing where
    there is none."""
    own = (profile.teacher_protocol or profile.protocol for profile in PROFILES.values() if PROTOCOLS[profile.protocol].dataset == dataset)
    return next((["--protocol", name] for name in own), [])


def unfit(teacher: TeacherFile, protocol: Protocol) -> str:
    """Why a teacher does not belong to what trains its own teachers under `protocol`, with what to do; empty: it does.

    What was imported fits always, and one of the whole schedule fits a trial; whatever else was trained here must have been so under `protocol`.
    """
    record = teacher.record
    if record.source != "trained" or ((record.protocol or protocol.name) == protocol.name and record.trial in (None, "", protocol.trial)):
        return ""
    ways = [f"{name}{f' ({trial})' if trial else ''}" for name, trial in ((record.protocol, record.trial), (protocol.name, protocol.trial))]
    return (
        f"the teacher in {teacher.folder} was trained under {ways[0]}, this plan trains its own under {ways[1]}; "
        f"remove that folder to have it trained anew, or use another --results"
    )


def check(teacher: TeacherFile, protocol: Protocol) -> None:
    """Raises UsageError for a teacher that is unfit."""
    if reason := unfit(teacher, protocol):
        raise UsageError(reason)


def available(results: Path) -> tuple[list[TeacherFile], list[Problem]]:
    """All teachers of a results folder, by name, and the folders that hold none that can be read."""
    found, (names, problems) = [], folders(results, "teachers")
    for name in names:
        try:
            if (teacher := open_teacher(results / "teachers" / name)) is None:
                raise StoreError(f"{results / 'teachers' / name / 'teacher.json'}: missing; the teacher was never finished")
            found.append(teacher)
        except StoreError as error:
            problems.append(Problem(f"teachers/{name}", str(error)))
    return found, problems
