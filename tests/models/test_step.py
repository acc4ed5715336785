"""Steps of training by hand: gradients through the networks written once more, batch statistics, momentum and decay spelt out."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import models
from models.randomness import generator, keyed
from tests.models.reference import Reference

RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-4


@pytest.mark.parametrize("name", ["resnet8", "resnet50", "mobilenetv2", "shufflev1", "shufflev2"])
def test_two_steps(name):
    """The second shows the momentum. All weights and running statistics, in float64."""
    with keyed(1, "init"):
        network = models.build(name, 10).double().train()
    source = generator(1, "batch")
    size = 32 if name == "mobilenetv2" else 16  # statistics of a few values would be all rounding
    images = torch.randn(4, 3, size, size, generator=source, dtype=torch.float64)
    labels = torch.randint(10, (4,), generator=source)
    trained = [key for key, _ in network.named_parameters()]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    before = dict(state)
    velocity = {key: torch.zeros_like(state[key]) for key in trained}
    optimizer = torch.optim.SGD(network.parameters(), RATE, MOMENTUM, weight_decay=DECAY)
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(network(images).logits, labels).backward()
        optimizer.step()

        leaves = {key: state[key].requires_grad_() for key in trained}
        again = Reference(state, training=True)
        logits, _, _ = again.of(name, images)
        loss = (logits.exp().sum(1).log() - logits[torch.arange(4), labels]).mean()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        for key, gradient in zip(trained, gradients, strict=True):
            velocity[key] = MOMENTUM * velocity[key] + gradient + DECAY * leaves[key].detach()
            state[key] = leaves[key].detach() - RATE * velocity[key]
        state |= again.statistics
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            assert value == 2
            continue
        assert not torch.equal(value, before[key]), key
        torch.testing.assert_close(value, state[key], rtol=1e-7, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
