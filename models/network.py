"""What a network declares of itself besides its forward pass, and the accessors through which methods and the trainer read it."""

from typing import ClassVar

from torch import nn

from models.layers import NetworkError


class Network(nn.Module):
    """Base of the networks. `forward(x, kinds)` returns models.outputs.Outputs."""

    small_rate: ClassVar[bool] = False  # trained at a protocol's small learning rate
    head: ClassVar[str]  # name of the linear classifier
    body: ClassVar[tuple[str, ...]]  # names of the modules of stem and stages, in the order of the forward pass

    def stage_norms(self) -> tuple[nn.Module, ...]:
        """The normalisation behind each stage that `preact_norms` gives. Raises NetworkError where there is none."""
        raise NotImplementedError


def classifier(network: Network) -> nn.Linear:
    """The linear classifier: logits (B, classes) = classifier(embedding (B, D))."""
    return network.get_submodule(network.head)


def trunk(network: Network) -> tuple[nn.Module, ...]:
    """Stem and stages, in the order of the forward pass: what a pre-training on stage maps trains (AB, FSP).

    What stands behind the last stage (a last convolution or normalisation, the classifier) is not among them.
    """
    return tuple(network.get_submodule(name) for name in network.body)


def preact_norms(network: Network) -> tuple[nn.BatchNorm2d, ...]:
    """The batch normalisation that scales each map of kind `preact` behind the stem's: one for maps["preact"][1:], of as many channels.

    Its output is the map itself, but in a residual network that adds a shortcut to it. OFD takes its margins from its weight and bias
    (Heo et al., A Comprehensive Overhaul of Feature Distillation, ICCV 2019, section 3.2).
    Raises NetworkError for a network that has none behind some stage, and for one that was folded.
    """
    norms = network.stage_norms()
    if not all(isinstance(norm, nn.BatchNorm2d) for norm in norms):
        raise NetworkError("a folded network has no normalisations left to read: ask the network that it was made from")
    return norms
