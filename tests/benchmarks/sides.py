"""The two sides of the comparison, from the same data, draws and weights: the suite's group, and the reference's trainers, one a method."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import models
from bench import data
from bench.data import augment
from bench.plan.groups import Group
from bench.plan.members import Member, resolve
from bench.plan.protocols import get
from bench.store.weights import read_state
from bench.train import engine
from bench.train.learner import Learner
from methods.base import Prepared
from methods.skd.loss import distribution, relation
from models.randomness import keyed
from tests.benchmarks import reference

SEED, CPU = 1, torch.device("cpu")


@functools.cache
def real(root: Path) -> data.Dataset:
    """CIFAR-100 below that data root, read and checked once in a process."""
    return data.load(get("crd"), root)


def images(count: int) -> data.Dataset:
    """The real training set where KD_BENCH_DATA names it, else random images of its size."""
    if root := os.environ.get("KD_BENCH_DATA"):
        return real(Path(root))
    source = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count + 100, 3, 32, 32), generator=source, dtype=torch.uint8)
    labels = torch.randint(100, (count + 100,), generator=source)
    classes = tuple(f"class {i}" for i in range(100))
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    train, test = slice(count), slice(count, None)
    return data.Dataset("random", pixels[train], labels[train], pixels[test], labels[test], classes, (0,) * 100, mean, std, "0" * 16)


class Images(augment.Augmenter):
    """The trainer's images in the type of the comparison."""

    dtype = torch.float32

    def train_batch(self, *arguments: torch.Tensor) -> torch.Tensor:
        return super().train_batch(*arguments).to(self.dtype)


def vectors(member: Member) -> Prepared | None:
    """Semantic vectors drawn at random where the method needs them: a step costs the same with any."""
    preparation = member.method.preparation(member.hyper, member.setting)
    if preparation is None:
        return None
    source = torch.Generator().manual_seed(0)
    tensors = {}
    for layer, (channels, _, _) in enumerate(member.setting.teacher.maps["stage"][1:], 1):
        tensors[f"S.stage{layer}"] = torch.randn(channels, member.hyper.dimensions, generator=source)
        p = distribution(relation(tensors[f"S.stage{layer}"]))
        tensors |= {f"p.stage{layer}": p, f"P.stage{layer}": p}
    return Prepared(tensors, preparation.settings)


class Sides:
    """`group` (an engine with `learners`), `bare` learners for steps on a ready batch, and the reference's `trainers`, which autocast
    nothing. All begin with the same weights."""

    def __init__(
        self,
        dataset: data.Dataset,
        teacher: str,
        student: str,
        dtype: torch.dtype = torch.float32,
        batch: int = reference.BATCH,
        methods: Sequence[str] = reference.METHODS,
        precision: str = "tf32",
    ) -> None:
        self.dataset, self.dtype, self.size, self.precision = dataset, dtype, batch, precision
        self.methods = tuple(methods)
        self.draws = augment.draws(SEED, 1, len(dataset.train_labels))
        self.format = torch.channels_last if dtype == torch.float32 else torch.contiguous_format  # doubles have no fast channels-last
        self.data = Images(dataset, CPU, channels_last=dtype == torch.float32)
        self.data.dtype = dtype
        self.teacher = self._teacher(teacher).to(dtype, memory_format=self.format)
        self.learners, self.bare = self._learners(teacher, student), self._learners(teacher, student)
        self.group = engine.choose("auto", CPU)(self.data, self.teacher, self.learners, precision)
        self.group.begin_epoch(self.draws)
        self.position = 0
        self.trainers = self._trainers(teacher, student)

    @staticmethod
    def _teacher(name: str) -> nn.Module:
        with keyed(SEED, f"init/{name}"):
            network = models.build(name)
        file = os.environ.get("KD_BENCH_TEACHER")
        if file and name == "resnet56":
            network.load_state_dict(read_state(Path(file)))
        return network.eval().requires_grad_(False)

    def _learners(self, teacher: str, student: str) -> list[Learner]:
        protocol = dataclasses.replace(get("crd"), dataset=self.dataset.name)
        group = Group(teacher, student, SEED, protocol, self.precision, self.methods)
        members = resolve(group, self.dataset.hash, 100, 32, len(self.dataset.train_labels), "teacher")
        learners = [Learner(m.run, m.method, m.hyper, m.setting, vectors(m), CPU) for m in members]
        for learner in learners:
            learner.student.to(self.dtype, memory_format=self.format)
            learner.method.to(self.dtype)
            for state in learner.optimizer.state.values():
                state["momentum_buffer"] = state["momentum_buffer"].to(self.dtype)
            learner.begin_epoch(1)
        return learners

    def _trainers(self, teacher: str, student: str) -> list[reference.Trainer]:
        def network(name: str, ours: nn.Module) -> reference.ResNet:
            theirs = reference.ResNet(name).to(self.dtype)
            theirs.load_state_dict(ours.state_dict())
            return theirs

        d = self.draws
        pictures = reference.PilImages(
            self.dataset.train_images, self.dataset.train_labels, self.dataset.mean, self.dataset.std, (d.dy, d.dx, d.flip)
        )
        frozen = network(teacher, self.teacher).requires_grad_(False)
        trainers = []
        for learner in self.learners:
            name = learner.run.method
            own_student = network(student, learner.student)
            extra = reference.auxiliary(name, own_student.widths).to(self.dtype)
            own = [t for t in learner.method.state_dict().values() if t.is_floating_point()]
            theirs = [t for t in extra.state_dict().values() if t.is_floating_point()]
            for target, value in zip(theirs, own, strict=True):
                target.copy_(value)
            with_teacher = frozen if name not in reference.TEACHERLESS else None
            order = reference.loader(pictures, d.order.tolist(), self.size)
            trainers.append(reference.Trainer(name, own_student, with_teacher, order, extra))
        return trainers

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        """The augmented images at these dataset positions."""
        return self.data.train_batch(index, self.draws.dy, self.draws.dx, self.draws.flip)

    def group_step(self) -> None:
        """The next batch of the epoch, for the whole group."""
        if self.position + self.size > len(self.draws.order):
            self.position = 0
        failed = self.group.step(self.position, self.position + self.size)
        assert not failed, failed
        self.position += self.size

    def clear_losses(self) -> None:
        for learner in self.learners:
            learner.clear_sums()

    def group_losses(self) -> list[float]:
        """Each learner's loss summed over the steps since its sums were cleared (every step a full batch)."""
        return [sum(v.item() for name, v in one.sums.items() if name.startswith("loss/")) / self.size for one in self.learners]
