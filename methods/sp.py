"""SP: images that look alike to the teacher look alike to the student.

Tung and Mori: Similarity-Preserving Knowledge Distillation, ICCV 2019, on the last stage's maps with the paper's weight, as in the CRD
protocol.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from methods.base import Batch, Method, Needs, ranged
from methods.registry import register
from models.outputs import Outputs

EPS = 1e-12  # least norm of a row


def similarities(maps: Tensor) -> Tensor:
    """G with rows Q_i / |Q_i|_2, Q = F F^T, F the maps (B, ...) as rows -> (B, B). An image whose map is 0 gets row 0, and no gradient."""
    rows = maps.movedim(1, -1).flatten(1)  # a view of channels-last maps; inner products know no order
    gram = rows @ rows.T
    norm = gram.norm(dim=1, keepdim=True)
    return gram * (norm > EPS) / norm.clamp_min(EPS)


def sp_loss(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """1 / B^2 * |G_t - G_s|_F^2; maps (B, C, H, W), other dimensions than B may differ -> scalar (Tung and Mori 2019, Eq. 4)."""
    return F.mse_loss(similarities(student_maps), similarities(teacher_maps))


@dataclass(frozen=True)
class Hyper:
    """The paper's weight."""

    weight: float = ranged(3000.0, at_least=0)


@register("sp")
class SP(Method):
    title = "SP"
    paper = "Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019"
    Hyper = Hyper
    teacher_outputs = Needs(maps=("stage",))
    fp32 = True

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        return {
            "ce": F.cross_entropy(student.logits, batch.labels),
            "sp": self.hyper.weight * sp_loss(student.maps["stage"][-1], teacher.maps["stage"][-1]),
        }
