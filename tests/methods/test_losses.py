"""Each loss against NumPy in float64, written from its formula, and its gradients against finite differences."""

import math

import numpy as np
import pytest
import torch

from methods.at import at_loss
from methods.cc import cc_loss
from methods.cc_paper import correlation_loss
from methods.fitnet import hint_loss
from methods.kd import kd_loss
from methods.rkd import relations, rkd_losses
from methods.sp import sp_loss

BATCHES = (64, 16, 3, 2)
TOLERANCE = 1e-5  # relative, of fp32 against float64


def draw(*shape: int, seed: int = 0, relu: bool = False) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.relu() if relu else x


def numpy(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [t.detach().numpy().astype(np.float64) for t in tensors]


def close(found: torch.Tensor, expected: float) -> None:
    assert found.shape == ()
    assert found.item() == pytest.approx(expected, rel=TOLERANCE, abs=1e-9)


def unit_rows(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), 1e-12)


def smooth_l1(a: np.ndarray, b: np.ndarray) -> float:
    d = np.abs(a - b)
    return float(np.where(d < 1, 0.5 * d**2, d - 0.5).mean())


# The formulas, image by image where that is how they are stated.


def numpy_kd(s, t, temperature):
    total = 0.0
    for zs, zt in zip(s / temperature, t / temperature, strict=True):
        q, p = np.exp(zs - zs.max()), np.exp(zt - zt.max())
        q, p = q / q.sum(), p / p.sum()
        total += (p * np.log(p / q)).sum()
    return temperature**2 * total / len(s)


def numpy_attention(f, power):
    q = (np.abs(f) ** power).mean(1).reshape(len(f), -1)
    return unit_rows(q)


def numpy_at(s, t, power=2):
    return sum(((numpy_attention(a, power) - numpy_attention(b, power)) ** 2).mean() for a, b in zip(s, t, strict=True))


def numpy_sp(s, t):
    gram = [unit_rows(f.reshape(len(f), -1) @ f.reshape(len(f), -1).T) for f in (s, t)]
    return ((gram[0] - gram[1]) ** 2).sum() / len(s) ** 2


def numpy_cc(s, t):
    delta = np.abs(s - t)
    return sum((delta[i] * delta[i + 1]).sum() for i in range(len(s) - 1)) / (len(s) - 1)


def numpy_correlation(s, t, gamma, order):
    k = []
    for x in (unit_rows(s), unit_rows(t)):
        k.append(sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * (x @ x.T) ** p for p in range(order + 1)))
    return ((k[0] - k[1]) ** 2).sum() / len(s) ** 2


def numpy_distances(x):
    d = np.sqrt(((x[:, None] - x[None]) ** 2).sum(2))
    return d / d[d > 0].mean()


def numpy_angles(x):
    e = x[None] - x[:, None]  # [i, j] = x_j - x_i
    e = e / np.maximum(np.sqrt((e**2).sum(2, keepdims=True)), 1e-12)
    return np.stack([a @ a.T for a in e])


@pytest.mark.parametrize("batch", (*BATCHES, 1))
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd(batch, temperature):
    s, t = 3 * draw(batch, 100), 3 * draw(batch, 100, seed=1)
    close(kd_loss(s, t, temperature), numpy_kd(*numpy(s, t), temperature))


@pytest.mark.parametrize("batch", (*BATCHES, 1))
def test_hint(batch):
    s, t = draw(batch, 8, 4, 4, relu=True), draw(batch, 8, 4, 4, seed=1)
    a, b = numpy(s, t)
    close(hint_loss(s, t), ((a - b) ** 2).sum() / a.size)


