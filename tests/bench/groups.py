"""Small groups of learners without the trainer, for tests of engines: random images, an untrained teacher, any registered methods."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from bench import data
from bench.data import augment
from bench.plan.identity import Run
from bench.plan.protocols import Protocol
from bench.train.engine import Eager
from bench.train.learner import Learner
from methods import registry
from tests.methods import cases

CPU = torch.device("cpu")
BATCH, REMAINDER = 12, 4
IMAGES = 80  # of a test's training set, at most
PROTOCOL = Protocol("engines", epochs=10, milestones=(2, 3), batch=BATCH, image_size=cases.SIZE)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """One thread and deterministic algorithms."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)


def images(count: int = 4 * BATCH + REMAINDER) -> data.Dataset:
    """Random images of the tests' size and classes."""
    g = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (count + 8, 3, cases.SIZE, cases.SIZE), generator=g, dtype=torch.uint8)
    labels = torch.randint(cases.CLASSES, (count + 8,), generator=g)
    names = tuple(str(i) for i in range(cases.CLASSES))
    train, test = slice(count), slice(count, None)
    third = (1 / 3,) * 3
    return data.Dataset("random", pixels[train], labels[train], pixels[test], labels[test], names, (0,) * cases.CLASSES, third, third, "0" * 16)


def learner(name: str, device: torch.device = CPU, precision: str = "tf32", student: str = cases.STUDENT, protocol: Protocol = PROTOCOL) -> Learner:
    """A fresh learner of a registered method; the same each time."""
    method = registry.get(name)
    hyper = cases.hyper_of(method)
    run = Run(student, name, 1, protocol, precision, "d", method.version, dataclasses.asdict(hyper), cases.TEACHER, "t")
    setting = dataclasses.replace(cases.setting(cases.TEACHER, student), images=IMAGES)  # a memory bank has a row for each
    return Learner(run, method, hyper, setting, cases.prepared(name), device)


def teacher(device: torch.device = CPU) -> nn.Module:
    network = cases.network(cases.TEACHER, "teacher")
    network.load_state_dict(cases.frozen_teacher().state_dict())
    return network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def engine(kind: type[Eager], learners: Sequence[Learner], device: torch.device = CPU, precision: str = "tf32") -> Eager:
    return kind(augment.Augmenter(images(), device, channels_last=True), teacher(device), learners, precision)


def bounds(count: int = 4 * BATCH + REMAINDER, batch: int = BATCH) -> list[tuple[int, int]]:
    """Start and end of each step of an epoch."""
    return [(start, min(count, start + batch)) for start in range(0, count, batch)]


def begin(runner: Eager, epoch: int) -> None:
    """What the trainer does before an epoch's first step."""
    runner.begin_epoch(augment.draws(1, epoch, len(runner.data.train_labels)))
    for one in runner.learners:
        one.begin_epoch(epoch)
        one.clear_sums()


def run(runner: Eager, epochs: Sequence[int], each: Callable[[int, int], None] = lambda epoch, start: None) -> None:
    """Whole epochs; `each(epoch, start)` after every step. No learner may fail."""
    for epoch in epochs:
        begin(runner, epoch)
        for start, stop in bounds():
            assert runner.step(start, stop) == []
            each(epoch, start)


def everything(one: Learner) -> dict[str, Tensor]:
    """All of a learner's numbers, copied to the CPU."""
    kept = one.state()
    parts = {f"{part}.{name}": value for part in ("student", "method", "momentum", "sums") for name, value in kept[part].items()}
    return {name: value.detach().to("cpu", copy=True) for name, value in parts.items()}


def unequal(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """The names whose tensors differ in a bit or are on one side only (0 and -0 are equal)."""
    return sorted((a.keys() ^ b.keys()) | {name for name in a.keys() & b.keys() if not torch.equal(a[name], b[name])})
