"""How much of each cell of an image a network discards (Cheng et al., CVPR 2020, Eq. 1-2, after Guan et al., ICML 2019).

Noise sigma_i * eps is added to the pixels of cell i; sigma is made as large as the feature allows. Entropy H_i = log sigma_i + CONSTANT: low where
the network uses the cell. Images are independent of each other: losses are summed over them, never averaged.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CONSTANT = 0.5 * math.log(2 * math.pi * math.e)
TAIL = 0.25
"""Share of the last steps whose log sigma is averaged: what is left of the draws' noise."""
LEAPS, LEAPING, LEAST = 2, 1 / 3, 0.01
"""match: so many leaps within this share of the steps; a cell's error counts as no less than LEAST of the mean, since draws may say nothing of it."""


@dataclass(frozen=True)
class Search:
    """How sigma is sought. `match`: the mean entropy of an image is held at `target` and only its distribution is sought, so that no weight is
    needed; `penalty`: minimise error - weight * mean H; `code`: as the authors' code, SGD on sigma itself, the iterate nearest `target`.

    `match` begins with leaps. An error of the form sum a_i sigma_i^2, which small noise has, is least where all a_i sigma_i^2 are equal: log sigma
    moves by minus half the log of each cell's gradient. Adam alone goes no further than its rates add up to, which cuts off sharp maps."""

    mode: str = "match"
    steps: int = 60  # of Adam; the code's own: 80
    draws: int = 32  # of noise a step, half of them the negatives of the others
    rate: float = 0.05  # of Adam on log sigma, falling to 0 by a cosine (match)
    target: float = -2.8  # nats
    weight: float = 6.0  # penalty, code: 7 for VGG and AlexNet, 6 for ResNets
    start: float = 0.01
    low: float = 0.001
    high: float = 1.0


def spread(cells: Tensor, size: int) -> Tensor:
    """Values of cells (..., G, G) for every pixel (..., S, S); G divides S."""
    side = size // cells.shape[-1]
    return cells.repeat_interleave(side, -1).repeat_interleave(side, -2)


