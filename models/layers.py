"""What the networks share: the 3x3 convolution, pooling, the initialisation of convolutions, and the collection of maps."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.outputs import KINDS, STAGE_KINDS, Outputs

Maps = dict[str, tuple[Tensor, ...]]


class NetworkError(ValueError):
    """A network cannot be built or called as asked; the message is one line that says what is wrong and what to do."""


def conv3x3(inputs: int, outputs: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A 3x3 convolution with padding 1."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


def initialise_convolutions(network: nn.Module) -> None:
    """Kaiming normal by fan-out with the gain of ReLU, std = sqrt(2 / (k * k * C_out)); biases 0 (He et al., ICCV 2015, eq. 14).

    Batch normalisation keeps torch's weight 1 and bias 0; the classifier is left to the network.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def pooled(x: Tensor) -> Tensor:
    """Adaptive average pooling to 1x1, for any image size: (B, C, H, W) -> (B, C).

    Channels last in the sum as in memory: its gradient then has the order of the maps, and the layer below need not mix two orders.
    """
    return x.permute(0, 2, 3, 1).mean((1, 2))


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channel shuffle (Zhang et al., ShuffleNet, CVPR 2018, section 3.1): (B, C, H, W) in `groups` runs of channels, dealt out in turn.

    Channel i * groups + g of the result is channel g * C / groups + i of x. Channels last in the copy as in memory.
    """
    dealt = x.permute(0, 2, 3, 1).unflatten(3, (groups, -1)).transpose(3, 4).flatten(3)
    return dealt.permute(0, 3, 1, 2)


def first_maps(kinds: Sequence[str], stem: Tensor) -> Maps:
    """The maps asked for, those of the stages each beginning with the stem's (B, C, H, W). Raises NetworkError for an unknown kind."""
    for kind in kinds:
        if kind not in KINDS:
            raise NetworkError(f"unknown kind of maps {kind!r}; known: {', '.join(KINDS)}")
    return {kind: (stem,) if kind in STAGE_KINDS else () for kind in kinds}


def add_maps(maps: Maps, **stage: Tensor | None) -> None:
    """Append one stage's map to each kind asked for; `stage` holds every kind of stage maps, None where it was not asked for."""
    for kind in maps:
        if kind in stage:
            maps[kind] += (stage[kind],)


def through_stage(stage: nn.Sequential, x: Tensor, maps: Maps) -> Tensor:
    """The output of a stage whose blocks end in a ReLU that `block(x, relu=False)` leaves out; adds its maps."""
    *blocks, last = stage
    for block in blocks:
        x = block(x)
    preact = last(x, relu=False) if "preact" in maps else None
    x = last(x) if preact is None else F.relu(preact)
    add_maps(maps, stage=x, preact=preact, relu=x)
    return x


def classified(classifier: nn.Linear, last: Tensor, maps: Maps) -> Outputs:
    """The outputs of a network whose last map (B, D, H, W) is pooled and classified; adds the maps of kinds `last` and `cam`."""
    if "last" in maps:
        maps["last"] = (last,)
    if "cam" in maps:
        maps["cam"] = (F.conv2d(last, classifier.weight[:, :, None, None], classifier.bias),)
    embedding = pooled(last)
    return Outputs(classifier(embedding), embedding, maps)
