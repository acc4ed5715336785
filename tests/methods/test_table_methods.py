"""VID, AB, FT, FSP, PKT, NST and CRD as methods: sizes of their modules, what they read, weights, stages before training, pairs refused."""

import dataclasses
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from methods import registry
from methods.ab import AB, boundary_loss
from methods.base import NOTHING, Batch, MethodError, Prepared, Pretraining, Setting, check_hyper
from methods.fsp import FSP, flow, fsp_loss
from methods.ft import FT, encoder, factor_loss
from methods.nst import NST, nst_loss
from methods.pkt import PKT, pkt_loss
from methods.vid import VID, vid_loss
from models.outputs import Outputs, Shapes
from models.randomness import keyed
from tests.methods.cases import CLASSES, PAIR, Images, frozen_teacher, made_up, network, pictures, setting
from tests.methods.test_conformance import no_host_read
from tests.methods.test_methods import PAIRS, of_pair

NAMES = ("pkt", "vid", "ab", "ft", "nst", "fsp", "crd")
COUNTS = {  # extra trainable parameters in RepDistiller, by pair
    "vid": (64_736, 16_240, 16_240, 16_240, 258_496, 1_820_032),
    "ft": (258_816, 64_896, 64_896, 64_896, 1_033_728, 4_131_840),
    "crd": (33_024, 16_640, 16_640, 16_640, 65_792, 131_328),
    **dict.fromkeys(("pkt", "ab", "nst", "fsp"), (0,) * 6),
}
PARAPHRASERS = (516_672, 129_312, 129_312, 129_312, 2_065_536, 8_259_840)  # encoder and decoder


def built(name: str, used: Setting, hyper=None):
    method, prepared = registry.get(name), None
    if name == "ft":
        prepared = Prepared(encoder(used.teacher.maps["stage"][-1][0]).state_dict())
    with keyed(0, "method"):
        return method(hyper or method.Hyper(), used, prepared).train()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("place", "pair"), list(enumerate(PAIRS)), ids=["-".join(p) for p in PAIRS])
