"""Folding normalisations into convolutions: the same function of an image, for every network and kind of maps."""

import pytest
import torch
from torch import nn

import models
from models.outputs import KINDS


def trained_like(name: str) -> nn.Module:
    """A network whose normalisations do something: statistics and weights drawn, as after training."""
    torch.manual_seed(0)
    network = models.build(name).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return network


@pytest.mark.parametrize("name", models.names())
def test_same_outputs(name):
    network = trained_like(name)
    size = 32 if name == "mobilenetv2" else 16  # its last map would be one pixel
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected, found = network.double()(images.double(), KINDS), models.folded(network)(images.double(), KINDS)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.embedding, expected.embedding)
    for kind in KINDS:
        for ours, theirs in zip(found.maps[kind], expected.maps[kind], strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "left"),
    [("wrn_16_2", 7), *((name, 0) for name in ("resnet20", "resnet8x4", "vgg8", "resnet50", "mobilenetv2", "shufflev1", "shufflev2"))],
)
def test_which_normalisations_are_left(name, left):
    """A wide residual network normalises sums, which no convolution can take over: one a block, and the last."""
    kept = [module for module in models.folded(models.build(name).eval()).modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(kept) == left


def test_the_network_itself_stays_as_it_is():
    network = trained_like("resnet8")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    copy = models.folded(network)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert isinstance(network.bn1, nn.BatchNorm2d) and isinstance(copy.bn1, nn.Identity)


def test_memory_order_and_frozenness_are_kept():
    network = models.build("resnet20").to(memory_format=torch.channels_last).eval().requires_grad_(False)
    copy = models.folded(network)
    assert not any(p.requires_grad for p in copy.parameters())
    assert copy.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_network_in_training_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        models.folded(models.build("resnet8"))
