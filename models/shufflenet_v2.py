"""ShuffleNetV2 for small images: Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018.

As in Contrastive Representation Distillation (Tian et al., ICLR 2020): the paper's width 1, a 1x1 stem without pooling.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import NetworkError, add_maps, classified, first_maps, shuffled
from models.native import normalised
from models.network import Network
from models.outputs import Outputs

STEM = 24
STAGES = ((3, 116), (7, 232), (3, 464))  # units behind the one that halves the map, channels
LAST = 1024  # channels that are pooled


def depthwise(channels: int, stride: int) -> nn.Conv2d:
    """A depthwise 3x3 convolution with padding 1."""
    return nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)


def pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    """A 1x1 convolution."""
    return nn.Conv2d(inputs, outputs, 1, bias=False)


class Down(nn.Module):
    """The unit that opens a stage, both halves convolved: (B, C_in, H, W) -> two of (B, C_out / 2, H / 2, W / 2)."""

    folds = tuple((f"conv{i}", f"bn{i}") for i in range(1, 6))

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = depthwise(inputs, stride=2)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = pointwise(inputs, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = pointwise(inputs, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = depthwise(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = pointwise(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left = normalised(self.bn1, self.conv1(x), relu=False)
        left = normalised(self.bn2, self.conv2(left))
        right = normalised(self.bn3, self.conv3(x))
        right = normalised(self.bn4, self.conv4(right), relu=False)
        return left, normalised(self.bn5, self.conv5(right))


class Unit(nn.Module):
    """A unit that lets half of the channels pass: (B, C, H, W) -> two of (B, C / 2, H, W), the passing ones first."""

    folds = tuple((f"conv{i}", f"bn{i}") for i in range(1, 4))

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = pointwise(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = depthwise(half, stride=1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = pointwise(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor, relu: bool = True) -> tuple[Tensor, Tensor]:
        """The two halves; the second without its last ReLU where `relu` is false."""
        passing, out = x.chunk(2, 1)
        out = normalised(self.bn1, self.conv1(out))
        out = normalised(self.bn2, self.conv2(out), relu=False)
        return passing, normalised(self.bn3, self.conv3(out), relu=relu)


class ShuffleNetV2(Network):
    """ShuffleNetV2 of width 1: a stem, three stages that open with stride 2, a 1x1 convolution to 1024 channels that are pooled.

    Everything keeps torch's default initialisation.
    """

    folds = (("conv1", "bn1"), ("conv2", "bn2"))
    small_rate = True
    head = "linear"
    body = ("conv1", "bn1", "layer1", "layer2", "layer3")

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        self.conv1 = pointwise(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        inputs = STEM
        for index, (units, width) in enumerate(STAGES, start=1):
            setattr(self, f"layer{index}", nn.Sequential(Down(inputs, width), *(Unit(width) for _ in range(units))))
            inputs = width
        self.conv2 = pointwise(inputs, LAST)
        self.bn2 = nn.BatchNorm2d(LAST)
        self.linear = nn.Linear(LAST, num_classes)

    def forward(self, x: Tensor, kinds: Sequence[str] = ()) -> Outputs:
        """x (B, 3, H, W) normalised -> logits (B, classes), embedding (B, 1024), maps. Raises NetworkError for an unknown kind."""
        x = normalised(self.bn1, self.conv1(x))
        maps = first_maps(kinds, x)
        for stage in (self.layer1, self.layer2, self.layer3):
            *units, last = stage
            for unit in units:
                x = _joined(unit(x))
            preact = None
            if "preact" in maps:
                passing, out = last(x, relu=False)
                preact = torch.cat([passing, out], 1)
                x = _joined((passing, F.relu(out)))
            else:
                x = _joined(last(x))
            add_maps(maps, stage=x, preact=preact, relu=x)
        return classified(self.linear, normalised(self.bn2, self.conv2(x)), maps)

    def stage_norms(self) -> tuple[nn.Module, ...]:
        raise NetworkError("shufflev2 has no normalisation behind its stages' maps: half of the channels pass the last unit unchanged")


def _joined(halves: tuple[Tensor, Tensor]) -> Tensor:
    return shuffled(torch.cat(halves, 1), 2)


NETWORKS = {
    "shufflev2": partial(ShuffleNetV2),
}
