"""DIST: correlation with the teacher's probabilities, by rows (classes of an image) and by columns (images of a class), instead of a divergence.

Huang et al.: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022. Weights 2 and 2 and temperature 4 for CIFAR-100 are recalled, not
read: no public script with them was found (a public copy of the code defaults to 1 and 1, at temperature 4), and none by pair.
The learning rate that the paper warms up for light networks is the protocol's here.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from methods.base import Batch, Method, Needs, ranged
from methods.registry import register
from models.outputs import Outputs

EPS = 1e-8  # added to the product of two norms, as in the authors' code: it damps the columns of classes that no image of a batch resembles


def pearson(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Pearson correlation of x and y along `dim`, a (B, n) pair -> one value for each of the other dimension; 0 for what is constant."""
    x, y = x - x.mean(dim, keepdim=True), y - y.mean(dim, keepdim=True)
    return (x * y).sum(dim) / (x.norm(dim=dim) * y.norm(dim=dim) + EPS)


def dist_losses(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 (1 - mean Pearson correlation) of softmax(z / T), over rows (inter-class) and over columns (intra-class).

    Logits (B, classes) -> two scalars (Huang et al. 2022, times T^2 as in the authors' code). Columns of one image are constant,
    so a batch of 1 adds T^2 without gradient.
    """
    q, p = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    rows, columns = (temperature**2 * (1.0 - pearson(q, p, dim).mean()) for dim in (1, 0))
    return rows, columns


@dataclass(frozen=True)
class Hyper:
    """As said above."""

    ce_weight: float = ranged(1.0, at_least=0)
    inter_weight: float = ranged(2.0, at_least=0)  # beta
    intra_weight: float = ranged(2.0, at_least=0)  # gamma
    temperature: float = ranged(4.0, above=0)


@register("dist")
class DIST(Method):
    title = "DIST"
    paper = "Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022"
    Hyper = Hyper
    teacher_outputs = Needs(logits=True)
    fp32 = True

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        inter, intra = dist_losses(student.logits, teacher.logits, self.hyper.temperature)
        return {
            "ce": self.hyper.ce_weight * F.cross_entropy(student.logits, batch.labels),
            "inter": self.hyper.inter_weight * inter,
            "intra": self.hyper.intra_weight * intra,
        }
