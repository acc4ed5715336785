"""What the methods on features promise beyond their losses: values by pair, sizes of their modules, all pairs taken, warm-up, refusals."""

import functools
from dataclasses import asdict

import pytest
import torch

import models
from methods import catkd, ickd, itrd, ofd, registry, reviewkd, simkd
from methods.base import Batch, MethodError, Setting, check_hyper
from models.outputs import Outputs, Shapes
from models.randomness import keyed
from tests.methods.cases import Case, Images, hyper_of, made, made_up, pictures, setting
from tests.methods.independent import ALIKE, UNLIKE

NAMES = ("catkd", "ickd", "itrd", "ofd", "reviewkd", "simkd", "srrl")
PAIRS = (*ALIKE, *UNLIKE)
every = pytest.mark.parametrize("name", NAMES)


def of_pair(teacher: str, student: str) -> Setting:
    return Setting(models.shapes(student), models.shapes(teacher))


def parameters(name: str, pair: tuple[str, str]) -> int:
    method, used = registry.get(name), of_pair(*pair)
    preparation = method.preparation(method.Hyper(), used)
    with keyed(0, "method"):
        prepared = preparation.build(models.build(pair[0]), Images()) if preparation else None
        return sum(p.numel() for p in method(method.hyper_for(*pair), used, prepared).parameters() if p.requires_grad)


COUNTS = {  # of weights of convolutions and linear layers, and 2 a channel of a batch normalisation
    "ickd": {("resnet56", "resnet20"): 64 * 64 + 128, ("vgg13", "mobilenetv2"): 160 * 512 + 1024},
    "itrd": {("resnet56", "resnet20"): 64 * 64 + 64, ("vgg13", "mobilenetv2"): 1280 * 512 + 512},
    "reviewkd": {("resnet32x4", "resnet8x4"): 1_808_774},  # as published code has it
    "simkd": {("resnet32x4", "resnet8x4"): 214_016},  # as published
    "srrl": {("resnet32x4", "resnet8x4"): 256 * 256 + 512},
    "catkd": {("resnet32x4", "resnet8x4"): 0},
    "ofd": {("resnet32x4", "resnet8x4"): 64**2 + 128**2 + 256**2 + 2 * (64 + 128 + 256)},
}


@pytest.mark.parametrize(("name", "pair", "count"), [(name, *item) for name, known in COUNTS.items() for item in known.items()])
def test_trainable_parameters(name, pair, count):
    assert parameters(name, pair) == count


@functools.cache
def pair_outputs(pair: tuple[str, str]) -> tuple[torch.nn.Module, Outputs, torch.nn.Module, torch.Tensor]:
    """A teacher in evaluation mode with its outputs on two images, and a student."""
    with keyed(0, "networks"):
        teacher, student = models.build(pair[0]).eval(), models.build(pair[1]).train()
    images = pictures(2, 1, 32)[0]
    with torch.no_grad():
        return teacher, teacher(images, ("stage", "preact", "relu", "last", "cam")), student, images


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_a_step_on_every_pair(pair):
    """All seven on the real architectures: none refuses, losses and gradients are finite, the student's first layer is taught."""
    teacher, targets, student, images = pair_outputs(pair)
    outputs = student(images, ("stage", "preact", "cam"))
    first = next(student.parameters())
    labels = torch.tensor([1, 2])
    for name in NAMES:
        method, used = registry.get(name), of_pair(*pair)
        hyper = method.hyper_for(*pair)
        assert method.reason_against(hyper, used) is None
        preparation = method.preparation(hyper, used)
        with keyed(0, "method"):
            built = method(hyper, used, preparation.build(teacher, Images()) if preparation else None).train()
        losses = built.losses(outputs, targets, Batch(labels, labels))
        taught = sum(value for term, value in losses.items() if term != "ce")
        (gradient,) = torch.autograd.grad(taught, first, retain_graph=True)
        assert torch.isfinite(taught) and torch.isfinite(gradient).all() and gradient.any(), name
        assert built.predict(outputs).shape == (2, 100)
    pair_outputs.cache_clear()


