"""The plain student: cross-entropy on the labels, no teacher. The baseline row of every table."""

from torch import Tensor
from torch.nn import functional as F

from methods.base import Batch, Method
from methods.registry import register
from models.outputs import Outputs


@register("student")
class Student(Method):
    title = "Student"
    paper = "cross-entropy baseline of Tian et al., Contrastive Representation Distillation, ICLR 2020"

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(student.logits, batch.labels)}
