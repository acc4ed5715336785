"""RKD: match distances between pairs and angles between triplets of images, both in the pooled embedding.

Park et al.: Relational Knowledge Distillation, CVPR 2019. Weights as in the CRD protocol (25 and 50).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.base import Batch, Method, Needs, ranged
from methods.registry import register
from models.outputs import Outputs

FLOOR = 1e-6  # distance between equal embeddings


def relations(embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (B, B) and angles (B, B, B) of embeddings (B, D) (Park et al. 2019, Eq. 6 and 9).

    Distance: |x_i - x_j|, divided by its mean over i != j. Angle: cosine at i between x_j - x_i and x_k - x_i; 0 where one of them is 0.
    Both come from the inner products alone, <x_j - x_i, x_k - x_i> = x_j x_k - x_i x_j - x_i x_k + x_i x_i, so no (B, B, D) tensor is made.
    A batch of one image gives zeros.
    """
    x = embedding - embedding.detach().mean(0)  # no distance changes (so no gradient is lost), but far less cancels below
    gram = x @ x.T
    square = gram.diagonal()
    total = square.unsqueeze(0) + square.unsqueeze(1)
    squared = total - 2.0 * gram
    same = squared <= 16 * torch.finfo(x.dtype).eps * total  # equal up to rounding; not so NaN, which must show
    root = torch.where(same, 1.0, squared).sqrt()

    distance = torch.where(same, FLOOR, root).fill_diagonal_(0.0)
    count = max(len(x) * (len(x) - 1), 1)
    distance = distance / (distance.sum() / count).clamp_min(FLOOR)

    inverse = torch.where(same, 0.0, root.reciprocal())
    half = 0.5 * square.unsqueeze(1) - gram  # [i, j]
    angle = gram.unsqueeze(0) + half.unsqueeze(2) + half.unsqueeze(1)
    return distance, angle * inverse.unsqueeze(2) * inverse.unsqueeze(1)


def rkd_losses(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth L1 (delta 1), mean over the B^2 distances and over the B^3 angles; embeddings (B, D), widths may differ -> two scalars
    (Park et al. 2019, Eq. 5, 8 and 10)."""
    pairs = zip(relations(student), relations(teacher), strict=True)
    distance, angle = (F.smooth_l1_loss(s, t) for s, t in pairs)
    return distance, angle


@dataclass(frozen=True)
class Hyper:
    """CRD protocol's weights."""

    distance_weight: float = ranged(25.0, at_least=0)
    angle_weight: float = ranged(50.0, at_least=0)


@register("rkd")
class RKD(Method):
    title = "RKD"
    paper = "Park et al., Relational Knowledge Distillation, CVPR 2019"
    Hyper = Hyper
    teacher_outputs = Needs(embedding=True)
    fp32 = True

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        distance, angle = rkd_losses(student.embedding, teacher.embedding)
        return {
            "ce": F.cross_entropy(student.logits, batch.labels),
            "distance": self.hyper.distance_weight * distance,
            "angle": self.hyper.angle_weight * angle,
        }
