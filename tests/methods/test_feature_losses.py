"""The losses of ICKD, ITRD and ReviewKD against NumPy, image by image and dimension by dimension, as the formulas are stated."""

import numpy as np
import pytest
import torch

from methods import itrd, reviewkd
from methods._maps import batch_normalised, pooled_to, unit
from methods.base import Batch, Setting
from methods.ickd import ickd_loss
from models.outputs import Outputs, Shapes
from tests.methods.independent import agrees, arrays, average_pooled, both, convolved, draw, everywhere, normalised, of_teachers, unit_rows

# ICKD


def numpy_ickd(s, t):
    total = 0.0
    for a, b in zip(s, t, strict=True):
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        for rows in range(0, len(a), 128):  # in parts that fit the caches
            part = slice(rows, rows + 128)
            total += ((unit_rows(a[part] @ a.T) - unit_rows(b[part] @ b.T)) ** 2).sum()
    return total / (t.shape[0] * t.shape[1])


@everywhere
def test_ickd(pair, batch):
    teacher, student = (shapes.maps["stage"][-1] for shapes in both(pair))
    s = draw(batch, teacher[0], *student[1:])  # behind the student's projection: signed, as many channels as the teacher's
    t = draw(batch, *teacher, seed=1, relu=True)
    agrees(lambda s, t: ickd_loss(s[0], t[0]), lambda s, t: numpy_ickd(s[0], t[0]), [s], [t])


def test_ickd_of_dead_channels_and_equal_images():
    s, t = draw(4, 6, 3, 3), draw(4, 6, 3, 3, seed=1, relu=True)
    s[3], t[3], t[0, 2] = s[2], t[2], 0
    agrees(lambda s, t: ickd_loss(s[0], t[0]), lambda s, t: numpy_ickd(s[0], t[0]), [s], [t])
    s[1, 4] = 0
    leaf = s.clone().requires_grad_()
    ickd_loss(leaf, t).backward()
    assert ickd_loss(s, t).item() == pytest.approx(numpy_ickd(*arrays([s, t])), rel=1e-12)
    assert torch.isfinite(leaf.grad).all() and leaf.grad.abs().max() < 10


def test_ickd_is_0_for_the_teachers_own_maps_at_any_scale():
    t = draw(3, 5, 4, 4, seed=1)
    assert ickd_loss(7 * t, t).item() == pytest.approx(0, abs=1e-14)


# ITRD


def numpy_correlation(s, t, alpha):
    total, used = 0.0, 0
    for d in range(t.shape[1]):
        if len(t) == 1 or np.ptp(t[:, d]) == 0:
            continue
        x, y = ((v[:, d] - v[:, d].mean()) / v[:, d].std(ddof=1) for v in (s, t))
        total, used = total + abs((x * y).sum() / len(x) - 1) ** (2 * alpha), used + 1
    return np.log2(total) if used else 0.0


def numpy_mutual(s, t):
    gram = unit_rows(s) @ unit_rows(s).T
    joint = gram * (unit_rows(t) @ unit_rows(t).T)
    return ((gram / np.trace(gram)) ** 2).sum() - ((joint / np.trace(joint)) ** 2).sum()


@everywhere
@pytest.mark.parametrize("alpha", [1.5, 1.01])
def test_itrd(pair, batch, alpha):
    teacher, student = (shapes.embedding for shapes in both(pair))
    s, t = draw(batch, teacher), draw(batch, teacher, seed=1, relu=True)
    agrees(lambda s, t: itrd.correlation_loss(s[0], t[0], alpha), lambda s, t: numpy_correlation(s[0], t[0], alpha), [s], [t])
    s = draw(batch, student, relu=True)
    agrees(lambda s, t: itrd.mutual_loss(s[0], t[0]), lambda s, t: numpy_mutual(s[0], t[0]), [s], [t])


def test_itrd_leaves_out_what_the_teacher_does_not_move():
    s, t = draw(8, 5), draw(8, 5, seed=1, relu=True)
    t[:, 2], t[:, 4] = 0, 0.3
    agrees(lambda s, t: itrd.correlation_loss(s[0], t[0], 1.5), lambda s, t: numpy_correlation(s[0], t[0], 1.5), [s], [t])
    leaf = s.clone().requires_grad_()
    itrd.correlation_loss(leaf, t, 1.5).backward()
    assert not leaf.grad[:, [2, 4]].any() and leaf.grad[:, [0, 1, 3]].any(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, 0.1, 1234.5])
def test_itrd_of_a_dead_side_is_finite(dtype, level):
    moving, still = draw(16, 4).to(dtype), torch.full((16, 4), level, dtype=dtype)
    for s, t in ((moving, still), (still, moving), (still, still)):
        leaf = s.clone().requires_grad_()
        loss = itrd.correlation_loss(leaf, t, 1.5) + itrd.mutual_loss(leaf, t)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(leaf.grad).all() and leaf.grad.abs().max() < 100
    assert itrd.correlation_loss(moving, still, 1.5).item() == 0
    assert itrd.correlation_loss(still, moving, 1.5).item() == pytest.approx(2)  # no correlation in any of 4 dimensions: log2 4


def test_itrd_of_equal_images():
    s, t = draw(1, 4).expand(6, 4), draw(1, 4, seed=1).expand(6, 4)
    assert itrd.correlation_loss(s, t, 1.5).item() == 0 and itrd.mutual_loss(s, t).item() == pytest.approx(0, abs=1e-15)


# ReviewKD


