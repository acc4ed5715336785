"""IKL-KD: the KL divergence split into a soft cross-entropy and the squared error of all differences between logits, which keeps its gradient
where the teacher's probabilities vanish.

Cui et al.: Decoupled Kullback-Leibler Divergence Loss, NeurIPS 2024. Values are those of the authors' code (first version), which names
alpha and beta the other way round than the paper's text does; it has none for resnet110-resnet20, which gets resnet110-resnet32's here.
Pairs that it does not have get resnet32x4-resnet8x4's. The paper's class-wise prior is off in all of its CIFAR-100 configurations, and
so it is here. The warm-up counts epochs, as in `dkd`.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from methods.base import Batch, Needs, ranged
from methods.dkd import Warming
from methods.registry import register
from models.outputs import Outputs


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """-1 / B * sum softmax(z_t / T) log softmax(z_s / T), without T^2; logits (B, classes) -> scalar (Cui et al. 2024)."""
    return F.cross_entropy(student / temperature, (teacher / temperature).softmax(1))


def wmse_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """1 / (4 B) * sum_b sum_ij w_i w_j ((t_i - t_j) - (s_i - s_j))^2, w = softmax(t / T); logits (B, classes) -> scalar (Cui et al. 2024).

    Since w sums to 1, the double sum is twice the variance of t - s under w: no (B, classes, classes) tensor.
    """
    w, difference = (teacher / temperature).softmax(1), teacher - student
    centred = difference - (w * difference).sum(1, keepdim=True)
    return 0.5 * (w * centred.square()).sum(1).mean()


WEIGHTS = {  # soft cross-entropy, squared error
    ("resnet56", "resnet20"): (1.0, 4.0),
    ("resnet110", "resnet20"): (1.0, 12.0),
    ("resnet110", "resnet32"): (1.0, 12.0),
    ("wrn_40_2", "wrn_16_2"): (3.0, 12.0),
    ("wrn_40_2", "wrn_40_1"): (1.0, 8.0),
    ("vgg13", "vgg8"): (1.0, 12.0),
    ("resnet32x4", "shufflev2"): (3.0, 12.0),
    ("wrn_40_2", "shufflev1"): (1.0, 4.0),
    ("vgg13", "mobilenetv2"): (4.0, 12.0),
    ("resnet50", "mobilenetv2"): (1.0, 12.0),
}


@dataclass(frozen=True)
class Hyper:
    """The authors' code for resnet32x4-resnet8x4 and resnet32x4-shufflev1; other pairs in `WEIGHTS`."""

    ce_weight: float = ranged(1.0, at_least=0)
    alpha: float = ranged(1.0, at_least=0)  # of the soft cross-entropy
    beta: float = ranged(8.0, at_least=0)  # of the squared error
    temperature: float = ranged(4.0, above=0)  # of the soft cross-entropy
    weight_temperature: float = ranged(100.0, above=0)  # of w: nearly one weight for all classes
    warmup: int = ranged(20, at_least=1)  # epochs


@register("ikl")
class IKL(Warming):
    title = "IKL-KD"
    paper = "Cui et al., Decoupled Kullback-Leibler Divergence Loss, NeurIPS 2024"
    Hyper = Hyper
    by_pair = {pair: {"alpha": alpha, "beta": beta} for pair, (alpha, beta) in WEIGHTS.items()}
    teacher_outputs = Needs(logits=True)

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        h = self.hyper
        return {
            "ce": h.ce_weight * F.cross_entropy(student.logits, batch.labels),
            "soft": h.alpha * self.warm * soft_cross_entropy(student.logits, teacher.logits, h.temperature),
            "wmse": h.beta * self.warm * wmse_loss(student.logits, teacher.logits, h.weight_temperature),
        }
