"""Teachers: trained by the suite or imported from a file, verified on load, never random in an accuracy run.

A teacher lives in results/teachers/<dataset>-<architecture>/: `teacher.pt` (a bare state dict) and `teacher.json` (its record).
"""
import contextlib
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor, nn

import models
from bench.data.augment import Augmenter
from bench.errors import StoreError, UsageError
from bench.plan.identity import FORMAT
from bench.plan.protocols import Protocol
from bench.store import files
from bench.store.files import typed, write_bytes, write_json
from bench.store.records import Teacher, Verified
from bench.store.teachers import TeacherFile, find, folder, redo_mark
from bench.store.weights import pickled, plain, read_state, state_hash, told
from bench.text import clean
from bench.train.learner import evaluate

TOLERANCE = 0.3
"""How far, in points of top-1, a measured accuracy may lie from the recorded one: covers precisions and devices, not another net."""


def network(architecture: str, state: dict[str, Tensor], classes: int, source: Path) -> nn.Module:
    """A frozen teacher in eval mode with these weights. Raises UsageError where they belong to another architecture."""
    teacher = models.build(architecture, classes)
    try:
        teacher.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).split("\n")
        raise UsageError(f"{source} is not a {architecture} with {classes} classes: {lines[min(1, len(lines) - 1)].strip()[:160]}") from None
    return teacher.eval().requires_grad_(False)


def read(architecture: str, path: Path, expected: str, classes: int, device: torch.device) -> nn.Module:
    """As `network`, on a device, from a file whose weights have the hash `expected`. Raises UsageError where they have another."""
    state = read_state(path)
    if (found := state_hash(state)) != expected:
        raise UsageError(f"{path} has hash {found}, its record says {expected}; remove {path.parent} and import or train it again")
    return network(architecture, state, classes, path).to(device, memory_format=torch.channels_last)


def load(teacher: TeacherFile, dataset, data, device: torch.device, check: Callable[[], None] = lambda: None) -> nn.Module:
    """The verified network on a device: hash against the record, accuracy measured once per (hash, code of the networks, data) and held
    against the record's each time. Raises UsageError.

    `data` gives `test_batches(batch)`.
    """
    path = teacher.folder / "teacher.pt"
    built = read(teacher.architecture, path, teacher.hash, len(dataset.classes), device)
    known = _verified(teacher)
    top1 = known[dataset.hash] if dataset.hash in known else _measure(built, data, check)["top1"]
    recorded = teacher.record.test_top1
    if abs(top1 - recorded) > TOLERANCE:
        cause = "is it for another data set or normalisation, or was the network's code changed?"
        raise UsageError(f"{path} tests at {top1:.2f} % top-1, its record says {recorded:.2f} %; {cause}")
    if dataset.hash not in known:
        write_json(teacher.folder / "verified.json", _measured(teacher.hash, {**known, dataset.hash: top1}))
    return built


def _verified(teacher: TeacherFile) -> dict[str, float]:
    """Top-1 by data hash, as far as it was measured of the weights with that hash and the networks as they are now."""
    with contextlib.suppress(StoreError):  # it only saves a measurement, which is then made again
        found = files.read(teacher.folder / "verified.json", Verified)
        return found.data if found and (found.hash, found.networks) == (teacher.hash, models.source_hash()) else {}
    return {}


def _measured(weights: str, top1: dict[str, float]) -> dict[str, Any]:
    """What verified.json holds."""
    return {"format": FORMAT, "hash": weights, "networks": models.source_hash(), "data": top1}


def _measure(built: nn.Module, data, check: Callable[[], None]) -> dict[str, float]:
    return evaluate(built, data.test_batches(500), "tf32", check)


def import_file(
    path: Path, architecture: str, results: Path, dataset, data, device: torch.device, expected: float | None = None, replace: bool = False
) -> TeacherFile:
    """Bring a file into the results folder with its accuracy measured on the test set.

    Raises UsageError for an unreadable file, another architecture, an accuracy far from `expected` (top-1, percent) or at chance,
    and a different teacher already there (unless `replace`).
    """
    models.shapes(architecture)
    said = told(path)
    for what, here in (("architecture", architecture), ("dataset", dataset.name)):
        if said.get(what, here) != here:
            raise UsageError(f"{path} says its {what} is {said[what]}, not {here}; nothing was imported")
    state = read_state(path)
    built = network(architecture, state, len(dataset.classes), path).to(device, memory_format=torch.channels_last)
    found = state_hash(state)
    old = find(results, dataset.name, architecture)
    if old and old.hash != found and not replace:
        raise UsageError(f"{old.folder} already holds another {architecture} (hash {old.hash}); use --replace to put {found} in its place")
    measured = _measure(built, data, lambda: None)
    if expected is not None and abs(measured["top1"] - expected) > TOLERANCE:
        raise UsageError(f"{path} tests at {measured['top1']:.2f} % top-1, expected {expected:.2f} %; nothing was imported")
    if measured["top1"] < 3 * 100 / len(dataset.classes):
        raise UsageError(f"{path} tests at {measured['top1']:.2f} % top-1, near chance: is it for {dataset.name}? Nothing was imported")
    if old and old.hash == found:  # its record stays: a file may not say that its training was a trial
        _mend(old, state)
        return old
    record = {"source": "imported", "file": clean(path.name), "trained": True}
    told_of = {name: said[name] for name in ("protocol", "trial", "run") if said.get(name)}
    record |= {name: clean(value) if isinstance(value, str) else value for name, value in told_of.items()}
    return publish(results, dataset.name, dataset.hash, architecture, state, measured, record, over={old.hash} if old else set())


