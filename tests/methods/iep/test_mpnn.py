"""The message-passing network and the estimator against the printed formulas, and on a planted two-layer cluster model."""

import pytest
import torch
from torch.nn import functional as F

from methods.iep.blackbox import Estimator, injected_head
from methods.iep.knowledge import alteration_loss, blackbox_loss, estimator_loss, intermediate_loss, row_divergence
from methods.iep.mpnn import MPNN
from methods.iep.spca import affinity
from models.randomness import generator, keyed

N, FRONT, BACK = 9, 4, 6


def draw(*shape, purpose="mpnn"):
    return torch.randn(*shape, generator=generator(0, f"{purpose}{shape}"))


def make(iterations=2, seed=0):
    with keyed(seed, "mpnn"):
        net = MPNN(FRONT, BACK, iterations)
        for p in net.parameters():
            p.data += 0.3 * torch.randn(p.shape)
        for name, b in net.named_buffers():
            if "running" in name:
                b.copy_(torch.rand(b.shape) + 0.5)
    return net


def normalised(gate, z, iteration):
    """Batch normalisation by its definition, over rows; running statistics of that iteration followed in training."""
    if gate.training:
        mean, var = z.mean(0), z.var(0, correction=0)
        with torch.no_grad():
            for kept, new in ((gate.running_mean, mean), (gate.running_var, z.var(0, correction=1))):
                kept[iteration] = 0.9 * kept[iteration] + 0.1 * new
    else:
        mean, var = gate.running_mean[iteration], gate.running_var[iteration]
    return (z - mean) / (var + 1e-5).sqrt() * gate.weight + gate.bias


