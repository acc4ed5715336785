"""ReviewKD: the student's deeper maps review its shallower ones, fused level by level before they meet the teacher's.

Chen et al.: Distilling Knowledge via Knowledge Review, CVPR 2021: fusion by attention (ABF) and the hierarchical context loss (HCL), over
the stages and the pooled embedding; the teacher's maps before their ReLU, the student's as it hands them on. Weights are those of the
authors' script; vgg13/vgg8's was suggested by users (issue 23 of their repository); for other pairs none is known, and 1 is their default.
Their own CIFAR runs had batches of 128, rate 0.1 and Nesterov's momentum; here all follow the protocol. Epochs count from 1, as in
mdistiller, where the authors' count from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods._maps import batch_normalised, pooled_to
from methods.base import Batch, Needs, Prepared, Setting, ranged
from methods.dkd import Warming
from methods.registry import register
from models.outputs import Outputs, Shapes

SIZES = (4, 2, 1)  # of the pooled maps
WIDEST = 512  # most channels in between
WEIGHTS = {
    ("wrn_40_2", "wrn_16_2"): 5.0,
    ("wrn_40_2", "wrn_40_1"): 5.0,
    ("wrn_40_2", "shufflev1"): 5.0,
    ("resnet32x4", "resnet8x4"): 5.0,
    ("resnet32x4", "shufflev1"): 5.0,
    ("resnet32x4", "shufflev2"): 8.0,
    ("resnet56", "resnet20"): 0.6,
    ("resnet110", "resnet32"): 1.0,
    ("vgg13", "vgg8"): 5.0,
}


def context_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Sum over levels of (D_0 + 1/2 D_1 + 1/4 D_2 + ...) / (1 + 1/2 + 1/4 + ...) -> scalar (Chen et al. 2021, HCL).

    D_0 is the mean of (f_s - f_t)^2, D_1, ... the same of the maps average-pooled to 4x4, 2x2, 1x1, as far as these are smaller than the
    map. Maps (B, C, H, H), each student's of its teacher's shape.
    """
    return sum(_level_loss(s - t) for s, t in zip(student_maps, teacher_maps, strict=True))


def _level_loss(difference: Tensor) -> Tensor:
    total, weights, pooled = difference.square().mean(), 1.0, difference
    for place, size in enumerate((size for size in SIZES if size < difference.shape[2]), start=1):
        even = difference.shape[2] % pooled.shape[2] == 0  # windows of one size: their means are means of the means below
        pooled = pooled_to(pooled if even else difference, size, size)
        total = total + pooled.square().mean() / 2**place
        weights += 1 / 2**place
    return total / weights


class Fusion(nn.Module):
    """One level's ABF: the student's map (B, C, H, W) and the deeper level's residual -> the map that meets the teacher's, and the residual."""

    def __init__(self, narrow: int, middle: int, wide: int, size: tuple[int, int], fuses: bool) -> None:
        super().__init__()
        self.size = size  # of the teacher's map
        self.enter = nn.Sequential(nn.Conv2d(narrow, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.leave = nn.Sequential(nn.Conv2d(middle, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide))
        self.attention = nn.Conv2d(2 * middle, 2, 1) if fuses else None
        for convolution in (self.enter[0], self.leave[0]):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        convolution, norm = self.enter
        x = batch_normalised(norm, convolution(x), relu=False)
        if self.attention is not None:
            x = self.fused(x, deeper)
        x = _resized(x, self.size)
        convolution, norm = self.leave
        return batch_normalised(norm, convolution(x), relu=False), x

    def fused(self, x: Tensor, deeper: Tensor) -> Tensor:
        """x g_0 + y g_1, y the deeper residual enlarged to x, gates g = sigmoid(attention(x beside y)).

        A 1x1 convolution of x beside y is one of x plus one of y, and that of y can be enlarged after it, at 2 channels.
        """
        x_weight, y_weight = self.attention.weight.chunk(2, dim=1)
        gates = F.conv2d(x, x_weight, self.attention.bias) + _resized(F.conv2d(deeper, y_weight), x.shape[2:])
        gates = gates.sigmoid()
        return x * gates[:, :1] + _resized(deeper, x.shape[2:]) * gates[:, 1:]


class _Repeated(torch.autograd.Function):
    """Each value of (B, C, h, w) repeated over a window of (H / h, W / w). Interpolation's own backward pass is not deterministic on CUDA and not
    bit-stable when recorded: a window's gradients are summed by pooling, in one memory format."""

    @staticmethod
    def forward(context, maps: Tensor, height: int, width: int) -> Tensor:
        batch, channels, low, narrow = maps.shape
        context.window = height // low, width // narrow
        repeated = maps[:, :, :, None, :, None].expand(batch, channels, low, context.window[0], narrow, context.window[1])
        return repeated.reshape(batch, channels, height, width)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:
        return F.avg_pool2d(gradient.contiguous(), context.window, divisor_override=1), None, None


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """The nearest neighbour's value: (B, C, H, W) -> (B, C, *size)."""
    (height, width), (tall, wide) = maps.shape[2:], size
    if (height, width) == (tall, wide):
        return maps
    if tall % height or wide % width:
        return F.interpolate(maps, (tall, wide), mode="nearest")
    return _Repeated.apply(maps, tall, wide)


def levels(shapes: Shapes, kind: str) -> list[tuple[int, int, int]]:
    """(C, H, W) of what is compared: the stages from the first, and the embedding as a map of 1x1."""
    return [*shapes.maps[kind][1:], (shapes.embedding, 1, 1)]


@dataclass(frozen=True)
class Hyper:
    """The authors' default; weights by pair as said above."""

    weight: float = ranged(1.0, at_least=0)
    warmup: int = ranged(20, at_least=1)  # epochs in which the weight grows to its value


@register("reviewkd")
class ReviewKD(Warming):
    title = "ReviewKD"
    paper = "Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021"
    Hyper = Hyper
    by_pair = {pair: {"weight": weight} for pair, weight in WEIGHTS.items()}
    teacher_outputs = Needs(embedding=True, maps=("preact",))
    student_outputs = Needs(logits=True, embedding=True, maps=("stage",))
    warm_is_kept = False
    pairs_stages = "stage"

    def __init__(self, hyper: Hyper, setting: Setting, prepared: Prepared | None = None) -> None:
        """Raises MethodError where the pair is not supported."""
        super().__init__(hyper, setting, prepared)
        pairs = list(zip(levels(setting.student, "stage"), levels(setting.teacher, "preact"), strict=True))
        middle = min(WIDEST, setting.student.embedding)
        self.fusions = nn.ModuleList(Fusion(s[0], middle, t[0], t[1:], fuses=i < len(pairs) - 1) for i, (s, t) in enumerate(pairs))

    def reviewed(self, student: Outputs) -> list[Tensor]:
        """The student's maps after the review, each of its teacher's shape, shallow to deep."""
        maps, results, residual = [*student.maps["stage"][1:], student.embedding[:, :, None, None]], [], None
        for fusion, x in zip(reversed(self.fusions), reversed(maps), strict=True):
            result, residual = fusion(x, residual)
            results.insert(0, result)
        return results

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        targets = [*teacher.maps["preact"][1:], teacher.embedding[:, :, None, None]]
        return {
            "ce": F.cross_entropy(student.logits, batch.labels),
            "review": self.hyper.weight * self.warm * context_loss(self.reviewed(student), targets),
        }
