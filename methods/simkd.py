"""SimKD: the student learns nothing but the teacher's last map, through a projector, and takes over the teacher's classifier.

Chen et al.: Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022. No cross-entropy: what is evaluated is the teacher's
classifier on the pooled projection, so projector and classifier belong to the student's cost when it is used. The teacher's map is the
one its classifier reads; the authors' code takes a WRN teacher's signed sums instead, which the projector's last ReLU cannot reach and
the classifier does not fit. The student's is its last stage's, as in the code. One setting for every pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from methods._maps import batch_normalised, pooled_to
from methods._teacher import WithClassifier
from methods.base import Batch, Inference, Needs, Prepared, Setting, ranged
from methods.fitnet import hint_loss
from methods.registry import register
from models.layers import pooled
from models.outputs import Outputs


@dataclass(frozen=True)
class Hyper:
    """The authors' values."""

    weight: float = ranged(1.0, at_least=0)  # of the mean over all elements of (projection - teacher's map)^2
    factor: int = ranged(2, at_least=1)  # the projector's width is the teacher's over this


def _convolutions(hyper: Hyper, setting: Setting) -> Sequence[tuple[int, int, int]]:
    """The projector's: (channels in, channels out, kernel)."""
    narrow, wide = setting.student.maps["stage"][-1][0], setting.teacher.maps["last"][0][0]
    middle = max(wide // hyper.factor, 1)
    return (narrow, middle, 1), (middle, middle, 3), (middle, wide, 1)


def _size(setting: Setting) -> tuple[int, int]:
    """(H, W) at which the maps meet: the smaller one's; the larger is average-pooled."""
    student, teacher = setting.student.maps["stage"][-1], setting.teacher.maps["last"][0]
    return min(student[1], teacher[1]), min(student[2], teacher[2])


@register("simkd")
class SimKD(WithClassifier):
    title = "SimKD"
    paper = "Chen et al., Knowledge Distillation with the Reused Teacher Classifier, CVPR 2022"
    Hyper = Hyper
    teacher_outputs = Needs(maps=("last",))
    student_outputs = Needs(maps=("stage",))
    fp32 = True
    uses_labels = False

    @classmethod
    def inference(cls, hyper: Hyper, setting: Setting) -> Inference:
        """The projector and the teacher's classifier, less what stands behind the student's last stage, which is left out."""
        height, width = _size(setting)
        weights = [narrow * wide * kernel**2 for narrow, wide, kernel in _convolutions(hyper, setting)]
        norms = sum(2 * wide for _, wide, _ in _convolutions(hyper, setting))
        classifier = setting.teacher.embedding * setting.classes
        parameters, macs = setting.student.behind
        return Inference(sum(weights) + norms + classifier + setting.classes - parameters, height * width * sum(weights) + classifier - macs)

    def __init__(self, hyper: Hyper, setting: Setting, prepared: Prepared | None = None) -> None:
        super().__init__(hyper, setting, prepared)
        layers: list[nn.Module] = []
        for narrow, wide, kernel in _convolutions(hyper, setting):
            layers += [nn.Conv2d(narrow, wide, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(wide)]
        self.projector = nn.ModuleList(layers)

    def projected(self, student: Outputs) -> Tensor:
        """The student's map in the teacher's shape; after each normalisation comes a ReLU."""
        x = pooled_to(student.maps["stage"][-1], *_size(self.setting))
        for convolution, norm in zip(self.projector[::2], self.projector[1::2], strict=True):
            x = batch_normalised(norm, convolution(x))
        return x

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        target = pooled_to(teacher.maps["last"][0], *_size(self.setting))
        return {"simkd": self.hyper.weight * hint_loss(self.projected(student), target)}

    def predict(self, student: Outputs) -> Tensor:
        return F.linear(pooled(self.projected(student)), self.weight, self.bias)
