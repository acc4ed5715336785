"""Teachers: trained by the suite or imported from a file, verified on load, never random in an accuracy run.

A teacher lives in results/teachers/<dataset>-<architecture>/: `teacher.pt` (a bare state dict) and `teacher.json` (its record).
"""

import argparse
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import models
from bench import store
from bench.protocol import Protocol, UsageError

FORMAT = 1
TOLERANCE = 0.3
"""How far, in points of top-1, a measured accuracy may lie from the recorded one: covers precisions and devices, not another net."""


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


def state_hash(state: dict[str, Tensor]) -> str:
    """SHA-256 (16 hex digits) of a state dict's names, types, shapes and values, independent of the file it came in."""
    total = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return total.hexdigest()[:16]


def find(results: Path, dataset: str, architecture: str) -> TeacherFile | None:
    """The teacher of that architecture, or None where there is none. Raises UsageError for a damaged record."""
    place = folder(results, dataset, architecture)
    if not (place / "teacher.json").exists():
        return None
    try:
        record = store.read_json(place / "teacher.json") or {}
        complete = record["architecture"] == architecture and record["format"] == FORMAT
        complete = complete and isinstance(record["hash"], str) and isinstance(record["test_top1"], float) and isinstance(record["trained"], bool)
    except (store.StoreError, KeyError, TypeError):
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


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a file people have: bare, or under "model", "state_dict" or "net". Nothing in the file is executed.

    Raises UsageError where it is unreadable or holds something else.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # RepDistiller's files carry their options along
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"teacher file {path} does not exist") from None
    except Exception as error:  # a stranger's bytes make torch.load raise many things
        first = str(error).split("\n")[0][:120]
        raise UsageError(f"teacher file {path} cannot be read as weights ({type(error).__name__}: {first}); fetch it again") from None
    for name in ("model", "state_dict", "net"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UsageError(f"teacher file {path} holds no state dict of tensors")
    return {str(k).removeprefix("module."): v for k, v in content.items()}


def network(architecture: str, state: dict[str, Tensor], classes: int, source: Path) -> nn.Module:
    """A frozen teacher in eval mode with these weights. Raises UsageError where they belong to another architecture."""
    teacher = models.build(architecture, classes)
    try:
        teacher.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).split("\n")
        raise UsageError(f"{source} is not a {architecture} with {classes} classes: {lines[min(1, len(lines) - 1)].strip()[:160]}") from None
    return teacher.eval().requires_grad_(False)


def load(teacher: TeacherFile, dataset, data, device: torch.device, check: Callable[[], None] = lambda: None) -> nn.Module:
    """The verified network on a device: hash against the record, accuracy measured once per (hash, data). Raises UsageError.

    `data` gives `test_batches(batch)`.
    """
    path = teacher.folder / "teacher.pt"
    state = read_state(path)
    found = state_hash(state)
    if found != teacher.hash:
        raise UsageError(f"{path} has hash {found}, its record says {teacher.hash}; remove {teacher.folder} and import or train it again")
    built = network(teacher.architecture, state, len(dataset.classes), path).to(device, memory_format=torch.channels_last)
    verified = teacher.folder / "verified.json"
    known = _verified(verified)
    if known.get("hash") != found or dataset.hash not in known.get("data", {}):
        top1 = _measure(built, data, check)["top1"]
        recorded = teacher.record["test_top1"]
        if abs(top1 - recorded) > TOLERANCE:
            raise UsageError(f"{path} tests at {top1:.2f} % top-1, its record says {recorded:.2f} %; is it for another data set or normalisation?")
        measured = {**(known.get("data", {}) if known.get("hash") == found else {}), dataset.hash: top1}
        store.write_json(verified, {"format": FORMAT, "hash": found, "data": measured})
    return built


def _verified(path: Path) -> dict[str, Any]:
    try:
        return store.read_json(path) or {}
    except store.StoreError:
        return {}  # it only saves a measurement, which is then made again


def _measure(built: nn.Module, data, check: Callable[[], None]) -> dict[str, float]:
    from bench.learner import evaluate

    return evaluate(built, data.test_batches(500), "tf32", check)


def import_file(
    path: Path, architecture: str, results: Path, dataset, data, device: torch.device, expected: float | None = None, replace: bool = False
) -> TeacherFile:
    """Bring a file into the results folder with its accuracy measured on the test set.

    Raises UsageError for an unreadable file, another architecture, an accuracy far from `expected` (top-1, percent) or at chance,
    and a different teacher already there (unless `replace`).
    """
    models.shapes(architecture)
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
    record = {"source": "imported", "file": path.name, "trained": True}
    return publish(results, dataset.name, dataset.hash, architecture, state, measured, record)


def publish(
    results: Path, dataset: str, data_hash: str, architecture: str, state: dict[str, Tensor], measured: dict[str, float], record: dict[str, Any]
) -> TeacherFile:
    """Write a teacher's weights and record; the record last, so that a teacher is there whole or not at all."""
    place = folder(results, dataset, architecture)
    place.mkdir(parents=True, exist_ok=True)
    (place / "teacher.json").unlink(missing_ok=True)
    buffer = io.BytesIO()
    torch.save({k: v.detach().cpu().contiguous() for k, v in state.items()}, buffer)
    store.write_bytes(place / "teacher.pt", buffer.getvalue())
    found = state_hash(state)
    store.write_json(place / "verified.json", {"format": FORMAT, "hash": found, "data": {data_hash: measured["top1"]}})
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
    store.write_json(place / "teacher.json", full)
    return TeacherFile(architecture, place, full)


def train(architecture: str, protocol: Protocol, seed: int, precision: str, where) -> int:
    """Train a teacher as a plain student of its own architecture, then publish its last-epoch weights. Returns an exit code."""
    from bench import data
    from bench import train as training
    from bench.jobs import DONE, Group

    results = Path(where.results)
    dataset = data.load(protocol, Path(where.data_root) if where.data_root else None, where.download)
    if find(results, dataset.name, architecture) and not where.redo:
        return DONE
    group = Group(None, architecture, seed, protocol, precision, ("student",), title="Teacher")
    code = training.run_group(group, where)
    if code != DONE:
        return code
    run = training.runs_of(group, dataset, None)[0].run
    place = results / "runs" / run.id
    record = store.read_record(place)
    state = read_state(place / "student.pt")
    if state_hash(state) != record["weights_sha256"]:
        raise UsageError(f"{place / 'student.pt'} is not what its record names; train it again: python -m bench teachers train {architecture} --redo")
    facts = {"source": "trained", "run": run.id, "trained": True, "protocol": protocol.name, "trial": protocol.trial, "seed": seed}
    measured = {"top1": record["test_top1"], "top5": record["test_top5"]}
    publish(results, dataset.name, dataset.hash, architecture, state, measured, {**facts, "precision": precision})
    return DONE

