"""Concept vectors (Fong and Vedaldi, Net2Vec, CVPR 2018): the weights of a layer's channels that segment or tell a concept.

Segmentation: M = sigmoid(up(sum_k w_k [A_k > T_k])), no bias; a pixel belongs to the concept where M > 0.5 strictly, so one without any active
channel does not. The loss is linear in M. Learning rate and sums of pixels are those at 112 x 112; for other sizes the rate is scaled by the area.
"""

from typing import Any

import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

SIZE = 112
"""Pixels a side at which the rate holds."""
MOMENTUM = 0.9
RIDGE = 1e-3


def field(on: Tensor, weights: Tensor, size: int) -> Tensor:
    """The argument of the sigmoid: on (B, C, H, W) 0/1, weights (C,) -> (B, size, size). Upsampling is linear, so channels are summed first."""
    summed = torch.einsum("bchw,c->bhw", on, weights)[:, None]
    return (F.interpolate(summed, size=(size, size), mode="bilinear", align_corners=False) if summed.shape[-1] != size else summed)[:, 0]


def loss(z: Tensor, label: Tensor, alpha: float) -> Tensor:
    """-(1/B) sum over images and pixels of alpha M L + (1 - alpha)(1 - M)(1 - L), M = sigmoid(z); z and label 0/1 (B, S, S)."""
    mask = z.sigmoid()
    return -(alpha * mask * label + (1 - alpha) * (1 - mask) * (1 - label)).sum() / len(z)


def fit(on: Tensor, label: Tensor, kept: Tensor, how: Any, generator: torch.Generator) -> Tensor:
    """Weights (C,), 0 where `kept` (C,) is False: on bool (N, C, H, W) and label bool (N, S, S) of images that contain the concept.

    Start: uniform within 1/sqrt(K) for K kept channels. alpha = 1 - the mean part of the pixels that belong to the concept. `how`: the analysis'
    options, of which rate, epochs and batch are read.
    """
    count, size = len(on), label.shape[-1]
    keep = kept.float()
    bound = float(keep.sum()) ** -0.5
    start = (2 * torch.rand(len(keep), generator=generator) - 1) * bound * keep
    weights = start.requires_grad_()
    alpha = 1 - label.float().mean().item()
    optimiser = torch.optim.SGD([weights], how.rate * (SIZE / size) ** 2, momentum=MOMENTUM)
    for _ in range(how.epochs):
        for index in torch.randperm(count, generator=generator).split(how.batch):
            optimiser.zero_grad()
            loss(field(on[index].float(), weights * keep, size), label[index].float(), alpha).backward()
            optimiser.step()
    return (weights * keep).detach()


def iou(on: Tensor, label: Tensor, weights: Tensor, batch: int = 100) -> float:
    """Set IoU of the segmentation by `weights` with the label over these images; 0 where both are empty."""
    both = either = 0
    for part, truth in zip(on.split(batch), label.split(batch), strict=True):
        found = field(part.float(), weights, label.shape[-1]) > 0
        both, either = both + int((found & truth).sum()), either + int((found | truth).sum())
    return both / max(1, either)


def single(on: Tensor, label: Tensor, batch: int = 100) -> Tensor:
    """Set IoU of each channel alone, (C,): active where the upsampled 0/1 map is above 0.5."""
    size = label.shape[-1]
    both = either = torch.zeros(on.shape[1])
    for part, truth in zip(on.split(batch), label.split(batch), strict=True):
        up = part.float() if part.shape[-1] == size else F.interpolate(part.float(), size=(size, size), mode="bilinear", align_corners=False)
        found, truth = up > 0.5, truth[:, None]
        both, either = both + (found & truth).sum((0, 2, 3)), either + (found | truth).sum((0, 2, 3))
    return both / either.clamp_min(1)


def strongest(weights: Tensor, count: int) -> Tensor:
    """The `count` channels of largest |weight|, bool (C,)."""
    kept = torch.zeros(len(weights), dtype=torch.bool)
    kept[weights.abs().topk(count).indices] = True
    return kept


def classify(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic regressions, one a concept: x (N, C) standardised activations, y bool (N, K) -> weights (K, C) and biases (K,).

    Binary cross-entropy with positives and negatives of equal total weight, plus RIDGE |w|^2; L-BFGS.
    """
    positive = y.float()
    weight = positive / positive.sum(0).clamp_min(1) + (1 - positive) / (1 - positive).sum(0).clamp_min(1)
    w, b = torch.zeros(y.shape[1], x.shape[1], requires_grad=True), torch.zeros(y.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([w, b], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        each = F.binary_cross_entropy_with_logits(x @ w.T + b, positive, weight=weight / 2, reduction="sum")
        total = each + RIDGE * w.square().sum()
        total.backward()
        return total

    optimiser.step(closure)
    return w.detach(), b.detach()


def auc(scores: Tensor, y: Tensor) -> Tensor:
    """The chance that a positive scores above a negative, ties half: scores (N, J), y bool (N, K) -> (K, J); 0.5 where a class is empty."""
    ranks = torch.from_numpy(rankdata(scores.double().numpy(), axis=0))  # from 1, ties at their mean
    positive = y.double()
    many, few = (1 - positive).sum(0), positive.sum(0)
    wins = positive.T @ ranks - (few * (few + 1) / 2)[:, None]
    pairs = (few * many)[:, None]
    return torch.where(pairs > 0, wins / pairs.clamp_min(1), torch.full_like(wins, 0.5))


def unit(vectors: Tensor) -> Tensor:
    """Rows of length 1; a row of 0 stays."""
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)


def combine(vectors: Tensor, plus: list[int], minus: list[int]) -> tuple[int, float]:
    """The vector nearest to a sum and difference of unit vectors, its terms left out: its row and the cosine."""
    u = unit(vectors)
    total = u[plus].sum(0) - u[minus].sum(0)
    cosines = u @ (total / total.norm().clamp_min(1e-12))
    cosines[plus + minus] = -2
    value, best = cosines.max(0)
    return int(best), value.item()
