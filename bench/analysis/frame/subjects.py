"""The networks that an analysis is asked about: teachers and finished students of a results folder, named on the command line. No torch here."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import UsageError, unknown
from bench.plan import protocols
from bench.plan.protocols import Protocol
from bench.plan.selection import parse_pair
from bench.store import runs, teachers
from bench.store.runs import RunView


@dataclass(frozen=True)
class Subject:
    """One trained network."""

    role: str  # teacher or student
    architecture: str
    label: str  # the architecture of a teacher, the run id of a student
    hash: str  # of its weights
    file: Path
    test_top1: float
    method: str = ""
    seed: int | None = None

    def facts(self) -> dict[str, Any]:
        """JSON values that name it in a result; where it lies is no part of it."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "file"}


@dataclass(frozen=True)
class Words:
    """The command line's words, told apart."""

    teachers: tuple[str, ...]  # architectures
    pairs: tuple[tuple[str, str], ...]
    runs: tuple[RunView, ...]  # finished, named one by one or by their pair
    protocol: Protocol  # of their data


def read(words: Sequence[str], results: Path, networks: Sequence[str], protocol: str | None) -> Words:
    """What the words name: an architecture (a teacher), a pair (its teacher and all its finished students), a run id.

    Raises UsageError for a word that names nothing, a run that is not finished, and runs of different data.
    """
    views = {view.id: view for view in runs.scan(results)[0]}
    named: list[str] = []
    pairs: list[tuple[str, str]] = []
    chosen: dict[str, RunView] = {}
    for word in words:
        if word in networks:
            named.append(word)
        elif word in views:
            if views[word].status != "done":
                raise UsageError(f"run {word} is {views[word].status}; only finished runs are analysed: see python -m bench status")
            chosen[word] = views[word]
        elif "-s" in word and word.rsplit("-", 1)[-1].isalnum() and len(word.split("-")) > 3:
            raise unknown(f"run below {results / 'runs'}", word, sorted(views)) if views else UsageError(f"no runs in {results / 'runs'}")
        else:
            pair = parse_pair(word, networks)
            pairs.append((pair.teacher, pair.student))
    wanted = protocols.get(protocol) if protocol else None
    students = runs.of_students([*views.values()])
    of_pairs = [v for v in students if v.status == "done" and any(v.student == s and v.teacher in (t, None) for t, s in pairs)]
    if wanted is None:
        known = {_data(v.protocol): v for v in (*(c for c in chosen.values() if c.title != runs.TEACHER), *of_pairs)}
        if len(known) > 1:
            raise UsageError(f"the runs named are of different data ({'; '.join(sorted(known))}): choose with --protocol NAME, or name runs of one")
        first = next(iter(known.values()), None)
        wanted = first.protocol if first else protocols.get("crd")
    here = _data(wanted)
    for view in chosen.values():
        if _data(view.protocol) != here:
            raise UsageError(f"{view.id} was trained on {_data(view.protocol)}, the analysis is on {here}: name its own protocol, or none")
    chosen |= {v.id: v for v in of_pairs if _data(v.protocol) == here}
    return Words(tuple(dict.fromkeys(named)), tuple(dict.fromkeys(pairs)), tuple(chosen.values()), wanted)


def _data(protocol: Protocol) -> str:
    """The part of a protocol that says which images, in words."""
    words = [protocol.dataset, f"{protocol.image_size} pixels"]
    if protocol.train_images:
        words.append(f"{protocol.train_images} + {protocol.test_images} images")
    if protocol.sample_rate < 1:
        words.append(f"{100 * protocol.sample_rate:g}% of the training set")
    return ", ".join(words)


def teacher(results: Path, dataset: str, architecture: str) -> Subject:
    """Raises UsageError where it is not there, naming the data set it is there for, if any."""
    if teachers.find(results, dataset, architecture) is None:
        others = [t.record.dataset for t in teachers.available(results)[0] if t.architecture == architecture]
        if others:
            known = f"for {', '.join(others)}, not for {dataset}"
            raise UsageError(f"the {architecture} teacher in {results} is {known}: choose its data with --protocol")
    found = teachers.require(results, dataset, architecture)
    return Subject("teacher", architecture, architecture, found.hash, found.folder / "teacher.pt", found.record.test_top1)


def student(view: RunView, data_hash: str) -> Subject:
    """A finished run's. Raises UsageError for a student of another data set and for one whose weights were not kept."""
    if view.known.data_hash != data_hash:
        raise UsageError(f"{view.id} was trained on other data (hash {view.known.data_hash}, here {data_hash})")
    if not (view.folder / "student.pt").exists():
        raise UsageError(f"{view.folder}: the weights (student.pt) are not there; train it again with python -m bench run --redo")
    weights, top1 = view.record.weights_sha256, view.record.test_top1
    return Subject("student", view.student, view.id, weights, view.folder / "student.pt", top1, view.method, view.seed)


def choose(words: Words, results: Path, dataset: str, data_hash: str, scope: str, students_needed: bool) -> list[list[Subject]]:
    """The networks of each result to make: one each (scope "network"), or a teacher before its students (scope "group").

    Raises UsageError, for students of another teacher too; those that had none go beside any.
    """
    students = [student(view, data_hash) for view in words.runs]
    architectures = list(dict.fromkeys([*words.teachers, *(t for t, _ in words.pairs)]))
    if scope == "network":
        if not architectures and not students:
            architectures = [t.architecture for t in teachers.available(results)[0] if t.record.dataset == dataset]
            if not architectures:
                cure = "python -m bench teachers import FILE --architecture NAME"
                raise UsageError(f"no trained network for {dataset} in {results}; get one with {cure}")
        return [[one] for one in (*(teacher(results, dataset, a) for a in architectures), *students)]
    architectures = list(dict.fromkeys([*architectures, *(v.teacher for v in words.runs if v.teacher)]))
    if len(architectures) != 1:
        said = f"{', '.join(architectures)} are" if architectures else "none is"
        raise UsageError(f"this analysis sets students beside one teacher, and {said} named: name a pair, as resnet56-resnet20")
    if students_needed and not students:
        if there := sorted({v.student for v in runs.scan(results)[0] if v.record and v.teacher == architectures[0]} - {s for _, s in words.pairs}):
            named = " or ".join(f"{architectures[0]}-{s}" for s in there)
            raise UsageError(f"no student is named, and {results} has finished ones of {architectures[0]}: name a pair, as {named}")
        cure = f"python -m bench run --pairs {architectures[0]}-STUDENT"
        raise UsageError(f"no finished student of {architectures[0]} on {dataset} in {results}: train some with {cure}")
    first = teacher(results, dataset, architectures[0])
    for view in words.runs:
        if (had := view.known.teacher_hash) not in (None, first.hash):
            cure = "in place of the pair, name runs of this teacher"
            raise UsageError(f"{view.id} had another teacher ({had}) than the {first.label} in {results} ({first.hash}): {cure}")
    return [[first, *students]]
