"""SKD: the relations between the teacher's channels, kept as one semantic vector a channel, teach the student; no teacher in training.

Han et al.: Static Knowledge Distillation, 2022. Stage A (`embedding`, a preparation) fits the vectors to the frozen teacher's activations,
Eq. 1. Stage B (`loss`) pulls the relations of the student's activation maps towards those of the vectors, Eq. 2:
L = CE + beta L_SKD. Layers are the stage ends (RepDistiller's feats[1:-1]); the relation has the shape (C, C), so the student needs the
teacher's channel counts, and spatial sizes may differ. The identity is as good a correspondence of channels as any for a student
trained from scratch; for a pretrained one it is not.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from methods._teacher import read
from methods.base import Batch, Method, MethodError, Needs, Preparation, Prepared, Setting, ranged
from methods.registry import register
from methods.skd.assign import assigned_distribution
from methods.skd.embedding import Embedding, layer_indices
from methods.skd.loss import skd_loss
from models.outputs import Outputs

MODES = ("streaming", "paper")
TARGETS = ("embedding", "P")
FEATURES = ("stage", "relu")
SUMS = ("none", "images", "rows")


@dataclass(frozen=True)
class Hyper:
    """The paper's values; stage A by one pass instead of 100 epochs (same optimum, see `methods.skd.embedding`). Raises MethodError."""

    beta: float = ranged(0.5, at_least=0)  # weight of the loss; 0.05 for vgg13 / vgg8
    mode: str = "streaming"  # stage A; "paper": SGD
    target: str = "embedding"  # "P": the images' mean distribution itself, no vectors (ablation)
    diagonal: bool = True  # False: leave j = i out of the softmax (ablation)
    kind: str = "stage"  # "relu": after the ReLU in every network (differs for WRN)
    temperature: float = ranged(1.0, above=0)  # of the softmax in both stages
    dimensions: int = ranged(16, at_least=1)  # of a semantic vector (K)
    include_block0: bool = False  # VGG: block 0 as well
    assign: bool = False  # not the paper's: a student with fewer channels gets centroids of the teacher's vectors
    seed: int = ranged(0, at_least=0)  # of the vectors' initial values
    fit_steps: int = ranged(1000, at_least=1)  # streaming: steps of the optimiser, at most
    paper_epochs: int = ranged(100, at_least=1)  # paper: epochs of SGD
    sum_over: str = ranged("none", added=True)  # a sum where Eq. 2 has a mean: "images" of the batch, "rows" of a layer (other readings of the paper)

    def __post_init__(self) -> None:
        for name, allowed in (("mode", MODES), ("target", TARGETS), ("kind", FEATURES), ("sum_over", SUMS)):
            if getattr(self, name) not in allowed:
                raise MethodError(f"skd.{name} is {getattr(self, name)!r}; it is one of {', '.join(allowed)}")
        if self.assign and self.target == "P":
            raise MethodError("skd.assign needs the vectors: use it with target=embedding")

    @classmethod
    def quick(cls) -> "Hyper":
        """Small settings for tests: seconds instead of minutes, numbers without meaning."""
        return cls(dimensions=4, fit_steps=5, paper_epochs=1)


def _layers(hyper: Hyper, setting: Setting) -> dict[str, int]:
    return layer_indices(setting.teacher.maps[hyper.kind], hyper.include_block0)


@register("skd")
class SKD(Method):
    title = "SKD"
    paper = "Han et al., Static Knowledge Distillation, 2022"
    Hyper = Hyper
    by_pair = {("vgg13", "vgg8"): {"beta": 0.05}}
    fp32 = True

    @classmethod
    def student_needs(cls, hyper: Hyper) -> Needs:
        return Needs(logits=True, maps=(hyper.kind,))

    @classmethod
    def unsupported(cls, hyper: Hyper, setting: Setting) -> str | None:
        if setting.teacher is None:
            return "skd needs a teacher to prepare its semantic vectors from: name one"
        teacher, student = setting.teacher.maps[hyper.kind], setting.student.maps[hyper.kind]
        names = f"{setting.teacher.name} and {setting.student.name}"
        if len(teacher) != len(student):
            return f"skd pairs stages one to one: {names} have {len(teacher) - 1} and {len(student) - 1}"
        if hyper.include_block0 and not setting.teacher.name.startswith("vgg"):
            return f"skd.include_block0 is for VGG: the first map of {setting.teacher.name} is its stem"
        for layer, i in _layers(hyper, setting).items():
            wide, narrow = teacher[i][0], student[i][0]
            if wide < narrow or (wide > narrow and not hyper.assign):
                hint = "" if wide < narrow else " (assign=True, not the paper's, gives the student centroids)"
                counts = f"{wide} channels in {setting.teacher.name} and {narrow} in {setting.student.name}"
                return f"skd relates channel to channel: {layer} has {counts}{hint}"
        return None

    @classmethod
    def preparation(cls, hyper: Hyper, setting: Setting) -> Preparation | None:
        if setting.teacher is None:
            return None
        embedding = Embedding(_layers(hyper, setting), hyper)
        return Preparation("skd-embedding", 1, embedding.settings(), embedding.build)

    def __init__(self, hyper: Hyper, setting: Setting, prepared: Prepared | None = None) -> None:
        """Raises MethodError where the pair is not supported, or `prepared` is missing or was made with other settings."""
        super().__init__(hyper, setting, prepared)
        check(hyper, setting, prepared)
        self.layers = _layers(hyper, setting)
        for layer, i in self.layers.items():
            channels = setting.student.maps[hyper.kind][i][0]
            if channels == setting.teacher.maps[hyper.kind][i][0]:
                target = prepared.tensors[f"{'P' if hyper.target == 'P' else 'p'}.{layer}"]
            else:
                target = assigned_distribution(prepared.tensors[f"S.{layer}"], channels, hyper.temperature, hyper.diagonal, hyper.seed)
            self.register_buffer(f"target_{layer}", target.to(torch.float32, copy=True))

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        maps = student.maps[self.hyper.kind]
        used = [maps[i] for i in self.layers.values()]
        targets = [getattr(self, f"target_{layer}") for layer in self.layers]
        return {
            "ce": F.cross_entropy(student.logits, batch.labels),
            "skd": self.hyper.beta * skd_loss(used, targets, self.hyper.temperature, self.hyper.diagonal, self.hyper.sum_over),
        }


def check(hyper: Hyper, setting: Setting, prepared: Prepared | None) -> None:
    """Raises MethodError where `prepared` is not what this pair and these hyper-parameters need (the teacher's hash is checked by who stores it)."""
    if prepared is None:
        raise MethodError("skd needs its preparation skd-embedding: build it from the teacher first")
    for name, wanted in Embedding(_layers(hyper, setting), hyper).settings().items():
        found: Any = prepared.facts.get(name)
        if found != wanted:
            raise MethodError(f"skd: the stored vectors were made with {name}={found}, this run asks for {wanted}: prepare again")
    for layer, i in _layers(hyper, setting).items():
        channels = setting.teacher.maps[hyper.kind][i][0]
        read(prepared, "skd", **{f"S.{layer}": (channels, hyper.dimensions), f"p.{layer}": (channels, channels), f"P.{layer}": (channels, channels)})