PUBLISHED = {
    "reviewkd": {("resnet56", "resnet20"): {"weight": 0.6, "warmup": 20}, ("resnet32x4", "shufflev2"): {"weight": 8.0, "warmup": 20}},
    "catkd": {
        ("resnet56", "resnet20"): {"weight": 0.7, "resolution": 2, "normalise": False},
        ("wrn_40_2", "shufflev1"): {"weight": 80.0, "resolution": 4, "normalise": True},
        ("resnet50", "mobilenetv2"): {"weight": 40.0, "resolution": 2, "normalise": True},
    },
    "itrd": {
        **dict.fromkeys(ALIKE, {"correlation_weight": 2.0, "mutual_weight": 1.0, "alpha": 1.01}),
        **dict.fromkeys(UNLIKE, {"correlation_weight": 2.0, "mutual_weight": 1.0, "alpha": 1.5}),
    },
    "ickd": dict.fromkeys(PAIRS, {"weight": 2.5}),
    "ofd": dict.fromkeys(PAIRS, {"weight": 0.001}),
    "simkd": dict.fromkeys(PAIRS, {"weight": 1.0, "factor": 2}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_by_pair(name):
    for pair, values in PUBLISHED[name].items():
        assert asdict(registry.get(name).hyper_for(*pair)) == values


@pytest.mark.parametrize("table", [catkd.HYPER, reviewkd.WEIGHTS], ids=["catkd", "reviewkd"])
def test_values_are_of_pairs_that_exist(table):
    assert set(table) <= set(PAIRS)


def test_weights_and_terms():
    """What stands before each loss, by a second method with that weight doubled."""
    for name, weights in (("ickd", {"weight": "ickd"}), ("itrd", {"correlation_weight": "correlation", "mutual_weight": "mutual"}),
                          ("catkd", {"weight": "cat"}), ("ofd", {"weight": "ofd"}), ("reviewkd", {"weight": "review"})):  # fmt: skip
        method = made(name)
        labels = torch.arange(8) % 10
        given = made_up(setting().student, 8, 1), made_up(setting().teacher, 8, 2), Batch(labels, labels)
        plain = method.losses(*given)
        assert plain.keys() == {"ce", *weights.values()}
        torch.testing.assert_close(plain["ce"], torch.nn.functional.cross_entropy(given[0].logits, labels))
        for weight, term in weights.items():
            method.hyper = type(method.hyper)(**{**asdict(hyper_of(type(method))), weight: 2 * getattr(method.hyper, weight)})
            torch.testing.assert_close(method.losses(*given)[term], 2 * plain[term])


def test_reviewkds_weight_grows_over_20_epochs():
    method, used = made("reviewkd"), setting()
    given = made_up(used.student, 8, 1), made_up(used.teacher, 8, 2), Batch(torch.zeros(8, dtype=torch.int64), torch.arange(8))
    held = method.warm
    values = {}
    for epoch in (1, 10, 20, 21, 240):
        method.begin_epoch(epoch, torch.Generator())
        values[epoch] = method.losses(*given)["review"].item()
    assert method.warm is held  # a recorded step reads this very tensor
    for epoch, part in ((1, 0.05), (10, 0.5), (21, 1.0), (240, 1.0)):
        assert values[epoch] == pytest.approx(part * values[20], rel=1e-5)


def test_itrd_compares_the_students_own_embedding_where_widths_agree():
    method, used = made("itrd"), setting()
    assert used.student.embedding == used.teacher.embedding
    student, teacher = made_up(used.student, 8, 1), made_up(used.teacher, 8, 2)
    losses = method.losses(student, teacher, Batch(torch.zeros(8, dtype=torch.int64), torch.arange(8)))
    torch.testing.assert_close(losses["mutual"], itrd.mutual_loss(student.embedding, teacher.embedding))
    torch.testing.assert_close(losses["correlation"], 2 * itrd.correlation_loss(method.embed(student.embedding), teacher.embedding, 1.5))


def test_ickd_projects_the_students_map():
    method, used = made("ickd"), setting()
    student, teacher = made_up(used.student, 8, 1), made_up(used.teacher, 8, 2)
    losses = method.losses(student, teacher, Batch(torch.zeros(8, dtype=torch.int64), torch.arange(8)))
    expected = ickd.ickd_loss(method.embed(student.maps["stage"][-1]), teacher.maps["stage"][-1])
    torch.testing.assert_close(losses["ickd"], 2.5 * expected)


def test_simkd_leaves_the_students_classifier_alone():
    case = Case.of("simkd")
    losses = case.step(*pictures(8, 1))
    assert losses.keys() == {"simkd"} and not type(case.method).uses_labels
    assert case.student.fc.weight.grad is None and case.student.conv1.weight.grad.any()
    assert not case.method.weight.requires_grad and {"weight", "bias"} <= case.method.state_dict().keys()


@every
def test_refuses_without_a_teacher(name):
    method = registry.get(name)
    alone = Setting(setting().student, None)
    assert "needs a teacher" in method.reason_against(method.Hyper(), alone)
    assert method.preparation(method.Hyper(), alone) is None


@pytest.mark.parametrize("name", ["ofd", "reviewkd"])
def test_refuses_networks_with_other_numbers_of_stages(name):
    method, teacher = registry.get(name), setting().teacher
    longer = Shapes("toy", 10, 64, {kind: (*maps, maps[-1]) for kind, maps in teacher.maps.items()})
    assert "resnet14 and toy have 3 and 4" in method.reason_against(method.Hyper(), Setting(longer, teacher, 10))


def test_ofd_refuses_a_teacher_without_normalisations_behind_its_stages():
    reason = ofd.OFD.reason_against(ofd.OFD.Hyper(), of_pair("shufflev2", "shufflev1"))
    assert "margins" in reason and "shufflev2" in reason and "\n" not in reason


@pytest.mark.parametrize(
    ("hyper", "values"),
    [(itrd.Hyper, {"alpha": 0.5}), (reviewkd.Hyper, {"warmup": 0}), (simkd.Hyper, {"factor": 0}), (catkd.Hyper, {"resolution": 0})],
)
def test_refuses_values_that_mean_nothing(hyper, values):
    (name,) = values
    with pytest.raises(MethodError, match=rf"any\.{name} is {values[name]}; it must be"):
        check_hyper("any", hyper(**values))
