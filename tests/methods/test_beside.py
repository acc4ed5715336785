"""A method with KD beside it: both losses, cross-entropy once, everything else the method's own."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from bench.errors import UsageError
from bench.plan.groups import Group
from bench.plan.identity import Run
from bench.plan.members import hyper_of, resolve
from bench.plan.protocols import PROTOCOLS
from methods import registry
from methods.base import Batch, Method, MethodError, Needs, ParameterGroup, Pretraining, Setting, named_hyper
from methods.kd import kd_loss, with_kd
from methods.registry import register_beside
from models.outputs import Shapes
from tests.methods import test_conformance as conformance
from tests.methods.cases import PAIR, Case, made, made_up, pictures, setting


def refused(method: type[Method]) -> bool:
    """Whether it writes its gradients itself or has a setting of KD's already."""
    return method.own_backward or any(field.name.startswith("kd_") for field in dataclasses.fields(method.Hyper))


CAN = [name for name in registry.names() if not refused(registry.get(name))]
CANNOT = sorted(set(registry.names()) - set(CAN))
REAL = ["student+kd", "at+kd", "fitnet+kd", "cc+kd", "skd+kd", "dkd+kd", "simkd+kd"]
every = pytest.mark.parametrize("name", [f"{name}+kd" for name in CAN])


def test_most_methods_can():
    assert {"student", "at", "fitnet", "sp", "rkd", "cc", "skd", "dkd"} <= set(CAN)
    assert {"kd", "kd_ls", "ctkd", "cc_paper", "iep", "iep_bb"} <= set(CANNOT)


@every
def test_losses_are_the_methods_and_kds(name):
    """By hand: at+kd's losses are those of at and 1 times KD at temperature 4."""
    alone, both = made(name.removesuffix("+kd")), made(name)
    both.load_state_dict(alone.state_dict())
    student, teacher = made_up(setting().student, 16, 1), made_up(setting().teacher, 16, 2)
    batch = Batch(torch.arange(16) % 10, torch.arange(16))
    own = alone.losses(student, teacher, batch)
    if "kd" in own:
        with pytest.raises(MethodError, match="has a loss named kd already"):
            both.losses(student, teacher, batch)
        return
    found = both.losses(student, teacher, batch)
    assert list(found) == [*own, "kd"]
    assert all(torch.equal(found[key], value) for key, value in own.items())
    assert torch.equal(found["kd"], kd_loss(both.predict(student), teacher.logits, 4.0))


def test_cross_entropy_counts_once_and_kd_has_its_weight():
    hyper = hyper_of(registry.get("student+kd"), *PAIR, {"kd_weight": "0.25", "kd_temperature": "2"})
    both = registry.get("student+kd")(hyper, setting())
    student, teacher = made_up(setting().student, 8, 1), made_up(setting().teacher, 8, 2)
    labels = torch.arange(8)
    total = sum(both.losses(student, teacher, Batch(labels, labels)).values())
    torch.testing.assert_close(total, F.cross_entropy(student.logits, labels) + 0.25 * kd_loss(student.logits, teacher.logits, 2.0))


@every
def test_all_else_is_the_methods(name):
    alone, both = registry.get(name.removesuffix("+kd")), registry.get(name)
    hyper = both.hyper_for(*PAIR)
    own = alone.hyper_for(*PAIR)
    assert {**named_hyper(own), "kd_temperature": 4.0, "kd_weight": 1.0} == named_hyper(hyper)
    assert both.teacher_needs(hyper) == alone.teacher_needs(own) | Needs(logits=True)
    assert both.student_needs(hyper) == alone.student_needs(own) | Needs(logits=True)
    longer = Shapes("longer", 10, 64, {kind: (*maps, maps[-1]) for kind, maps in setting().teacher.maps.items()})
    for where in (setting(), Setting(longer, setting().teacher, 10)):
        assert bool(both.reason_against(hyper, where)) == bool(alone.reason_against(own, where))
    assert "needs a teacher" in both.reason_against(hyper, Setting(setting().student, None, 10))
    first, second = alone.preparation(own, setting()), both.preparation(hyper, setting())
    assert (first and (first.name, first.version, first.settings)) == (second and (second.name, second.version, second.settings))
    assert made(name).state_dict().keys() == made(alone.name).state_dict().keys()
    assert both.title == f"{alone.title} + KD" and both.name == name and both.capturable == alone.capturable and both.fp32
    assert both.depends_on_teacher(hyper, setting())


