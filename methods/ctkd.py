"""CTKD: KD whose temperature is learned against the student, harder from epoch to epoch.

Li et al.: Curriculum Temperature for Knowledge Distillation, AAAI 2023, the global variant (one temperature for all images), the only one in
the authors' code. Values are those of its script: T between 1 and 21, theta from 1 (T starts at 15.6), strength from 0 to 1 by half a cosine in 10
epochs, weights of the CRD protocol's KD; theta is trained like any other weight, decay included. Which variant the printed table
rests on is not known.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Batch, Method, Needs, Prepared, Setting, ranged
from methods.kd import kd_loss
from methods.registry import register
from models.outputs import Outputs


def reversed_gradient(x: Tensor, strength: Tensor) -> Tensor:
    """x, whose gradient comes back times -strength; shapes as x (Li et al. 2023)."""
    return x.detach() - strength * (x - x.detach())


def strength_at(epoch: int, epochs: int) -> float:
    """0 before epoch 1, 1 from epoch `epochs` on, half a cosine between (Li et al. 2023)."""
    return 0.5 * (1.0 - math.cos(math.pi * min(epoch / epochs, 1.0)))


@dataclass(frozen=True)
class Hyper:
    """The authors' script."""

    ce_weight: float = ranged(0.1, at_least=0)
    kd_weight: float = ranged(0.9, at_least=0)
    lowest: float = ranged(1.0, above=0)  # temperature
    span: float = ranged(20.0, above=0)  # above it
    initial: float = ranged(1.0)  # theta; T = lowest + span sigmoid(theta)
    epochs: int = ranged(10, at_least=1)  # until the gradient is reversed in full


@register("ctkd")
class CTKD(Method):
    title = "CTKD"
    paper = "Li et al., Curriculum Temperature for Knowledge Distillation, AAAI 2023"
    Hyper = Hyper
    teacher_outputs = Needs(logits=True)
    fp32 = True

    def __init__(self, hyper: Hyper, setting: Setting, prepared: Prepared | None = None) -> None:
        super().__init__(hyper, setting, prepared)
        self.theta = nn.Parameter(torch.tensor(float(hyper.initial)))
        self.register_buffer("strength", torch.tensor(strength_at(1, hyper.epochs)))

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        self.strength.fill_(strength_at(epoch, self.hyper.epochs))

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        h = self.hyper
        temperature = h.lowest + h.span * reversed_gradient(self.theta, self.strength).sigmoid()
        return {
            "ce": h.ce_weight * F.cross_entropy(student.logits, batch.labels),
            "kd": h.kd_weight * kd_loss(student.logits, teacher.logits, temperature),
        }
