"""The teacher's classifier, read through a preparation: methods see the teacher's outputs, never the network."""

from torch import Tensor, nn

import models
from methods.base import MethodError, Preparation, PreparationData, Prepared, Setting


def classifier_preparation() -> Preparation:
    """Weight (classes, D) and bias (classes,) of the teacher's linear classifier."""
    return Preparation("teacher-classifier", 1, {}, _classifier)


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


def read_classifier(prepared: Prepared | None, method: str, setting: Setting) -> dict[str, Tensor]:
    """`weight` and `bias` as `classifier_preparation` leaves them. Raises MethodError as `read`."""
    return read(prepared, method, weight=(setting.classes, setting.teacher.embedding), bias=(setting.classes,))
