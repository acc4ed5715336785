"""Losses against NumPy: value and gradient in float64, over the shapes of all pairs."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from models.outputs import Shapes

ALIKE = (
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
)
UNLIKE = (
    ("vgg13", "mobilenetv2"),
    ("resnet50", "mobilenetv2"),
    ("resnet50", "vgg8"),
    ("resnet32x4", "shufflev1"),
    ("resnet32x4", "shufflev2"),
    ("wrn_40_2", "shufflev1"),
)
BATCHES = (64, 16, 1)


def _case(pair: tuple[str, str], batch: int):
    large = pair[0] == "resnet50" and batch > 1  # a gigabyte, and seconds
    return pytest.param(pair, batch, id=f"{'-'.join(pair)}-{batch}", marks=[pytest.mark.slow] if large else [])


everywhere = pytest.mark.parametrize(("pair", "batch"), [_case(pair, batch) for pair in (*ALIKE, *UNLIKE) for batch in BATCHES])
of_teachers = pytest.mark.parametrize(
    ("pair", "batch"), [_case(pair, batch) for pair in {pair[0]: pair for pair in (*UNLIKE, *ALIKE)}.values() for batch in BATCHES]
)
"""A pair of each teacher, for losses that know no shape of the student's."""


def both(pair: tuple[str, str]) -> tuple[Shapes, Shapes]:
    """Shapes of teacher and student."""
    return models.shapes(pair[0]), models.shapes(pair[1])


def draw(*shape: int, seed: int = 0, relu: bool = False) -> Tensor:
    """Float64 values; a map (B, C, H, W) lies channels last, as the networks' do."""
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x.relu() if relu else x
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def arrays(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    return [t.detach().numpy().copy() for t in tensors]


def agrees(
    loss: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
    reference: Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], float],
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    step: float = 1e-5,
) -> None:
    """The value is the reference's; the gradient's part along a random direction is the reference's central difference."""
    student = [s.detach().clone(memory_format=torch.preserve_format).requires_grad_() for s in student]
    found = loss(student, teacher)
    assert found.shape == () and found.dtype == torch.float64
    s, t = arrays(student), arrays(teacher)
    expected = float(reference(s, t))
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    gradients = torch.autograd.grad(found, student, allow_unused=True)
    way = arrays([draw(*x.shape, seed=11 + i) for i, x in enumerate(student)])
    along = sum(float((g.numpy() * w).sum()) for g, w in zip(gradients, way, strict=True) if g is not None)
    ahead, behind = (float(reference([x + side * step * w for x, w in zip(s, way, strict=True)], t)) for side in (1, -1))
    size = sum(float(g.norm()) for g in gradients if g is not None)
    assert along == pytest.approx((ahead - behind) / (2 * step), rel=1e-5, abs=1e-5 * size + 1e-10)


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows (last axis) over their norm; a row of 0 stays 0."""
    norm = np.sqrt(np.einsum("...i,...i->...", x, x))[..., None]
    return x / np.where(norm > 0, norm, 1)


def average_pooled(x: np.ndarray, size: int) -> np.ndarray:
    """Windows from floor(i H / size) to ceil((i + 1) H / size), as adaptive pooling states them; also where size is above H."""
    edges = [(i * x.shape[2] // size, -(-(i + 1) * x.shape[2] // size)) for i in range(size)]
    return np.stack([np.stack([x[:, :, a:b, c:d].mean((2, 3)) for c, d in edges], -1) for a, b in edges], -2)


def normalised(x: np.ndarray) -> np.ndarray:
    """Batch normalisation by the batch's own statistics, weight 1 and bias 0."""
    mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5)


def convolved(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A convolution of odd kernel with padding that keeps the size, no bias."""
    reach = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    height, width = x.shape[2:]
    taps = range(weight.shape[2])
    return sum(np.einsum("bchw,oc->bohw", padded[:, :, i : i + height, j : j + width], weight[:, :, i, j]) for i in taps for j in taps)
