"""RLKD (refined logits, RLD): what a wrong teacher says of the label is not copied.

Sun et al.: Knowledge Distillation with Refined Logits, ICCV 2025. The teacher's confidence, in whatever class it has it, becomes the
student's in the label (SCD), and classes are compared only among those that the teacher puts below the label (MCD). Values are those of the
authors' code: alpha 1, beta 8, temperature 4, SCD at temperature 1, a warm-up of 20 epochs; its configurations have no others by pair.
A note on the paper says beta 4, and the code's README gives an example with SCD at temperature 4: which of them the printed numbers rest on
is not known. The code takes the logarithm of a sum of probabilities, infinite where that underflows; here it is a difference of logarithms.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from methods.base import Batch, Needs, ranged
from methods.dkd import Warming, at_class, divergence, hidden_divergence, log_shares
from methods.registry import register
from models.outputs import Outputs


def scd_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 KL((p_max, 1 - p_max) || (q_y, 1 - q_y)), p and q the softmax of teacher and student at T, y the label; mean over the batch.

    Logits (B, classes), labels (B,) -> scalar (sample confidence distillation).
    """
    classes = student.shape[1]
    log_q = log_shares(student / temperature, at_class(labels, classes))
    log_p = log_shares(teacher / temperature, at_class(teacher.argmax(1), classes))
    return divergence(log_q, log_p) * temperature**2


def mcd_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 KL(p || q) over the classes whose teacher logit is below the label's, renormalised; mean over the batch.

    Logits (B, classes), labels (B,) -> scalar (masked correlation distillation). 0 for an image whose label is the teacher's last choice.
    """
    hidden = teacher >= teacher.gather(1, labels.unsqueeze(1))
    return hidden_divergence(student, teacher, hidden, temperature)


@dataclass(frozen=True)
class Hyper:
    """The authors' code, all pairs alike."""

    ce_weight: float = ranged(1.0, at_least=0)
    alpha: float = ranged(1.0, at_least=0)  # of SCD
    beta: float = ranged(8.0, at_least=0)  # of MCD
    temperature: float = ranged(4.0, above=0)  # of MCD
    confidence_temperature: float = ranged(1.0, above=0)  # of SCD
    warmup: int = ranged(20, at_least=1)  # epochs


@register("rlkd")
class RLKD(Warming):
    title = "RLKD"
    paper = "Sun et al., Knowledge Distillation with Refined Logits, ICCV 2025"
    Hyper = Hyper
    teacher_outputs = Needs(logits=True)

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        h, pair = self.hyper, (student.logits, teacher.logits, batch.labels)
        return {
            "ce": h.ce_weight * F.cross_entropy(student.logits, batch.labels),
            "scd": h.alpha * self.warm * scd_loss(*pair, h.confidence_temperature),
            "mcd": h.beta * self.warm * mcd_loss(*pair, h.temperature),
        }
