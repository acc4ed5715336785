"""The losses of OFD, SimKD, SRRL and CAT-KD against NumPy, and what is read of the teacher for them."""

import re

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import models
from methods import ofd, registry, simkd, srrl
from methods.base import Batch, MethodError, Prepared, Setting
from methods.catkd import catkd_loss
from models.outputs import Outputs, Shapes
from tests.methods.cases import Images, frozen_teacher, made, setting
from tests.methods.independent import agrees, arrays, average_pooled, both, convolved, draw, everywhere, normalised, of_teachers, unit_rows

BATCHES = pytest.mark.parametrize("batch", [64, 16, 3])

# OFD


def numpy_ofd(s, t, lows):
    total = 0.0
    for level, (a, b, low) in enumerate(zip(s, t, lows, strict=True)):
        target = np.maximum(b, low)
        apart = (a - target) ** 2
        apart[(a <= target) & (target <= 0)] = 0
        total += apart.sum() / 2 ** (len(s) - level - 1)
    return total / len(s[0])


@everywhere
def test_ofd(pair, batch):
    teacher, student = (shapes.maps["preact"][1:] for shapes in both(pair))
    sizes = [(t[0], min(s[1], t[1]), min(s[2], t[2])) for s, t in zip(student, teacher, strict=True)]
    s, t = ([draw(batch, *size, seed=seed + i) for i, size in enumerate(sizes)] for seed in (0, 10))
    lows = [-draw(size[0], 1, 1, seed=20 + i).abs() for i, size in enumerate(sizes)]
    agrees(lambda s, t: ofd.ofd_loss(s, t, lows), lambda s, t: numpy_ofd(s, t, arrays(lows)), s, t)


def test_ofd_by_hand():
    """One value an image; margin -1. Active: (2 - 3)^2. Inactive and the student below: nothing; above: down to the teacher; to the margin."""
    s = torch.tensor([2.0, -3, 0.5, 0.5], dtype=torch.float64).view(4, 1, 1, 1)
    t = torch.tensor([3.0, -0.5, -0.5, -9.0], dtype=torch.float64).view(4, 1, 1, 1)
    assert ofd.ofd_loss([s], [t], [torch.full((1, 1, 1), -1.0)]).item() == (1 + 0 + 1 + 2.25) / 4


def test_margins_are_the_mean_below_0():
    weight, bias = torch.tensor([0.5, -0.5, 2.0, 1.0, 0.3]), torch.tensor([0.2, 0.2, -3.0, 3.0, 0.0])
    expected = [scipy.stats.truncnorm.mean(-np.inf, -b / abs(w), b, abs(w)) for w, b in zip(weight.tolist(), bias.tolist(), strict=True)]
    assert ofd.margins(weight, bias).tolist() == pytest.approx(expected, rel=1e-6)


def test_margins_of_rare_and_of_constant_channels():
    found = ofd.margins(torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]), torch.tensor([3.2, 3.0, -0.7, 0.7, 0.0]))
    assert found[0] == -3 and -1 < found[1] < 0  # negative in 0.07 % and in 0.13 % of cases
    assert found[2:].tolist() == pytest.approx([-0.7, 0, 0], abs=1e-7)


@pytest.mark.parametrize("batch", [8, 1])
def test_ofd_from_maps_to_loss(batch):
    method = made("ofd").double()
    student, teacher = setting().student, setting().teacher
    s, t = ([draw(batch, *shape, seed=seed + i) for i, shape in enumerate(x.maps["preact"][1:])] for seed, x in ((0, student), (10, teacher)))
    weights = arrays([connector[0].weight for connector in method.connectors])
    lows = arrays([getattr(method, f"margin{i}") for i in range(len(s))])
    labels = torch.zeros(batch, dtype=torch.int64)

    def loss(s, t):
        outputs = Outputs(draw(batch, 10), None, {"preact": (None, *s)}), Outputs(None, None, {"preact": (None, *t)})
        return method.losses(*outputs, Batch(labels, labels))["ofd"]

    agrees(loss, lambda s, t: 0.001 * numpy_ofd([normalised(convolved(x, w)) for x, w in zip(s, weights, strict=True)], t, lows), s, t)