@pytest.mark.parametrize("batch", (*BATCHES, 1))
@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_at(batch, power):
    s = [draw(batch, 8, 8, 8), draw(batch, 16, 4, 4, seed=2)]  # signed, and narrower than the teacher's
    t = [draw(batch, 16, 8, 8, seed=1), draw(batch, 32, 4, 4, seed=3)]
    close(at_loss(s, t, power), numpy_at(numpy(*s), numpy(*t), power))


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_at_pools_the_larger_map(larger):
    big, small = draw(4, 8, 8, 8), draw(4, 8, 4, 4, seed=1)
    a, b = numpy(big, small)
    pooled = a.reshape(4, 8, 4, 2, 4, 2).mean((3, 5))
    pair = ([big], [small]) if larger == "student" else ([small], [big])
    close(at_loss(*pair), numpy_at([pooled], [b]))


def test_at_pools_sizes_that_do_not_divide():
    found = at_loss([draw(2, 4, 6, 6)], [draw(2, 4, 4, 4, seed=1)])
    a, b = numpy(draw(2, 4, 6, 6), draw(2, 4, 4, 4, seed=1))
    edges = [(0, 2), (1, 3), (3, 5), (4, 6)]  # adaptive windows: floor(i 6 / 4) to ceil((i + 1) 6 / 4)
    pooled = np.stack([np.stack([a[:, :, u:v, x:y].mean((2, 3)) for x, y in edges], -1) for u, v in edges], -2)
    close(found, numpy_at([pooled], [b]))


@pytest.mark.parametrize("batch", (*BATCHES, 1))
def test_sp(batch):
    s, t = draw(batch, 8, 4, 4, relu=True), draw(batch, 12, 2, 2, seed=1)
    close(sp_loss(s, t), numpy_sp(*numpy(s, t)))


@pytest.mark.parametrize("batch", BATCHES)
def test_cc(batch):
    s, t = draw(batch, 128), draw(batch, 128, seed=1)
    close(cc_loss(s, t), numpy_cc(*numpy(s, t)))


def test_cc_of_one_image_is_zero():
    s, t = draw(1, 8).requires_grad_(), draw(1, 8, seed=1)
    loss = cc_loss(s, t)
    loss.backward()
    assert loss.item() == 0 and torch.equal(s.grad, torch.zeros(1, 8))


@pytest.mark.parametrize("batch", (*BATCHES, 1))
@pytest.mark.parametrize("order", [1, 2, 5])
def test_correlation(batch, order):
    s, t = draw(batch, 64, relu=True), draw(batch, 96, seed=1)
    close(correlation_loss(s, t, 0.4, order), numpy_correlation(*numpy(s, t), 0.4, order))


