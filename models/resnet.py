"""Residual networks for small images: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2.

Shortcuts where the shape changes are a 1x1 convolution with batch normalisation (the paper's option B), as in the networks of
Contrastive Representation Distillation (Tian et al., ICLR 2020).
"""

from functools import partial

from torch import Tensor, nn

from models.layers import conv3x3, initialise_convolutions
from models.native import normalised
from models.network import Staged

THIN = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)  # of the x4 networks, whose stem is twice as wide, not four times


class Block(nn.Module):
    """A basic block: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""

    folds = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, relu: bool = True) -> Tensor:
        """The block's output; without its last ReLU where `relu` is false."""
        shortcut = x
        if self.downsample is not None:
            convolution, norm = self.downsample
            shortcut = normalised(norm, convolution(x), relu=False)
        out = normalised(self.bn1, self.conv1(x))
        return normalised(self.bn2, self.conv2(out), shortcut, relu)


class ResNet(Staged):
    """ResNet of depth 6n + 2: a stem and three stages of n basic blocks with strides 1, 2, 2.

    `widths`: channels of the stem and of the stages. The classifier keeps torch's default initialisation.
    """

    last_norm = "bn2"
    head = "fc"
    body = ("conv1", "bn1", "layer1", "layer2", "layer3")

    def __init__(self, depth: int, widths: tuple[int, int, int, int] = THIN, num_classes: int = 100) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(3, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(blocks, widths[0], widths[1], stride=1)
        self.layer2 = _stage(blocks, widths[1], widths[2], stride=2)
        self.layer3 = _stage(blocks, widths[2], widths[3], stride=2)
        self.fc = nn.Linear(widths[3], num_classes)
        initialise_convolutions(self)


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = Block(inputs, outputs, stride)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


NETWORKS = {
    "resnet8": partial(ResNet, 8),
    "resnet14": partial(ResNet, 14),
    "resnet20": partial(ResNet, 20),
    "resnet32": partial(ResNet, 32),
    "resnet44": partial(ResNet, 44),
    "resnet56": partial(ResNet, 56),
    "resnet110": partial(ResNet, 110),
    "resnet8x4": partial(ResNet, 8, WIDE),
    "resnet32x4": partial(ResNet, 32, WIDE),
}
