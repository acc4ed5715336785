"""TTM: KD without a temperature on the student's side; WTTM weights each image by how soft the transformed teacher is.

Zheng and Yang: Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024. Exponent and weight by pair stand in the paper's
appendix, which was not at hand. Known are two command lines of the authors' README, both for vgg13-vgg8, taken for all pairs here: TTM
with exponent 0.1 and weight 45; WTTM with exponent 0.2 and weight 4, which stand there beside CRD.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from methods.base import Batch, Method, Needs, ranged
from methods.registry import register
from models.outputs import Outputs


def ttm_divergences(student: Tensor, teacher: Tensor, exponent: float) -> Tensor:
    """KL(p^g / sum p^g || q) of each image, p and q the softmax of teacher and student, g the exponent; logits (B, classes) -> (B,).

    p^g / sum p^g is softmax(g z_t) (Zheng and Yang 2024).
    """
    log_p = (exponent * teacher).log_softmax(1)
    return F.kl_div(student.log_softmax(1), log_p, reduction="none", log_target=True).sum(1)


def power_sums(teacher: Tensor, exponent: float) -> Tensor:
    """sum p^g of each image, from 1 for a certain teacher to K^(1 - g) for one that knows nothing; logits (B, K) -> (B,)."""
    return (exponent * teacher.log_softmax(1)).exp().sum(1)


@dataclass(frozen=True)
class Hyper:
    """The authors' README."""

    ce_weight: float = ranged(1.0, at_least=0)
    weight: float = ranged(45.0, at_least=0)
    exponent: float = ranged(0.1, above=0)  # gamma, the inverse of a temperature


@register("ttm")
class TTM(Method):
    title = "TTM"
    paper = "Zheng and Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024"
    Hyper = Hyper
    teacher_outputs = Needs(logits=True)
    fp32 = True

    def weights(self, teacher: Tensor) -> Tensor | float:
        """Of each image; logits (B, classes) -> (B,) or one number."""
        return 1.0

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        divergences = ttm_divergences(student.logits, teacher.logits, self.hyper.exponent)
        return {
            "ce": self.hyper.ce_weight * F.cross_entropy(student.logits, batch.labels),
            "ttm": self.hyper.weight * (self.weights(teacher.logits) * divergences).mean(),
        }


@dataclass(frozen=True)
class WeightedHyper(Hyper):
    """The authors' README, of WTTM beside CRD."""

    weight: float = ranged(4.0, at_least=0)
    exponent: float = ranged(0.2, above=0)


@register("wttm")
class WTTM(TTM):
    title = "WTTM"
    Hyper = WeightedHyper

    def weights(self, teacher: Tensor) -> Tensor:
        return power_sums(teacher, self.hyper.exponent)
