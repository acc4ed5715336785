"""What a forward pass gives: logits, the pooled embedding and the stage maps in the kinds that were asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

STAGE_KINDS = ("stage", "preact", "relu")
"""Kinds of stage maps.

`stage`: RepDistiller's feature list (ResNet, VGG, ShuffleNet: after ReLU; WRN: the raw, signed residual sum; MobileNetV2: the signed
output of the linear bottleneck).
`preact`: before the ReLU (ResNet, ShuffleNetV1: residual sum; VGG: BN output; WRN: the sum after the next BN; ShuffleNetV2: a copy,
unshuffled, so that the logits have no gradient with respect to it).
`relu`: after it (ResNet, VGG, ShuffleNet: the same tensors as `stage`; WRN: after the next BN and ReLU). No ReLU follows MobileNetV2's
stages: its three kinds are the same tensors.
"""

KINDS = (*STAGE_KINDS, "last", "cam")
"""All kinds of maps.

`last`: one map, the one that is pooled: (B, D, H, W), its spatial mean is the embedding.
`cam`: one map, the classifier applied at each place of `last` (Zhou et al., CVPR 2016, eq. 2, with the bias): (B, classes, H, W), its
spatial mean equals the logits but for rounding.
"""


@dataclass(frozen=True)
class Outputs:
    """One forward pass of a batch of B images."""

    logits: Tensor  # (B, classes)
    embedding: Tensor  # (B, D), pooled, before the classifier
    maps: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """kind -> (stem, stage 1, ..., stage n), each (B, C, H, W); `last` and `cam` have one map each. Index 0 (the stem, VGG: block 0) is
    as in RepDistiller's list in every kind of stage maps. RepDistiller's feats[1:-1] is maps["stage"][1:], its feats[2] is
    maps["stage"][2], feats[-2] is [-1]."""


@dataclass(frozen=True)
class Shapes:
    """The shapes of a network's outputs for one image, read off a dry run (no data, no memory)."""

    name: str
    classes: int
    embedding: int  # D
    maps: Mapping[str, tuple[tuple[int, int, int], ...]]  # kind -> ((C, H, W) of stem, stage 1, ...); one of `last`, `cam`
    behind: tuple[int, int] = (0, 0)  # parameters, and multiply-accumulates of an image, of what stands behind the last stage (see `trunk`)
