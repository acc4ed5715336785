"""VGG with batch normalisation: Simonyan and Zisserman, Very Deep Convolutional Networks, ICLR 2015, cut down for small images.

One linear classifier on 512 pooled channels, as in Contrastive Representation Distillation (Tian et al., ICLR 2020).
"""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import add_maps, classified, conv3x3, first_maps, initialise_convolutions
from models.native import normalised
from models.network import Network
from models.outputs import Outputs

WIDTHS = (64, 128, 256, 512, 512)


class VGG(Network):
    """Five blocks of 3x3 convolutions with bias, each with BN and ReLU, and a linear classifier.

    `units`: convolutions in each block. Classifier: weight N(0, 0.01), bias 0.
    """

    head = "classifier"
    body = ("block0", "block1", "block2", "block3", "block4")

    def __init__(self, units: tuple[int, int, int, int, int], num_classes: int = 100) -> None:
        super().__init__()
        inputs = (3, *WIDTHS)
        for index, (count, width) in enumerate(zip(units, WIDTHS, strict=True)):
            setattr(self, f"block{index}", _block(count, inputs[index], width))
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        initialise_convolutions(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor, kinds: Sequence[str] = ()) -> Outputs:
        """x (B, 3, H, W) normalised -> logits (B, classes), embedding (B, 512), maps. Raises NetworkError for an unknown kind."""
        pools = 4 if x.shape[2] == 64 else 3  # no pooling between the last two blocks, but for 64x64 images
        x = _through(self.block0, x)
        maps = first_maps(kinds, x)
        for index, block in enumerate((self.block1, self.block2, self.block3, self.block4)):
            if index < pools:
                x = F.max_pool2d(x, 2)
            preact = _through(block, x, relu=False) if "preact" in kinds else None
            x = _through(block, x) if preact is None else F.relu(preact)
            add_maps(maps, stage=x, preact=preact, relu=x)
        return classified(self.classifier, x, maps)

    def stage_norms(self) -> tuple[nn.Module, ...]:
        return tuple(block[-1] for block in (self.block1, self.block2, self.block3, self.block4))


def _block(units: int, inputs: int, width: int) -> nn.Sequential:
    """Convolution, BN, ReLU, and so on up to the last BN: the last ReLU is the network's, so that a map before it exists."""
    layers: list[nn.Module] = []
    for _ in range(units):
        layers += [conv3x3(inputs, width, bias=True), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        inputs = width
    return nn.Sequential(*layers[:-1])


def _through(block: nn.Sequential, x: Tensor, relu: bool = True) -> Tensor:
    """The block's output; without its last ReLU where `relu` is false."""
    layers = [layer for layer in block if not isinstance(layer, nn.ReLU)]
    for convolution, norm in zip(layers[::2], layers[1::2], strict=True):
        x = normalised(norm, convolution(x), relu=relu or norm is not layers[-1])
    return x


NETWORKS = {
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
}
