"""Alignment on planted concepts: the bound is lowest, learned vectors lie between it and random ones; the gradient against autograd."""

import pytest
import torch

from bench.analysis.maths import alignment
from methods.skd.loss import distribution, embedding_loss, relation

CHANNELS, GROUPS = 24, 4


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted() -> tuple[torch.Tensor, torch.Tensor]:
    """IoU of channels that detect one concept a group (C, K), and the images' mean distribution of maps alike within a group."""
    member = torch.nn.functional.one_hot(torch.arange(CHANNELS) % GROUPS, GROUPS).double()
    iou = 0.2 * member + 0.02 * torch.rand(CHANNELS, GROUPS, generator=generator(0), dtype=torch.float64)
    maps = member + 0.3 * torch.rand(CHANNELS, GROUPS, generator=generator(1), dtype=torch.float64)
    return iou, distribution(relation(maps))


def test_the_gradient_is_autograds():
    _, p = planted()
    vectors = torch.randn(CHANNELS, 5, generator=generator(2), dtype=torch.float64).requires_grad_()
    embedding_loss(vectors, p).backward()
    torch.testing.assert_close(alignment.gradient(vectors.detach(), p), vectors.grad, atol=1e-12, rtol=1e-7)


def test_one_epoch_is_torchs_sgd():
    _, p = planted()
    start = torch.randn(CHANNELS, 5, generator=generator(2), dtype=torch.float64)
    vectors = start.clone().requires_grad_()
    optimiser = torch.optim.SGD([vectors], lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(7):
        optimiser.zero_grad()
        (embedding_loss(vectors, p) / 3).backward()
        optimiser.step()
    path = list(alignment.sgd(start, p, 2, 7, 3))
    assert len(path) == 3 and torch.equal(path[0], start)
    torch.testing.assert_close(path[1], vectors.detach(), atol=1e-9, rtol=1e-6)


def test_bound_below_learned_below_random_on_planted_concepts():
    iou, p = planted()
    t, kept = alignment.target(iou)
    assert len(kept) == CHANNELS
    *_, learned = alignment.sgd(torch.randn(CHANNELS, 8, generator=generator(3), dtype=torch.float64), p, 20, 300, 1)
    bound = alignment.divergence(t, alignment.fitted(torch.randn(CHANNELS, 8, generator=generator(4)), t), kept)
    found = alignment.divergence(t, learned, kept)
    random, shuffled = alignment.controls(t, learned, kept, generator, 5)
    assert bound <= found < min(random) and found < min(shuffled)
    assert bound == pytest.approx(0, abs=1e-4)


def test_channels_without_any_concept_are_left_out():
    iou, _ = planted()
    iou[[3, 7]] = 0
    t, kept = alignment.target(iou)
    assert t.shape == (CHANNELS - 2, CHANNELS - 2) and not {3, 7} & set(kept.tolist())
    torch.testing.assert_close(t.sum(1), torch.ones(CHANNELS - 2, dtype=torch.float64))
    vectors = torch.randn(CHANNELS, 5, generator=generator(5))
    changed = vectors.clone()
    changed[[3, 7]] = 9
    assert alignment.divergence(t, vectors, kept) == alignment.divergence(t, changed, kept)