@pytest.mark.parametrize("name", REAL)
def test_keeps_the_contract(name, monkeypatch):
    conformance.test_losses_and_gradients_are_finite(name, 16)
    conformance.test_every_trainable_parameter_is_trained(name)
    conformance.test_leaves_teacher_and_outputs_alone(name)
    conformance.test_runs_the_student_once_and_keeps_its_mode(name)
    conformance.test_step_can_be_captured(name, monkeypatch)


@pytest.mark.parametrize("name", REAL)
def test_resumes(name):
    conformance.test_state_dict_is_all_that_a_resumed_run_needs(name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_values_in_half_precision(dtype):
    conformance.test_large_values_in_half_precision("student+kd", dtype)


class Everything(Method):
    """Uses every hook of the contract."""

    name = "everything"
    title = "Everything"
    paper = "none"
    uses_labels = False
    capturable = False
    unreleased = ("bank",)

    def __init__(self, hyper, setting, prepared=None):
        super().__init__(hyper, setting, prepared)
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.register_buffer("bank", torch.zeros(3))
        self.calls = []

    @classmethod
    def pretraining(cls, hyper, setting):
        return Pretraining(30, 0.05)

    def parameter_groups(self):
        return (ParameterGroup([self.scale], 0.5),)

    def start(self, labels):
        self.calls.append("start")

    def begin_step(self, index, generator):
        self.bank.fill_(1.0)

    def begin_epoch(self, epoch, generator):
        self.calls.append(epoch)

    def losses(self, student, teacher, batch):
        return {"own": student.logits.mean() * self.scale}

    def pretraining_losses(self, student, teacher, batch):
        return {"first": student.logits.sum()}

    def predict(self, student):
        return student.logits * self.scale


@pytest.fixture
def everything(monkeypatch):
    monkeypatch.setitem(registry._methods, "everything", Everything)
    return registry.get("everything+kd")


def test_every_hook_passes_through(everything):
    hyper = everything.hyper_for(*PAIR)
    method = everything(hyper, setting())
    method.start(torch.zeros(4, dtype=torch.int64))
    method.begin_epoch(3, torch.Generator())
    method.begin_step(torch.arange(2), torch.Generator())
    student, teacher = made_up(setting().student, 2, 1), made_up(setting().teacher, 2, 2)
    losses = method.losses(student, teacher, Batch(torch.arange(2), torch.arange(2)))
    assert method.calls == ["start", 3] and method.bank.tolist() == [1.0] * 3
    assert everything.pretraining(hyper, setting()) == Pretraining(30, 0.05)
    assert list(method.pretraining_losses(student, teacher, None)) == ["first"]
    assert method.parameter_groups()[0].parameters == [method.scale]
    assert not everything.uses_labels and not everything.capturable and everything.unreleased == ("bank",)
    assert list(losses) == ["own", "kd"]
    assert torch.equal(losses["kd"], kd_loss(2.0 * student.logits, teacher.logits, 4.0))  # on what is evaluated


def test_the_step_is_the_same_with_kd_at_weight_0():
    """Gradients of at+kd with kd_weight 0 are at's."""
    images, labels = pictures(16, 1)
    alone, both = Case.of("at"), Case.of("at+kd")
    both.method.hyper = dataclasses.replace(both.method.hyper, kd_weight=0.0)
    for case in (alone, both):
        case.step(images, labels)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(alone.parameters, both.parameters, strict=True))


def test_kd_on_what_is_evaluated_updates_no_statistics_again():
    """SimKD's normalisations are passed twice in a step of simkd+kd; the test top-1 goes through their running statistics."""
    alone, both = Case.of("simkd"), Case.of("simkd+kd")
    momenta = [m.momentum for m in both.method.modules() if hasattr(m, "momentum")]
    for case in (alone, both):
        case.step(*pictures(16, 1))
    assert all(torch.equal(both.method.state_dict()[key], value) for key, value in alone.method.state_dict().items())
    assert momenta == [m.momentum for m in both.method.modules() if hasattr(m, "momentum")] == [0.1] * 3


