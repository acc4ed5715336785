"""CC as the CRD protocol runs it: products of feature differences of neighbouring images in the shuffled batch.

Named after Peng et al.: Correlation Congruence for Knowledge Distillation, ICCV 2019, but not the loss that the paper states, for which
see `cc_paper`: no kernel, no correlation matrix, no sampler. Both projections train, and the loss is smallest where both are constant.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from methods._maps import Weighted
from methods.base import Needs, Prepared, Setting, ranged
from methods.registry import register
from models.outputs import Outputs


def cc_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 / (B - 1) * sum_i sum_d delta[i, d] delta[i + 1, d], delta = |z_s - z_t|; projections (B, d) -> scalar; 0 for B = 1.

    Unbounded, and gradients reach both arguments (formula of the CRD protocol's code; the paper has none like it).
    """
    delta = (student - teacher).abs()
    return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)


@dataclass(frozen=True)
class Hyper:
    """CRD protocol's weight and width."""

    weight: float = ranged(0.02, at_least=0)
    width: int = ranged(128, at_least=1)  # of the projections


@register("cc")
class CC(Weighted):
    title = "CC"
    paper = "after Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019, as in the CRD protocol's code"
    Hyper = Hyper
    teacher_outputs = Needs(embedding=True)
    term = "cc"

    def __init__(self, hyper: Hyper, setting: Setting, prepared: Prepared | None = None) -> None:
        super().__init__(hyper, setting, prepared)
        self.project_student = nn.Linear(setting.student.embedding, hyper.width)
        self.project_teacher = nn.Linear(setting.teacher.embedding, hyper.width)

    def loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        return cc_loss(self.project_student(student.embedding), self.project_teacher(teacher.embedding))
