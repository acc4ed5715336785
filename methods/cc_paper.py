"""CC as the paper states it: the correlation matrix of a batch under a Gaussian kernel matches the teacher's, beside KD.

Peng et al.: Correlation Congruence for Knowledge Distillation, ICCV 2019: alpha CE + (1 - alpha) KD + beta CC, with gamma = 0.4 and order
P = 2. What differs: batches are the ones all methods share, not those of the paper's class- and superclass-uniform samplers; alpha and
the temperature are those of the KD row (CRD protocol), so that the two rows differ by the correlation alone; beta = 100 is
Knowledge-Distillation-Zoo's for this very form (mean squared error on unit embeddings). Torchdistill's ImageNet sample has alpha = 0,
temperature 1 and beta = 0.003 on an unsquared norm instead. No projection: matrices are (B, B) whatever the widths.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from methods import kd
from methods._maps import unit
from methods.base import Batch, Method, Needs, ranged
from methods.registry import register
from models.outputs import Outputs


def correlations(embedding: Tensor, gamma: float, order: int) -> Tensor:
    """exp(-2 gamma) sum_{p=0..order} (2 gamma)^p / p! (x_i . x_j)^p, x the embeddings (B, D) scaled to norm 1 -> (B, B).

    Taylor series of exp(-gamma |x_i - x_j|^2), which needs norm 1 (Peng et al. 2019, section 3.3). An embedding of 0 stays 0, without gradient.
    """
    rows = unit(embedding)
    cosines = rows @ rows.T
    series = torch.ones_like(cosines)
    for p in range(order, 0, -1):  # Horner's scheme
        series = 1.0 + series * cosines * (2.0 * gamma / p)
    return math.exp(-2.0 * gamma) * series


def correlation_loss(student: Tensor, teacher: Tensor, gamma: float, order: int) -> Tensor:
    """1 / B^2 * |K_s - K_t|_F^2; embeddings (B, D), widths may differ -> scalar (Peng et al. 2019, section 3.2)."""
    return F.mse_loss(correlations(student, gamma, order), correlations(teacher, gamma, order))


@dataclass(frozen=True)
class Hyper(kd.Hyper):
    """The paper's kernel and the KD row's weights and temperature; the rest as said above."""

    weight: float = ranged(100.0, at_least=0)
    gamma: float = ranged(0.4, above=0)
    order: int = ranged(2, at_least=1)


@register("cc_paper")
class CCPaper(Method):
    title = "CC (paper)"
    paper = "Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019"
    Hyper = Hyper
    teacher_outputs = Needs(logits=True, embedding=True)
    fp32 = True

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        h = self.hyper
        return {
            "ce": h.ce_weight * F.cross_entropy(student.logits, batch.labels),
            "kd": h.kd_weight * kd.kd_loss(student.logits, teacher.logits, h.temperature),
            "cc": h.weight * correlation_loss(student.embedding, teacher.embedding, h.gamma, h.order),
        }
