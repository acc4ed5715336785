"""KD + LS: KD on logits that are standardised image by image, so that the student need not match the teacher's scale.

Sun et al.: Logit Standardization in Knowledge Distillation, CVPR 2024. Cross-entropy 0.1; temperature and weight by pair as in the authors'
logs, where several settings of a pair were tried on the test set. A softmax does not see the mean that is taken away, so this is NormKD
(Chi et al.: NormKD: Normalized Logits for Knowledge Distillation, 2023) but for the weight of an image: `weighting` "variance" with kd_weight
0.9 and temperature 2, all pairs alike, is that method, there T^2 is (2 std of the teacher's logits)^2.
The paper divides by the deviation with 1 / K; its code, and so the printed numbers, has 1 / (K - 1): `unbiased`. For 100 classes the two differ
as temperatures 2 and 2.01 do.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from methods.base import Batch, Method, Needs, ranged
from methods.registry import register
from models.outputs import Outputs

EPS = 1e-7  # added to the deviation


def deviation(logits: Tensor, unbiased: bool) -> Tensor:
    """Standard deviation over the classes, with 1 / (K - 1) if `unbiased`; (B, K) -> (B, 1)."""
    return logits.std(1, correction=int(unbiased), keepdim=True)


def kd_ls_loss(student: Tensor, teacher: Tensor, temperature: float, unbiased: bool = False, by_variance: bool = False) -> Tensor:
    """1 / B * sum w KL(softmax(Z_t / T) || softmax(Z_s / T)), Z = (z - mean) / std; logits (B, classes) -> scalar (Sun et al. 2024).

    w is T^2, or with `by_variance` (T std(z_t))^2, image by image (NormKD). The student's deviation carries gradient.
    """
    scales = [deviation(z, unbiased) for z in (student, teacher)]
    log_q, log_p = (
        ((z - z.mean(1, keepdim=True)) / ((scale + EPS) * temperature)).log_softmax(1) for z, scale in zip((student, teacher), scales, strict=True)
    )
    divergences = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    weights = scales[1].squeeze(1).square() if by_variance else 1.0
    return (weights * divergences).mean() * temperature**2


SETTINGS = {  # temperature, weight
    ("vgg13", "vgg8"): (3.0, 9.0),
    ("resnet110", "resnet20"): (4.0, 12.0),
    ("resnet50", "mobilenetv2"): (3.0, 1.0),
    ("vgg13", "mobilenetv2"): (3.0, 9.0),
    ("resnet32x4", "wrn_16_2"): (3.0, 9.0),
    ("resnet32x4", "wrn_40_2"): (3.0, 9.0),
}


@dataclass(frozen=True)
class Hyper:
    """The authors' default; other pairs in `SETTINGS`."""

    ce_weight: float = ranged(0.1, at_least=0)
    kd_weight: float = ranged(9.0, at_least=0)
    temperature: float = ranged(2.0, above=0)
    weighting: Literal["constant", "variance"] = "constant"
    unbiased: bool = False


@register("kd_ls")
class KDLS(Method):
    title = "KD + LS"
    paper = "Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024"
    Hyper = Hyper
    by_pair = {pair: {"temperature": temperature, "kd_weight": weight} for pair, (temperature, weight) in SETTINGS.items()}
    teacher_outputs = Needs(logits=True)
    fp32 = True

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        h = self.hyper
        return {
            "ce": h.ce_weight * F.cross_entropy(student.logits, batch.labels),
            "kd": h.kd_weight * kd_ls_loss(student.logits, teacher.logits, h.temperature, h.unbiased, h.weighting == "variance"),
        }
