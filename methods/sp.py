"""SP: images that look alike to the teacher look alike to the student.

Tung and Mori: Similarity-Preserving Knowledge Distillation, ICCV 2019, on the last stage's maps with the paper's weight, as in the CRD
protocol.
"""

from torch import Tensor
from torch.nn import functional as F

from methods._maps import Weighted, only_weight, unit
from methods.base import Needs
from methods.registry import register
from models.outputs import Outputs


def similarities(maps: Tensor) -> Tensor:
    """G with rows Q_i / |Q_i|_2, Q = F F^T, F the maps (B, ...) as rows -> (B, B). An image whose map is 0 gets row 0, and no gradient."""
    rows = maps.movedim(1, -1).flatten(1)  # a view of channels-last maps; inner products know no order
    return unit(rows @ rows.T)


def sp_loss(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """1 / B^2 * |G_t - G_s|_F^2; maps (B, C, H, W), other dimensions than B may differ -> scalar (Tung and Mori 2019, Eq. 4)."""
    return F.mse_loss(similarities(student_maps), similarities(teacher_maps))


@register("sp")
class SP(Weighted):
    title = "SP"
    paper = "Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019"
    Hyper = only_weight(3000.0)  # the paper's
    teacher_outputs = Needs(maps=("stage",))
    term = "sp"

    def loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        return sp_loss(student.maps["stage"][-1], teacher.maps["stage"][-1])
