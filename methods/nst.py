"""NST: the channels of a stage, as spatial patterns, are distributed as the teacher's (maximum mean discrepancy, polynomial kernel).

Huang and Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017. Weight 50 on all stages as in the CRD protocol,
without the paper's factor 1/2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from methods._maps import Weighted, only_weight, same_size
from methods.base import Needs
from methods.registry import register
from models.outputs import Outputs


def nst_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Sum over stages of the mean over images of |mean_i phi(t_i) - mean_j phi(s_j)|^2, s_j and t_i the channels as unit vectors of H * W
    values, phi the features of k(x, y) = (x . y)^2 -> scalar (Huang and Wang 2017, the polynomial kernel).

    Maps (B, C, H, W), widths may differ; the larger map of a stage is average-pooled to the smaller one's size. A channel of 0 stays 0,
    without gradient.
    """
    return sum(_discrepancy(*same_size(s, t)) for s, t in zip(student_maps, teacher_maps, strict=True))


def _discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    """Through whichever products are smaller: those of channels, (B, C, C), or those of places, (B, HW, HW), as
    sum_ij (x_i . y_j)^2 = <X X^T, Y Y^T> with X, Y the unit patterns (HW, C)."""
    s, t = (maps.movedim(1, -1).flatten(1, 2) for maps in (student, teacher))  # (B, HW, C), views of channels-last maps
    if s.shape[1] < max(s.shape[2], t.shape[2]):
        s, t = F.normalize(s, dim=1), F.normalize(t, dim=1)
        return (s @ s.mT / s.shape[2] - t @ t.mT / t.shape[2]).square().sum((1, 2)).mean()
    own, known = s.mT @ s, t.mT @ t  # channels are scaled to norm 1 here, where they are few numbers
    a, b = _inverse_norms(own), _inverse_norms(known)
    return _kernel(known, b, b) + _kernel(own, a, a) - 2.0 * _kernel(t.mT @ s, b, a)


def _inverse_norms(products: Tensor) -> Tensor:
    squares = products.diagonal(dim1=1, dim2=2)
    return torch.where(squares > 0, squares, 1.0).rsqrt() * (squares > 0)


def _kernel(products: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return (products * left.unsqueeze(2) * right.unsqueeze(1)).square().mean()


@register("nst")
class NST(Weighted):
    title = "NST"
    paper = "Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017"
    Hyper = only_weight(50.0)  # CRD protocol's
    teacher_outputs = Needs(maps=("stage",))
    term = "nst"
    pairs_stages = "stage"

    def loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        return nst_loss(student.maps["stage"][1:], teacher.maps["stage"][1:])