def test_ofd_pools_the_larger_map():
    student, teacher = models.shapes("mobilenetv2"), models.shapes("vgg13")
    norms = {f"margin{i}": torch.zeros(shape[0]) for i, shape in enumerate(teacher.maps["preact"][1:])}
    torch.manual_seed(0)
    method = ofd.OFD(ofd.OFD.Hyper(), Setting(student, teacher), Prepared(norms)).double().train()
    s, t = ([draw(2, *shape, seed=seed + i) for i, shape in enumerate(x.maps["preact"])] for seed, x in ((0, student), (10, teacher)))
    labels = torch.zeros(2, dtype=torch.int64)
    losses = method.losses(Outputs(draw(2, 100), None, {"preact": s}), Outputs(None, None, {"preact": t}), Batch(labels, labels))
    weights = arrays([connector[0].weight for connector in method.connectors])
    connected = [normalised(convolved(x, w)) for x, w in zip(arrays(s[1:]), weights, strict=True)]
    pooled = [average_pooled(x, size) for x, size in zip(arrays(t[1:]), (16, 8, 4, 2), strict=True)]
    assert losses["ofd"].item() == pytest.approx(0.001 * numpy_ofd(connected, pooled, [0.0] * 4), rel=1e-9)


# SimKD


def shapes(last: tuple[int, int, int], classes: int = 6) -> Shapes:
    return Shapes("toy", classes, last[0], {"stage": (last,) * 2, "last": (last,)})


def classifier(width: int, classes: int = 6) -> Prepared:
    return Prepared({"weight": draw(classes, width, seed=30).float(), "bias": draw(classes, seed=31).float()})


MEETINGS = {"alike": ((3, 4, 4), (6, 4, 4)), "larger student": ((3, 8, 8), (6, 4, 4)), "larger teacher": ((3, 4, 4), (7, 8, 8))}


@BATCHES
@pytest.mark.parametrize(("student", "teacher"), MEETINGS.values(), ids=MEETINGS)
def test_simkd_from_maps_to_loss_and_to_logits(student, teacher, batch):
    torch.manual_seed(0)
    ready = classifier(teacher[0])
    method = simkd.SimKD(simkd.Hyper(weight=2.0), Setting(shapes(student), shapes(teacher), 6), ready).double().train()
    weights = arrays([layer.weight for layer in method.projector[::2]])
    labels = torch.zeros(batch, dtype=torch.int64)

    def projected(x):
        x = average_pooled(x, min(student[1], teacher[1]))
        for weight in weights:
            x = np.maximum(normalised(convolved(x, weight)), 0)
        return x

    def loss(s, t):
        outputs = Outputs(None, None, {"stage": (None, s[0])}), Outputs(None, None, {"last": (t[0],)})
        (name,) = terms = method.losses(*outputs, Batch(labels, labels))
        assert name == "simkd"
        return terms[name]

    def reference(s, t):
        return 2.0 * ((projected(s[0]) - average_pooled(t[0], min(student[1], teacher[1]))) ** 2).mean()

    s = draw(batch, *student)
    agrees(loss, reference, [s], [draw(batch, *teacher, seed=1, relu=True)], step=1e-7)  # few values cross a ReLU
    expected = projected(arrays([s])[0]).mean((2, 3)) @ ready.tensors["weight"].double().numpy().T + ready.tensors["bias"].double().numpy()
    assert np.allclose(method.predict(Outputs(None, None, {"stage": (None, s)})).detach().numpy(), expected, rtol=1e-9)


def test_simkd_is_evaluated_image_by_image():
    """In evaluation mode an image's logits do not depend on the batch it comes in."""
    method = made("simkd").eval()
    x = draw(5, *setting().student.maps["stage"][-1]).float()
    whole = method.predict(Outputs(None, None, {"stage": (x,)}))
    assert torch.allclose(whole[2:3], method.predict(Outputs(None, None, {"stage": (x[2:3],)})), atol=1e-6)


