"""What a network is run with: device, images, teacher, preparations and learners, set up in one way for every command that needs them."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

import models
from bench import data
from bench.data import Dataset
from bench.data.augment import Augmenter
from bench.errors import UsageError
from bench.plan.groups import Group
from bench.plan.members import Member, resolve
from bench.plan.protocols import Protocol
from bench.store import teachers
from bench.train import engine, environment, preparations, teacher_networks
from bench.train.execution import Execution
from bench.train.learner import Learner
from methods.base import Method, Preparation, Prepared, Setting
from models.randomness import keyed

PLACEHOLDER_PER_CLASS = 3
"""Training images of each class that a placeholder preparation sees."""
UNTRAINED_SEED = 1
CALIBRATING = 64
"""Images whose statistics the normalisations of an untrained teacher hold."""


def runs_of(group: Group, dataset: Dataset, teacher_hash: str | None) -> list[Member]:
    """The members of a group on a loaded data set."""
    return resolve(group, dataset.hash, len(dataset.classes), dataset.image_size, len(dataset.train_labels), teacher_hash)


def quick(hyper: Any) -> Any:
    """Hyper-parameters with what their class's `quick()` settings change, where it has such: preparations get shorter, a step's shapes stay."""
    if not hasattr(hyper, "quick"):
        return hyper
    short, usual = type(hyper).quick(), type(hyper)()
    names = [f.name for f in dataclasses.fields(hyper) if getattr(short, f.name) != getattr(usual, f.name)]
    return dataclasses.replace(hyper, **{name: getattr(short, name) for name in names})


class Context:
    """The device, the data set and the teacher of one protocol and precision. The teacher is loaded when it is first asked for, once.

    `untrained`: for what measures time and no more. Where the results folder holds no such teacher, one with initial weights stands in
    (records say so), and one that is there is not tested first.
    Raises UsageError for a device, engine or data set that is not there, and for a device without room for the data set.
    """

    def __init__(
        self,
        protocol: Protocol,
        precision: str,
        execution: Execution,
        teacher: str | None = None,
        *,
        untrained: bool = False,
        dataset: Dataset | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.execution, self.precision, self.untrained, self.check = execution, precision, untrained, check
        self.architecture = teacher
        self.results = Path(execution.results)
        self.device = environment.select(execution.device)
        environment.configure(precision, execution.threads, execution.deterministic)
        self.engine = engine.choose(execution.engine, self.device)
        self.dataset = dataset or data.load(protocol, Path(execution.data_root) if execution.data_root else None, execution.download)
        try:
            self.images = Augmenter(self.dataset, self.device, channels_last=True)
        except RuntimeError as error:
            if not engine.is_short_of_memory(error):
                raise
            raise UsageError(f"{self.device} has no room for the data set; free its memory, or choose another --device") from None
        self._teacher: nn.Module | None = None

    @cached_property
    def teacher_file(self) -> teachers.TeacherFile | None:
        """The teacher in the results folder. Raises UsageError where it is missing and no untrained one may stand in."""
        seek = teachers.find if self.untrained else teachers.require
        return seek(self.results, self.dataset.name, self.architecture)

    @property
    def teacher_hash(self) -> str:
        return self.teacher_file.hash if self.teacher_file else "untrained"

    def teacher(self) -> nn.Module:
        """The frozen network on the device, in eval mode; one from the results folder is verified first."""
        if self._teacher is None:
            if self.untrained:
                self._teacher = self._stand_in()
            else:
                self._teacher = teacher_networks.load(self.teacher_file, self.dataset, self.images, self.device, self.check)
        return self._teacher

    def _stand_in(self) -> nn.Module:
        if file := self.teacher_file:
            return teacher_networks.read(self.architecture, file.folder / "teacher.pt", file.hash, len(self.dataset.classes), self.device)
        with keyed(UNTRAINED_SEED, f"init/{self.architecture}"):
            network = models.build(self.architecture, len(self.dataset.classes))
        _calibrate(network, next(iter(self.images.test_batches(CALIBRATING)))[0].cpu())
        return network.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def release_teacher(self) -> None:
        """Drop the network; it is loaded again when it is next asked for."""
        self._teacher = None

    def resolved(self, group: Group) -> list[Member]:
        """The runs of a group on this data, with the hash of the teacher for those that depend on it."""
        members = runs_of(group, self.dataset, None)
        return runs_of(group, self.dataset, self.teacher_hash) if any(m.run.teacher for m in members) else members

    @cached_property
    def origin(self) -> preparations.Origin:
        """What a preparation is built from here."""
        return self.origin_of(self.teacher, self.teacher_hash)

    def origin_of(self, network: Callable[[], nn.Module], weights_hash: str) -> preparations.Origin:
        """The same with another network in the teacher's place."""
        arithmetic = environment.arithmetic(self.precision, self.device)
        seen = preparations.TrainingImages(self.dataset, self.images, self.check)
        return preparations.Origin(network, weights_hash, self.dataset.hash, arithmetic, seen)

    def preparation_of(self, method: type[Method], hyper: Any, architecture: str) -> Preparation:
        """What a method prepares from a network of this architecture, for whatever student. Raises UsageError where that is nothing."""
        shapes = models.shapes(architecture, len(self.dataset.classes), self.dataset.image_size)
        wanted = method.preparation(hyper, Setting(shapes, shapes, len(self.dataset.classes), len(self.dataset.train_labels)))
        if wanted is None:
            raise UsageError(f"{method.name} prepares nothing from a teacher: nothing to do")
        return wanted

    def prepare(self, member: Member, log: Callable[[str], None]) -> preparations.Built | None:
        """The member's preparation, built or read; None where its method has none. Raises MethodError or UsageError."""
        wanted = member.method.preparation(member.hyper, member.setting)
        return preparations.obtain(self.results, wanted, self.origin, log) if wanted else None

    def learner(self, member: Member, log: Callable[[str], None], pretraining: bool = False) -> tuple[Learner, preparations.Built | None]:
        """A fresh learner, of the main stage or of the one before it, and what was prepared for it. Raises MethodError or UsageError."""
        built = self.prepare(member, log)
        prepared, stage = built.prepared if built else None, member.pretraining() if pretraining else None
        return Learner(member.run, member.method, member.hyper, member.setting, prepared, self.device, stage), built

    def timed_preparation(self, member: Member) -> tuple[Any, Prepared | None, preparations.Built | None]:
        """Hyper-parameters, preparation and, where it was stored, its facts, for steps that are timed and no more: what is not stored is
        replaced by a quick one made from a few images."""
        hyper, wanted = member.hyper, member.method.preparation(member.hyper, member.setting)
        if wanted is None:
            return hyper, None, None
        if built := preparations.stored(self.results, wanted, self.origin):
            return hyper, built.prepared, built
        hyper, few = quick(hyper), _few(self.dataset)
        seen = preparations.TrainingImages(few, Augmenter(few, self.device, channels_last=True), self.check)
        wanted = member.method.preparation(hyper, member.setting)
        return hyper, wanted.build(self.teacher(), seen.named(wanted.name)), None

    def timed_learner(self, member: Member) -> Learner:
        """A learner whose steps may be timed and no more."""
        hyper, prepared, _ = self.timed_preparation(member)
        return Learner(member.run, member.method, hyper, member.setting, prepared, self.device)


@torch.no_grad()
def _calibrate(network: nn.Module, images: torch.Tensor) -> None:
    """Give the normalisations the statistics of these images (B, 3, H, W): with the initial ones an untrained network's maps grow from block to
    block until what is fitted to them diverges."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(images)


def _few(dataset: Dataset) -> Dataset:
    """The data set with the first training images of each class."""
    labels = dataset.train_labels
    keep = torch.cat([(labels == c).nonzero().flatten()[:PLACEHOLDER_PER_CLASS] for c in range(len(dataset.classes))]).sort().values
    return dataclasses.replace(dataset, train_images=dataset.train_images[keep], train_labels=labels[keep])