def printed(net, front, back):
    """Eq. 8-12 pair by pair with whole edges (N, N, D), as the authors' code forms them."""
    n, dim = back.shape
    mapped = F.normalize(net.lm_bn(front @ net.lm.weight.T), dim=1)
    edges = dim * mapped[:, None] * mapped[None]
    start, messages = edges.mean(2), []
    for i in range(net.iterations):
        z = torch.cat([back[:, None] - back[None], edges.mean(2, keepdim=True)], 2).reshape(n * n, dim + 1)
        value, gate = (normalised(g, z @ g.fc.weight.T, i) for g in (net.value, net.gate))
        m = value * gate.sigmoid()
        messages.append(m.view(n, n, dim))
        edges = edges + messages[-1]
    return start, edges.mean(2), messages


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
def test_network_equals_the_printed_formulas(training, iterations):
    front, back = draw(N, FRONT), draw(N, BACK)
    found = make(iterations).train(training)(front, back)
    start, readout, messages = printed(make(iterations).train(training), front, back)
    assert torch.allclose(found.start, start, atol=1e-5)
    assert torch.allclose(found.readout, readout, atol=1e-5)
    assert len(found.messages) == iterations
    for a, b in zip(found.messages, messages, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_running_statistics_follow_as_in_the_printed_form():
    front, back, a, b = draw(N, FRONT), draw(N, BACK), make().train(), make().train()
    a(front, back)
    printed(b, front, back)
    for (name, x), y in zip(a.named_buffers(), b.buffers(), strict=True):
        assert torch.allclose(x.float(), y.float(), atol=1e-5), name


def test_first_readout_is_the_cosine_of_the_mapped_coordinates():
    net, front = make().eval(), draw(N, FRONT)
    assert torch.allclose(net(front, draw(N, BACK)).start, affinity(net.lm_bn(net.lm(front))), atol=1e-6)


def test_one_image_is_finite():
    found = make().eval()(draw(1, FRONT), draw(1, BACK))
    assert found.readout.shape == (1, 1) and found.readout.isfinite().all() and all(m.isfinite().all() for m in found.messages)


def test_losses_against_plain_sums():
    s, t = draw(N, N), draw(N, N, purpose="t")
    p, q = t.double().softmax(1), s.double().softmax(1)
    forward = (p * (p.log() - q.log())).sum()
    backward = (q * (q.log() - p.log())).sum()
    assert intermediate_loss(s, t).item() == pytest.approx(forward.item(), rel=1e-4)
    assert intermediate_loss(s, t, teacher_first=False).item() == pytest.approx(backward.item(), rel=1e-4)
    assert forward.item() != pytest.approx(backward.item(), rel=1e-2)
    m, k = [draw(N, N, 3), draw(N, N, 3, purpose="b")], [draw(N, N, 3, purpose="c"), draw(N, N, 3, purpose="d")]
    total = sum((a - b).abs().sum(2).mean() for a, b in zip(m, k, strict=True))  # the code's form: mean over pairs of the sum over I D
    assert alteration_loss(m, k).item() == pytest.approx(total.item(), rel=1e-5)
    g, h = draw(7, N, N), draw(7, N, N, purpose="h")
    q, p = g.tanh().softmax(-1), h.tanh().softmax(-1)
    assert blackbox_loss(g, h).item() == pytest.approx((q * (q / p).log()).sum().item(), rel=1e-4)
    x, y = draw(N, 4), draw(N, 4, purpose="y")
    cosine = (x * y).sum(1) / x.norm(dim=1) / y.norm(dim=1)
    assert estimator_loss(x, y).item() == pytest.approx((1 - cosine).mean().item(), rel=1e-5)
    assert estimator_loss(x, 3 * x).item() == pytest.approx(0, abs=1e-6)


def test_network_beats_identity_and_uniform_on_planted_clusters():
    """Front: 4 coarse clusters. Back: 8 fine ones, two in each coarse cluster and far apart."""
    g = generator(0, "planted")
    coarse, fine = 2 * torch.randn(4, 8, generator=g), 2 * torch.randn(8, 12, generator=g)

    def batch():
        label = torch.randint(0, 8, (48,), generator=g)
        front, back = coarse[label // 2], fine[label]
        return front + 0.5 * torch.randn(front.shape, generator=g), back + 0.5 * torch.randn(back.shape, generator=g)

    with keyed(0, "planted"):
        net = MPNN(8, 12)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    for _ in range(150):
        front, back = batch()
        loss = row_divergence(affinity(back), net(front, back).readout)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        front, back = batch()
        target = affinity(back)
        learned = row_divergence(target, net(front, back).readout)
        identity, uniform = row_divergence(target, affinity(front)), row_divergence(target, torch.zeros_like(target))
    assert learned < 0.5 * identity and learned < 0.5 * uniform


def test_estimator_attends_row_by_row():
    with keyed(0, "estimator"):
        net = Estimator(FRONT, BACK, heads=3).eval()
    front, back = draw(N, FRONT), draw(N, BACK)
    logits = net.logits(front, back)
    sent, received = net.sender_bn(net.sender(back)), net.receiver_bn(net.receiver(front))
    d = net.dim
    assert d == (FRONT + BACK) // 2
    for h in range(3):
        assert torch.allclose(logits[h], sent[:, h * d : (h + 1) * d] @ received[:, h * d : (h + 1) * d].T, atol=1e-5)
    injected, values = draw(N, N), net.value_bn(net.value(front)).relu()
    mixed = torch.cat([a @ values for a in [*logits.softmax(-1), injected]], 1)
    assert torch.allclose(net.estimate(front, back, injected), F.normalize(net.out(mixed), dim=1), atol=1e-5)


def test_dropped_heads_do_not_count():
    with keyed(0, "estimator"):
        net = Estimator(FRONT, BACK, heads=1).eval()
    front, back = draw(N, FRONT), draw(N, BACK)
    noise = torch.tensor([1.0, -1.0]).view(2, 1, 1).expand(2, N, 1)  # keeps the learned head, drops the injected one
    kept = net.estimate(front, back, draw(N, N), noise)
    assert torch.equal(kept, net.estimate(front, back, torch.zeros(N, N)))
    assert not torch.allclose(kept, net.estimate(front, back, draw(N, N)))


def test_injected_head_is_the_mean_message_without_gradient():
    found = make()(draw(N, FRONT), draw(N, BACK))
    head = injected_head(found)
    assert not head.requires_grad
    assert torch.allclose(head, sum(m.mean(2) for m in found.messages), atol=1e-5)
