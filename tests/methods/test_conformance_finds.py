"""The conformance tests find methods that break the contract: each fault here fails the test named beside it."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods import registry
from methods.base import Method, Needs, Preparation, Prepared, ranged
from tests.methods import test_beside as beside
from tests.methods import test_conformance as conformance
from tests.methods import test_preparations_resume as resume


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


class NormalisesTwice(Sound):
    def __init__(self, hyper, setting, prepared=None):
        super().__init__(hyper, setting, prepared)
        self.norm = nn.BatchNorm1d(setting.classes)

    def distance(self, student, teacher):
        return F.mse_loss(self.norm(student), self.norm(teacher))


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


@dataclass(frozen=True)
class Keyed:
    weights: dict[int, float] = field(default_factory=lambda: {1: 0.5})


class LosesKeys(Sound):
    """What is read of its settings after a run is not what it ran with: JSON has no keys that are numbers."""

    Hyper = Keyed


class HidesTeacher(Sound):
    """Its runs would have one identity whatever the teacher."""

    @classmethod
    def depends_on_teacher(cls, hyper, setting):
        return False


@dataclass(frozen=True)
class Several:
    weights: tuple[float, ...] = ranged((0.5, 0.1))


class Alone(Method):
    """Sound, though it reads no teacher, has a tuple among its settings, and a loss named as KD's."""

    name = title = paper = "alone"
    Hyper = Several

    def losses(self, student, teacher, batch):
        smooth = -student.logits.log_softmax(1).mean()
        return {"ce": F.cross_entropy(student.logits, batch.labels), "kd": self.hyper.weights[0] * smooth}


class InOne(Sound):
    """Sound, with a preparation that keeps nothing on the way."""

    @classmethod
    def preparation(cls, hyper, setting):
        return Preparation("in-one", 1, {}, lambda teacher, data: Prepared({"zero": torch.zeros(1)}))


def guarded(test, *arguments):
    """A test that also takes `monkeypatch`."""
    return lambda name, patch: test(name, *arguments, patch)


def plain(test, *arguments):
    return lambda name, patch: test(name, *arguments)


FINITE = plain(conformance.test_losses_and_gradients_are_finite, 1)
CAPTURE = guarded(conformance.test_step_can_be_captured)
REACHES = plain(conformance.test_distillation_reaches_the_first_layer)
FAULTS = [
    (NoCrossEntropy, FINITE),
    (NotAScalar, FINITE),
    (NeedsTwoImages, FINITE),
    (Undeclared, FINITE),
    (Detached, REACHES),
    (Root, plain(conformance.test_dead_features, slice(0, 3), "student")),
    (Overflows, plain(conformance.test_large_values_in_half_precision, torch.float16)),
    (HidesDivergence, plain(conformance.test_a_diverged_student_shows)),
    (WritesTeacher, plain(conformance.test_leaves_teacher_and_outputs_alone)),
    (WritesStudent, plain(conformance.test_leaves_teacher_and_outputs_alone)),
    (AmbientNoise, plain(conformance.test_ambient_randomness_plays_no_part)),
    (HiddenState, plain(conformance.test_state_dict_is_all_that_a_resumed_run_needs)),
    (Idle, plain(conformance.test_every_trainable_parameter_is_trained)),
    (NormalisesTwice, plain(conformance.test_runs_the_student_once_and_keeps_its_mode)),
    (ReadsHost, CAPTURE),
    (MasksByIndex, CAPTURE),
    (ChangesKeys, CAPTURE),
    (EqualWidths, plain(conformance.test_other_pairs_work_or_say_why_not, ("wrn_40_2", "wrn_40_1"))),
    *((cls, plain(conformance.test_declares_itself)) for cls in (LooseHyper, LosesKeys, HidesTeacher)),
]
SOUND = [(cls, test) for cls in (Sound, Alone, InOne) for test in dict.fromkeys(test for _, test in FAULTS)]
SOUND.remove((Alone, REACHES))  # no teacher, nothing that reaches a layer: it skips


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


@pytest.mark.parametrize(("cls", "test"), SOUND)
def test_sound_method_passes(cls, test, registered, monkeypatch):
    test(registered(cls), monkeypatch)


def test_what_is_sound_is_sound_with_kd_beside_it_and_in_its_preparation(registered):
    for cls in (Sound, Alone, InOne):
        name = registered(cls)
        beside.test_losses_are_the_methods_and_kds(f"{name}+kd")
        beside.test_all_else_is_the_methods(f"{name}+kd")
    resume.test_a_stage_stopped_after_any_save_ends_with_the_same_bits(registered(InOne))