def test_correlation_approaches_the_gaussian_kernel():
    s, t = draw(8, 6), draw(8, 6, seed=1)
    kernels = []
    for x in numpy(s, t):
        x = unit_rows(x)
        kernels.append(np.exp(-0.4 * ((x[:, None] - x[None]) ** 2).sum(2)))
    close(correlation_loss(s, t, 0.4, 12), ((kernels[0] - kernels[1]) ** 2).mean())


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("width", "offset"), [(64, 0.0), (256, 3.0), (512, 0.1)])
def test_rkd(batch, width, offset):
    s, t = draw(batch, width, relu=True) + offset, draw(batch, width // 2, seed=1, relu=True) + offset
    distance, angle = rkd_losses(s, t)
    a, b = numpy(s, t)
    close(distance, smooth_l1(numpy_distances(a), numpy_distances(b)))
    close(angle, smooth_l1(numpy_angles(a), numpy_angles(b)))


def test_rkd_gradient_is_the_formulas():
    """Against the formula's gradient in float64, with the (B, B, D) tensor of differences."""
    s, t = draw(32, 64, relu=True), draw(32, 64, seed=1, relu=True)
    single, double = s.clone().requires_grad_(), s.double().requires_grad_()
    distance, angle = rkd_losses(single, t)
    (25 * distance + 50 * angle).backward()

    def plain(x):
        e = x.unsqueeze(0) - x.unsqueeze(1)
        d = (e.square().sum(2) + torch.eye(len(x))).sqrt() * (1 - torch.eye(len(x)))
        unit = torch.nn.functional.normalize(e, dim=2)
        return d / (d.sum() / (len(x) * (len(x) - 1))), unit @ unit.mT

    loss = [torch.nn.functional.smooth_l1_loss(a, b) for a, b in zip(plain(double), plain(t.double()), strict=True)]
    (25 * loss[0] + 50 * loss[1]).backward()
    assert (single.grad - double.grad).norm() <= TOLERANCE * double.grad.norm()


def test_rkd_of_one_image_is_zero():
    s = draw(1, 8).requires_grad_()
    distance, angle = rkd_losses(s, draw(1, 8, seed=1))
    (distance + angle).backward()
    assert distance.item() == angle.item() == 0
    assert torch.equal(s.grad, torch.zeros(1, 8))


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_rkd_with_copies_of_an_image(scale):
    """Two equal embeddings are 0 apart and have no direction; all else is as without them."""
    x = scale * draw(6, 16, relu=True)
    x[4] = x[1]
    s, t = x.clone().requires_grad_(), draw(6, 16, seed=1)
    distance, angle = relations(s)
    expected, angles = numpy_distances(numpy(x)[0]), numpy_angles(numpy(x)[0])
    count = 6 * 5 / (6 * 5 - 2)  # the mean is over all pairs, the reference's over pairs apart
    assert np.allclose(numpy(distance)[0], expected * count, rtol=TOLERANCE, atol=1e-6)
    assert np.allclose(numpy(angle)[0], angles, atol=TOLERANCE)
    sum(rkd_losses(s, t)).backward()
    assert torch.isfinite(s.grad).all() and s.grad.abs().max() < 1e3 / scale


RELATIONAL = {"sp": sp_loss, "cc_paper": lambda s, t: correlation_loss(s, t, 0.4, 2), "rkd": lambda s, t: sum(rkd_losses(s, t))}


@pytest.mark.parametrize("loss", RELATIONAL.values(), ids=RELATIONAL)
def test_a_dead_image_does_not_blow_up_the_gradient(loss):
    s, t = draw(8, 16, relu=True), draw(8, 16, seed=1)
    s[3] = 0
    loss(s.requires_grad_(), t).backward()
    assert torch.isfinite(s.grad).all() and s.grad.abs().max() < 100


SMOOTH = {
    "kd": (lambda s, t: kd_loss(s, t, 4.0), (4, 5), (4, 5)),
    "hint": (hint_loss, (2, 3, 2, 2), (2, 3, 2, 2)),
    "at": (lambda s, t: at_loss([s], [t]), (3, 4, 2, 2), (3, 2, 2, 2)),
    "at pooled": (lambda s, t: at_loss([s], [t]), (2, 3, 4, 4), (2, 2, 2, 2)),
    "sp": (sp_loss, (4, 3, 2, 2), (4, 2, 2, 2)),
    "cc": (cc_loss, (4, 5), (4, 5)),  # smooth but where student and teacher agree
    "cc_paper": (lambda s, t: correlation_loss(s, t, 0.4, 2), (4, 5), (4, 3)),
    "rkd distance": (lambda s, t: rkd_losses(s, t)[0], (5, 4), (5, 3)),
    "rkd angle": (lambda s, t: rkd_losses(s, t)[1], (5, 4), (5, 3)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradient(name):
    loss, student, teacher = SMOOTH[name]
    s, t = draw(*student, seed=5).double().requires_grad_(), draw(*teacher, seed=6).double()
    assert torch.autograd.gradcheck(lambda x: loss(x, t), (s,))


def test_cc_trains_both_sides():
    s, t = draw(4, 5).double().requires_grad_(), draw(4, 5, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(cc_loss, (s, t))
    cc_loss(s, t).backward()
    assert torch.equal(s.grad, -t.grad) and s.grad.abs().sum() > 0