def test_trainable_parameters(name, place, pair):
    used = dataclasses.replace(of_pair(*pair), images=10)
    assert registry.get(name).reason_against(registry.get(name).Hyper(), used) is None
    method = built(name, used)
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == COUNTS[name][place]
    if name == "ft":
        width = used.teacher.maps["stage"][-1][0]
        found = sum(p.numel() for p in method.paraphraser.parameters())
        decoder = sum(a * b * 9 + b for a, b in ((width // 2, width // 2), (width // 2, width), (width, width)))
        assert found + decoder == PARAPHRASERS[place]


def test_losses_carry_the_protocols_weights():
    s, t = made_up(setting().student, 16, 1), made_up(setting().teacher, 16, 2)
    labels = torch.arange(16) % CLASSES
    batch = Batch(labels, torch.arange(16))
    stages = s.maps["stage"][1:], t.maps["stage"][1:]
    vid, ft = built("vid", setting()), built("ft", setting())
    terms = zip(vid.regressors, *stages, vid.scales, strict=True)
    expected = {
        "pkt": 30_000 * pkt_loss(s.embedding, t.embedding),
        "nst": 50 * nst_loss(*stages),
        "vid": sum(vid_loss(regressor(a), b, scale) for regressor, a, b, scale in terms),
        "ft": 200 * factor_loss(ft.translator(stages[0][-1]), ft.paraphraser(stages[1][-1])),
    }
    for name, value in expected.items():
        method = {"vid": vid, "ft": ft}.get(name) or built(name, setting())
        losses = method.losses(s, t, batch)
        assert losses.keys() == {"ce", name}
        torch.testing.assert_close(losses["ce"], F.cross_entropy(s.logits, labels))
        torch.testing.assert_close(losses[name], value)


def test_vids_modules_are_the_protocols():
    method = built("vid", of_pair("wrn_40_2", "wrn_40_1"))
    kinds = [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Conv2d]
    for regressor, student, teacher in zip(method.regressors, (16, 32, 64), (32, 64, 128), strict=True):
        assert [type(m) for m in regressor] == kinds
        widths = [(m.in_channels, m.out_channels) for m in regressor if isinstance(m, nn.Conv2d)]
        assert widths == [(student, teacher), (teacher, teacher), (teacher, teacher)]
        assert all(m.bias is None and m.kernel_size == (1, 1) for m in regressor if isinstance(m, nn.Conv2d))
    variances = torch.cat([F.softplus(scale) + 1e-5 for scale in method.scales])
    torch.testing.assert_close(variances, torch.full((224,), 5.0))
    assert all(scale.requires_grad for scale in method.scales)


@pytest.mark.parametrize("variance", [0.0, 1e-6, 1e9])
def test_vid_refuses_variances(variance):
    with pytest.raises(MethodError, match="vid.variance is"):
        check_hyper("vid", VID.Hyper(variance=variance))


# The stages before training.


@pytest.mark.parametrize("method", [AB, FSP])
def test_pretraining_is_the_protocols(method):
    assert method.pretraining(method.Hyper(), setting()) == Pretraining(epochs=30, rate=0.05, teacher_after=NOTHING)


@pytest.mark.parametrize("method", [AB, FSP])
def test_pretraining_has_the_students_rate(method):
    assert [method.hyper_for("vgg13", student).rate for student in ("vgg8", "mobilenetv2", "resnet20")] == [0.05, 0.01, 0.05]


def pretrained(name: str, steps: int, pair: tuple[str, str] = PAIR) -> list[float]:
    """The stage's loss, step by step, as the trainer runs it: stem, stages and the method's modules under SGD, the rest in eval mode."""
    method, student, teacher = built(name, setting(*pair)), network(pair[1], "student"), frozen_teacher()
    if pair[0] != PAIR[0]:
        teacher = network(pair[0], "teacher").eval().requires_grad_(False)
    student.fc.eval().requires_grad_(False)
    trained = [p for m in (student, method) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=5e-4)
    images, labels = pictures(32, 1)
    needs = method.student_needs(method.hyper).maps
    values = []
    for _ in range(steps):
        with torch.no_grad():
            known = teacher(images, method.teacher_needs(method.hyper).maps)
        losses = method.pretraining_losses(student(images, needs), known, Batch(labels, torch.arange(32)))
        assert list(losses) == [name]
        optimizer.zero_grad()
        losses[name].backward()
        assert all(p.grad is not None for p in trained if p.requires_grad)
        optimizer.step()
        values.append(losses[name].item())
    return values


@pytest.mark.parametrize(("name", "pair"), [("ab", PAIR), ("fsp", PAIR), ("ab", ("wrn_16_2", "resnet8"))], ids=str)
def test_pretraining_teaches_the_student(name, pair):
    values = pretrained(name, 20, pair)
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("name", ["ab", "fsp"])
@pytest.mark.parametrize("batch", [64, 16, 1])
def test_pretraining_losses_are_the_functions(name, batch):
    s, t = made_up(setting().student, batch, 1), made_up(setting().teacher, batch, 2)
    labels = torch.arange(batch) % CLASSES
    method = built(name, setting())
    found = method.pretraining_losses(s, t, Batch(labels, labels))[name]
    preact = [o.maps["preact"][1:] for o in (s, t)]
    expected = boundary_loss(*preact) if name == "ab" else fsp_loss(s.maps["stage"], t.maps["stage"])
    assert torch.isfinite(found) and torch.equal(found, expected)
    losses = method.losses(s, t, Batch(labels, labels))
    assert losses.keys() == {"ce"} and torch.equal(losses["ce"], F.cross_entropy(s.logits, labels))


@pytest.mark.parametrize("name", ["ab", "fsp"])
def test_a_step_before_training_can_be_captured(name, monkeypatch):
    """No host read, and the same operations on the same shapes whatever the values."""
    method, student, kinds = built(name, setting()), network(PAIR[1], "student"), registry.get(name).teacher_outputs.maps
    traces = []
    for images in (pictures(16, 1)[0], torch.zeros(16, 3, 16, 16), pictures(16, 2)[0]):
        with torch.no_grad():
            known = frozen_teacher()(images, kinds)
        labels = torch.zeros(16, dtype=torch.int64)
        with no_host_read(monkeypatch) as mode:
            method.pretraining_losses(student(images, kinds), known, Batch(labels, labels))[name].backward()
        traces.append(mode.trace)
        student.zero_grad(set_to_none=True)
    assert traces[0] == traces[1] == traces[2]


def test_abs_connectors_meet_the_teachers_shapes():
    used = setting("wrn_16_2", "resnet8")
    method = built("ab", used)
    assert [type(m) for m in method.connectors[0]] == [nn.Conv2d, nn.BatchNorm2d]
    s = made_up(used.student, 2)
    for connector, x, size in zip(method.connectors, s.maps["preact"][1:], used.teacher.maps["preact"][1:], strict=True):
        assert connector(x).shape == (2, *size)
    assert all(len(m) == 0 for m in built("ab", setting()).connectors)  # equal shapes need none


def test_fsps_flow_of_a_small_map():
    """Two places, by hand."""
    bottom, top = torch.tensor([[[[1.0, 2.0]], [[0.0, 3.0]]]]), torch.tensor([[[[4.0, -1.0]]]])
    assert torch.equal(flow(bottom, top), torch.tensor([[[1.0], [-1.5]]]))


# FT's paraphraser.


def test_paraphraser_learns_to_reconstruct():
    used, hyper = setting(), FT.Hyper(epochs=6)
    preparation = FT.preparation(hyper, used)
    assert preparation.settings == {"epochs": 6, "rate": 0.01, "width": 64}
    first, second = (preparation.build(frozen_teacher(), Images()) for _ in range(2))
    errors = first.facts["mean_squared_errors"]
    assert len(errors) == 6 and errors[-1] < errors[0]
    assert first.tensors.keys() == encoder(64).state_dict().keys()
    assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())  # keyed: no ambient randomness
    method = FT(hyper, used, first)
    assert not any(p.requires_grad for p in method.paraphraser.parameters())
    assert all(torch.equal(value, first.tensors[name]) for name, value in method.paraphraser.state_dict().items())


@pytest.mark.parametrize("name", ["ft", "ft+kd"])
def test_paraphraser_that_diverges_says_what_to_do(name):
    method = registry.get(name)
    preparation = method.preparation(method.Hyper(epochs=3, rate=1e6), setting())
    said = rf"diverged in epoch \d: lower its rate \(now 1e\+06\): --set {re.escape(name)}\.rate=100000$"
    with pytest.raises(MethodError, match=said):
        preparation.build(frozen_teacher(), Images())


def test_paraphraser_is_the_students_rate_for_vgg():
    assert FT.hyper_for("vgg13", "vgg8").rate == 0.05
    assert FT.hyper_for("resnet56", "resnet20").rate == FT.hyper_for("wrn_40_2", "wrn_16_2").rate == 0.01


def test_ft_needs_its_paraphraser():
    with pytest.raises(MethodError, match="paraphraser"):
        FT(FT.Hyper(), setting(), None)


# Pairs.


def toy(name: str, *sizes: tuple[int, int, int]) -> Shapes:
    return Shapes(name, 10, 4, {"stage": sizes, "preact": sizes})


STAGES = ((4, 16, 16), (4, 16, 16), (8, 8, 8))


@pytest.mark.parametrize(
    ("name", "student", "teacher", "words"),
    [
        *[(name, STAGES, (*STAGES, STAGES[-1]), "big and small have 3 and 2") for name in ("ab", "fsp", "nst", "vid", "at")],
        ("fsp", STAGES, ((4, 16, 16), (6, 16, 16), (8, 8, 8)), r"equal width: big has \[4, 6, 8\] channels, small \[4, 4, 8\]"),
        ("ab", (*STAGES[:2], (8, 5, 5)), STAGES, r"layer 2 has \(5, 5\) in small and \(8, 8\) in big"),
        ("ft", STAGES, (*STAGES[:2], (1, 8, 8)), "one"),
    ],
)
def test_refuses_with_a_reason(name, student, teacher, words):
    method, used = registry.get(name), Setting(toy("small", *student), toy("big", *teacher), 10, 10)
    assert re.search(words, method.reason_against(method.Hyper(), used))
    if name != "at":
        with pytest.raises(MethodError, match=words):
            method(method.Hyper(), used)


@pytest.mark.parametrize("name", ["vid", "ab", "ft", "nst", "fsp", "crd"])
def test_refuses_without_a_teacher(name):
    method = registry.get(name)
    assert "needs a teacher" in method.reason_against(method.Hyper(), Setting(setting().student, None))


def test_wrn_40_1_has_no_flow_like_wrn_40_2s():
    """The one cell of CRD's table that is n/a."""
    used = of_pair("wrn_40_2", "wrn_40_1")
    assert "equal width" in FSP.reason_against(FSP.Hyper(), used)
    assert all(registry.get(name).reason_against(registry.get(name).Hyper(), used) is None for name in NAMES if name != "fsp")


CROSS = [
    ("vgg13", "mobilenetv2"),
    ("resnet50", "mobilenetv2"),
    ("resnet50", "vgg8"),
    ("resnet32x4", "shufflev1"),
    ("resnet32x4", "shufflev2"),
    ("wrn_40_2", "shufflev1"),
]


@pytest.mark.parametrize("pair", CROSS, ids="-".join)
@pytest.mark.parametrize("name", [*NAMES, "at", "fitnet", "sp"])
def test_maps_of_unlike_sizes(name, pair):
    """On the unlike pairs every method but FSP has finite losses and gradients."""
    used = dataclasses.replace(of_pair(*pair), images=10)
    reason = registry.get(name).reason_against(registry.get(name).Hyper(), used)
    if name == "fsp":
        assert "equal width" in reason
        return
    assert reason is None
    method = built(name, used)
    s, t = made_up(used.student, 2, 1), made_up(used.teacher, 2, 2)
    labels = torch.arange(2)
    read = [s.embedding.requires_grad_(), *(m.requires_grad_() for kind in ("stage", "preact") for m in s.maps[kind])]
    if name == "crd":
        method.start(torch.arange(10))
        method.begin_step(labels, torch.Generator())
    losses = (method.pretraining_losses if name == "ab" else method.losses)(s, t, Batch(labels, labels))
    value = sum(loss for term, loss in losses.items() if term != "ce")
    gradients = [g for g in torch.autograd.grad(value, read, allow_unused=True) if g is not None]
    assert torch.isfinite(value) and gradients and all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients)


def test_names_and_classes():
    assert [registry.get(name) for name in ("pkt", "vid", "ab", "ft", "nst", "fsp")] == [PKT, VID, AB, FT, NST, FSP]


def test_ab_and_fsp_read_no_logits_of_the_teacher():
    t = dataclasses.replace(made_up(setting().teacher, 4, 2), logits=None, embedding=None)
    s, labels = made_up(setting().student, 4, 1), torch.arange(4)
    for name in ("ab", "fsp"):
        kinds = registry.get(name).teacher_outputs.maps
        needed = Outputs(None, None, {kind: t.maps[kind] for kind in kinds})
        assert torch.isfinite(built(name, setting()).pretraining_losses(s, needed, Batch(labels, labels))[name])
