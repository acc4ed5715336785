"""AB: before training, the student's neurons learn on which side of 0 the teacher's are (activation boundaries).

Heo et al.: Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons, AAAI 2019. As in the CRD protocol: 30
epochs on the boundaries alone at a constant rate, all stages before their ReLU, gradients through the whole student, then plain
cross-entropy (the paper goes on with cross-entropy or KD).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
from methods.base import NOTHING, Batch, Method, Needs, Prepared, Pretraining, Setting, ranged
from methods.fitnet import Size, convolution, unreachable
from methods.registry import register
from models.outputs import Outputs


def boundary_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], margin: float = 1.0) -> Tensor:
    """Sum over stages i = 1..n of 2^(i - n) * 3 / (1000 B) * sum over elements of (s + m)^2 where t <= 0 and s > -m, and of (s - m)^2 where
    t > 0 and s <= m; maps before ReLU, (B, C, H, W) in equal shapes -> scalar (Heo et al. 2019, the alternative loss)."""
    total, last = 0.0, len(student_maps) - 1
    for i, (s, t) in enumerate(zip(student_maps, teacher_maps, strict=True)):
        violation = F.relu(margin + torch.where(t > 0, -s, s))  # how far s is from the margin on the teacher's side of 0
        total = total + 2.0 ** (i - last) * 3.0 / (1000.0 * len(s)) * violation.square().sum()
    return total


def _connector(student: Size, teacher: Size) -> nn.Sequential:
    """Empty where the shapes are equal."""
    return nn.Sequential() if student == teacher else nn.Sequential(convolution(student, teacher), nn.BatchNorm2d(teacher[0]))


@dataclass(frozen=True)
class Stage:
    """CRD protocol's stage before training."""

    epochs: int = ranged(30, at_least=1)
    rate: float = ranged(0.05, above=0)


class BeforeTraining(Method):
    """A method that trains the student before the main stage, which then is plain cross-entropy. `Hyper` has the fields of `Stage`."""

    fp32 = True

    @classmethod
    def hyper_for(cls, teacher: str | None, student: str) -> Any:
        """The stage's rate is the one that the student is trained with at first under the CRD protocol, whatever the run's."""
        return cls.Hyper(rate=0.01) if models.small_rate(student) else cls.Hyper()

    @classmethod
    def pretraining(cls, hyper: Stage, setting: Setting) -> Pretraining | None:
        return Pretraining(hyper.epochs, hyper.rate, teacher_after=NOTHING)

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(student.logits, batch.labels)}


@dataclass(frozen=True)
class Hyper(Stage):
    """The margin of the alternative loss."""

    margin: float = ranged(1.0, at_least=0)


@register("ab")
class AB(BeforeTraining):
    title = "AB"
    paper = "Heo et al., Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons, AAAI 2019"
    Hyper = Hyper
    teacher_outputs = Needs(maps=("preact",))
    pairs_stages = "preact"

    @classmethod
    def unsupported(cls, hyper: Hyper, setting: Setting) -> str | None:
        layers = range(1, len(setting.student.maps["preact"]))
        return next(filter(None, (unreachable("ab", setting, "preact", layer) for layer in layers)), None)

    def __init__(self, hyper: Hyper, setting: Setting, prepared: Prepared | None = None) -> None:
        """Raises MethodError where the pair is not supported."""
        super().__init__(hyper, setting, prepared)
        sizes = zip(setting.student.maps["preact"][1:], setting.teacher.maps["preact"][1:], strict=True)
        self.connectors = nn.ModuleList(_connector(s, t) for s, t in sizes)  # trained in the stage before training alone

    def pretraining_losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        connected = [connector(s) for connector, s in zip(self.connectors, student.maps["preact"][1:], strict=True)]
        return {"ab": boundary_loss(connected, teacher.maps["preact"][1:], self.hyper.margin)}
