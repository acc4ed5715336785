"""The clipped backward pass."""

import pytest
import torch
from torch import nn

from methods.iep.clip import clip_factors, write_clipped
from models.randomness import generator, keyed


def draw(*shape, purpose="clip"):
    return torch.randn(*shape, generator=generator(0, f"{purpose}{shape}"))


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_clipped_gradient_is_never_longer_than_the_bound_and_keeps_its_direction(scale, ratio):
    main, z = [draw(5, 3), draw(7)], [scale * draw(5, 3, purpose="z"), scale * draw(7, purpose="z")]
    for g, k, factor in zip(main, z, clip_factors(main, z, torch.tensor(ratio)), strict=True):
        assert (factor * k).norm() <= ratio * g.norm() * (1 + 1e-6)
        assert factor >= 0 and factor.isfinite()
        if k.norm() <= ratio * g.norm():
            assert factor == 1
        else:
            assert (factor * k).norm().item() == pytest.approx(ratio * g.norm().item(), rel=1e-5)


def test_whole_network_takes_one_factor():
    main, z = [draw(5, 3), draw(7)], [3 * draw(5, 3, purpose="z"), 9 * draw(7, purpose="z")]
    a, b = clip_factors(main, z, 1.0, whole=True)
    norm = lambda tensors: torch.cat([t.flatten() for t in tensors]).norm()  # noqa: E731
    assert a == b and a.item() == pytest.approx((norm(main) / norm(z)).item(), rel=1e-5)


class Net(nn.Module):
    """A trunk that all losses reach, a head that cross-entropy alone reaches, an adapter that knowledge alone reaches."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head, self.adapter, self.idle = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2), nn.Linear(2, 2)

    def losses(self, weight=1.0):
        hidden = self.trunk(draw(6, 4)).tanh()
        return {
            "ce": self.head(hidden).square().mean(),
            "int": weight * self.adapter(hidden).square().mean(),
            "alt": weight * self.adapter(hidden).abs().sum(),
        }


@pytest.fixture
def net():
    with keyed(0, "net"):
        return Net()


def grads(net, name):
    return dict(zip(dict(net.named_parameters()), torch.autograd.grad(net.losses()[name], list(net.parameters()), allow_unused=True), strict=True))


def test_gradients_add_up_each_clipped_by_itself(net):
    ce, first, second = (grads(net, name) for name in ("ce", "int", "alt"))
    write_clipped(net.losses(), list(net.parameters()), torch.tensor(0.7))
    for name, p in net.named_parameters():
        if name.startswith("idle"):
            assert p.grad is None
        elif name.startswith("head"):
            assert torch.equal(p.grad, ce[name])
        elif name.startswith("adapter"):
            assert torch.allclose(p.grad, first[name] + second[name])
        else:
            parts = [z * min(1.0, (0.7 * ce[name].norm() / z.norm()).item()) for z in (first[name], second[name])]
            assert torch.allclose(p.grad, ce[name] + sum(parts), atol=1e-6)
            assert (p.grad - ce[name]).norm() <= 2 * 0.7 * ce[name].norm() * (1 + 1e-5)


def test_zero_knowledge_gradient_leaves_the_cross_entropy_step(net):
    ce = grads(net, "ce")
    write_clipped(net.losses(weight=0.0), list(net.parameters()), 1.0)
    for name, p in net.named_parameters():
        if ce[name] is not None:
            assert torch.equal(p.grad, ce[name])


def test_gradients_lie_in_memory_as_their_parameters():
    with keyed(0, "conv"):
        conv = nn.Conv2d(4, 5, 3).to(memory_format=torch.channels_last)
    x = draw(2, 4, 6, 6)
    out = conv(x).relu()
    write_clipped({"ce": out.square().mean(), "int": out.sum()}, list(conv.parameters()), 1.0)
    assert conv.weight.grad.stride() == conv.weight.stride()
