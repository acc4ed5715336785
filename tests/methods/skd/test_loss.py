"""Stage B: the static loss against an independent computation, its facts (Eq. 2) and what it keeps in memory."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.skd.loss import CHUNK, distribution, entropy, kl_left, mean_distribution, relation, skd_loss, static_loss

CASES = [(1.0, True), (1.0, False), (0.25, True), (0.25, False)]


def closed_form(target: Tensor, temperature: float = 1.0) -> Tensor:
    """The relation whose row distribution is P (C, C), diagonal included: cos_ij = 1 + T log(P_ij / P_ii) -> (C, C)."""
    return 1 + temperature * (target / target.diagonal().unsqueeze(-1)).log()


def target(channels: int, temperature: float = 1.0, diagonal: bool = True, dtype=torch.float32, seed: int = 5) -> torch.Tensor:
    s = torch.randn(channels, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return distribution(relation(s), temperature, diagonal).to(dtype)


def random_maps(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_hand(maps, p, temperature, diagonal):
    """Eq. 2 as printed, an image, a row and a column at a time."""
    total = 0.0
    for image in maps.double():
        for i, a in enumerate(image):
            cosines = [(a * b).sum() / torch.sqrt(((a * a).sum() + 1e-8) * ((b * b).sum() + 1e-8)) for b in image]
            kept = [j for j in range(len(image)) if diagonal or j != i]
            log_q = F.log_softmax(torch.stack([cosines[j] for j in kept]) / temperature, dim=0)
            total = total - sum(p[i, j].double() * value for j, value in zip(kept, log_q, strict=True))
    return total / (maps.shape[0] * maps.shape[1])


@pytest.mark.parametrize(("temperature", "diagonal"), CASES)
def test_equals_the_printed_formula(temperature, diagonal):
    maps, p = random_maps(3, 5, 2, 3), target(5, temperature, diagonal)
    assert static_loss(maps, p, temperature, diagonal).item() == pytest.approx(by_hand(maps, p, temperature, diagonal).item(), rel=1e-6)


@pytest.mark.parametrize(("temperature", "diagonal"), CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_is_exact(temperature, diagonal, memory_format):
    p = target(5, temperature, diagonal, torch.float64)
    x = random_maps(2, 5, 3, 2, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: static_loss(x, p, temperature, diagonal), x, atol=1e-8, rtol=1e-4)


@pytest.mark.parametrize("diagonal", [True, False])
def test_gradient_at_a_dead_map_is_that_of_the_smoothed_cosine(diagonal):
    maps = random_maps(2, 5, 3, 2, dtype=torch.float64)
    maps[0, 1] = 0
    p, (x, y) = target(5, 1.0, diagonal, torch.float64), (maps.clone().requires_grad_() for _ in range(2))
    static_loss(x, p, 1.0, diagonal).backward()
    cosines = relation(y.flatten(2))
    level = (cosines.exp() * (1 - torch.eye(5) * (not diagonal))).sum(2).log()
    (level - (p * cosines).sum(2)).mean().backward()
    assert torch.allclose(x.grad, y.grad, rtol=1e-9, atol=1e-12)
    assert x.grad[0, 1].abs().max() > 1


def test_chunks_and_layouts_do_not_change_loss_or_gradient():
    channels = 200
    assert CHUNK[0] // channels**2 < 11  # several chunks and a remainder
    p, results = target(channels), []
    for layout in (lambda x: x, lambda x: x.to(memory_format=torch.channels_last), lambda x: x.mT.contiguous().mT, lambda x: x.double()):
        x = layout(random_maps(11, channels, 4, 2)).detach().requires_grad_()
        loss = 3 * static_loss(x, p.to(x.dtype))
        loss.backward()
        results.append((loss.item(), x.grad.double()))
    images = random_maps(11, channels, 4, 2, dtype=torch.float64).requires_grad_()
    q = distribution(relation(images.flatten(2)))
    plain = -3 * (p.double() * q.log()).sum(2).mean()
    plain.backward()
    for loss, gradient in results:
        assert loss == pytest.approx(plain.item(), rel=1e-6)
        assert torch.allclose(gradient, images.grad, rtol=1e-3, atol=1e-5 * images.grad.abs().max().item())


@pytest.mark.parametrize("shape", [(4, 32, 4, 4), (4, 8, 8, 8)])
def test_keeps_no_relation_for_backward(shape):
    saved = []
    x = random_maps(*shape).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        loss = static_loss(x, target(shape[1]))
    loss.backward()
    relations = sum(saved) / (shape[0] * shape[1] ** 2)
    assert x.grad.abs().max() > 0
    assert sum(saved) <= 1.1 * x.numel() and relations <= 3 * max(1, shape[2] * shape[3] / shape[1])


def test_no_gradient_is_made_where_none_is_asked():
    assert not static_loss(random_maps(2, 4, 2, 2), target(4)).requires_grad


def test_at_least_the_entropy_with_equality_at_p():
    maps = random_maps(1, 6, 4, 4, dtype=torch.float64)
    own = mean_distribution(maps)
    assert static_loss(maps, own).item() == pytest.approx(entropy(own).item(), abs=1e-12)
    for seed in range(5):
        p = target(6, dtype=torch.float64, seed=seed)
        loss = static_loss(maps, p)
        assert loss > entropy(p) + 1e-4
        assert loss.item() - entropy(p).item() == pytest.approx(kl_left(p, own).item(), abs=1e-10)


@pytest.mark.parametrize("diagonal", [True, False])
def test_positive_scaling_of_any_channel_changes_nothing(diagonal):
    maps, p = random_maps(4, 6, 3, 3, dtype=torch.float64), target(6, 1.0, diagonal, torch.float64)
    factors = 0.1 + 10 * torch.rand(4, 6, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert static_loss(maps * factors, p, 1.0, diagonal).item() == pytest.approx(static_loss(maps, p, 1.0, diagonal).item(), abs=1e-8)
    flipped = maps.clone()
    flipped[:, 0] *= -1
    assert abs(static_loss(flipped, p, 1.0, diagonal) - static_loss(maps, p, 1.0, diagonal)) > 1e-4


def test_permuting_vectors_and_channels_together_changes_nothing():
    s, maps = random_maps(7, 5, seed=2), random_maps(3, 7, 4, 4)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    loss = [static_loss(m, distribution(relation(v))).item() for m, v in ((maps, s), (maps[:, order], s[order]), (maps[:, order], s))]
    assert loss[1] == pytest.approx(loss[0], abs=1e-6)
    assert abs(loss[2] - loss[0]) > 1e-4


def test_only_without_the_diagonal_is_the_level_free():
    s = random_maps(6, 4, dtype=torch.float64)
    shifted = relation(s) + 0.3 * (1 - torch.eye(6, dtype=torch.float64))  # off-diagonal entries only
    assert torch.allclose(distribution(shifted, diagonal=False), distribution(relation(s), diagonal=False), atol=1e-12)
    assert not torch.allclose(distribution(shifted), distribution(relation(s)), atol=1e-2)
    assert torch.equal(distribution(shifted, diagonal=False).diagonal(), torch.zeros(6, dtype=torch.float64))


def test_closed_form_inverts_the_softmax():
    cosines = relation(random_maps(6, 4, dtype=torch.float64))
    assert torch.allclose(closed_form(distribution(cosines, 0.5), 0.5), cosines, atol=1e-7)


def test_not_the_loss_of_the_mean_relation():
    maps, p = random_maps(8, 6, 3, 3, dtype=torch.float64), target(6, dtype=torch.float64)
    of_mean = -(p * distribution(relation(maps.flatten(2)).mean(0)).log()).sum(1).mean()
    assert static_loss(maps, p) > of_mean + 1e-3  # Jensen: logsumexp is convex


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_dead_maps_are_finite_and_get_no_gradient_through_relu(diagonal, batch):
    maps = random_maps(batch, 6, 3, 3)
    maps[:, 2] = -1
    maps[0] = -1  # all channels dead in an image
    x = maps.requires_grad_()
    loss = static_loss(x.relu(), target(6, 1.0, diagonal), 1.0, diagonal)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()
    assert x.grad[:, 2].abs().max() == 0
    if batch > 1:
        assert x.grad.abs().max() > 0


def test_a_dead_row_is_uniform():
    x = random_maps(4, 9)
    x[1] = 0
    assert torch.equal(relation(x)[1], torch.zeros(4))
    assert torch.allclose(distribution(relation(x))[1], torch.full((4,), 0.25))


def test_full_precision_inside_autocast_and_for_half_maps():
    maps, p = random_maps(4, 16, 4, 4), target(16)
    full = static_loss(maps, p)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert static_loss(maps, p).item() == full.item()
    half = maps.to(torch.bfloat16).requires_grad_()
    loss = static_loss(half, p)
    loss.backward()
    assert loss.dtype == torch.float32 and half.grad.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(static_loss(half.detach().float(), p).item(), abs=1e-7)


def test_layers_are_averaged():
    maps, targets = [random_maps(2, 4, 3, 3), random_maps(2, 8, 2, 2)], [target(4), target(8)]
    each = [static_loss(m, p).item() for m, p in zip(maps, targets, strict=True)]
    assert skd_loss(maps, targets).item() == pytest.approx(sum(each) / 2, abs=1e-6)
    with pytest.raises(ValueError, match="zip"):
        skd_loss(maps, targets[:1])


def test_a_step_towards_the_target_lowers_the_kl():
    p = target(8)
    x = random_maps(4, 8, 4, 4).requires_grad_()
    before = static_loss(x, p).item() - entropy(p).item()
    optimiser = torch.optim.SGD([x], lr=20.0)
    for _ in range(50):
        optimiser.zero_grad()
        static_loss(x, p).backward()
        optimiser.step()
    after = static_loss(x, p).item() - entropy(p).item()
    assert 0 <= after < 0.2 * before
    assert math.isfinite(after)


def test_sums_in_place_of_means():
    maps, targets = [random_maps(5, 4, 3, 3), random_maps(5, 8, 2, 2)], [target(4), target(8)]
    each = [static_loss(m, p).item() for m, p in zip(maps, targets, strict=True)]
    assert skd_loss(maps, targets, sum_over="images").item() == pytest.approx(5 * sum(each) / 2, rel=1e-6)
    assert skd_loss(maps, targets, sum_over="rows").item() == pytest.approx((4 * each[0] + 8 * each[1]) / 2, rel=1e-6)
