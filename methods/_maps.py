"""What methods on maps and embeddings share: pooling to a size, rows of norm 1, a batch normalisation that takes one
value a channel, one loss beside the cross-entropy."""

import dataclasses
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Batch, Method, ranged
from models.native import normalised
from models.outputs import Outputs

EPS = 1e-12  # least norm of a row


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The two maps (B, C, H, W), widths may differ, at one height and width: the larger is average-pooled to the smaller one's."""
    height, width = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return pooled_to(student, height, width), pooled_to(teacher, height, width)


def pooled_to(maps: Tensor, height: int, width: int) -> Tensor:
    """Average pooling of (B, C, H, W) to (B, C, height, width); windows as of torch's adaptive pooling where the sizes do not divide."""
    if maps.shape[2:] == (height, width):
        return maps
    if maps.shape[2] % height == 0 and maps.shape[3] % width == 0:  # the same values, and deterministic on GPUs
        return F.avg_pool2d(maps, (maps.shape[2] // height, maps.shape[3] // width))
    return F.adaptive_avg_pool2d(maps, (height, width))


def unit(rows: Tensor, dim: int = -1) -> Tensor:
    """`rows` scaled to Euclidean norm 1 along `dim`. A row of 0 stays 0 and gets no gradient."""
    norm = rows.norm(dim=dim, keepdim=True)
    return rows * (norm > EPS) / norm.clamp_min(EPS)


def batch_normalised(norm: nn.BatchNorm2d, x: Tensor, relu: bool = True) -> Tensor:
    """norm(x), through ReLU; x (B, C, H, W). One value a channel has no variance: it is normalised by the running statistics."""
    if x.shape[0] * x.shape[2] * x.shape[3] > 1:
        return normalised(norm, x, relu=relu)
    x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps)
    return F.relu(x) if relu else x


def only_weight(default: float) -> type:
    """The frozen dataclass of a method whose one hyper-parameter is `weight`."""
    return dataclasses.make_dataclass("Hyper", [("weight", float, ranged(default, at_least=0))], frozen=True)


class Weighted(Method):
    """Cross-entropy and, under the name `term`, one loss of the method's own times `hyper.weight`; in float32."""

    term: ClassVar[str]
    fp32 = True

    def loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        """The method's own loss, a scalar, before its weight."""
        raise NotImplementedError

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        ce = F.cross_entropy(student.logits, batch.labels)
        return {"ce": ce, self.term: self.hyper.weight * self.loss(student, teacher)}
