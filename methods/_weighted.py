"""What methods share that add one loss to the cross-entropy."""

import dataclasses
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from methods.base import Batch, Method, ranged
from models.outputs import Outputs


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
