"""Wide residual networks: Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016."""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import NetworkError, add_maps, classified, conv3x3, first_maps, initialise_convolutions
from models.native import normalised
from models.network import Network
from models.outputs import Outputs


class Block(nn.Module):
    """A pre-activation block after its first BN and ReLU: (B, C_in, H, W) -> (B, C_out, H / stride, W / stride).

    `bn1` is applied by the caller, because its output is also a map of the stage before: each BN then runs once per forward pass.
    """

    folds = (("conv1", "bn2"),)

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        """x: the block's input; active: x after bn1 and ReLU. Returns the residual sum."""
        out = normalised(self.bn2, self.conv1(active))
        if self.dropout:
            out = F.dropout(out, self.dropout, self.training)
        return self.conv2(out).add_(x if self.convShortcut is None else self.convShortcut(active))


class Stage(nn.Module):
    """Blocks in a row; as for a block, the first BN and ReLU are the caller's."""

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        first = Block(inputs, outputs, stride, dropout)
        self.layer = nn.Sequential(first, *(Block(outputs, outputs, 1, dropout) for _ in range(blocks - 1)))

    @property
    def bn(self) -> nn.BatchNorm2d:
        """The batch normalisation that the stage's input goes through."""
        return self.layer[0].bn1

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        for index, block in enumerate(self.layer):
            if index > 0:
                active = normalised(block.bn1, x)
            x = block(x, active)
        return x


class WRN(Network):
    """WRN of depth 6n + 4 and a width factor: a bare convolution to 16 channels, three stages of n blocks with strides 1, 2, 2, BN, ReLU.

    `dropout`: probability between the convolutions of a block. The classifier's weight keeps torch's default, its bias is 0.
    Raises NetworkError for a dropout outside [0, 1).
    """

    head = "fc"
    body = ("conv1", "block1", "block2", "block3")

    def __init__(self, depth: int, width: int, num_classes: int = 100, *, dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise NetworkError(f"dropout {dropout}: at least 0 and below 1")
        blocks = (depth - 4) // 6
        self.conv1 = conv3x3(3, 16)
        self.block1 = Stage(blocks, 16, 16 * width, 1, dropout)
        self.block2 = Stage(blocks, 16 * width, 32 * width, 2, dropout)
        self.block3 = Stage(blocks, 32 * width, 64 * width, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        initialise_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, kinds: Sequence[str] = ()) -> Outputs:
        """x (B, 3, H, W) normalised -> logits (B, classes), embedding (B, C), maps. Raises NetworkError for an unknown kind."""
        x = self.conv1(x)
        maps = first_maps(kinds, x)
        active = normalised(self.block1.bn, x)
        for stage, next_bn in ((self.block1, self.block2.bn), (self.block2, self.block3.bn), (self.block3, self.bn1)):
            x = stage(x, active)
            preact = normalised(next_bn, x, relu=False) if "preact" in kinds else None
            active = normalised(next_bn, x) if preact is None else F.relu(preact)
            add_maps(maps, stage=x, preact=preact, relu=active)
        return classified(self.fc, active, maps)

    def stage_norms(self) -> tuple[nn.Module, ...]:
        return self.block2.bn, self.block3.bn, self.bn1


NETWORKS = {
    "wrn_16_1": partial(WRN, 16, 1),
    "wrn_16_2": partial(WRN, 16, 2),
    "wrn_16_4": partial(WRN, 16, 4),
    "wrn_40_1": partial(WRN, 40, 1),
    "wrn_40_2": partial(WRN, 40, 2),
    "wrn_40_4": partial(WRN, 40, 4),
}
