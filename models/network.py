"""What a network declares of itself besides its forward pass, and the accessors through which methods and the trainer read it."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from models.layers import NetworkError, classified, first_maps, through_stage
from models.native import normalised
from models.outputs import Outputs


class Network(nn.Module):
    """Base of the networks. `forward(x, kinds)` returns models.outputs.Outputs."""

    small_rate: ClassVar[bool] = False  # trained at a protocol's small learning rate
    head: ClassVar[str]  # name of the linear classifier
    body: ClassVar[tuple[str, ...]]  # names of the modules of stem and stages, in the order of the forward pass

    def stage_norms(self) -> tuple[nn.Module, ...]:
        """The normalisation behind each stage that `preact_norms` gives. Raises NetworkError where there is none."""
        raise NotImplementedError


class Staged(Network):
    """A network of a stem (`conv1`, `bn1`), stages of blocks that `through_stage` can run, and a classifier on the pooled map."""

    folds = (("conv1", "bn1"),)
    last_norm: ClassVar[str]  # name of the normalisation that a block ends with

    def forward(self, x: Tensor, kinds: Sequence[str] = ()) -> Outputs:
        """x (B, 3, H, W) normalised -> logits (B, classes), embedding (B, D), maps. Raises NetworkError for an unknown kind."""
        x = normalised(self.bn1, self.conv1(x))
        maps = first_maps(kinds, x)
        for name in self.body[2:]:
            x = through_stage(self.get_submodule(name), x, maps)
        return classified(self.get_submodule(self.head), x, maps)

    def stage_norms(self) -> tuple[nn.Module, ...]:
        return tuple(self.get_submodule(name)[-1].get_submodule(self.last_norm) for name in self.body[2:])


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
