"""DKD: KD's divergence taken apart into the label's share and the rest, each with a weight of its own.

Zhao et al.: Decoupled Knowledge Distillation, CVPR 2022. Values are those of the authors' code (mdistiller): temperature 4, alpha 1, a
linear warm-up of 20 epochs, beta for each pair. It has none for resnet110-resnet20, which gets that of resnet110-resnet32 here, nor for
pairs it does not run, which get 8, its default. The warm-up counts epochs, so a shortened schedule spends more of itself in it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.base import Batch, Method, Needs, Prepared, Setting, ranged
from methods.registry import register
from models.outputs import Outputs

HIDDEN = -1e9
"""Logit of a class that is left out: its probability is 0 and its logarithm is finite, so 0 times it is 0."""


def at_class(index: Tensor, classes: int) -> Tensor:
    """(B,) -> (B, classes), True at one class of each row. Not F.one_hot, which reads its argument on the host."""
    return torch.arange(classes, device=index.device) == index.unsqueeze(1)


def log_shares(logits: Tensor, chosen: Tensor) -> Tensor:
    """log (p, 1 - p), p the softmax's share of the chosen class; logits and `chosen` (B, classes) -> (B, 2).

    Both by differences of logarithms of sums: a share that underflows keeps a finite logarithm.
    """
    own = logits.masked_fill(~chosen, 0.0).sum(1)
    rest = logits.masked_fill(chosen, HIDDEN).logsumexp(1)
    return torch.stack([own, rest], 1) - torch.logaddexp(own, rest).unsqueeze(1)


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """1 / B * sum p (log p - log q), the KL divergence of rows (B, n) -> scalar."""
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def hidden_divergence(student: Tensor, teacher: Tensor, hidden: Tensor, temperature: float) -> Tensor:
    """T^2 / B * sum KL(softmax(z_t / T) || softmax(z_s / T)) over the classes that are not hidden; logits and `hidden` (B, classes) -> scalar.

    A row whose classes are all hidden adds 0.
    """
    log_q, log_p = ((z / temperature).masked_fill(hidden, HIDDEN).log_softmax(1) for z in (student, teacher))
    return divergence(log_q, log_p) * temperature**2


def dkd_losses(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """TCKD = T^2 KL(b_t || b_s), b = (p_y, 1 - p_y), and NCKD = T^2 KL over the other classes renormalised; means over the batch.

    Logits (B, classes), labels (B,) -> two scalars (Zhao et al. 2022).
    """
    label = at_class(labels, student.shape[1])
    shares = (log_shares(z / temperature, label) for z in (student, teacher))
    return divergence(*shares) * temperature**2, hidden_divergence(student, teacher, label, temperature)


BETA = {
    ("resnet56", "resnet20"): 2.0,
    ("resnet110", "resnet20"): 2.0,
    ("resnet110", "resnet32"): 2.0,
    ("wrn_40_2", "wrn_16_2"): 6.0,
    ("wrn_40_2", "wrn_40_1"): 6.0,
    ("vgg13", "vgg8"): 6.0,
    ("vgg13", "mobilenetv2"): 6.0,
}


@dataclass(frozen=True)
class Hyper:
    """The authors' code; beta is 8 for resnet32x4-resnet8x4 and most unlike pairs."""

    ce_weight: float = ranged(1.0, at_least=0)
    alpha: float = ranged(1.0, at_least=0)  # of TCKD
    beta: float = ranged(8.0, at_least=0)  # of NCKD
    temperature: float = ranged(4.0, above=0)
    warmup: int = ranged(20, at_least=1)  # epochs


class Warming(Method):
    """A method with losses that grow linearly to their weight in the first `warmup` epochs: they are multiplied by `warm`."""

    fp32 = True
    warm_is_kept: ClassVar[bool] = True  # whether checkpoints hold it; fixed, since there are some of each method

    def __init__(self, hyper: Any, setting: Setting, prepared: Prepared | None = None) -> None:
        super().__init__(hyper, setting, prepared)
        self.register_buffer("warm", torch.tensor(1.0 / hyper.warmup), persistent=self.warm_is_kept)

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        self.warm.fill_(min(epoch / self.hyper.warmup, 1.0))


@register("dkd")
class DKD(Warming):
    title = "DKD"
    paper = "Zhao et al., Decoupled Knowledge Distillation, CVPR 2022"
    Hyper = Hyper
    by_pair = {pair: {"beta": beta} for pair, beta in BETA.items()}
    teacher_outputs = Needs(logits=True)

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        target, others = dkd_losses(student.logits, teacher.logits, batch.labels, self.hyper.temperature)
        return {
            "ce": self.hyper.ce_weight * F.cross_entropy(student.logits, batch.labels),
            "target": self.hyper.alpha * self.warm * target,
            "others": self.hyper.beta * self.warm * others,
        }
