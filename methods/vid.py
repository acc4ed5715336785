"""VID: a Gaussian whose mean is predicted from the student's map, stage by stage, gives the teacher's map a high likelihood.

Ahn et al.: Variational Information Distillation for Knowledge Transfer, CVPR 2019. Regressors, initial variance and weight as in the CRD
protocol. The variances, one for each channel of the teacher, are trained with the regressors.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods._maps import Weighted, same_size
from methods.base import Needs, Prepared, Setting, ranged
from methods.registry import register
from models.outputs import Outputs

EPS = 1e-5  # least variance


def vid_loss(mean: Tensor, teacher_map: Tensor, scale: Tensor) -> Tensor:
    """Mean over all elements of 1/2 ((f_t - mu)^2 / v + ln v), v = ln(1 + e^scale) + eps a variance for each channel; maps (B, C, H, W) of one
    shape, scale (C,) -> scalar, which may be negative (Ahn et al. 2019, the negative log-likelihood up to a constant)."""
    variance = (F.softplus(scale) + EPS).view(1, -1, 1, 1)  # e^scale itself overflows
    return 0.5 * ((teacher_map - mean).square() / variance + variance.log()).mean()


@dataclass(frozen=True)
class Hyper:
    """CRD protocol's weight; the variance at the start."""

    weight: float = ranged(1.0, at_least=0)
    variance: float = ranged(5.0, above=EPS, at_most=500)


def _regressor(student: int, teacher: int) -> nn.Sequential:
    widths = (student, teacher, teacher, teacher)
    layers = [m for a, b in zip(widths, widths[1:], strict=False) for m in (nn.Conv2d(a, b, 1, bias=False), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


@register("vid")
class VID(Weighted):
    title = "VID"
    paper = "Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019"
    Hyper = Hyper
    teacher_outputs = Needs(maps=("stage",))
    term = "vid"
    pairs_stages = "stage"

    def __init__(self, hyper: Hyper, setting: Setting, prepared: Prepared | None = None) -> None:
        """Raises MethodError where the pair is not supported."""
        super().__init__(hyper, setting, prepared)
        widths = [(s[0], t[0]) for s, t in zip(setting.student.maps["stage"][1:], setting.teacher.maps["stage"][1:], strict=True)]
        start = math.log(math.expm1(hyper.variance - EPS))
        self.regressors = nn.ModuleList(_regressor(s, t) for s, t in widths)
        self.scales = nn.ParameterList(torch.full((t,), start) for _, t in widths)

    def loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        pairs = (same_size(s, t) for s, t in zip(student.maps["stage"][1:], teacher.maps["stage"][1:], strict=True))
        return sum(vid_loss(regressor(s), t, scale) for (s, t), regressor, scale in zip(pairs, self.regressors, self.scales, strict=True))
