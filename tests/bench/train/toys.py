"""Methods made for tests of the contract between trainer and method, and how they are registered for a test."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from methods import registry
from methods.base import Inference, Method, Needs, ParameterGroup, Pretraining

DRAWN = 8


@contextlib.contextmanager
def registered(**classes: type[Method]) -> Iterator[None]:
    """These methods are in the registry, each under its keyword, inside only."""
    registry.names()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "source_hash", lambda name: "0" * 16)
        try:
            for name, cls in classes.items():
                registry.register(name)(cls)
            yield
        finally:
            for name in classes:
                registry._methods.pop(name, None)


class Plain(Method):
    """Cross-entropy, written anew."""

    title = paper = "plain"

    def losses(self, student, teacher, batch):
        return {"ce": F.cross_entropy(student.logits, batch.labels)}


class Everything(Method):
    """Uses all of the contract at once: labels, draws for a step, a stage before the main one, a bank, a rate of its own, its own logits."""

    title = paper = "everything"
    teacher_outputs = Needs(logits=True)
    student_outputs = Needs(logits=True, embedding=True, maps=("stage",))
    unreleased = ("bank", "seen")

    def __init__(self, hyper, setting, prepared=None):
        super().__init__(hyper, setting, prepared)
        size, channels = setting.student.embedding, setting.student.maps["stage"][1][0]
        self.project = nn.Sequential(nn.Linear(size, setting.classes), nn.BatchNorm1d(setting.classes))
        self.connect = nn.Conv2d(channels, 4, 1)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("bank", torch.zeros(setting.images, size))
        self.register_buffer("seen", torch.zeros(setting.images, dtype=torch.bool))
        self.register_buffer("count", torch.zeros(setting.classes), persistent=False)
        self.register_buffer("drawn", torch.zeros(DRAWN, dtype=torch.int64), persistent=False)

    @classmethod
    def pretraining(cls, hyper, setting):
        return Pretraining(epochs=2, rate=0.02)

    @classmethod
    def inference(cls, hyper, setting):
        return Inference(parameters=(setting.student.embedding + 3) * setting.classes, macs=setting.student.embedding * setting.classes)

    def parameter_groups(self):
        return (ParameterGroup([self.scale], rate=0.1, weight_decay=0.0),)

    def start(self, labels):
        self.count.copy_(torch.bincount(labels, minlength=len(self.count)))

    def begin_step(self, index, generator):
        self.drawn.copy_(torch.randint(len(self.bank), (DRAWN,), generator=generator, device=index.device))

    def losses(self, student, teacher, batch):
        near = self.bank.index_select(0, self.drawn).mean(0)
        rare = (1 / (1 + self.count.index_select(0, batch.labels))).mean()
        with torch.no_grad():
            self.bank.index_copy_(0, batch.index, student.embedding.to(self.bank.dtype))
            self.seen.index_fill_(0, batch.index, True)
        return {
            "ce": F.cross_entropy(student.logits, batch.labels),
            "own": self.scale * F.mse_loss(self.predict(student), teacher.logits),
            "bank": rare * (student.embedding - near).pow(2).mean(),
        }

    def pretraining_losses(self, student, teacher, batch):
        drawn = self.drawn.double().mean() / len(self.bank)
        first, last = student.maps["stage"][1], student.maps["stage"][-1]
        return {"connect": self.scale * (self.connect(first) - drawn).pow(2).mean(), "wide": last.pow(2).mean()}

    def predict(self, student):
        return self.project(student.embedding)
