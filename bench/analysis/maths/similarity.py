"""How alike two networks answer and represent: agreement, divergence, calibration, centred kernel alignment."""

import numpy as np
import torch
from torch import Tensor


def agreement(a: Tensor, b: Tensor) -> float:
    """Share of images whose largest logit is of the same class: (N, K) twice."""
    return (a.argmax(1) == b.argmax(1)).double().mean().item()


def divergence(teacher: Tensor, student: Tensor) -> float:
    """Mean over images of KL(softmax teacher || softmax student), in nats: logits (N, K) twice."""
    t, s = teacher.double().log_softmax(1), student.double().log_softmax(1)
    return (t.exp() * (t - s)).sum(1).mean().item()


def calibration(logits: Tensor, labels: Tensor, bins: int = 15) -> tuple[float, np.ndarray]:
    """Expected calibration error (Guo et al. 2017, Eq. 3) over equal bins (lo, hi] of the largest probability, and, for each bin,
    its share of the images, mean confidence and accuracy, (bins, 3); an empty bin is (0, 0, 0)."""
    confidence, answer = logits.double().softmax(1).max(1)
    at = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(at, minlength=bins).double()
    sums = [torch.zeros(bins, dtype=torch.float64).index_add_(0, at, v) for v in (confidence, (answer == labels).double())]
    means = [s / count.clamp_min(1) for s in sums]
    share = count / len(labels)
    return (share * (means[1] - means[0]).abs()).sum().item(), torch.stack([share, *means], 1).numpy()


def class_accuracy(logits: Tensor, labels: Tensor, classes: int) -> np.ndarray:
    """Accuracy in percent on the images of each class, (classes,); 0 for a class without images."""
    right = (logits.argmax(1) == labels).double()
    count = torch.bincount(labels, minlength=classes)
    return (100 * torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, right) / count.clamp_min(1)).numpy()


def gram(features: Tensor) -> Tensor:
    """Inner products of flattened features (B, ...) -> (B, B)."""
    flat = features.flatten(1)
    return flat @ flat.T


def hsic(k: Tensor, m: Tensor) -> Tensor:
    """Unbiased HSIC of two kernels (..., n, n), n > 3, divided by nothing but n (n - 3) (Song et al. 2012, Eq. 5; diagonals are ignored)."""
    n = k.shape[-1]
    k, m = (x.double() - torch.diag_embed(x.double().diagonal(dim1=-2, dim2=-1)) for x in (k, m))
    rows_k, rows_m = k.sum(-1), m.sum(-1)
    first = (k * m).sum((-2, -1))
    second = rows_k.sum(-1) * rows_m.sum(-1) / ((n - 1) * (n - 2))
    third = 2 * (rows_k * rows_m).sum(-1) / (n - 2)
    return (first + second - third) / (n * (n - 3))


def cka(k: Tensor, m: Tensor) -> float:
    """Linear CKA from the kernels of the same minibatches, (batches, B, B) twice, with the unbiased HSIC averaged over minibatches
    (Nguyen et al., ICLR 2021, Eq. 2 and 3). May be slightly below 0. 0 where a representation is constant."""
    cross, own_k, own_m = hsic(k, m).mean(), hsic(k, k).mean(), hsic(m, m).mean()
    constant = any(own <= 1e-12 * x.double().square().mean() for own, x in ((own_k, k), (own_m, m)))  # nothing left but rounding
    return 0.0 if constant else (cross / (own_k * own_m).sqrt()).item()
