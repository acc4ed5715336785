"""MobileNetV2 for small images: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018.

As in Contrastive Representation Distillation (Tian et al., ICLR 2020): half as wide, ReLU where the paper has ReLU6, and an expansion
(by 1) in the first block too.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from models.layers import add_maps, classified, conv3x3, first_maps, initialise_convolutions
from models.native import normalised
from models.network import Network
from models.outputs import Outputs

GROUPS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Of each group of blocks: expansion, channels at full width, blocks, stride of the first (the paper's Table 2; the stem has stride 2)."""
STAGES = (1, 2, 4, 6)  # groups whose outputs are stage maps
LAST = 1280  # channels that are pooled


class Block(nn.Module):
    """An inverted residual: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride), signed: no ReLU behind its last normalisation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, stride=stride, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        expand, norm1, _, depthwise, norm2, _, project, norm3 = self.conv
        out = normalised(norm1, expand(x))
        out = normalised(norm2, depthwise(out))
        return normalised(norm3, project(out), x if self.residual else None, relu=False)


class MobileNetV2(Network):
    """MobileNetV2 of a width factor: a stem of stride 2, seven groups of blocks, a 1x1 convolution to 1280 channels that are pooled.

    Classifier: weight N(0, 0.01), bias 0.
    """

    small_rate = True
    head = "classifier.0"
    body = ("conv1", "blocks")

    def __init__(self, width: float, num_classes: int = 100) -> None:
        super().__init__()
        inputs = int(32 * width)
        self.conv1 = nn.Sequential(conv3x3(3, inputs, stride=2), nn.BatchNorm2d(inputs))
        self.blocks = nn.ModuleList()
        for expansion, full, blocks, stride in GROUPS:
            outputs = int(full * width)
            first = Block(inputs, outputs, stride, expansion)
            self.blocks.append(nn.Sequential(first, *(Block(outputs, outputs, 1, expansion) for _ in range(blocks - 1))))
            inputs = outputs
        self.conv2 = nn.Sequential(nn.Conv2d(inputs, LAST, 1, bias=False), nn.BatchNorm2d(LAST))
        self.classifier = nn.Sequential(nn.Linear(LAST, num_classes))
        initialise_convolutions(self)
        nn.init.normal_(self.classifier[0].weight, std=0.01)
        nn.init.zeros_(self.classifier[0].bias)

    def forward(self, x: Tensor, kinds: Sequence[str] = ()) -> Outputs:
        """x (B, 3, H, W) normalised -> logits (B, classes), embedding (B, 1280), maps. Raises NetworkError for an unknown kind."""
        convolution, norm = self.conv1
        x = normalised(norm, convolution(x))
        maps = first_maps(kinds, x)
        for index, group in enumerate(self.blocks):
            x = group(x)
            if index in STAGES:
                add_maps(maps, stage=x, preact=x, relu=x)
        convolution, norm = self.conv2
        return classified(self.classifier[0], normalised(norm, convolution(x)), maps)

    def stage_norms(self) -> tuple[nn.Module, ...]:
        return tuple(self.blocks[index][-1].conv[-1] for index in STAGES)


NETWORKS = {
    "mobilenetv2": partial(MobileNetV2, 0.5),
}