def noise(generator: torch.Generator, draws: int, size: int, like: Tensor) -> Tensor:
    """Antithetic normal draws (draws, 3, S, S): the second half is minus the first; draws is even."""
    half = torch.randn(draws // 2, 3, size, size, generator=generator, dtype=torch.float32)
    return torch.cat([half, -half]).to(like)


class Error:
    """The mean squared change of a feature under noise, over outputs and draws: sigma (B, G, G) -> (B,)."""

    def __init__(self, feature: Callable[[Tensor], Tensor], images: Tensor) -> None:
        """feature: images (B, 3, S, S) -> (B, L); it goes through a ReLU first, as in the authors' code."""
        self.feature, self.images = feature, images
        with torch.no_grad():
            self.clean = F.relu(feature(images))

    def __call__(self, sigma: Tensor, eps: Tensor) -> Tensor:
        size, draws = self.images.shape[-1], len(eps)
        noisy = self.images[:, None] + spread(sigma, size)[:, None, None] * eps[None]
        found = F.relu(self.feature(noisy.flatten(0, 1))).unflatten(0, (-1, draws))
        return (found - self.clean[:, None]).square().mean((1, 2))


def discarded(feature, images: Tensor, grid: int, search: Search, draw: Callable[[int, int], Tensor]) -> tuple[Tensor, Tensor]:
    """Entropies H (B, G, G) in nats, and whether the feature reacts to noise at all (B,) bool; where it does not, H is that of the start.

    images (B, 3, S, S), normalised; draw(step, draws) -> eps (draws, 3, S, S), step -1 for the scale.
    """
    error = Error(feature, images)
    start = images.new_full((len(images), grid, grid), search.start)
    with torch.no_grad():
        scale = error(start, draw(-1, search.draws))
    valid = scale > torch.finfo(scale.dtype).tiny
    scale = torch.where(valid, scale, 1.0)
    sigma = SEARCHES[search.mode](error, start, scale, search, draw)
    return sigma.log() + CONSTANT, valid


def _match(error: Error, start: Tensor, scale: Tensor, search: Search, draw) -> Tensor:
    low, high = math.log(search.low), math.log(search.high)
    value = torch.full_like(start, search.target - CONSTANT).requires_grad_()

    def gradient(step: int) -> Tensor:
        return torch.autograd.grad((error(value.exp(), draw(step, search.draws)) / scale).sum(), value)[0]

    @torch.no_grad()
    def put(new: Tensor) -> None:
        value.copy_(level(new, search.target - CONSTANT, low, high))

    leap = math.floor(search.steps * LEAPING / LEAPS)
    for i in range(LEAPS if leap else 0):
        total = sum(gradient(step) for step in range(i * leap, (i + 1) * leap))
        share = total / total.mean((1, 2), keepdim=True).clamp_min(torch.finfo(total.dtype).tiny)
        put(value - 0.5 * share.clamp(LEAST, 1 / LEAST**2).log())
    steps = range(LEAPS * leap, search.steps)
    optimiser = torch.optim.Adam([value], lr=search.rate)
    total, first = torch.zeros_like(start), math.floor(len(steps) * (1 - TAIL))
    for place, step in enumerate(steps):
        optimiser.param_groups[0]["lr"] = search.rate * 0.5 * (1 + math.cos(math.pi * place / len(steps)))
        value.grad = gradient(step)
        with torch.no_grad():  # only what leaves the mean as it is
            free = (value > low + 1e-6) & (value < high - 1e-6)
            value.grad -= (value.grad * free).sum((1, 2), keepdim=True) / free.sum((1, 2), keepdim=True).clamp_min(1)
        optimiser.step()
        put(value)
        if place >= first:
            total += value.detach()
    return (total / (len(steps) - first)).exp()


def _penalty(error: Error, start: Tensor, scale: Tensor, search: Search, draw) -> Tensor:
    value = start.log().requires_grad_()
    optimiser = torch.optim.Adam([value], lr=search.rate)
    total, first = torch.zeros_like(start), math.floor(search.steps * (1 - TAIL))
    for step in range(search.steps):
        loss = (error(value.exp(), draw(step, search.draws)) / scale).sum() - search.weight * value.mean((1, 2)).sum()
        (value.grad,) = torch.autograd.grad(loss, value)
        optimiser.step()
        with torch.no_grad():
            value.clamp_(math.log(search.low), math.log(search.high))
        if step >= first:
            total += value.detach()
    return (total / (search.steps - first)).exp()


def level(value: Tensor, mean: float, low: float, high: float) -> Tensor:
    """clamp(value + c) with the c of each image that makes the mean over its cells `mean`, by bisection: (B, G, G)."""
    below, above = (torch.full_like(value[:, :1, :1], mean + side * (high - low)) - value.mean((1, 2), keepdim=True) for side in (-2, 2))
    for _ in range(40):
        middle = (below + above) / 2
        less = (value + middle).clamp(low, high).mean((1, 2), keepdim=True) < mean
        below, above = torch.where(less, middle, below), torch.where(less, above, middle)
    return (value + above).clamp(low, high)


def _as_the_code(error: Error, start: Tensor, scale: Tensor, search: Search, draw) -> Tensor:
    """80 steps at most: after 60, images whose mean entropy never came above the target go on with 1.5 times the weight."""
    sigma = start.clone()
    best, distance = start.clone(), torch.full_like(scale, math.inf)
    reached = torch.full_like(scale, -math.inf)
    weight = torch.full_like(scale, search.weight)
    for step in range(80):
        sigma = sigma.clamp(search.low, search.high)
        mean = sigma.log().mean((1, 2)) + CONSTANT
        going = (reached <= search.target) if step >= 60 else torch.ones_like(reached, dtype=torch.bool)
        if step == 60:
            weight = weight * 1.5
        if not going.any():
            break
        away = (mean - search.target).abs()
        nearer = going & (away < distance)
        best, distance = torch.where(nearer[:, None, None], sigma, best), torch.where(nearer, away, distance)
        if step < 60:
            reached = torch.maximum(reached, mean)
        leaf = sigma.detach().requires_grad_()
        loss = error(leaf, draw(step, search.draws)) / scale - weight * leaf.log().mean((1, 2))
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        sigma = torch.where(going[:, None, None], sigma - 1e-4 * gradient, sigma)
    return best


SEARCHES = {"match": _match, "penalty": _penalty, "code": _as_the_code}