def test_simkd_reads_what_the_teachers_classifier_reads():
    """Where the projection is the teacher's own map, the logits are the teacher's, a WRN's included."""
    with torch.no_grad():
        for name in ("resnet8", "wrn_16_1", "vgg8"):
            network = models.build(name, 6).eval()
            prepared = simkd.SimKD.preparation(simkd.Hyper(), setting()).build(network, Images())
            outputs = network(draw(2, 3, 32, 32).float(), ("last",))
            logits = nn.functional.linear(outputs.maps["last"][0].mean((2, 3)), prepared.tensors["weight"], prepared.tensors["bias"])
            assert torch.allclose(logits, outputs.logits, atol=1e-5)


def test_what_simkd_adds_at_inference():
    cost = simkd.SimKD.inference(simkd.Hyper(), Setting(models.shapes("resnet8x4"), models.shapes("resnet32x4")))
    assert (cost.parameters, cost.macs) == (214_016, 13_631_488)  # the published 214,016 and 13.6 M
    wide = Setting(models.shapes("vgg8"), models.shapes("resnet50"))
    prepared = Prepared({"weight": torch.zeros(100, 2048), "bias": torch.zeros(100)})
    method = simkd.SimKD(simkd.Hyper(), wide, prepared)
    kept = sum(p.numel() for p in method.parameters()) + method.weight.numel() + method.bias.numel()
    assert simkd.SimKD.inference(simkd.Hyper(), wide).parameters == kept - (512 * 100 + 100)


@pytest.mark.parametrize("names", [("resnet32x4", "shufflev2"), ("vgg13", "mobilenetv2"), ("resnet8x4", "resnet8x4"), ("wrn_40_2", "wrn_16_1")])
def test_simkd_at_use_is_what_its_answer_needs(names):
    """The parameters that the answer depends on: those behind the student's last stage are none of them."""
    teacher, student = names
    where = Setting(models.shapes(student), models.shapes(teacher))
    prepared = Prepared({"weight": torch.randn(100, where.teacher.embedding), "bias": torch.randn(100)})
    method, network = simkd.SimKD(simkd.Hyper(), where, prepared), models.build(student)
    method.predict(network(torch.randn(2, 3, 32, 32), ("stage",))).sum().backward()
    used = sum(p.numel() for p in [*method.parameters(), *network.parameters()] if p.grad is not None)
    whole = sum(p.numel() for p in network.parameters())
    assert simkd.SimKD.inference(simkd.Hyper(), where).parameters == used + method.weight.numel() + method.bias.numel() - whole


# SRRL


@pytest.mark.parametrize("batch", [64, 16, 1])
def test_srrl_from_embeddings_to_losses(batch):
    torch.manual_seed(0)
    student, teacher = shapes((5, 1, 1)), shapes((7, 1, 1))
    ready = classifier(7)
    method = srrl.SRRL(srrl.Hyper(feature_weight=2.0, regression_weight=3.0), Setting(student, teacher, 6), ready).double().train()
    conv = arrays([method.projector[0].weight])[0]
    weight, bias = (t.double().numpy() for t in ready.tensors.values())
    labels = torch.zeros(batch, dtype=torch.int64)

    def loss(s, t):
        losses = method.losses(Outputs(draw(batch, 6), s[0]), Outputs(t[1], t[0]), Batch(labels, labels))
        assert losses.keys() == {"ce", "features", "regression"}
        return losses["features"] + losses["regression"]

    def reference(s, t):
        x = convolved(s[0][:, :, None, None], conv)
        x = normalised(x) if batch > 1 else x / np.sqrt(1 + 1e-5)  # one image has no variance: the running statistics of a fresh layer
        x = np.maximum(x, 0)[:, :, 0, 0]
        return 2 * ((x - t[0]) ** 2).mean() + 3 * ((x @ weight.T + bias - t[1]) ** 2).mean()

    agrees(loss, reference, [draw(batch, 5, relu=True)], [draw(batch, 7, seed=1, relu=True), draw(batch, 6, seed=2)], step=1e-7)


@of_teachers
def test_srrl_losses(pair, batch):
    width = both(pair)[0].embedding
    s, t = draw(batch, width, relu=True), [draw(batch, width, seed=1, relu=True), draw(batch, 100, seed=2)]
    weight, bias = draw(100, width, seed=3), draw(100, seed=4)

    def reference(s, t):
        return ((s[0] - t[0]) ** 2).mean() + 2 * ((s[0] @ weight.numpy().T + bias.numpy() - t[1]) ** 2).mean()

    def loss(s, t):
        features, regression = srrl.srrl_losses(s[0], *t, weight, bias)
        return features + 2 * regression

    agrees(loss, reference, [s], t)


