"""The teacher's classifier, read through a preparation: methods see the teacher's outputs, never the network."""

from typing import Any

from torch import Tensor, nn

import models
from methods.base import Method, MethodError, Preparation, PreparationData, Prepared, Setting


def _classifier(teacher: nn.Module, data: PreparationData) -> Prepared:
    linear = models.classifier(teacher)
    return Prepared({"weight": linear.weight.detach().cpu().clone(), "bias": linear.bias.detach().cpu().clone()})


def read(prepared: Prepared | None, method: str, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """A preparation's tensors of these names, in float32, copied. Raises MethodError where one is missing or not of its shape."""
    found = {} if prepared is None else prepared.tensors
    for name, shape in shapes.items():
        if name not in found or tuple(found[name].shape) != shape:
            text = f"of shape {tuple(found[name].shape)}" if name in found else "missing"
            raise MethodError(f"{method}: the stored {name} of the teacher is {text}, {shape} is needed: prepare again")
    return {name: found[name].float().clone() for name in shapes}


class WithClassifier(Method):
    """A method with `weight` (classes, D) and `bias` (classes,) of the teacher's linear classifier as buffers."""

    @classmethod
    def preparation(cls, hyper: Any, setting: Setting) -> Preparation | None:
        return None if setting.teacher is None else Preparation("teacher-classifier", 1, {}, _classifier)

    def __init__(self, hyper: Any, setting: Setting, prepared: Prepared | None = None) -> None:
        """Raises MethodError where the pair is not supported or `prepared` is not this teacher's classifier."""
        super().__init__(hyper, setting, prepared)
        for name, tensor in read(prepared, self.name, weight=(setting.classes, setting.teacher.embedding), bias=(setting.classes,)).items():
            self.register_buffer(name, tensor)
