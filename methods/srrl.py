"""SRRL: the student's embedding, brought to the teacher's width, equals the teacher's and gives the teacher's logits under its classifier.

Yang et al.: Knowledge Distillation via Softmax Regression Representation Learning, ICLR 2021: CE and the two losses at weight 1, as in
the authors' code (ImageNet only). There the convolution stands before the pooling; here it stands behind it, as in the public code for
CIFAR-100 (SimKD's), which adds KD: weights 1 and 1 there, 0.1 and 0.9 in CTKD's script (`ce_weight`, `kd_weight`), on which CTKD's
SRRL rows rest. Values by pair are not known.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from methods import kd
from methods._maps import batch_normalised
from methods._teacher import WithClassifier
from methods.base import Batch, Needs, Prepared, Setting, ranged
from methods.registry import register
from models.outputs import Outputs


def srrl_losses(projected: Tensor, embedding: Tensor, logits: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Means over all elements of (f - f_t)^2 and of (W f + b - z_t)^2 -> two scalars (Yang et al. 2021).

    f the projected student's, f_t the teacher's embedding (B, D); z_t the teacher's logits (B, classes), W (classes, D) and b its classifier.
    """
    return F.mse_loss(projected, embedding), F.mse_loss(F.linear(projected, weight, bias), logits)


@dataclass(frozen=True)
class Hyper(kd.Hyper):
    """The authors' weights; no KD."""

    ce_weight: float = ranged(1.0, at_least=0)
    kd_weight: float = ranged(0.0, at_least=0)
    feature_weight: float = ranged(1.0, at_least=0)
    regression_weight: float = ranged(1.0, at_least=0)


@register("srrl")
class SRRL(WithClassifier):
    title = "SRRL"
    paper = "Yang et al., Knowledge Distillation via Softmax Regression Representation Learning, ICLR 2021"
    Hyper = Hyper
    teacher_outputs = Needs(logits=True, embedding=True)
    fp32 = True

    def __init__(self, hyper: Hyper, setting: Setting, prepared: Prepared | None = None) -> None:
        super().__init__(hyper, setting, prepared)
        narrow, wide = setting.student.embedding, setting.teacher.embedding
        self.projector = nn.Sequential(nn.Conv2d(narrow, wide, 1, bias=False), nn.BatchNorm2d(wide))

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        h, (convolution, norm) = self.hyper, self.projector
        projected = batch_normalised(norm, convolution(student.embedding[:, :, None, None])).flatten(1)
        features, regression = srrl_losses(projected, teacher.embedding, teacher.logits, self.weight, self.bias)
        losses = {
            "ce": h.ce_weight * F.cross_entropy(student.logits, batch.labels),
            "features": h.feature_weight * features,
            "regression": h.regression_weight * regression,
        }
        if h.kd_weight:
            losses["kd"] = h.kd_weight * kd.kd_loss(student.logits, teacher.logits, h.temperature)
        return losses
