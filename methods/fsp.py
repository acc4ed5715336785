"""FSP: before training, the student learns the teacher's flow: the Gram matrices between the maps of consecutive stages.

Yim et al.: A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning, CVPR 2017. As in the CRD
protocol, 30 epochs on the flow alone at a constant rate, all pairs of stages with weight 1, then plain cross-entropy.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from methods._maps import same_size
from methods.ab import BeforeTraining, Stage
from methods.base import Batch, Needs, Setting
from methods.registry import register
from models.outputs import Outputs


def flow(bottom: Tensor, top: Tensor) -> Tensor:
    """G[b, i, j] = mean over places of bottom[b, i] * top[b, j]; maps (B, C, H, W) of one network, the larger average-pooled to the
    smaller one's size -> (B, C_bottom, C_top) (Yim et al. 2017, Eq. 1)."""
    bottom, top = (maps.movedim(1, -1).flatten(1, 2) for maps in same_size(bottom, top))
    return bottom.mT @ top / bottom.shape[1]


def fsp_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Sum over consecutive maps of the mean over (B, C, C') of (G_s - G_t)^2; each map (B, C, H, W) as wide as the teacher's -> scalar
    (Yim et al. 2017, Eq. 2)."""
    flows = [[flow(a, b) for a, b in zip(maps, maps[1:], strict=False)] for maps in (student_maps, teacher_maps)]
    return sum(F.mse_loss(s, t) for s, t in zip(*flows, strict=True))


@register("fsp")
class FSP(BeforeTraining):
    title = "FSP"
    paper = "Yim et al., A Gift from Knowledge Distillation, CVPR 2017"
    Hyper = Stage
    teacher_outputs = Needs(maps=("stage",))
    pairs_stages = "stage"

    @classmethod
    def unsupported(cls, hyper: Stage, setting: Setting) -> str | None:
        student, teacher = ([size[0] for size in shapes.maps["stage"]] for shapes in (setting.student, setting.teacher))
        if student != teacher:
            return f"fsp compares maps of equal width: {setting.teacher.name} has {teacher} channels, {setting.student.name} {student}"
        return None

    def pretraining_losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        return {"fsp": fsp_loss(student.maps["stage"], teacher.maps["stage"])}
