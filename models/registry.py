"""The networks by name: one declared entry each, a factory called as factory(num_classes=..., **options).

A new network is a file beside this one that declares `NETWORKS`, and its import here. Its class is a models.network.Network; what that
takes as keyword-only arguments are its options.
"""

import contextlib
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models import bottleneck, mobilenet, resnet, shufflenet_v1, shufflenet_v2, vgg, wrn
from models.layers import NetworkError
from models.network import Network, trunk
from models.outputs import KINDS, Shapes

FILES = (resnet, wrn, vgg, bottleneck, mobilenet, shufflenet_v1, shufflenet_v2)


def _merged() -> Mapping[str, partial[Network]]:
    merged: dict[str, partial[Network]] = {}
    for file in FILES:
        if taken := sorted(merged.keys() & file.NETWORKS):
            raise NetworkError(f"{file.__name__} declares {', '.join(taken)}, which another file has declared")
        merged |= file.NETWORKS
    return MappingProxyType(merged)


NETWORKS = _merged()


def names() -> list[str]:
    """All networks, in the order of their declaration."""
    return list(NETWORKS)


def options(name: str) -> tuple[str, ...]:
    """The options that `build` takes for a network, such as "dropout". Raises NetworkError for an unknown name."""
    parameters = inspect.signature(_factory(name)).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def small_rate(name: str) -> bool:
    """Whether a network is trained at a protocol's small learning rate. Raises NetworkError for an unknown name."""
    return _factory(name).func.small_rate


def head(name: str) -> str:
    """The name of a network's linear classifier. Raises NetworkError for an unknown name."""
    return _factory(name).func.head


def build(name: str, num_classes: int = 100, **chosen: object) -> Network:
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
    with without_values():
        network = build(name, num_classes, **chosen).eval()
        before = {module for part in trunk(network) for module in part.modules()}
        behind = [module for module in network.modules() if module not in before]
        macs = _tally(behind, _macs)
        outputs = network(torch.zeros(1, 3, image_size, image_size), KINDS)
    own = sum(p.numel() for module in behind for p in module.parameters(recurse=False))
    maps = {kind: tuple(tuple(m.shape[1:]) for m in of_kind) for kind, of_kind in outputs.maps.items()}
    return Shapes(name, outputs.logits.shape[1], outputs.embedding.shape[1], maps, (own, sum(macs)))


@functools.cache
def macs(name: str, num_classes: int = 100, image_size: int = 32) -> int:
    """Multiply-accumulates of one image's forward pass in convolutions and linear layers (biases, BN, pooling not counted).

    Raises NetworkError for an unknown name.
    """
    return counted(name, _macs, num_classes, image_size)


def _macs(layer: nn.Module, output: torch.Tensor) -> int:
    return output.numel() * math.prod(layer.weight.shape[1:])  # a value takes C_in / groups * k * k of them, or the features in


def counted(name: str, of: Callable[[nn.Module, torch.Tensor], int], num_classes: int = 100, image_size: int = 32) -> int:
    """The sum of `of(layer, output)` over the convolutions and linear layers of one image's forward pass. Raises NetworkError for an unknown name."""
    with without_values():
        network = build(name, num_classes).eval()
        found = _tally(network.modules(), of)
        network(torch.zeros(1, 3, image_size, image_size))
    return sum(found)


def _tally(modules: Iterable[nn.Module], of: Callable[[nn.Module, torch.Tensor], int]) -> list[int]:
    """A list that gets `of(layer, output)` for every convolution and linear layer among `modules` in each forward pass from now on."""
    found: list[int] = []
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda layer, inputs, output: found.append(of(layer, output)))
    return found


class _NoInitialisation(TorchFunctionMode):
    """Leaves new parameters as their memory happens to be, and every random generator as it was."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        named = kwargs or {}
        if func in _FILLING or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


_FILLING = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.zero_, torch.Tensor.fill_}


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Networks built within are for their shapes alone: their parameters have no values, and no generator moves.

    On the CPU: the first use of the meta device imports two seconds' worth of modules.
    """
    with torch.device("cpu"), torch.no_grad(), _NoInitialisation():
        yield


def _factory(name: str) -> partial[Network]:
    if name in NETWORKS:
        return NETWORKS[name]
    close = difflib.get_close_matches(name.lower().replace("-", "_"), NETWORKS, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(NETWORKS)}"
    raise NetworkError(f"unknown network {name!r}; {hint}")
