"""Batch normalisation folded into the convolution before it, for a network that is only read: the same function, fewer passes over maps."""

import copy
from collections.abc import Iterator

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def folded(network: nn.Module) -> nn.Module:
    """A copy of a network in eval mode in which convolutions have taken over the normalisations that read nothing but them.

    Which those are: neighbours in a Sequential, and the pairs a module names in `folds`. Outputs are the network's own but for rounding.
    Raises ValueError for a network in training mode, whose normalisations are not fixed.
    """
    if network.training:
        raise ValueError("a network in training mode cannot be folded: call eval() first")
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for convolution, norm in _pairs(module):
            fused = fuse_conv_bn_eval(module.get_submodule(convolution), module.get_submodule(norm))
            module.set_submodule(convolution, fused)
            module.set_submodule(norm, nn.Identity())
    return network


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    yield from getattr(module, "folds", ())
    if isinstance(module, nn.Sequential):
        names = [name for name, _ in module.named_children()]
        for first, second in zip(names, names[1:], strict=False):
            if isinstance(module.get_submodule(first), nn.Conv2d) and isinstance(module.get_submodule(second), nn.BatchNorm2d):
                yield first, second
