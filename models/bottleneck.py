"""Residual networks of bottleneck blocks for small images: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, Table 1.

The stem of Contrastive Representation Distillation's ResNet50 (Tian et al., ICLR 2020) is a 3x3 convolution without pooling.
"""

from functools import partial

from torch import Tensor, nn

from models.layers import conv3x3, initialise_convolutions
from models.native import normalised
from models.network import Staged

WIDTHS = (64, 128, 256, 512)
EXPANSION = 4


class Block(nn.Module):
    """A bottleneck of `width` channels, the stride on its 3x3: (B, C_in, H, W) -> (B, 4 width, H / stride, W / stride)."""

    folds = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, relu: bool = True) -> Tensor:
        """The block's output; without its last ReLU where `relu` is false."""
        shortcut = x
        if len(self.shortcut):
            convolution, norm = self.shortcut
            shortcut = normalised(norm, convolution(x), relu=False)
        out = normalised(self.bn1, self.conv1(x))
        out = normalised(self.bn2, self.conv2(out))
        return normalised(self.bn3, self.conv3(out), shortcut, relu)


class BottleneckResNet(Staged):
    """A stem of 64 channels and four stages of bottlenecks with strides 1, 2, 2, 2.

    `blocks`: bottlenecks in each stage. The classifier keeps torch's default initialisation.
    """

    last_norm = "bn3"
    head = "linear"
    body = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int = 100) -> None:
        super().__init__()
        inputs = WIDTHS[0]
        self.conv1 = conv3x3(3, inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        for index, (count, width) in enumerate(zip(blocks, WIDTHS, strict=True), start=1):
            first = Block(inputs, width, 1 if index == 1 else 2)
            inputs = EXPANSION * width
            setattr(self, f"layer{index}", nn.Sequential(first, *(Block(inputs, width, 1) for _ in range(count - 1))))
        self.linear = nn.Linear(inputs, num_classes)
        initialise_convolutions(self)


NETWORKS = {
    "resnet50": partial(BottleneckResNet, (3, 4, 6, 3)),
}