def numpy_context(s, t):
    total = 0.0
    for a, b in zip(s, t, strict=True):
        level, weight, weights = ((a - b) ** 2).mean(), 1.0, 1.0
        for size in (4, 2, 1):
            if size < a.shape[2]:
                weight /= 2
                level, weights = level + weight * ((average_pooled(a, size) - average_pooled(b, size)) ** 2).mean(), weights + weight
        total += level / weights
    return total


@of_teachers
def test_context_loss(pair, batch):
    shapes = reviewkd.levels(both(pair)[0], "preact")
    s = [draw(batch, *shape, seed=i) for i, shape in enumerate(shapes)]
    t = [draw(batch, *shape, seed=10 + i) for i, shape in enumerate(shapes)]
    agrees(reviewkd.context_loss, numpy_context, s, t, step=1e-4)


def numpy_nearest(x, size):
    place = [i * x.shape[2] // size for i in range(size)]
    return x[:, :, place][:, :, :, place]


def numpy_review(maps, fusions, sizes):
    """Deep to shallow; `fusions`: (enter, attention weight and bias or None, leave), shallow to deep, as the maps are."""
    results, residual = [], None
    for x, (enter, attention, leave), size in reversed(list(zip(maps, fusions, sizes, strict=True))):
        x = normalised(convolved(x, enter))
        if attention is not None:
            y = numpy_nearest(residual, x.shape[2])
            gates = convolved(np.concatenate([x, y], 1), attention[0]) + attention[1].reshape(1, 2, 1, 1)
            gates = 1 / (1 + np.exp(-gates))
            x = x * gates[:, :1] + y * gates[:, 1:]
        residual = numpy_nearest(x, size)
        results.insert(0, normalised(convolved(residual, leave)))
    return results


UNLIKE = {  # heights of the student's stages and of the teacher's
    "alike": ((8, 4, 2), (8, 4, 2)),
    "as vgg13 and MobileNetV2": ((16, 8, 4, 2), (16, 8, 4, 4)),
    "as ResNet50 and MobileNetV2": ((8, 4, 2, 1), (16, 8, 4, 2)),
    "as ResNet50 and vgg8": ((16, 8, 4, 4), (32, 16, 8, 4)),
}


def toy(heights: tuple[int, ...], width: int) -> Shapes:
    stages = tuple((width + i, height, height) for i, height in enumerate((heights[0], *heights)))
    return Shapes("toy", 10, width + 3, {"stage": stages, "preact": stages})


@pytest.mark.parametrize("sizes", UNLIKE.values(), ids=UNLIKE)
@pytest.mark.parametrize("batch", [16, 5])
def test_the_review(sizes, batch):
    """The whole way from the student's maps to the loss."""
    student, teacher = toy(sizes[0], 3), toy(sizes[1], 4)
    torch.manual_seed(0)
    method = reviewkd.ReviewKD(reviewkd.Hyper(weight=3.0), Setting(student, teacher, 10)).double().train()
    method.begin_epoch(5, torch.Generator())
    s = [draw(batch, *shape, seed=i, relu=True) for i, shape in enumerate(student.maps["stage"][1:])]
    t = [draw(batch, *shape, seed=10 + i) for i, shape in enumerate(teacher.maps["preact"][1:])]
    s, t = [*s, draw(batch, student.embedding, seed=8, relu=True)], [*t, draw(batch, teacher.embedding, seed=18, relu=True)]
    logits, labels = draw(batch, 10, seed=20), torch.arange(batch) % 10

    def loss(s, t):
        outputs = Outputs(logits, s[-1], {"stage": (None, *s[:-1])}), Outputs(None, t[-1], {"preact": (None, *t[:-1])})
        return method.losses(*outputs, Batch(labels, labels))["review"]

    fusions = []
    for fusion in method.fusions:
        attention = None if fusion.attention is None else arrays([fusion.attention.weight, fusion.attention.bias])
        fusions.append((arrays([fusion.enter[0].weight])[0], attention, arrays([fusion.leave[0].weight])[0]))
    sizes = [shape[1] for shape in reviewkd.levels(teacher, "preact")]

    def reference(s, t):
        s, t = [*s[:-1], s[-1][:, :, None, None]], [*t[:-1], t[-1][:, :, None, None]]
        return 3.0 * 5 / 20 * numpy_context(numpy_review(s, fusions, sizes), t)

    agrees(loss, reference, s, t)


# What they share


@pytest.mark.parametrize(("height", "size"), [(8, 8), (8, 4), (6, 4), (5, 2)])
def test_pooled_to_a_size(height, size):
    x = draw(2, 3, height, height)
    assert np.allclose(pooled_to(x, size, size).numpy(), average_pooled(x.numpy(), size), rtol=1e-12)


def test_unit_rows_of_0_have_no_gradient():
    x = torch.zeros(2, 3, dtype=torch.float64)
    x[1] = torch.tensor([3.0, 0.0, 4.0])
    x.requires_grad_()
    rows = unit(x)
    assert torch.allclose(rows, torch.tensor([[0.0, 0, 0], [0.6, 0, 0.8]], dtype=torch.float64))
    rows.sum().backward()
    assert not x.grad[0].any() and torch.isfinite(x.grad).all() and x.grad[1].any()


def test_batch_normalisation_of_one_value_a_channel():
    norm = torch.nn.BatchNorm2d(3).double().train()
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    x = draw(1, 3, 1, 1)
    before = norm.running_mean.clone()
    assert torch.allclose(batch_normalised(norm, x, relu=False), (x - 1) / (4 + 1e-5) ** 0.5)
    assert torch.equal(norm.running_mean, before) and norm.num_batches_tracked == 0
    y = draw(2, 3, 1, 1)
    assert torch.equal(batch_normalised(norm, y), torch.relu(torch.nn.functional.batch_norm(y, None, None, training=True)))
    assert norm.num_batches_tracked == 1
