"""FSP: before training, the student learns the teacher's flow: the Gram matrices between the maps of consecutive stages.

Yim et al.: A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning, CVPR 2017. As in the CRD
protocol, 30 epochs on the flow alone at a constant rate, all pairs of stages with weight 1, then plain cross-entropy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

import models
from methods._maps import same_size
from methods.base import NOTHING, Batch, Method, Needs, Pretraining, Setting, ranged
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


@dataclass(frozen=True)
class Hyper:
    """CRD protocol's stage before training."""

    epochs: int = ranged(30, at_least=1)
    rate: float = ranged(0.05, above=0)


@register("fsp")
class FSP(Method):
    title = "FSP"
    paper = "Yim et al., A Gift from Knowledge Distillation, CVPR 2017"
    Hyper = Hyper
    teacher_outputs = Needs(maps=("stage",))
    fp32 = True
    pairs_stages = "stage"

    @classmethod
    def hyper_for(cls, teacher: str | None, student: str) -> Hyper:
        """The stage's rate is the one that the student is trained with at first."""
        return Hyper(rate=0.01) if models.small_rate(student) else Hyper()

    @classmethod
    def unsupported(cls, hyper: Hyper, setting: Setting) -> str | None:
        student, teacher = ([size[0] for size in shapes.maps["stage"]] for shapes in (setting.student, setting.teacher))
        if student != teacher:
            return f"fsp compares maps of equal width: {setting.teacher.name} has {teacher} channels, {setting.student.name} {student}"
        return None

    @classmethod
    def pretraining(cls, hyper: Hyper, setting: Setting) -> Pretraining | None:
        return Pretraining(hyper.epochs, hyper.rate, teacher_after=NOTHING)

    def pretraining_losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        return {"fsp": fsp_loss(student.maps["stage"], teacher.maps["stage"])}

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(student.logits, batch.labels)}
