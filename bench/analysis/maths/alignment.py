"""How near semantic vectors come to human concepts (Han et al. 2022, Fig. 4): KL between relation distributions, the vectors along SGD.

A channel's concept vector is its row of IoUs with all concepts. Concept and semantic vectors have different lengths, so what is compared is how
channels relate: t(j|i) = softmax_j cos(v_i, v_j) against q(j|i) = softmax_j cos(s_i, s_j), over the channels whose concept vector is not 0.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from methods.skd.embedding import paper_rate
from methods.skd.loss import EPS, distribution, embedding_loss, kl_left, relation

MOMENTUM, DECAY = 0.9, 5e-4


def target(concepts: Tensor) -> tuple[Tensor, Tensor]:
    """IoU (C, K) -> t (n, n) fp64 over the n channels with a concept vector that is not 0, and which those are, int64 (n,)."""
    kept = (concepts > 0).any(1).nonzero().flatten()
    return distribution(relation(concepts[kept].double())), kept


def divergence(t: Tensor, vectors: Tensor, kept: Tensor) -> float:
    """Mean over channels of KL(t_i || q_i) in nats, q of the kept rows of the vectors (C, K)."""
    return kl_left(t, distribution(relation(vectors[kept].double()))).item()


def gradient(vectors: Tensor, p: Tensor) -> Tensor:
    """Of Eq. 1 for one layer, in closed form: with E = (q - p) / C and unit vectors u, dL/du_i = sum_j (E_ij + E_ji) u_j, of which the part along
    u_i goes and the rest is divided by |s_i|. (C, K), (C, C) -> (C, K)."""
    norm = (vectors.square().sum(1, keepdim=True) + EPS).sqrt()
    unit = vectors / norm
    error = ((unit @ unit.T).softmax(1) - p) / len(p)
    du = (error + error.T) @ unit
    return (du - (du * unit).sum(1, keepdim=True) * unit) / norm


def sgd(start: Tensor, p: Tensor, epochs: int, steps: int, layers: int) -> Iterator[Tensor]:
    """The vectors (C, K) at the start and after each epoch of the paper's SGD: lr 0.1, momentum 0.9, weight decay 5e-4, x0.1 after 50, 75, 90 %.

    Each step is taken at p (C, C), the images' mean distribution: Eq. 1 is linear in it, so this is the batches' mean step, without their noise.
    The paper's loss is the mean over `layers` layers.
    """
    vectors, speed = start.clone(), torch.zeros_like(start)
    yield vectors
    for epoch in range(1, epochs + 1):
        rate = paper_rate(epoch, epochs)
        for _ in range(steps):
            speed.mul_(MOMENTUM).add_(gradient(vectors, p), alpha=1 / layers).add_(vectors, alpha=DECAY)
            vectors = vectors - rate * speed
        yield vectors


def fitted(start: Tensor, t: Tensor, steps: int = 1000) -> Tensor:
    """Vectors (n, K) fp64 fitted to t itself by L-BFGS: as near as so many dimensions come."""
    vectors = start.double().clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [vectors], max_iter=steps, tolerance_grad=1e-9, tolerance_change=1e-13, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = len(t) * embedding_loss(vectors, t)
        loss.backward()
        return loss

    optimiser.step(closure)
    return vectors.detach()


def controls(t: Tensor, vectors: Tensor, kept: Tensor, draw: Callable[[int], torch.Generator], count: int) -> tuple[list[float], list[float]]:
    """KLs of `count` sets of random vectors N(0, 1), and of the vectors with their channels shuffled (same relations, other owners)."""
    random, shuffled = [], []
    for i in range(count):
        source = draw(i)
        random.append(divergence(t, torch.randn(vectors.shape, generator=source), kept))
        shuffled.append(divergence(t, vectors[torch.randperm(len(vectors), generator=source)], kept))
    return random, shuffled
