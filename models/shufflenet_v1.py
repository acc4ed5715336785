"""ShuffleNet for small images: Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network, CVPR 2018.

As in Contrastive Representation Distillation (Tian et al., ICLR 2020): 3 groups, a 1x1 stem without pooling, and a ReLU behind the
depthwise convolution.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import shuffled
from models.native import normalised
from models.network import Staged

STEM = 24
STAGES = ((4, 240), (8, 480), (4, 960))  # units, channels
GROUPS = 3


class Unit(nn.Module):
    """A unit: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride).

    With stride 2 the input, averaged over 3x3, becomes the last C_in channels, and the convolutions make the others; else it is added.
    """

    folds = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.groups = 1 if inputs == STEM else GROUPS  # of the first convolution: the stem's channels are too few
        made = outputs - inputs if stride == 2 else outputs
        middle = made // 4
        self.conv1 = nn.Conv2d(inputs, middle, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, made, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(made)

    def forward(self, x: Tensor, relu: bool = True) -> Tensor:
        """The unit's output; without its last ReLU where `relu` is false."""
        out = shuffled(normalised(self.bn1, self.conv1(x)), self.groups)
        out = normalised(self.bn2, self.conv2(out))
        out = self.conv3(out)
        if self.stride == 1:
            return normalised(self.bn3, out, x, relu)
        out = torch.cat([normalised(self.bn3, out, relu=False), F.avg_pool2d(x, 3, stride=2, padding=1)], 1)
        return F.relu(out, inplace=True) if relu else out


class ShuffleNetV1(Staged):
    """ShuffleNet of 3 groups: a stem and three stages that open with stride 2. Everything keeps torch's default initialisation."""

    last_norm = "bn3"
    small_rate = True
    head = "linear"
    body = ("conv1", "bn1", "layer1", "layer2", "layer3")

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        inputs = STEM
        for index, (units, width) in enumerate(STAGES, start=1):
            first = Unit(inputs, width, 2)
            setattr(self, f"layer{index}", nn.Sequential(first, *(Unit(width, width, 1) for _ in range(units - 1))))
            inputs = width
        self.linear = nn.Linear(inputs, num_classes)


NETWORKS = {
    "shufflev1": partial(ShuffleNetV1),
}
