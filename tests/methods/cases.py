"""What the tests over the whole registry share: small networks, images, outputs made up from shapes, and methods ready to step."""

import copy
import functools
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import models
from methods import registry
from methods.base import Batch, Method, Needs, Prepared, Setting
from models.outputs import KINDS, Outputs, Shapes
from models.randomness import generator, keyed

CLASSES, SIZE = 10, 16
BATCHES = (64, 16, 8, 4, 2, 1)
TEACHER, STUDENT = PAIR = ("resnet14", "resnet8")


def pictures(count: int, seed: int = 0, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Images (count, 3, size, size) with a grating and a colour for each class, and noise; labels (count,)."""
    g = generator(seed, "pictures")
    labels = torch.randint(CLASSES, (count,), generator=g)
    angle = labels * (torch.pi / CLASSES)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    phase = 6 * (x * angle.cos().view(-1, 1, 1) + y * angle.sin().view(-1, 1, 1)) + 6 * torch.rand(count, 1, 1, generator=g)
    colour = torch.stack([angle.cos(), angle.sin(), (2 * angle).cos()], 1).view(-1, 3, 1, 1)
    return phase.sin().unsqueeze(1) + colour + 0.5 * torch.randn(count, 3, size, size, generator=g), labels


class Images:
    """methods.base.PreparationData over `pictures`."""

    device = torch.device("cpu")
    classes = CLASSES

    def __init__(self, count: int = 64) -> None:
        self.count = count
        self.images, self.labels = pictures(count)
        self.saved: list[Mapping[str, Any]] = []
        self.stop_after: int | None = None  # saves

    def batches(self, batch_size: int, *, epoch: int = 0, augment: bool = False, shuffle: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(self.count, generator=self.generator("order", epoch)) if shuffle else torch.arange(self.count)
        for index in order.split(batch_size):
            images = self.images[index]
            yield images.flip(3) if augment and epoch % 2 else images, self.labels[index]

    def generator(self, purpose: str, epoch: int = 0) -> torch.Generator:
        return generator(0, purpose, epoch)

    def log(self, message: str) -> None:
        assert "\n" not in message

    def resume(self) -> Mapping[str, Any] | None:
        return copy.deepcopy(self.saved[-1]) if self.saved else None

    def save(self, state: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self.saved.append(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
        if len(self.saved) == self.stop_after:
            raise Halted


class Halted(Exception):
    """A preparation was stopped in a test."""


class Stub(nn.Module):
    """A network with the outputs of `shapes`, each a fixed random projection of the pooled images: any architecture in no time.

    Its classifier and the normalisations behind its stages have the shapes of the architecture's and no part in its outputs.
    """

    head = "classifier"

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.shapes = shapes
        self.classifier = nn.Linear(shapes.embedding, shapes.classes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c, _, _ in shapes.maps["preact"][1:])
        g = generator(0, f"stub/{shapes.name}")
        self.maps = {k: [torch.randn(c, 3, generator=g) for c, _, _ in sizes] for k, sizes in shapes.maps.items()}
        self.embed, self.logits = torch.randn(3, shapes.embedding, generator=g), torch.randn(3, shapes.classes, generator=g)

    def forward(self, x: Tensor, kinds: tuple[str, ...] = ()) -> Outputs:
        maps = {}
        for kind in kinds:
            sizes = [(h, w) for _, h, w in self.shapes.maps[kind]]
            pairs = zip(sizes, self.maps[kind], strict=True)
            signed = [torch.einsum("bchw,dc->bdhw", nn.functional.interpolate(x, size), weight) for size, weight in pairs]
            maps[kind] = tuple(m if kind == "preact" else m.relu() for m in signed)
        pooled = x.mean((2, 3))
        return Outputs(pooled @ self.logits, (pooled @ self.embed).relu(), maps)

    def stage_norms(self) -> tuple[nn.Module, ...]:
        return tuple(self.norms)


@functools.cache
def setting(teacher: str = TEACHER, student: str = STUDENT) -> Setting:
    return Setting(models.shapes(student, CLASSES, SIZE), models.shapes(teacher, CLASSES, SIZE), CLASSES, 64)


def network(name: str, purpose: str) -> nn.Module:
    """A network in train mode with keyed initial weights."""
    with keyed(0, purpose):
        return models.build(name, CLASSES).to(memory_format=torch.channels_last)


@functools.cache
def frozen_teacher() -> nn.Module:
    """A teacher whose running statistics have seen the images, frozen, in evaluation mode."""
    teacher = network(TEACHER, "teacher")
    with torch.no_grad():
        for seed in range(20):
            teacher(pictures(32, seed)[0])
    return teacher.eval().requires_grad_(False)


def hyper_of(method: type[Method], teacher: str = TEACHER, student: str = STUDENT) -> Any:
    """The method's settings for a pair; a Hyper with a classmethod `quick` says itself what is small enough for tests."""
    quick = getattr(method.Hyper, "quick", None)
    return quick() if quick else method.hyper_for(teacher, student)


@functools.cache
def prepared(name: str, pair: tuple[str, str] = PAIR) -> Prepared | None:
    """The method's preparation, built once; the teacher is a stub but for the usual pair."""
    method, used = registry.get(name), setting(*pair)
    preparation = method.preparation(hyper_of(method, *pair), used)
    if preparation is None:
        return None
    return preparation.build(frozen_teacher() if pair == PAIR else Stub(used.teacher).eval(), Images())


def made(name: str, purpose: str = "method", pair: tuple[str, str] = PAIR) -> Method:
    """A method in train mode with keyed initial weights, started, its draws made for a step of each size that tests use."""
    method = registry.get(name)
    ready = prepared(name, pair)
    with keyed(0, purpose):
        built = method(hyper_of(method, *pair), setting(*pair), ready).train()
    built.start(Images(setting(*pair).images).labels)
    for batch in BATCHES:
        built.begin_step(torch.arange(batch), generator(0, "draws", batch))
    return built


def asked(outputs: Outputs, needs: Needs) -> Outputs:
    """Only what was asked for; the rest is None, so that reading it fails."""
    logits = outputs.logits if needs.logits else None
    embedding = outputs.embedding if needs.embedding else None
    return Outputs(logits, embedding, {kind: outputs.maps[kind] for kind in needs.maps})


@dataclass
class Case:
    """A method with its student: what a learner has, without the trainer."""

    name: str
    method: Method
    student: nn.Module

    @classmethod
    def of(cls, name: str) -> "Case":
        return cls(name, made(name), network(STUDENT, "student").train())

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for m in (self.student, self.method) for p in m.parameters() if p.requires_grad]

    def teacher_outputs(self, images: Tensor) -> Outputs | None:
        needs = self.method.teacher_needs(self.method.hyper)
        if not needs:
            return None
        with torch.no_grad():
            return asked(frozen_teacher()(images, needs.maps), needs)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        outputs = self.student(images, self.method.student_needs(self.method.hyper).maps)
        return self.method.losses(outputs, self.teacher_outputs(images), Batch(labels, torch.arange(len(labels))))

    def step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Losses and gradients, as the trainer makes them."""
        losses = self.losses(images, labels)
        for parameter in self.parameters:
            parameter.grad = None
        backward(self.method, losses, self.parameters)
        return losses


def backward(method: Method, losses: dict[str, Tensor], parameters: list[nn.Parameter]) -> None:
    if method.own_backward:
        method.backward(losses, parameters)
    else:
        sum(losses.values()).backward()


def made_up(shapes: Shapes, batch: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Outputs:
    """Random outputs with these shapes: logits signed, embedding and maps after a ReLU, but for pre-activations."""
    g = generator(seed, f"outputs/{shapes.name}")

    def draw(*size: int) -> Tensor:
        return scale * torch.randn(batch, *size, generator=g)

    maps = {k: tuple((draw(*s) if k == "preact" else draw(*s).relu()).to(dtype) for s in shapes.maps[k]) for k in KINDS}
    return Outputs(draw(shapes.classes).to(dtype), draw(shapes.embedding).relu().to(dtype), maps)


def tensors(outputs: Outputs) -> list[Tensor]:
    """Every tensor of the outputs, once."""
    found = [outputs.logits, outputs.embedding, *(m for group in outputs.maps.values() for m in group)]
    return [t for t in found if t is not None]
