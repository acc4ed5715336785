"""PKT, VID, AB, FT, NST and FSP against NumPy in float64: values and gradients on the shapes of all pairs, dead maps, equal images."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from methods.ab import boundary_loss
from methods.fsp import fsp_loss
from methods.ft import factor_loss
from methods.nst import nst_loss
from methods.pkt import pkt_loss
from methods.vid import vid_loss

Size = tuple[int, ...]
ALIKE = (("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1"), ("resnet56", "resnet20"), ("resnet32x4", "resnet8x4"), ("vgg13", "vgg8"))
UNLIKE = (("vgg13", "mobilenetv2"), ("resnet50", "mobilenetv2"), ("resnet50", "vgg8"), ("resnet32x4", "shufflev1"))
UNLIKE += (("resnet32x4", "shufflev2"), ("wrn_40_2", "shufflev1"))
CASES = [(t, s, batch) for t, s in ALIKE for batch in (64, 16, 1)] + [(*pair, 2) for pair in UNLIKE]
pairs = pytest.mark.parametrize(("teacher", "student", "batch"), CASES, ids=lambda part: str(part))
OF_TEACHERS = {(teacher, batch): student for teacher, student, batch in CASES}
teachers = pytest.mark.parametrize(("teacher", "batch"), OF_TEACHERS, ids=lambda part: str(part))
"""For losses that know no shape of the student's."""


def sizes(network: str) -> tuple[Size, ...]:
    """Stem and stages."""
    return models.shapes(network).maps["stage"]


def draw(batch: int, shapes: Sequence[Size], seed: int) -> list[Tensor]:
    """Signed values, some of them negative enough to be dead after a ReLU; maps lie channels last, as the networks' do."""
    g = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(batch, *size, dtype=torch.float64, generator=g) for size in shapes]
    return [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in drawn]


Loss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
Formula = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], float]


def agree(loss: Loss, formula: Formula, student: Sequence[Tensor], teacher: Sequence[Tensor], step: float = 1e-6) -> list[np.ndarray]:
    """The loss is the formula's value, and its gradient along a random direction the formula's difference. Returns the gradients."""
    student = [s.clone(memory_format=torch.preserve_format).requires_grad_() for s in student]
    value = loss(student, teacher)
    value.backward()
    s, t, gradients = ([x.detach().numpy() for x in side] for side in (student, teacher, [x.grad for x in student]))
    assert value.shape == () and value.item() == pytest.approx(formula(s, t), rel=1e-9, abs=1e-13)
    ways = [x.numpy() for x in draw(1, [x.shape for x in s], 9)]
    ways = [way[0] * (np.abs(x) > 0) for way, x in zip(ways, s, strict=True)]  # dead values stay dead
    ahead, behind = (formula([x + sign * step * way for x, way in zip(s, ways, strict=True)], t) for sign in (1, -1))
    slope = sum((gradient * way).sum() for gradient, way in zip(gradients, ways, strict=True))
    scale = sum(np.abs(gradient * way).sum() for gradient, way in zip(gradients, ways, strict=True))
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-5, abs=1e-6 * scale + 1e-12)
    return gradients


# The formulas, written from the definitions: image by image, pooling by means over blocks.


