"""The losses on logits against NumPy in float64, written from their formulas image by image, and their gradients against finite differences."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import models
from bench.plan.members import hyper_of
from methods import dkd, ikl, kd_ls, registry
from methods.base import Batch
from methods.ctkd import reversed_gradient, strength_at
from methods.dist import dist_losses
from methods.dkd import dkd_losses
from methods.ikl import soft_cross_entropy, wmse_loss
from methods.kd import kd_loss
from methods.kd_ls import kd_ls_loss
from methods.rlkd import mcd_loss, scd_loss
from methods.ttm import power_sums, ttm_divergences
from tests.methods.cases import made, made_up, setting

BATCHES = (64, 16, 1)
CLASSES = 100


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def kl(p, q):
    """With longdouble logarithms; classes that both leave out are not given."""
    return float((p * (np.log(p) - np.log(q))).sum())


def numpy_tckd(s, t, y, temperature):
    total = 0.0
    for zs, zt, label in zip(s, t, y, strict=True):
        q, p = softmax(zs / temperature)[label], softmax(zt / temperature)[label]
        total += kl(np.array([p, 1 - p]), np.array([q, 1 - q]))
    return temperature**2 * total / len(s)


def numpy_nckd(s, t, y, temperature):
    total = 0.0
    for zs, zt, label in zip(s, t, y, strict=True):
        total += kl(softmax(np.delete(zt, label) / temperature), softmax(np.delete(zs, label) / temperature))
    return temperature**2 * total / len(s)


def numpy_scd(s, t, y, temperature):
    total = 0.0
    for zs, zt, label in zip(s, t, y, strict=True):
        q, p = softmax(zs / temperature)[label], softmax(zt / temperature).max()
        total += kl(np.array([p, 1 - p]), np.array([q, 1 - q]))
    return temperature**2 * total / len(s)


def numpy_mcd(s, t, y, temperature):
    total = 0.0
    for zs, zt, label in zip(s, t, y, strict=True):
        below = [k for k in range(len(zt)) if zt[k] < zt[label]]
        if below:
            total += kl(softmax(zt[below] / temperature), softmax(zs[below] / temperature))
    return temperature**2 * total / len(s)


def numpy_correlation(x, y):
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (math.sqrt((x**2).sum()) * math.sqrt((y**2).sum()) + 1e-8)


def numpy_dist(s, t, temperature, axis):
    q, p = (np.stack([softmax(row / temperature) for row in z]) for z in (s, t))
    q, p = (q, p) if axis == 1 else (q.T, p.T)
    return temperature**2 * (1 - np.mean([numpy_correlation(a, b) for a, b in zip(q, p, strict=True)]))


def numpy_kd_ls(s, t, temperature, unbiased=False, by_variance=False):
    total = 0.0
    for zs, zt in zip(s, t, strict=True):
        count = len(zs) - unbiased
        ds, dt = (math.sqrt(((z - z.mean()) ** 2).sum() / count) for z in (zs, zt))
        q, p = softmax((zs - zs.mean()) / (1e-7 + ds) / temperature), softmax((zt - zt.mean()) / (1e-7 + dt) / temperature)
        total += kl(p, q) * ((temperature * dt) ** 2 if by_variance else temperature**2)
    return total / len(s)


def numpy_ttm(s, t, exponent, weighted):
    total = 0.0
    for zs, zt in zip(s, t, strict=True):
        power = softmax(zt) ** exponent
        total += kl(power / power.sum(), softmax(zs)) * (power.sum() if weighted else 1.0)
    return total / len(s)


def numpy_soft(s, t, temperature):
    return -sum((softmax(zt / temperature) * np.log(softmax(zs / temperature))).sum() for zs, zt in zip(s, t, strict=True)) / len(s)


def numpy_wmse(s, t, temperature):
    total = 0.0
    for zs, zt in zip(s, t, strict=True):
        w = softmax(zt / temperature)
        total += (np.outer(w, w) * (np.subtract.outer(zt, zt) - np.subtract.outer(zs, zs)) ** 2).sum()
    return total / (4 * len(s))


LOSSES = {  # name -> (loss of student, teacher, labels; the same in NumPy)
    "tckd": (lambda s, t, y: dkd_losses(s, t, y, 4.0)[0], lambda s, t, y: numpy_tckd(s, t, y, 4.0)),
    "nckd": (lambda s, t, y: dkd_losses(s, t, y, 4.0)[1], lambda s, t, y: numpy_nckd(s, t, y, 4.0)),
    "scd": (lambda s, t, y: scd_loss(s, t, y, 1.0), lambda s, t, y: numpy_scd(s, t, y, 1.0)),
    "scd at 4": (lambda s, t, y: scd_loss(s, t, y, 4.0), lambda s, t, y: numpy_scd(s, t, y, 4.0)),
    "mcd": (lambda s, t, y: mcd_loss(s, t, y, 4.0), lambda s, t, y: numpy_mcd(s, t, y, 4.0)),
    "dist rows": (lambda s, t, y: dist_losses(s, t, 4.0)[0], lambda s, t, y: numpy_dist(s, t, 4.0, 1)),
    "dist columns": (lambda s, t, y: dist_losses(s, t, 4.0)[1], lambda s, t, y: numpy_dist(s, t, 4.0, 0)),
    "kd_ls": (lambda s, t, y: kd_ls_loss(s, t, 2.0), lambda s, t, y: numpy_kd_ls(s, t, 2.0)),
    "kd_ls unbiased": (lambda s, t, y: kd_ls_loss(s, t, 3.0, True), lambda s, t, y: numpy_kd_ls(s, t, 3.0, True)),
    "normkd": (lambda s, t, y: kd_ls_loss(s, t, 2.0, False, True), lambda s, t, y: numpy_kd_ls(s, t, 2.0, False, True)),
    "ttm": (lambda s, t, y: ttm_divergences(s, t, 0.1).mean(), lambda s, t, y: numpy_ttm(s, t, 0.1, False)),
    "wttm": (lambda s, t, y: (power_sums(t, 0.2) * ttm_divergences(s, t, 0.2)).mean(), lambda s, t, y: numpy_ttm(s, t, 0.2, True)),
    "soft": (lambda s, t, y: soft_cross_entropy(s, t, 4.0), lambda s, t, y: numpy_soft(s, t, 4.0)),
    "wmse": (lambda s, t, y: wmse_loss(s, t, 100.0), lambda s, t, y: numpy_wmse(s, t, 100.0)),
}
every = pytest.mark.parametrize("name", LOSSES)


def draw(batch: int, classes: int = CLASSES, scale: float = 3.0, copies: bool = False):
    g = torch.Generator().manual_seed(batch)
    s, t = (scale * torch.randn(batch, classes, generator=g, dtype=torch.float64) for _ in range(2))
    y = torch.randint(classes, (batch,), generator=g)
    if copies:  # the same image in half of the batch
        half = batch // 2
        s[:half], t[:half], y[:half] = s[0].clone(), t[0].clone(), y[0].clone()
    return s, t, y


def expected(name, s, t, y) -> float:
    return float(LOSSES[name][1](s.numpy(), t.numpy(), y.numpy()))


@every
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("copies", [False, True], ids=["", "copies"])
def test_value(name, batch, copies):
    s, t, y = draw(batch, copies=copies)
    found = LOSSES[name][0](s, t, y)
    assert found.shape == () and found.item() == pytest.approx(expected(name, s, t, y), rel=1e-9, abs=1e-12)
    single = LOSSES[name][0](s.float(), t.float(), y)
    assert single.dtype == torch.float32 and single.item() == pytest.approx(found.item(), rel=2e-5, abs=1e-5)


@every
@pytest.mark.parametrize("batch", BATCHES)
def test_gradient_is_that_of_the_formula(name, batch):
    """Central differences of the NumPy formula along random directions."""
    s, t, y = draw(batch, classes=12, copies=batch > 1)
    leaf = s.clone().requires_grad_()
    LOSSES[name][0](leaf, t, y).backward()
    for seed in range(3):
        step = torch.randn(s.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        h = 1e-5
        difference = (expected(name, s + h * step, t, y) - expected(name, s - h * step, t, y)) / (2 * h)
        assert (leaf.grad * step).sum().item() == pytest.approx(difference, rel=1e-6, abs=1e-8)


@every
@pytest.mark.parametrize("scale", [200.0, 1e3])
@pytest.mark.parametrize("case", ["drawn", "label last", "label first"])
def test_extreme_logits_stay_finite_in_single_precision(name, scale, case):
    """Probabilities that underflow: their logarithms are infinite where they are taken of a sum."""
    s, t, _ = draw(8, classes=20, scale=scale)
    y = {"drawn": torch.arange(8), "label last": t.argmin(1), "label first": s.argmin(1)}[case]
    single = s.float().requires_grad_()
    loss = LOSSES[name][0](single, t.float(), y)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(single.grad).all()
    assert loss.item() == pytest.approx(LOSSES[name][0](s, t, y).item(), rel=1e-3, abs=1e-3)


def test_shares_that_underflow_keep_their_logarithm():
    """One image by hand: the student gives the label e^-400 at T = 1, the teacher is certain of it up to e^-300."""
    s, t = torch.tensor([[0.0, 400.0]]), torch.tensor([[300.0, 0.0]])
    found = scd_loss(s, t, torch.tensor([0]), 1.0)
    assert found.item() == pytest.approx(400.0)  # 1 (0 + 400) + e^-300 (...)


def test_rlkd_is_0_where_the_label_is_the_teachers_last_choice():
    s, t, _ = draw(16)
    y = t.argmin(1)
    leaf = s.clone().requires_grad_()
    loss = mcd_loss(leaf, t, y, 4.0)
    loss.backward()
    assert loss.item() == 0 and leaf.grad.abs().max() == 0


def test_rlkd_leaves_ties_with_the_label_out():
    t = torch.tensor([[1.0, 3.0, 3.0, 0.0, 5.0]], dtype=torch.float64)
    s = torch.tensor([[0.5, 2.0, -1.0, 1.5, 0.0]], dtype=torch.float64)
    found = mcd_loss(s, t, torch.tensor([1]), 2.0)
    p, q = softmax(np.array([0.5, 0.0])), softmax(np.array([0.25, 0.75]))  # classes 0 and 3 at T = 2
    assert found.item() == pytest.approx(4 * kl(p, q), rel=1e-12)


def test_dkd_of_two_classes_has_no_other_class_to_compare():
    s, t, y = draw(16, classes=2)
    assert dkd_losses(s, t, y, 4.0)[1].item() == 0


def test_dkd_is_kd_taken_apart():
    """KD = TCKD + (1 - p_y) NCKD of each image (Zhao et al. 2022)."""
    s, t, y = draw(1)
    target, others = dkd_losses(s, t, y, 4.0)
    p, q = softmax(t.numpy()[0] / 4), softmax(s.numpy()[0] / 4)
    assert 16 * kl(p, q) == pytest.approx((target + (1 - p[y.item()]) * others).item(), rel=1e-9)


def test_dist_of_one_image_adds_a_constant_without_gradient():
    s, t, _ = draw(1)
    leaf = s.clone().requires_grad_()
    columns = dist_losses(leaf, t, 4.0)[1]
    columns.backward()
    assert columns.item() == 16 and leaf.grad.abs().max() == 0


def test_dist_of_equal_images_stays_finite():
    s, t = (row.expand(8, -1).float().clone() for row in draw(1)[:2])
    leaf = s.requires_grad_()
    sum(dist_losses(leaf, t, 4.0)).backward()
    assert torch.isfinite(leaf.grad).all()


def test_logits_without_deviation_are_no_trouble_for_ls():
    s, t = torch.ones(2, 5), draw(2, 5)[1].float()
    leaf = s.requires_grad_()
    loss = kd_ls_loss(leaf, t, 2.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(leaf.grad).all()


def test_normkd_is_kd_at_the_teachers_and_the_students_own_temperature():
    """KL at T_t = 2 std(t) and T_s = 2 std(s) times T_t^2, image by image (the formula of Chi et al. 2023)."""
    s, t, _ = draw(4)
    total = 0.0
    for zs, zt in zip(s.numpy(), t.numpy(), strict=True):
        total += kl(softmax(zt / (2 * zt.std())), softmax(zs / (2 * zs.std()))) * (2 * zt.std()) ** 2
    assert kd_ls_loss(s, t, 2.0, by_variance=True).item() == pytest.approx(total / 4, rel=1e-6)


def test_power_sums_run_from_1_to_the_number_of_classes():
    certain, ignorant = torch.tensor([[1e4, 0.0, 0.0]]), torch.zeros(1, 3)
    assert power_sums(certain, 0.5).item() == pytest.approx(1) and power_sums(ignorant, 0.5).item() == pytest.approx(3**0.5)


def test_the_gradient_of_the_temperature_is_reversed():
    theta, strength = torch.tensor(1.5, requires_grad=True), torch.tensor(0.25)
    value = reversed_gradient(theta, strength)
    (3 * value**2).backward()
    assert value.item() == 1.5 and theta.grad.item() == pytest.approx(-0.25 * 6 * 1.5)


def test_the_strength_follows_half_a_cosine():
    assert [strength_at(epoch, 10) for epoch in (0, 5, 10, 240)] == pytest.approx([0, 0.5, 1, 1])
    assert strength_at(1, 10) == pytest.approx((1 - math.cos(math.pi / 10)) / 2)


VALUES = {  # per pair, as printed where the methods' files say
    "dkd": ("beta", {("resnet56", "resnet20"): 2, ("resnet32x4", "resnet8x4"): 8, ("wrn_40_2", "wrn_40_1"): 6, ("vgg13", "vgg8"): 6}),
    "kd_ls": ("kd_weight", {("resnet56", "resnet20"): 9, ("resnet110", "resnet20"): 12, ("resnet50", "mobilenetv2"): 1}),
    "ikl": ("beta", {("resnet56", "resnet20"): 4, ("resnet110", "resnet32"): 12, ("resnet32x4", "resnet8x4"): 8, ("wrn_40_2", "wrn_16_2"): 12,
                     ("vgg13", "mobilenetv2"): 12, ("resnet50", "mobilenetv2"): 12, ("wrn_40_2", "shufflev1"): 4}),  # fmt: skip
    "rlkd": ("beta", {("resnet56", "resnet20"): 8}),
    "kd_weight": ("kd_weight", {("resnet56", "resnet20"): 3}),
    "kd_weight6": ("kd_weight", {("resnet56", "resnet20"): 6}),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_of_the_pairs(name):
    field, values = VALUES[name]
    for pair, value in values.items():
        assert getattr(registry.get(name).hyper_for(*pair), field) == value


def test_both_weights_of_ikl_for_unlike_pairs():
    weights = {("vgg13", "mobilenetv2"): (4, 12), ("resnet50", "mobilenetv2"): (1, 12), ("wrn_40_2", "shufflev1"): (1, 4),
               ("resnet32x4", "shufflev1"): (1, 8), ("resnet32x4", "shufflev2"): (3, 12)}  # fmt: skip
    assert {pair: (h.alpha, h.beta) for pair in weights if (h := registry.get("ikl").hyper_for(*pair))} == weights


def losses_of(name: str, epoch: int | None = None):
    method = made(name)
    if epoch is not None:
        method.begin_epoch(epoch, torch.Generator())
    s, t = made_up(setting().student, 16, 1), made_up(setting().teacher, 16, 2)
    labels = torch.arange(16) % 10
    return method, method.losses(s, t, Batch(labels, labels)), (s.logits, t.logits, labels)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("dkd", lambda s, t, y: dict(zip(("target", "others"), (1 * dkd_losses(s, t, y, 4.0)[0], 8 * dkd_losses(s, t, y, 4.0)[1]), strict=True))),
        ("rlkd", lambda s, t, y: {"scd": scd_loss(s, t, y, 1.0), "mcd": 8 * mcd_loss(s, t, y, 4.0)}),
        ("ikl", lambda s, t, y: {"soft": soft_cross_entropy(s, t, 4.0), "wmse": 8 * wmse_loss(s, t, 100.0)}),
    ],
    ids=["dkd", "rlkd", "ikl"],
)
def test_the_warm_up_grows_to_1_in_20_epochs(name, plain):
    for epoch, factor in ((1, 0.05), (10, 0.5), (20, 1.0), (240, 1.0)):
        _, losses, inputs = losses_of(name, epoch)
        torch.testing.assert_close(losses.pop("ce"), F.cross_entropy(inputs[0], inputs[2]))
        expected = plain(*inputs)
        assert losses.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(losses[key], factor * value)


@pytest.mark.parametrize(
    ("name", "ce", "plain"),
    [
        ("dist", 1.0, lambda s, t: {"inter": 2 * dist_losses(s, t, 4.0)[0], "intra": 2 * dist_losses(s, t, 4.0)[1]}),
        ("kd_ls", 0.1, lambda s, t: {"kd": 9 * kd_ls_loss(s, t, 2.0)}),
        ("ttm", 1.0, lambda s, t: {"ttm": 45 * ttm_divergences(s, t, 0.1).mean()}),
        ("wttm", 1.0, lambda s, t: {"ttm": 4 * (power_sums(t, 0.2) * ttm_divergences(s, t, 0.2)).mean()}),
        ("kd_weight", 0.1, lambda s, t: {"kd": 3 * kd_loss(s, t, 2.0)}),
        ("kd_weight6", 0.1, lambda s, t: {"kd": 6 * kd_loss(s, t, 2.0)}),
        ("ctkd", 0.1, lambda s, t: {"kd": 0.9 * kd_loss(s, t, 1 + 20 / (1 + math.exp(-1.0)))}),
    ],
    ids=["dist", "kd_ls", "ttm", "wttm", "kd_weight", "kd_weight6", "ctkd"],
)
def test_losses_carry_the_papers_weights(name, ce, plain):
    _, losses, (s, t, y) = losses_of(name)
    torch.testing.assert_close(losses.pop("ce"), ce * F.cross_entropy(s, y))
    expected = plain(s, t)
    assert losses.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value)


def test_normkds_weighting_is_an_option():
    hyper = hyper_of(registry.get("kd_ls"), "resnet56", "resnet20", {"weighting": "variance", "kd_weight": "0.9"})
    method = registry.get("kd_ls")(hyper, setting())
    s, t = made_up(setting().student, 4, 1), made_up(setting().teacher, 4, 2)
    found = method.losses(s, t, Batch(torch.arange(4), torch.arange(4)))["kd"]
    torch.testing.assert_close(found, 0.9 * kd_ls_loss(s.logits, t.logits, 2.0, by_variance=True))


def test_the_temperature_climbs_the_loss_that_the_student_descends():
    """The gradient of theta is minus the strength times d loss / d theta, by central differences over theta."""
    method = made("ctkd").double()  # in single precision two large terms of it cancel to some 2 %
    method.begin_epoch(5, torch.Generator())
    student, teacher = made_up(setting().student, 16, 1, dtype=torch.float64), made_up(setting().teacher, 16, 2, dtype=torch.float64)
    s, t = student.logits, teacher.logits
    method.losses(student, teacher, Batch(torch.arange(16) % 10, torch.arange(16)))["kd"].backward()

    def at(theta: float) -> float:
        temperature = 1 + 20 / (1 + math.exp(-theta))
        return 0.9 * kd_loss(s, t, temperature).item()

    slope = (at(1 + 1e-4) - at(1 - 1e-4)) / 2e-4
    assert slope != 0 and method.theta.grad.item() == pytest.approx(-0.5 * slope, rel=1e-6)


def test_the_pairs_with_values_of_their_own_are_networks_that_exist():
    pairs = {*dkd.BETA, *kd_ls.SETTINGS, *ikl.WEIGHTS}
    assert {name for pair in pairs for name in pair} <= set(models.names())
