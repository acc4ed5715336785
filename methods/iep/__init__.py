"""IEP: transfer how relations between images change from stage to stage, read through a PCA and a message-passing network.

Lee and Song, Interpretable Embedding Procedure Knowledge Transfer via Stacked Principal Component Analysis and Graph Neural Network,
AAAI 2021. Phase I (`phase_one`) fits PCA and networks on the teacher; here the student's maps go through the same frozen modules and
match the teacher's estimated affinities (K^int) and messages (K^alt), each gradient clipped by the cross-entropy gradient's norm.
`iep_bb` adds the black-box knowledge. Where paper and code differ, the defaults of `hyper` say which was taken.
"""

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Batch, Method, Needs, Preparation, Prepared, Setting
from methods.iep.clip import write_clipped
from methods.iep.hyper import BlackBoxHyper, Hyper
from methods.iep.knowledge import alteration_loss, blackbox_loss, intermediate_loss
from methods.iep.phase_one import KIND, kept, preparation, restore, sensed
from methods.iep.spca import first_component, student_component
from methods.registry import register
from models.outputs import Outputs, Shapes

_LOOSE = 0.03  # relative residual of a first component that is worth a warning

Size = tuple[int, int, int]


def _points(shapes: Shapes) -> tuple[Size, ...]:
    return sensed(shapes.maps[KIND])


def _common(student: Size, teacher: Size) -> tuple[int, int]:
    return min(student[1], teacher[1]), min(student[2], teacher[2])


def _pooling(size: tuple[int, int], target: tuple[int, int]) -> nn.Module:
    """Adaptive average pooling, as plain pooling where it divides (the same values, and a deterministic backward pass on GPUs)."""
    if size == target:
        return nn.Identity()
    if size[0] % target[0] == 0 and size[1] % target[1] == 0:
        return nn.AvgPool2d((size[0] // target[0], size[1] // target[1]))
    return nn.AdaptiveAvgPool2d(target)


def _adapter(student: Size, teacher: Size) -> nn.Sequential:
    """A student's map made comparable with the teacher's: pooled where it is larger, 1x1 convolution + BN + ReLU where its width differs.

    The ReLU keeps the map in the orthant in which the stereographic projection is bounded. Equal shapes give an empty module.
    """
    layers: list[nn.Module] = []
    if student[1:] != _common(student, teacher):
        layers.append(_pooling(student[1:], _common(student, teacher)))
    if student[0] != teacher[0]:
        layers += [nn.Conv2d(student[0], teacher[0], 1, bias=False), nn.BatchNorm2d(teacher[0]), nn.ReLU()]
    return nn.Sequential(*layers)


@register("iep")
class IEP(Method):
    title = "IEP"
    paper = "Lee and Song, Interpretable Embedding Procedure Knowledge Transfer, AAAI 2021"
    Hyper = Hyper
    teacher_outputs = Needs(maps=(KIND,))
    fp32 = True
    own_backward = True

    @classmethod
    def unsupported(cls, hyper: Hyper, setting: Setting) -> str | None:
        student, teacher = _points(setting.student), _points(setting.teacher)
        if len(student) != len(teacher):
            return f"{len(teacher)} teacher stages against {len(student)} student stages: sensing points do not correspond"
        if len(teacher) < 2:
            return "needs at least two stages: knowledge is what changes between them"
        if min(kept(size[0]) for size in teacher) < 1:
            return "needs at least two channels at every teacher stage"
        return None

    @classmethod
    def preparation(cls, hyper: Hyper, setting: Setting) -> Preparation | None:
        return preparation(hyper, [size[0] for size in _points(setting.teacher)])

    def __init__(self, hyper: Hyper, setting: Setting, prepared: Prepared | None = None) -> None:
        super().__init__(hyper, setting, prepared)
        student, teacher = _points(setting.student), _points(setting.teacher)
        self.stages = restore(hyper, [size[0] for size in teacher], prepared)
        self.adapters = nn.ModuleList(_adapter(s, t) for s, t in zip(student, teacher, strict=True))
        self.sizes = [size[1:] for size in teacher]
        self.pools = [_pooling(t[1:], _common(s, t)) for s, t in zip(student, teacher, strict=True)]  # of the teacher's pattern
        self.capturable = hyper.pca != "batch"
        self.register_buffer("ratio", torch.tensor(0.5 if hyper.ramp else 1.0))
        self.register_buffer("worst_residual", torch.zeros(()))  # of the teacher's first components so far

    def train(self, mode: bool = True) -> "IEP":
        """Adapters follow `mode`; the modules of phase I stay in evaluation mode, with their running statistics."""
        super().train(mode)
        self.stages.eval()
        return self

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        if self.hyper.ramp:
            self.ratio.fill_(1.0 / (1.0 + math.exp(1 - epoch)))
        residual = self.worst_residual.item()
        if residual > _LOOSE:
            warnings.warn(f"IEP: a teacher map's first component has not converged (residual {residual:.2f}); raise power_steps", stacklevel=2)

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        losses = {"ce": F.cross_entropy(student.logits, batch.labels)}
        with torch.no_grad():
            components = [first_component(m, self.hyper.power_steps) for m in sensed(teacher.maps[KIND])]
            self.worst_residual.copy_(torch.stack([self.worst_residual, *(c.residual.max() for c in components)]).max())
            teacher_coordinates = self.stages.coordinates([c.v for c in components], fit=True)
        points = [
            student_component(adapter(m), self._pattern(i, c.u))
            for i, (adapter, m, c) in enumerate(zip(self.adapters, sensed(student.maps[KIND]), components, strict=True))
        ]
        return losses | self._knowledge(self.stages.coordinates(points), teacher_coordinates)

    def _pattern(self, point: int, u: Tensor) -> Tensor:
        """The teacher's spatial pattern (B, HW) at the size on which the student is compared."""
        if isinstance(self.pools[point], nn.Identity):
            return u
        return F.normalize(self.pools[point](u.view(-1, 1, *self.sizes[point])).flatten(1), dim=1)

    def _knowledge(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, Tensor]:
        """Loss terms summed over the pairs of points, from the coordinates (N, K) of each point."""
        terms: dict[str, Tensor] = {}
        if self.hyper.intermediate or self.hyper.alteration:
            with torch.no_grad():
                known = self.stages(teacher)
            pairs = list(zip(self.stages(student), known, strict=True))
            if self.hyper.intermediate:
                terms["int"] = sum(intermediate_loss(s.readout, t.readout, self.hyper.teacher_first) for s, t in pairs)
            if self.hyper.alteration:
                terms["alt"] = sum(alteration_loss(s.messages, t.messages) for s, t in pairs)
        if len(self.stages.estimators):
            with torch.no_grad():
                heads = self.stages.attention(teacher)
            terms["bb"] = sum(blackbox_loss(s, t) for s, t in zip(self.stages.attention(student), heads, strict=True))
        return terms

    def backward(self, losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> None:
        write_clipped(losses, parameters, self.ratio, whole=self.hyper.clip == "global")


@register("iep_bb")
class IEPBlackBox(IEP):
    title = "IEP+BB"
    version = 2  # the injected head comes from running statistics
    Hyper = BlackBoxHyper
