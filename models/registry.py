"""The networks by name: one declared entry each, a factory called as factory(num_classes=..., **options).

A new network is a file beside this one and an entry here. Its `forward(x, kinds)` returns models.outputs.Outputs; what its class
takes as keyword-only arguments are its options.
"""

import difflib
import functools
import inspect
import math
from collections.abc import Callable
from functools import partial
from types import MappingProxyType

import torch
from torch import nn

from models.layers import NetworkError
from models.outputs import KINDS, Shapes
from models.resnet import WIDE, ResNet
from models.vgg import VGG
from models.wrn import WRN

NETWORKS: MappingProxyType[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "resnet8": partial(ResNet, 8),
        "resnet14": partial(ResNet, 14),
        "resnet20": partial(ResNet, 20),
        "resnet32": partial(ResNet, 32),
        "resnet44": partial(ResNet, 44),
        "resnet56": partial(ResNet, 56),
        "resnet110": partial(ResNet, 110),
        "resnet8x4": partial(ResNet, 8, WIDE),
        "resnet32x4": partial(ResNet, 32, WIDE),
        "wrn_16_1": partial(WRN, 16, 1),
        "wrn_16_2": partial(WRN, 16, 2),
        "wrn_16_4": partial(WRN, 16, 4),
        "wrn_40_1": partial(WRN, 40, 1),
        "wrn_40_2": partial(WRN, 40, 2),
        "wrn_40_4": partial(WRN, 40, 4),
        "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
        "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
        "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
        "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
        "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
    }
)


def names() -> list[str]:
    """All networks, in the order of their declaration."""
    return list(NETWORKS)


def options(name: str) -> tuple[str, ...]:
    """The options that `build` takes for a network, such as "dropout". Raises NetworkError for an unknown name."""
    parameters = inspect.signature(_factory(name)).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def build(name: str, num_classes: int = 100, **chosen: object) -> nn.Module:
    """A new network in train mode, initialised from torch's ambient generator.

    Raises NetworkError for an unknown name, an option that the network lacks, or a value it cannot take.
    """
    known = options(name)
    for option in chosen:
        if option not in known:
            raise NetworkError(f"network {name} has no option {option!r}; it has {', '.join(known) or 'none'}")
    return _factory(name)(num_classes=num_classes, **chosen)


@functools.cache
def shapes(name: str, num_classes: int = 100, image_size: int = 32, **chosen: object) -> Shapes:
    """The shapes of a network's outputs for one image of `image_size` pixels a side, every kind of map. Raises NetworkError as `build`."""
    with torch.device("meta"), torch.no_grad():
        outputs = build(name, num_classes, **chosen).eval()(torch.empty(1, 3, image_size, image_size), KINDS)
    maps = {kind: tuple(tuple(m.shape[1:]) for m in of_kind) for kind, of_kind in outputs.maps.items()}
    return Shapes(name, outputs.logits.shape[1], outputs.embedding.shape[1], maps)


@functools.cache
def macs(name: str, num_classes: int = 100, image_size: int = 32) -> int:
    """Multiply-accumulates of one image's forward pass in convolutions and linear layers (biases, BN, pooling not counted).

    Raises NetworkError for an unknown name.
    """
    total = 0

    def count(layer: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        per_value = math.prod(layer.weight.shape[1:])  # C_in / groups * k * k, or the features in
        total += output.numel() * per_value

    with torch.device("meta"), torch.no_grad():
        network = build(name, num_classes).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(count)
        network(torch.empty(1, 3, image_size, image_size))
    return total


def _factory(name: str) -> Callable[..., nn.Module]:
    if name in NETWORKS:
        return NETWORKS[name]
    close = difflib.get_close_matches(name.lower().replace("-", "_"), NETWORKS, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(NETWORKS)}"
    raise NetworkError(f"unknown network {name!r}; {hint}")
