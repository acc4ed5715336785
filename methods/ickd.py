"""ICKD: which channels respond together at the end of the last stage, image by image.

Liu et al.: Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation, ICCV 2021, the variant ICKD-C for
classification. Rows of norm 1, the mean over channels and images, and weight 2.5 for every pair are the authors' code's, on which the
published numbers rest (its script once had weight 4). Their row "with KL" is `ickd+kd`.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from methods._maps import batch_normalised, unit
from methods.base import Batch, Method, MethodError, Needs, Prepared, Setting
from methods.registry import register
from models.outputs import Outputs


def correlations(maps: Tensor) -> Tensor:
    """G with rows Q_c / |Q_c|_2, Q = F F^T, F an image's map (B, C, H * W) -> (B, C, C). A channel that is 0 gets row 0, and no gradient."""
    pixels = maps.movedim(1, -1).flatten(1, 2)  # (B, H * W, C), a view of channels-last maps
    return unit(pixels.mT @ pixels)


def ickd_loss(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """1 / (C B) * sum (G_s - G_t)^2; maps (B, C, H, W) of equal B and C, H and W may differ -> scalar (Liu et al. 2021, section 3.2)."""
    return (correlations(student_maps) - correlations(teacher_maps)).square().sum() / (teacher_maps.shape[0] * teacher_maps.shape[1])


@dataclass(frozen=True)
class Hyper:
    """The authors' weight."""

    weight: float = 2.5


@register("ickd")
class ICKD(Method):
    title = "ICKD"
    paper = "Liu et al., Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation, ICCV 2021"
    Hyper = Hyper
    teacher_outputs = Needs(maps=("stage",))
    student_outputs = Needs(logits=True, maps=("stage",))
    fp32 = True

    @classmethod
    def unsupported(cls, hyper: Hyper, setting: Setting) -> str | None:
        return "ickd needs a teacher: name one" if setting.teacher is None else None

    def __init__(self, hyper: Hyper, setting: Setting, prepared: Prepared | None = None) -> None:
        """Raises MethodError without a teacher."""
        super().__init__(hyper, setting, prepared)
        if reason := self.unsupported(hyper, setting):
            raise MethodError(reason)
        narrow, wide = setting.student.maps["stage"][-1][0], setting.teacher.maps["stage"][-1][0]
        self.embed = nn.Sequential(nn.Conv2d(narrow, wide, 1, bias=False), nn.BatchNorm2d(wide))

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        convolution, norm = self.embed
        embedded = batch_normalised(norm, convolution(student.maps["stage"][-1]), relu=False)
        return {
            "ce": F.cross_entropy(student.logits, batch.labels),
            "ickd": self.hyper.weight * ickd_loss(embedded, teacher.maps["stage"][-1]),
        }
