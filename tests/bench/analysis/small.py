"""A results folder with one teacher and its students for tests of analyses: untrained networks on a few drawn images, in seconds."""

import dataclasses
import io
from pathlib import Path

import torch

import models
from bench import data
from bench.analysis.frame.context import PRECISION, Context
from bench.analysis.frame.subjects import Subject
from bench.plan.identity import Run
from bench.plan.protocols import Protocol
from bench.store.files import write_bytes, write_json
from bench.store.weights import state_hash
from bench.train import context as machine
from bench.train import teacher_networks
from bench.train.execution import Execution
from models.randomness import keyed
from tests.bench.synthetic import add_run

PROTOCOL = Protocol("smoke", dataset="shapes100", epochs=2, milestones=(1,), train_images=200, test_images=100, image_size=16)
TEACHER, STUDENT = "resnet8", "resnet8"
QUICK = {
    "agreement": {"cka_images": 100, "cka_batch": 50},
    "alignment": {"epochs": 3, "controls": 2, "images": 100, "quantile": 0.05},
    "concepts": {"images": 60, "epochs": 1, "least_images": 3, "most_concepts": 3, "layers": ("stage2", "stage3"), "quantile": 0.05},
    "dissect": {"images": 100, "quantile": 0.05},
    "knowledge": {"images": 32, "batch": 16, "classes": 4, "phase_epochs": 1, "phase_steps": 2, "check_batches": 1},
    "neurons": {"images": 40, "relations": 3, "matched": 5},
    "relations": {"images": 100},
    "quantify": {"images": 4, "grid": 4, "learning": False, "steps": 4, "draws": 4, "bootstrap": 20},
}
"""Options with which an analysis takes seconds; one that is not here is run with its own."""


def network(name: str, purpose: str, classes: int = 100):
    """An untrained network, the same each time."""
    with keyed(0, purpose):
        return models.build(name, classes).eval()


def add_teacher(results: Path, dataset, name: str = TEACHER, changed=None) -> str:
    """Publish an untrained teacher as if it had been trained; its hash."""
    made = network(name, "teacher")
    if changed:
        changed(made)
    measured = {"top1": 1.0, "top5": 5.0}
    teacher_networks.publish(results, dataset.name, dataset.hash, name, made.state_dict(), measured, {"source": "test", "trained": True})
    return state_hash(made.state_dict())


def add_student(results: Path, dataset, method: str = "kd", seed: int = 1, protocol: Protocol = PROTOCOL, data_hash: str = "", **run) -> str:
    """A finished run with its weights, of the teacher of `add_teacher`; its id. `run`: other values of its identity."""
    state = network(STUDENT, f"{method} {seed}").state_dict()
    known = {"teacher": TEACHER, "teacher_hash": state_hash(network(TEACHER, "teacher").state_dict()), "precision": "tf32"} | run
    made = Run(STUDENT, method, seed, protocol, data_hash=data_hash or dataset.hash, **known)
    folder = add_run(results, made, 5.0, weights_sha256=state_hash(state))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(folder / "student.pt", buffer.getvalue())
    return folder.name


def dataset(protocol: Protocol = PROTOCOL):
    return data.load(protocol)


def context(results: Path, images, subjects: list[Subject], log=lambda text: None) -> Context:
    return Context(machine.Context(PROTOCOL, PRECISION, Execution(str(results), device="cpu", engine="eager"), dataset=images), subjects, log)


def subjects_of(results: Path, images, students: int = 2) -> list[Subject]:
    """The teacher and so many students, written to `results`."""
    from bench.analysis.frame import subjects
    from bench.store import runs

    add_teacher(results, images)
    for seed in range(1, students + 1):
        add_student(results, images, seed=seed)
    return [subjects.teacher(results, images.name, TEACHER), *(subjects.student(v, images.hash) for v in runs.scan(results)[0])]


def damaged_json(path: Path) -> None:
    """A file that is JSON and not what it was."""
    write_json(path, {"format": 1})


def quick(analysis) -> object:
    """Options small enough for tests."""
    return analysis.Options(**QUICK.get(analysis.name, {}))


def cifar_like(images):
    """The same images under another name without annotations, as CIFAR-100 has none."""
    nothing = {f"{split}_{name}": None for split in ("train", "test") for name in ("masks", "concepts")}
    return dataclasses.replace(images, name="cifar100", concept_names=(), **nothing)