def down(x: np.ndarray, other: np.ndarray) -> np.ndarray:
    """x (B, C, H, W) at the size of `other` where that is smaller."""
    factor = max(x.shape[2] // other.shape[2], 1)
    b, c, h, w = x.shape
    return x.reshape(b, c, h // factor, factor, w // factor, factor).mean((3, 5))


def numpy_pkt(student, teacher):
    p, q = [], []
    for x, found in ((teacher[0], p), (student[0], q)):
        rows = [row / (np.sqrt((row**2).sum()) + 1e-7) for row in x]
        for a in rows:
            similar = np.array([(a @ b + 1) / 2 for b in rows])
            found.append(similar / similar.sum())
    return np.mean([pi * np.log((pi + 1e-7) / (qi + 1e-7)) for pi, qi in zip(p, q, strict=True)])


def numpy_ab(student, teacher):
    total = 0.0
    for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
        cost = np.where(t > 0, np.where(s <= 1, (s - 1) ** 2, 0), np.where(s > -1, (s + 1) ** 2, 0))
        total += 2.0 ** (level - len(student) + 1) * cost.sum() / len(s) / 1000 * 3
    return total


def numpy_ft(student, teacher):
    s, t = down(student[0], teacher[0]), down(teacher[0], student[0])
    rows = []
    for x in (s, t):
        energy = (x**2).mean(1).reshape(len(x), -1)
        rows.append(energy / np.maximum(np.sqrt((energy**2).sum(1, keepdims=True)), 1e-12))
    return np.abs(rows[0] - rows[1]).mean()


def numpy_nst(student, teacher):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        s, t = down(s, t), down(t, s)
        for xs, xt in zip(s, t, strict=True):
            rows = [x.reshape(len(x), -1) for x in (xs, xt)]
            a, b = (x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), 1e-12) for x in rows)
            total += (((b @ b.T) ** 2).mean() + ((a @ a.T) ** 2).mean() - 2 * ((a @ b.T) ** 2).mean()) / len(s)
    return total


def numpy_fsp(student, teacher):
    total = 0.0
    for i in range(len(student) - 1):
        grams = []
        for maps in (student, teacher):
            low, high = down(maps[i], maps[i + 1]), down(maps[i + 1], maps[i])
            places = low.shape[2] * low.shape[3]
            grams.append([a.reshape(len(a), -1) @ b.reshape(len(b), -1).T / places for a, b in zip(low, high, strict=True)])
        total += ((np.array(grams[0]) - np.array(grams[1])) ** 2).mean()
    return total


def numpy_vid(mean, teacher, scale):
    total = 0.0
    for channel, a in enumerate(scale):
        variance = np.log(1 + np.exp(a)) + 1e-5
        total += (0.5 * ((mean[:, channel] - teacher[:, channel]) ** 2 / variance + np.log(variance))).sum()
    return total / teacher.size


def on_last(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda s, t: loss(s[-1], t[-1])


@pairs
def test_pkt(teacher, student, batch):
    widths = [sizes(network)[-1][0] for network in (student, teacher)]
    s, t = (draw(batch, [(width,)], seed) for seed, width in enumerate(widths))
    gradients = agree(on_last(pkt_loss), numpy_pkt, s, t)
    assert (np.abs(gradients[0]).max() > 1e-12) == (batch > 1)  # an image alone is like itself, whatever it is


@teachers
def test_ab(teacher, batch):
    shapes = sizes(teacher)[1:]  # connectors bring the student's maps there
    agree(boundary_loss, numpy_ab, draw(batch, shapes, 0), draw(batch, shapes, 1))


@pairs
def test_ft(teacher, student, batch):
    width = sizes(teacher)[-1][0] // 2
    s, t = (draw(batch, [(width, *sizes(network)[-1][1:])], seed) for seed, network in enumerate((student, teacher)))
    agree(on_last(factor_loss), numpy_ft, s, t)


@pairs
def test_nst(teacher, student, batch):
    agree(nst_loss, numpy_nst, draw(batch, sizes(student)[1:], 0), [x.relu() for x in draw(batch, sizes(teacher)[1:], 1)])


@teachers
def test_fsp(teacher, batch):
    shapes = sizes(teacher)
    agree(fsp_loss, numpy_fsp, draw(batch, shapes, 0), [x.relu() for x in draw(batch, shapes, 1)])


@teachers
def test_vid(teacher, batch):
    shape = sizes(teacher)[-1]
    scale = torch.linspace(-3, 5, shape[0], dtype=torch.float64)

    def loss(s, t):
        return vid_loss(s[0], t[0], s[1])

    mean, known = draw(batch, [shape], 0), draw(batch, [shape], 1)
    agree(loss, lambda s, t: numpy_vid(s[0], t[0], s[1]), [*mean, scale], known)


@pytest.mark.parametrize("scale", [-1e4, -100.0, 0.0, 88.0, 1e3, 1e4])
def test_vids_variance_does_not_overflow(scale):
    a = torch.tensor([scale], requires_grad=True)
    loss = vid_loss(torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2), a)
    loss.backward()
    variance = np.logaddexp(0, scale) + 1e-5
    assert loss.item() == pytest.approx(0.5 * (1 / variance + np.log(variance)), rel=1e-5)
    assert torch.isfinite(a.grad)