def _mend(teacher: TeacherFile, state: dict[str, Tensor]) -> None:
    """Write a teacher's own weights anew where its file does not hold them any more. Raises UsageError where that cannot be."""
    path = teacher.folder / "teacher.pt"
    with contextlib.suppress(UsageError):
        if state_hash(read_state(path)) == teacher.hash:
            return
    try:
        with _writer(teacher.folder):
            write_bytes(path, pickled(plain(state)))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; free some space or choose another --results folder") from None


def _writer(place: Path) -> filelock.BaseFileLock:
    """One writer of a teacher's folder at a time."""
    return filelock.FileLock(place.parent / f".{place.name}.lock")


def publish(
    results: Path, dataset: str, data_hash: str, architecture: str, state: dict[str, Tensor], measured: dict[str, float], record: dict[str, Any],
    over: Collection[str] | None = None,
) -> TeacherFile:
    """Write a teacher's weights and record, one writer at a time; the record last, so that a teacher is there whole or not at all. One that it
    replaces stays until the new weights are written. `over`: hashes of those that it may replace; None: whatever stands there.

    Raises UsageError where that cannot be written, or another teacher came meanwhile, and for a record that is no JSON: nothing is touched then."""
    place = folder(results, dataset, architecture)
    found = state_hash(state)
    full = {
        "format": FORMAT,
        "architecture": architecture,
        "dataset": dataset,
        "hash": found,
        "test_top1": measured["top1"],
        "test_top5": measured.get("top5"),
        "test_top1_data": data_hash,
        **record,
    }
    teacher = TeacherFile(place, typed(place / "teacher.json", full, Teacher))
    verified = _measured(found, {data_hash: measured["top1"]})
    try:
        files.json_bytes(full)  # now: the record is written last, when what stood here is gone
    except ValueError as error:
        raise UsageError(f"{place / 'teacher.json'} cannot be written ({error}); nothing was changed") from None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _writer(place):
            now = find(results, dataset, architecture) if over is not None else None
            if now and now.hash not in {found, *over}:
                raise UsageError(f"{place}: another launch has put {now.hash} here meanwhile; {found} was not imported, choose one of the two")
            place.mkdir(parents=True, exist_ok=True)
            write_bytes(place / "teacher.new.pt", pickled(plain(state)))
            (place / "teacher.json").unlink(missing_ok=True)
            (place / "teacher.new.pt").replace(place / "teacher.pt")
            write_json(place / "verified.json", verified)
            write_json(place / "teacher.json", full)
            redo_mark(place).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {place}: {error.strerror}; free some space or choose another --results folder") from None
    return teacher


def given(
    teachers: Sequence[tuple[str | None, Path]], planned: Sequence[str], results: Path, protocol: Protocol, data_root: Path
) -> dict[str, Path]:
    """The files to import for a plan whose teachers are `planned`, by architecture, without those that are there already.

    Raises UsageError or NetworkError where a file cannot be read, says no architecture and none was named, is of another one or of none
    of the plan's, or another teacher of that architecture is there.
    """
    found: dict[str, Path] = {}
    for architecture, path in teachers:
        name = architecture or told(path).get("architecture")
        if name is None:
            raise UsageError(f"--teacher {path}: the file does not say which network it is of; name it, as in --teacher resnet56={path}")
        models.load(path, name)
        if name not in planned:
            raise UsageError(f"--teacher {path}: a {name} teaches no run of this plan; its teachers: {', '.join(planned) or 'none'}")
        if name in found:
            raise UsageError(f"--teacher {path}: {found[name]} is a {name} too; name one file for it")
        found[name] = path
    for name, path in tuple(found.items()):
        old, new = find(results, protocol.dataset, name), state_hash(read_state(path))
        if old and old.hash == new:
            del found[name]
        elif old:
            options = {"architecture": name, "protocol": protocol.name, "results": results, "data-root": data_root}
            words = [str(path), *(str(word) for pair in options.items() for word in (f"--{pair[0]}", pair[1])), "--replace"]
            raise UsageError(
                f"--teacher {path}: {old.folder} holds another {name} (hash {old.hash}, not {new}); leave --teacher out to use that one, "
                f"or put this one in its place with: python -m bench teachers import {shlex.join(words)}"
            )
    return found


def import_given(files: Mapping[str, Path], results: Path, dataset, device: torch.device) -> None:
    """Measure and import files by architecture; what is done is printed. Raises as `import_file`."""
    data = Augmenter(dataset, device, channels_last=True)
    for name, path in files.items():
        print(f"teacher {name}: measuring {path} on the test images of {dataset.name}", flush=True)
        taken = import_file(path, name, results, dataset, data, device)
        print(f"teacher {name}: {taken.record.test_top1:.2f} % top-1 on {dataset.name}, hash {taken.hash}", flush=True)