def test_what_is_evaluated_otherwise_has_another_version():
    """Runs of simkd+kd whose statistics were updated twice a step are other runs."""
    assert with_kd(registry.get("simkd")).version == registry.get("simkd").version + 1
    assert with_kd(registry.get("at")).version == registry.get("at").version
    assert [registry.get(name).version for name in ("simkd", "simkd+kd", "at+kd")] == [1, 2, 1]


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_says_why(name):
    with pytest.raises(MethodError, match=rf"^{name}\+kd: {name} (has KD's loss already|writes its gradients itself)") as error:
        registry.get(f"{name}+kd")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("att+kd", r"^att\+kd: unknown method 'att'; did you mean at\b"),
        ("at+kdd", r"^at\+kdd: unknown method 'kdd'; did you mean kd\b"),
        ("at+sp", r"^at\+sp: sp cannot stand beside a method; kd can, as in at\+kd"),
        ("at+", r"unknown method ''"),
        ("+kd", r"unknown method ''"),
        ("at+kd+kd", r"kd\+kd: kd has KD's loss already"),
    ],
)
def test_unknown_parts_are_refused(name, words):
    with pytest.raises(MethodError, match=words):
        registry.get(name)


def test_a_loss_of_the_same_name_is_not_lost(monkeypatch):
    class Own(Method):
        name = "own"

        def losses(self, student, teacher, batch):
            return {"ce": student.logits.mean(), "kd": student.logits.sum()}

    monkeypatch.setitem(registry._methods, "own", Own)
    method = registry.get("own+kd")(registry.get("own+kd").hyper_for(*PAIR), setting())
    student, teacher = made_up(setting().student, 2, 1), made_up(setting().teacher, 2, 2)
    with pytest.raises(MethodError, match="own has a loss named kd already"):
        method.losses(student, teacher, Batch(torch.arange(2), torch.arange(2)))


def test_one_class_and_no_listing():
    assert registry.get("at+kd") is registry.get("at+kd")
    assert not any("+" in name for name in registry.names())
    with pytest.raises(MethodError, match="'kd' is taken"):
        register_beside("kd")(lambda method: method)


def test_source_hash_covers_both_files():
    hashes = registry.sources(["at", "kd", "at+kd", "sp+kd", "gone", "gone+kd"])
    assert hashes.keys() == {"at", "kd", "at+kd", "sp+kd"} and len(set(hashes.values())) == 4


def test_version_rises_with_either(monkeypatch):
    monkeypatch.setattr(registry.get("kd"), "version", 3)
    monkeypatch.setitem(registry._methods, "own", type("Own", (Method,), {"name": "own", "version": 2}))
    assert registry.get("own+kd").version == 4


def test_names_and_settings_of_a_run():
    group = Group(*PAIR, 1, PROTOCOLS["crd"], "tf32", ("at", "at+kd"), (("at+kd", "kd_weight", "0.8"), ("at+kd", "weight", "10")))
    at, both = resolve(group, "d", 10, 16, 64, "t")
    assert both.run.id.startswith(f"{PAIR[0]}-{PAIR[1]}-at+kd-s1-") and both.run.id != at.run.id
    assert both.run.hyper == {"weight": 10.0, "power": 2, "kd_temperature": 4.0, "kd_weight": 0.8}
    assert isinstance(both.run, Run) and both.run.teacher == PAIR[0]
    with pytest.raises(UsageError, match=r"at\+kd.kd_temperature is 0.0; it must be above 0"):
        hyper_of(both.method, *PAIR, {"kd_temperature": "0"})


def test_the_main_stage_reads_what_it_needs_alone():
    """AB and FSP read the teacher's maps before training and nothing in it; with KD beside them its logits."""
    for name in ("ab", "fsp"):
        method, joined = registry.get(name), registry.get(f"{name}+kd")
        hyper = method.Hyper()
        assert method.teacher_needs(hyper).maps and not method.main_teacher_needs(hyper, setting())
        assert joined.main_teacher_needs(joined.Hyper(), setting()) == Needs(logits=True)
        assert joined.teacher_needs(joined.Hyper()).maps == method.teacher_needs(hyper).maps
    assert registry.get("at").main_teacher_needs(registry.get("at").Hyper(), setting()) == registry.get("at").teacher_outputs