def test_vids_likelihood_is_best_at_the_error():
    """The variance that minimises the loss is the mean squared error: what a Gaussian's likelihood says."""
    mean, known = draw(8, [(3, 4, 4)], 0)[0], draw(8, [(3, 4, 4)], 1)[0]
    error = (mean - known).square().mean((0, 2, 3))
    scale = (error - 1e-5).expm1().log().requires_grad_()
    (gradient,) = torch.autograd.grad(vid_loss(mean, known, scale), scale)
    assert gradient.abs().max() < 1e-12


LOSSES = {
    "pkt": (on_last(pkt_loss), numpy_pkt, [(6,)]),
    "ab": (boundary_loss, numpy_ab, [(4, 4, 4), (6, 2, 2)]),
    "ft": (on_last(factor_loss), numpy_ft, [(4, 4, 4)]),
    "nst channels": (nst_loss, numpy_nst, [(4, 4, 4), (3, 2, 2)]),
    "nst places": (nst_loss, numpy_nst, [(20, 4, 4), (6, 2, 2)]),
    "fsp": (fsp_loss, numpy_fsp, [(4, 4, 4), (6, 2, 2), (5, 2, 2)]),
}
each = pytest.mark.parametrize("name", LOSSES)


@each
@pytest.mark.parametrize("dead", ["student", "teacher", "both"])
@pytest.mark.parametrize("where", ["image", "all images", "channel"])
def test_dead_maps(name, dead, where):
    loss, formula, shapes = LOSSES[name]
    s, t = ([x.relu() for x in draw(4, shapes, seed)] for seed in (0, 1))
    for side in (s, t) if dead == "both" else (s if dead == "student" else t,):
        for x in side:
            x[{"image": np.s_[2], "all images": np.s_[:], "channel": np.s_[:, 1]}[where]] = 0
    gradients = agree(loss, formula, s, t)
    assert all(np.isfinite(g).all() and np.abs(g).max() < 10 for g in gradients)


@each
def test_equal_images(name):
    loss, formula, shapes = LOSSES[name]
    s, t = draw(4, shapes, 0), draw(4, shapes, 1)
    for x in (*s, *t):
        x[1:3] = x[:1]
    gradients = agree(loss, formula, s, t)
    for g in gradients:
        np.testing.assert_allclose(g[1], g[0], rtol=1e-9, atol=1e-15)


@each
def test_gradients_in_every_direction(name):
    loss, _, shapes = LOSSES[name]
    s, t = draw(3, shapes, 0), draw(3, shapes, 1)
    assert torch.autograd.gradcheck(lambda *x: loss(x, t), [x.requires_grad_() for x in s])


@each
def test_float32_is_the_float64_loss_but_for_rounding(name):
    loss, _, shapes = LOSSES[name]
    s, t = draw(64, shapes, 0), draw(64, shapes, 1)
    exact, rounded = ([x.to(kind).requires_grad_() for x in s] for kind in (torch.float64, torch.float32))
    double, single = loss(exact, t), loss(rounded, [x.float() for x in t])
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(double.item(), rel=1e-4)
    for a, b in zip(torch.autograd.grad(single, rounded), torch.autograd.grad(double, exact), strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


@each
def test_a_student_like_its_teacher_loses_nothing(name):
    loss, _, shapes = LOSSES[name]
    known = draw(4, shapes, 1)
    if name == "ab":  # nothing is left to lose beyond the margin
        s = [torch.where(x > 0, 1.5, -1.5).double() for x in known]
    else:
        s = [x.clone() for x in known]
    s = [x.requires_grad_() for x in s]
    value = loss(s, known)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    bound = {"ft": 1.0, "pkt": 1e-7}.get(name, 1e-12)  # FT's absolute difference has a corner there; PKT's eps leaves a little
    assert all(x.grad.abs().max() < bound for x in s)
