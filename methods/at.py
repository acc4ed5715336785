"""AT: match where the networks look, the spatial maps of activation energy at the end of each stage.

Zagoruyko and Komodakis: Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via Attention
Transfer, ICLR 2017. Mean over elements and weight 1000 as in the authors' code and the CRD protocol.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from methods._maps import Weighted, same_size
from methods.base import Needs, ranged
from methods.registry import register
from models.outputs import Outputs


def attention(maps: Tensor, power: int = 2) -> Tensor:
    """A(f) = q / |q|_2 with q = mean over channels of |f|^power; (B, C, H, W) -> (B, H * W), rows of norm 1, or 0 where the map is 0.

    The mean is taken through the norm over channels: one pass over the maps, forwards and backwards, where a power of them makes three.
    Half precision overflows (256^2 does in fp16), so the caller stays out of it.
    """
    energy = torch.linalg.vector_norm(maps, power, dim=1).pow(power) / maps.shape[1]
    return F.normalize(energy.flatten(1), dim=1)


def at_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], power: int = 2) -> Tensor:
    """Sum over stages of the mean over (B, H * W) of (A(f_s) - A(f_t))^2 -> scalar (Zagoruyko and Komodakis 2017, Eq. 2).

    Maps (B, C, H, W), widths may differ; the larger map of a stage is average-pooled to the smaller one's size.
    """
    pairs = (same_size(s, t) for s, t in zip(student_maps, teacher_maps, strict=True))
    return sum(F.mse_loss(attention(s, power), attention(t, power)) for s, t in pairs)


@dataclass(frozen=True)
class Hyper:
    """CRD protocol's weight."""

    weight: float = ranged(1000.0, at_least=0)
    power: int = ranged(2, at_least=1)


@register("at")
class AT(Weighted):
    title = "AT"
    paper = "Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017"
    Hyper = Hyper
    teacher_outputs = Needs(maps=("stage",))
    term = "at"
    pairs_stages = "stage"

    def loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        return at_loss(student.maps["stage"][1:], teacher.maps["stage"][1:], self.hyper.power)