def test_srrl_with_kd_as_public_code_has_it():
    used = Setting(shapes((5, 1, 1)), shapes((7, 1, 1)), 6)
    method = srrl.SRRL(srrl.Hyper(ce_weight=0.1, kd_weight=0.9), used, classifier(7))
    student, teacher = Outputs(draw(4, 6).float(), draw(4, 5).float()), Outputs(draw(4, 6, seed=1).float(), draw(4, 7).float())
    labels = torch.arange(4)
    found = method.losses(student, teacher, Batch(labels, labels))
    kd = registry.get("kd")(registry.get("kd").Hyper(), used).losses(student, teacher, Batch(labels, labels))
    assert torch.equal(found["ce"], kd["ce"]) and torch.equal(found["kd"], kd["kd"])


# CAT-KD


def numpy_cat(s, t, resolution, normalise):
    s, t = (average_pooled(x, resolution).reshape(*x.shape[:2], -1) for x in (s, t))
    return ((unit_rows(s) - unit_rows(t)) ** 2).mean() if normalise else ((s - t) ** 2).mean()


@everywhere
@pytest.mark.parametrize(("resolution", "normalise"), [(2, False), (4, True)])
def test_catkd(pair, batch, resolution, normalise):
    teacher, student = (x.maps["cam"][0] for x in both(pair))
    given = (resolution, normalise)
    agrees(
        lambda s, t: catkd_loss(s[0], t[0], *given),
        lambda s, t: numpy_cat(s[0], t[0], *given),
        [draw(batch, *student)],
        [draw(batch, *teacher, seed=1)],
    )


@pytest.mark.parametrize("normalise", [False, True])
def test_catkd_of_dead_maps(normalise):
    s, t = draw(4, 3, 4, 4), draw(4, 3, 4, 4, seed=1)
    s[0], t[1, 2] = 0, 0
    leaf = s.clone().requires_grad_()
    loss = catkd_loss(leaf, t, 2, normalise)
    assert loss.item() == pytest.approx(numpy_cat(*arrays([s, t]), 2, normalise), rel=1e-12)
    loss.backward()
    assert torch.isfinite(leaf.grad).all() and leaf.grad.abs().max() < 10


# What is read of the teacher


def test_the_classifier_is_the_teachers():
    teacher = frozen_teacher()
    prepared = simkd.SimKD.preparation(simkd.Hyper(), setting()).build(teacher, Images())
    images = draw(2, 3, 16, 16).float()
    outputs = teacher(images)
    assert torch.allclose(nn.functional.linear(outputs.embedding, prepared.tensors["weight"], prepared.tensors["bias"]), outputs.logits, atol=1e-6)
    prepared.tensors["weight"].zero_()
    assert teacher.fc.weight.any()


def test_the_margins_are_the_teachers():
    teacher = frozen_teacher()
    prepared = ofd.OFD.preparation(ofd.OFD.Hyper(), setting()).build(teacher, Images())
    norms = (teacher.layer1[-1].bn2, teacher.layer2[-1].bn2, teacher.layer3[-1].bn2)
    for i, norm in enumerate(norms):
        assert torch.equal(prepared.tensors[f"margin{i}"], ofd.margins(norm.weight, norm.bias).float())
    assert len(prepared.tensors) == len(norms)


@pytest.mark.parametrize("name", ["simkd", "srrl", "ofd"])
def test_refuses_what_is_not_the_teachers(name):
    method = registry.get(name)
    other = {"weight": torch.zeros(10, 3), "bias": torch.zeros(10), **{f"margin{i}": torch.zeros(3) for i in range(3)}}
    for prepared, words in ((None, "missing"), (Prepared({}), "missing"), (Prepared(other), re.escape("of shape"))):
        with pytest.raises(MethodError, match=f"{name}: .*{words}.*prepare again"):
            method(method.Hyper(), setting(), prepared)


def test_methods_that_read_the_classifier_share_its_preparation():
    assert registry.get("simkd").preparation(simkd.Hyper(), setting()) == registry.get("srrl").preparation(srrl.Hyper(), setting())
