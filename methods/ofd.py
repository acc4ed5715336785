"""OFD: the student's maps follow the teacher's before the ReLU, where the teacher is active; where it is not, they need only stay below.

Heo et al.: A Comprehensive Overhaul of Feature Distillation, ICCV 2019. Margins come from the teacher's batch normalisations, through a
preparation. Weight 0.001 for every pair, as in the authors' CIFAR code and in mdistiller. Both leave the teacher in training mode
(statistics of the batch, running ones drift); here it is frozen. Of maps of unlike sizes the larger is average-pooled before anything
else (mdistiller: the teacher's to the student's).
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import models
from methods._maps import Weighted, batch_normalised, only_weight, pooled_to
from methods._teacher import read
from methods.base import Needs, Preparation, PreparationData, Prepared, Setting
from methods.registry import register
from models.outputs import Outputs

RARE = 0.001
"""A channel that is negative less often than this gets the margin -3 |weight|."""


def margins(weight: Tensor, bias: Tensor) -> Tensor:
    """E[x | x < 0] of x ~ N(bias, weight^2), channel by channel, float64: b - |w| phi(b / w) / Phi(-b / |w|); (C,), (C,) -> (C,).

    From a batch normalisation's weight and bias (Heo et al. 2019); as in the authors' code, whose margin for rare negatives this is too.
    """
    mean, deviation = bias.double(), weight.double().abs().clamp_min(1e-12)
    place = mean / deviation
    negative = torch.special.ndtr(-place)
    density = torch.exp(-place.square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(negative > RARE, mean - deviation * density / negative.clamp_min(RARE), -3 * deviation)


def ofd_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], lows: Sequence[Tensor]) -> Tensor:
    """1 / B * sum over levels i = 1 ... n of 2^(i - n) * sum of (s - max(t, m))^2 where s > max(t, m) or t > 0 -> scalar (Heo et al.
    2019). Maps (B, C, H, W), each student's of its teacher's shape; margins m (C, 1, 1)."""
    total, last = 0.0, len(student_maps) - 1
    for level, (s, t, low) in enumerate(zip(student_maps, teacher_maps, lows, strict=True)):
        target = torch.maximum(t, low)
        counts = (s > target) | (target > 0)
        total = total + ((s - target) * counts).square().sum() * 2.0 ** (level - last)
    return total / student_maps[0].shape[0]


def _margins(teacher: nn.Module, data: PreparationData) -> Prepared:
    norms = models.preact_norms(teacher)
    return Prepared({f"margin{i}": margins(norm.weight.detach(), norm.bias.detach()).float().cpu() for i, norm in enumerate(norms)})


@functools.cache
def _without_norms(teacher: str) -> str | None:
    """Why a network has no normalisations to take margins from, or None."""
    try:
        with models.without_values():
            models.preact_norms(models.build(teacher))
    except models.NetworkError as error:
        return str(error)
    return None


@register("ofd")
class OFD(Weighted):
    title = "OFD"
    paper = "Heo et al., A Comprehensive Overhaul of Feature Distillation, ICCV 2019"
    Hyper = only_weight(0.001)  # the authors', for images of 32 pixels
    teacher_outputs = Needs(maps=("preact",))
    term = "ofd"
    pairs_stages = "preact"

    @classmethod
    def unsupported(cls, hyper: Any, setting: Setting) -> str | None:
        reason = _without_norms(setting.teacher.name)
        return None if reason is None else f"ofd takes its margins from the teacher's normalisations: {reason}"

    @classmethod
    def preparation(cls, hyper: Any, setting: Setting) -> Preparation | None:
        return None if setting.teacher is None else Preparation("ofd-margins", 1, {}, _margins)

    def __init__(self, hyper: Any, setting: Setting, prepared: Prepared | None = None) -> None:
        """Raises MethodError where the pair is not supported or `prepared` has not this teacher's margins."""
        super().__init__(hyper, setting, prepared)
        pairs = list(zip(setting.student.maps["preact"][1:], setting.teacher.maps["preact"][1:], strict=True))
        self.sizes = [(min(s[1], t[1]), min(s[2], t[2])) for s, t in pairs]
        self.connectors = nn.ModuleList(nn.Sequential(nn.Conv2d(s[0], t[0], 1, bias=False), nn.BatchNorm2d(t[0])) for s, t in pairs)
        for convolution, _ in self.connectors:
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        for name, margin in read(prepared, "ofd", **{f"margin{i}": (t[0],) for i, (_, t) in enumerate(pairs)}).items():
            self.register_buffer(name, margin[:, None, None])

    def loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        maps = [pooled_to(x, *size) for x, size in zip(student.maps["preact"][1:], self.sizes, strict=True)]
        connected = [batch_normalised(norm, conv(x), relu=False) for x, (conv, norm) in zip(maps, self.connectors, strict=True)]
        targets = [pooled_to(x, *size) for x, size in zip(teacher.maps["preact"][1:], self.sizes, strict=True)]
        lows = [getattr(self, f"margin{i}") for i in range(len(maps))]
        return ofd_loss(connected, targets, lows)
