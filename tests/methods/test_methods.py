"""What single methods promise beyond the contract: sizes of their modules, weights, pairs they refuse."""

import dataclasses
import re

import pytest
import torch
from torch import nn

import models
from methods import at, cc, cc_paper, fitnet, kd, registry, rkd, sp
from methods.base import Batch, Setting, named_hyper
from models.outputs import Outputs, Shapes
from tests.methods.cases import PAIR, made, made_up, setting

PAIRS = [
    ("wrn_40_2", "wrn_16_2"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
]
COUNTS = {  # extra trainable parameters in RepDistiller, by pair
    "fitnet": (4_288, 1_120, 1_120, 1_120, 16_768, 66_304),
    "cc": (33_024, 16_640, 16_640, 16_640, 65_792, 131_328),
    **dict.fromkeys(("student", "kd", "at", "rkd", "sp", "cc_paper"), (0,) * 6),
}


def of_pair(teacher: str, student: str) -> Setting:
    return Setting(models.shapes(student), models.shapes(teacher))


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(("place", "pair"), list(enumerate(PAIRS)), ids=["-".join(p) for p in PAIRS])
def test_trainable_parameters(name, place, pair):
    method = registry.get(name)
    assert method.reason_against(method.Hyper(), of_pair(*pair)) is None
    built = method(method.hyper_for(*pair), of_pair(*pair))
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) == COUNTS[name][place]


WEIGHTS = {
    "kd": {"ce": 0.1, "kd": 0.9},
    "fitnet": {"ce": 1.0, "hint": 100.0},
    "at": {"ce": 1.0, "at": 1000.0},
    "rkd": {"ce": 1.0, "distance": 25.0, "angle": 50.0},
    "sp": {"ce": 1.0, "sp": 3000.0},
    "cc": {"ce": 1.0, "cc": 0.02},
    "cc_paper": {"ce": 0.1, "kd": 0.9, "cc": 100.0},
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_losses_carry_the_protocols_weights(name):
    """Against the pure functions, fed with what the protocol says each method reads."""
    method = made(name)
    s, t = made_up(setting().student, 16, 1), made_up(setting().teacher, 16, 2)
    labels = torch.arange(16) % 10
    losses = method.losses(s, t, Batch(labels, labels))
    plain = {"ce": lambda: nn.functional.cross_entropy(s.logits, labels), "kd": lambda: kd.kd_loss(s.logits, t.logits, 4.0)}
    plain["at"] = lambda: at.at_loss(s.maps["stage"][1:], t.maps["stage"][1:])
    plain["sp"] = lambda: sp.sp_loss(s.maps["stage"][-1], t.maps["stage"][-1])
    plain["distance"], plain["angle"] = (lambda: rkd.rkd_losses(s.embedding, t.embedding)[0]), (lambda: rkd.rkd_losses(s.embedding, t.embedding)[1])
    if name == "cc":
        plain["cc"] = lambda: cc.cc_loss(method.project_student(s.embedding), method.project_teacher(t.embedding))
    else:
        plain["cc"] = lambda: cc_paper.correlation_loss(s.embedding, t.embedding, 0.4, 2)
    plain["hint"] = lambda: fitnet.hint_loss(method.regressor(s.maps["stage"][2]), t.maps["stage"][2])
    assert losses.keys() == WEIGHTS[name].keys()
    for key, weight in WEIGHTS[name].items():
        torch.testing.assert_close(losses[key], weight * plain[key]())


def test_fitnets_regressor_is_the_protocols():
    conv, norm, relu = made("fitnet").regressor
    assert isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.bias is not None
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(relu, nn.ReLU)


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "kernel"),
    [
        ((4, 8, 8), (6, 8, 8), nn.Conv2d, 1),
        ((4, 16, 16), (6, 8, 8), nn.Conv2d, 3),
        ((4, 8, 8), (6, 16, 16), nn.ConvTranspose2d, 4),
        ((4, 8, 8), (6, 5, 5), nn.Conv2d, 4),
    ],
)
def test_fitnets_convolution_meets_the_teachers_shape(student, teacher, kind, kernel):
    conv = fitnet.convolution(student, teacher)
    assert type(conv) is kind and conv.kernel_size == (kernel, kernel) and conv.bias is not None
    assert conv(torch.zeros(2, *student)).shape == (2, *teacher)


def toy(*sizes: tuple[int, int, int]) -> Shapes:
    return Shapes("toy", 10, 4, {"stage": sizes})


STAGES = ((4, 16, 16), (4, 16, 16), (8, 8, 8))


@pytest.mark.parametrize(
    ("name", "student", "teacher", "words"),
    [
        ("fitnet", (*STAGES[:2], (8, 5, 5)), STAGES, r"\(5, 5\) in toy and \(8, 8\) in toy"),
        ("fitnet", STAGES[:2], STAGES, "layers 0 to 1"),
        ("at", STAGES, (*STAGES, STAGES[-1]), "3 and 2"),
    ],
)
def test_refuses_with_a_reason(name, student, teacher, words):
    method = registry.get(name)
    used = Setting(toy(*student), toy(*teacher), 10)
    assert re.search(words, method.reason_against(method.Hyper(), used))


@pytest.mark.parametrize("name", ["fitnet", "at"])
def test_refuses_without_a_teacher(name):
    method = registry.get(name)
    assert "needs a teacher" in method.reason_against(method.Hyper(), Setting(setting(*PAIR).student, None))


def test_an_added_hyper_parameter_names_a_run_only_where_it_differs():
    plain = registry.get("skd").hyper_for("resnet56", "resnet20")
    assert "sum_over" not in named_hyper(plain)
    assert named_hyper(dataclasses.replace(plain, sum_over="rows")) == {**named_hyper(plain), "sum_over": "rows"}
    assert set(named_hyper(plain)) == {f.name for f in dataclasses.fields(plain)} - {"sum_over"}


def test_the_shifted_teacher_changes_kd_by_rounding_only():
    torch.manual_seed(0)
    student, teacher = (Outputs(torch.randn(64, 100, dtype=torch.float64), torch.randn(64, 8)) for _ in range(2))
    setting = Setting(models.shapes("resnet20"), models.shapes("resnet56"))
    batch = Batch(torch.randint(100, (64,)), torch.arange(64))
    kd, shifted = (registry.get(name)(registry.get(name).Hyper(), setting).losses(student, teacher, batch) for name in ("kd", "kd_shifted"))
    assert shifted["kd"].item() == pytest.approx(kd["kd"].item(), rel=1e-12) and shifted["kd"].item() != kd["kd"].item()
