"""ITRD: each dimension of the embedding correlates with the teacher's over a batch, and the images' kernel matrix shares its entropy.

Miles, Lopez-Rodriguez, Mikolajczyk: Information Theoretic Representation Distillation, BMVC 2022. What is computed is the authors' code,
on which the published numbers rest: no logarithm in the second term, and the student's own embedding there where the widths agree. The
values are those of the commands that the first README of that code (commit e7ebf53) gives for each pair of CRD's tables; the code's own
defaults have a mutual weight of 0.05.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods._maps import unit
from methods.base import Batch, Method, Needs, Prepared, Setting, ranged
from methods.registry import register
from models.outputs import Outputs

ALIKE = (
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
)
"""The pairs of one architecture in CRD's Table 1."""
STILL = 1e-5
"""A dimension whose deviation in the batch is below this part of its root mean square does not move: in float32 the rest is rounding."""


def standardised(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x - mean) / std over the batch, std with B - 1, and which dimensions move at all; (B, D) -> (B, D), (D,) bool.

    One that does not is 0 and gets no gradient.
    """
    centred = x - x.mean(0)
    scale = x.detach().square().mean(0).sqrt()
    deviation = centred.norm(dim=0) / max(len(x) - 1, 1) ** 0.5
    moves = deviation > STILL * scale
    return centred * moves / torch.where(moves, deviation, 1.0), moves


def correlation_loss(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """log2 sum_d |c_d - 1|^(2 alpha), c_d = 1 / B sum_b of the standardised values' product; both (B, D) -> scalar.

    Dimensions in which the teacher does not move in this batch have no correlation and are left out; without any the loss is 0.
    """
    (s, _), (t, moves) = standardised(student), standardised(teacher)
    distance = ((s * t).mean(0) - 1).square().pow(alpha)
    return ((distance * moves).sum() + (~moves).all()).log2()


def mutual_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """sum (G_s^2 - G_st^2), G_s the cosines of a batch's embeddings over their trace, G_st their product with the teacher's over its own;
    (B, D_s), (B, D_t) -> scalar (order 2, without logarithms)."""
    s, t = unit(student), unit(teacher)
    gram = s @ s.T
    joint = gram * (t @ t.T)
    return (gram / _trace(gram)).square().sum() - (joint / _trace(joint)).square().sum()


def _trace(gram: Tensor) -> Tensor:
    """The trace, at least 1: as many images as have an embedding other than 0."""
    return gram.diagonal().sum().clamp_min(1.0)


@dataclass(frozen=True)
class Hyper:
    """The authors' values for pairs of unlike architectures."""

    correlation_weight: float = ranged(2.0, at_least=0)
    mutual_weight: float = ranged(1.0, at_least=0)
    alpha: float = ranged(1.5, above=0.5)  # order of the entropy


@register("itrd")
class ITRD(Method):
    title = "ITRD"
    paper = "Miles, Lopez-Rodriguez, Mikolajczyk, Information Theoretic Representation Distillation, BMVC 2022"
    Hyper = Hyper
    by_pair = dict.fromkeys(ALIKE, {"alpha": 1.01})
    teacher_outputs = Needs(embedding=True)
    fp32 = True

    def __init__(self, hyper: Hyper, setting: Setting, prepared: Prepared | None = None) -> None:
        """Raises MethodError without a teacher."""
        super().__init__(hyper, setting, prepared)
        self.embed = nn.Linear(setting.student.embedding, setting.teacher.embedding)

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        h, embedded = self.hyper, self.embed(student.embedding)
        compared = student.embedding if student.embedding.shape == teacher.embedding.shape else embedded
        return {
            "ce": F.cross_entropy(student.logits, batch.labels),
            "correlation": h.correlation_weight * correlation_loss(embedded, teacher.embedding, h.alpha),
            "mutual": h.mutual_weight * mutual_loss(compared, teacher.embedding),
        }
