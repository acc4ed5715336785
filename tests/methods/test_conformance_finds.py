"""The conformance tests find methods that break the contract: each fault here fails the test named beside it."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import registry
from methods.base import Method, Needs
from tests.methods import test_conformance as conformance


class Sound(Method):
    """Mean squared error between logits; the faults below are its sub-classes."""

    name = title = paper = "sound"
    teacher_outputs = Needs(logits=True)
    fp32 = True

    def losses(self, student, teacher, batch):
        return {"ce": F.cross_entropy(student.logits, batch.labels), "mse": self.distance(student.logits, teacher.logits)}

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(student, teacher)


class NoCrossEntropy(Sound):
    def losses(self, student, teacher, batch):
        return {"mse": F.mse_loss(student.logits, teacher.logits)}


class NotAScalar(Sound):
    def distance(self, student, teacher):
        return F.mse_loss(student, teacher).view(1)


class NeedsTwoImages(Sound):
    def distance(self, student, teacher):
        return (student[1:] - teacher[1:]).square().mean()


class Detached(Sound):
    def distance(self, student, teacher):
        return F.mse_loss(student.detach(), teacher)


class Root(Sound):
    """Infinite gradient where student and teacher agree."""

    def losses(self, student, teacher, batch):
        return {"ce": F.cross_entropy(student.logits, batch.labels), "norm": student.embedding.square().sum(1).sqrt().mean()}


class Overflows(Sound):
    fp32 = False

    def distance(self, student, teacher):
        return (student.square() - teacher.square()).mean()


class HidesDivergence(Sound):
    def distance(self, student, teacher):
        return F.mse_loss(student, teacher).nan_to_num()


class WritesTeacher(Sound):
    def distance(self, student, teacher):
        return F.mse_loss(student, teacher.mul_(0.5))


class WritesStudent(Sound):
    def distance(self, student, teacher):
        loss = F.mse_loss(student, teacher)
        student.data.mul_(2)
        return loss


class AmbientNoise(Sound):
    def distance(self, student, teacher):
        return F.mse_loss(student + torch.randn_like(student), teacher)


class HiddenState(Sound):
    calls = 0

    def distance(self, student, teacher):
        self.calls += 1
        return self.calls * F.mse_loss(student, teacher)


class Idle(Sound):
    def __init__(self, hyper, setting, prepared=None):
        super().__init__(hyper, setting, prepared)
        self.idle = nn.Linear(2, 2)


class ReadsHost(Sound):
    def distance(self, student, teacher):
        return F.mse_loss(student, teacher) * (2 if teacher.mean() > 0 else 1)


class MasksByIndex(Sound):
    def distance(self, student, teacher):
        return (student - teacher)[teacher > 0].square().sum()


class Undeclared(Sound):
    def losses(self, student, teacher, batch):
        return super().losses(student, teacher, batch) | {"more": F.mse_loss(student.embedding, teacher.embedding)}


class ChangesKeys(Sound):
    def losses(self, student, teacher, batch):
        found = super().losses(student, teacher, batch)
        return {**found, "extra": found["mse"]} if len(batch.labels) == 16 and self.training and self.toggle() else found

    def toggle(self) -> bool:
        self.odd = not getattr(self, "odd", False)
        return self.odd


class EqualWidths(Sound):
    """Crashes for other pairs instead of giving a reason."""

    teacher_outputs = Needs(logits=True, embedding=True)

    def losses(self, student, teacher, batch):
        return super().losses(student, teacher, batch) | {"embedding": (student.embedding - teacher.embedding).square().mean()}


@dataclass
class Mutable:
    weight: float = 1.0


class LooseHyper(Sound):
    Hyper = Mutable


def guarded(test, *arguments):
    """A test that also takes `monkeypatch`."""
    return lambda name, patch: test(name, *arguments, patch)


def plain(test, *arguments):
    return lambda name, patch: test(name, *arguments)


FINITE = plain(conformance.test_losses_and_gradients_are_finite, 1)
CAPTURE = guarded(conformance.test_step_can_be_captured)
FAULTS = [
    (NoCrossEntropy, FINITE),
    (NotAScalar, FINITE),
    (NeedsTwoImages, FINITE),
    (Undeclared, FINITE),
    (Detached, plain(conformance.test_distillation_reaches_the_first_layer)),
    (Root, plain(conformance.test_dead_features, slice(0, 3), "student")),
    (Overflows, plain(conformance.test_large_values_in_half_precision, torch.float16)),
    (HidesDivergence, plain(conformance.test_a_diverged_student_shows)),
    (WritesTeacher, plain(conformance.test_leaves_teacher_and_outputs_alone)),
    (WritesStudent, plain(conformance.test_leaves_teacher_and_outputs_alone)),
    (AmbientNoise, plain(conformance.test_ambient_randomness_plays_no_part)),
    (HiddenState, plain(conformance.test_state_dict_is_all_that_a_resumed_run_needs)),
    (Idle, plain(conformance.test_every_trainable_parameter_is_trained)),
    (ReadsHost, CAPTURE),
    (MasksByIndex, CAPTURE),
    (ChangesKeys, CAPTURE),
    (EqualWidths, plain(conformance.test_other_pairs_work_or_say_why_not, ("wrn_40_2", "wrn_40_1"))),
    (LooseHyper, plain(conformance.test_declares_itself)),
]


@pytest.fixture
def registered(monkeypatch):
    def add(cls: type[Method]) -> str:
        name = cls.__name__.lower()
        monkeypatch.setitem(registry._methods, name, cls)
        return name

    registry.discover()
    return add


@pytest.mark.parametrize(("cls", "test"), FAULTS, ids=[cls.__name__ for cls, _ in FAULTS])
def test_fault_is_found(cls, test, registered, monkeypatch):
    name = registered(cls)
    with pytest.raises((AssertionError, AttributeError, TypeError, RuntimeError, pytest.fail.Exception)):
        test(name, monkeypatch)


@pytest.mark.parametrize("test", list(dict.fromkeys(test for _, test in FAULTS)))
def test_sound_method_passes(test, registered, monkeypatch):
    test(registered(Sound), monkeypatch)
