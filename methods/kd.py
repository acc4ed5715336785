"""KD: match the teacher's softened logits.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015. Weights as in the CRD protocol (r = 0.1, a = 0.9, T = 4).
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from methods.base import Batch, Method, MethodError, Needs, Pretraining, Setting, ranged
from methods.registry import register, register_beside
from models.outputs import Outputs


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 / B * sum KL(softmax(z_t / T) || softmax(z_s / T)); logits (B, classes) -> scalar (Hinton et al. 2015, section 2)."""
    log_q = F.log_softmax(student_logits / temperature, dim=1)
    log_p = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


@dataclass(frozen=True)
class Hyper:
    """CRD protocol's weights."""

    ce_weight: float = ranged(0.1, at_least=0)
    kd_weight: float = ranged(0.9, at_least=0)
    temperature: float = ranged(4.0, above=0)


@register("kd")
class KD(Method):
    title = "KD"
    paper = "Hinton et al., Distilling the Knowledge in a Neural Network, 2015"
    Hyper = Hyper
    teacher_outputs = Needs(logits=True)
    fp32 = True

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        return {
            "ce": self.hyper.ce_weight * F.cross_entropy(student.logits, batch.labels),
            "kd": self.hyper.kd_weight * kd_loss(student.logits, teacher.logits, self.hyper.temperature),
        }


@contextlib.contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """A second pass through a module in train mode: its batch normalisations normalise by the batch and leave their running statistics as
    they are, so that a step updates those once."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.num_batches_tracked is not None]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum, batches in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


@register_beside("kd")
def with_kd(method: type[Method]) -> type[Method]:
    """`method` with KD's loss added: the method's own losses as they are, cross-entropy among them, and KD at weight 1 and temperature 4, as
    the row CRD + KD of Tian et al., Contrastive Representation Distillation, ICLR 2020, was run. KD compares what the method evaluates.

    Raises MethodError for a method that has KD's loss already or writes its gradients itself.
    """
    if method.own_backward:
        raise MethodError(f"{method.name} writes its gradients itself (own_backward), so a loss added to it would not be trained on")
    if any(f.name.startswith("kd_") for f in dataclasses.fields(method.Hyper)):
        raise MethodError(f"{method.name} has KD's loss already; its weight is {method.name}.kd_weight")
    added = [("kd_temperature", float, ranged(4.0, above=0)), ("kd_weight", float, ranged(1.0, at_least=0))]

    class Combined(method):
        paper = f"{method.paper}; beside {KD.paper}"
        version = method.version + (method.predict is not Method.predict)  # raised: their statistics were updated twice a step
        Hyper = dataclasses.make_dataclass("Hyper", added, bases=(method.Hyper,), frozen=True)
        fp32 = method.fp32 or KD.fp32

        @classmethod
        def teacher_needs(cls, hyper: object) -> Needs:
            return super().teacher_needs(hyper) | KD.teacher_outputs

        @classmethod
        def student_needs(cls, hyper: object) -> Needs:
            return super().student_needs(hyper) | Needs(logits=True)

        @classmethod
        def hyper_for(cls, teacher: str | None, student: str) -> object:
            own = super().hyper_for(teacher, student)
            return cls.Hyper(**{f.name: getattr(own, f.name) for f in dataclasses.fields(own)})

        @classmethod
        def pretraining(cls, hyper: object, setting: Setting) -> Pretraining | None:
            stage = super().pretraining(hyper, setting)
            after = stage and stage.teacher_after
            return stage if after is None else dataclasses.replace(stage, teacher_after=after | Needs(logits=True))

        def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
            own = super().losses(student, teacher, batch)
            if "kd" in own:
                raise MethodError(f"{method.name} has a loss named kd already")
            with statistics_kept(self):
                kd = kd_loss(self.predict(student), teacher.logits, self.hyper.kd_temperature)
            return {**own, "kd": self.hyper.kd_weight * kd}

    return Combined


@dataclass(frozen=True)
class Weight3(Hyper):
    """Weight and temperature that later papers' rows use."""

    kd_weight: float = ranged(3.0, at_least=0)
    temperature: float = ranged(2.0, above=0)


@dataclass(frozen=True)
class Weight6(Weight3):
    """Twice that: the best of plain KD in a published sweep over 0.9 to 18 on resnet32x4-resnet8x4."""

    kd_weight: float = ranged(6.0, at_least=0)


@register("kd_weight")
class KDWeight3(KD):
    """KD at temperature 2 and weight 3: most of what later logit methods gain over the protocol's KD may be their weight (Sun et al., Logit
    Standardization in Knowledge Distillation, CVPR 2024, Table 4: plain KD 73.60 at weight 0.9, 74.38 at 3, 74.45 at 6)."""

    title = "KD (weight 3)"
    paper = "a control: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, at a weight of later papers"
    Hyper = Weight3


@register("kd_weight6")
class KDWeight6(KDWeight3):
    """KD at temperature 2 and weight 6, for the same reason as `kd_weight`."""

    title = "KD (weight 6)"
    Hyper = Weight6


SHIFT = 0.37
"""Added to every logit of the teacher: softmax does not see it, the last bits of a float do."""


@register("kd_shifted")
class ShiftedKD(KD):
    """KD again, the teacher's logits shifted by a constant: the same loss in exact arithmetic. How far its runs end from KD's is what
    rounding alone does on a stack: the noise floor of a table."""

    title = "KD (shifted)"
    paper = "a control: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, with shifted logits"

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        return super().losses(student, dataclasses.replace(teacher, logits=teacher.logits + SHIFT), batch)
