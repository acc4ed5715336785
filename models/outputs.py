"""What a forward pass gives: logits, the pooled embedding and the stage maps in the kinds that were asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

KINDS = ("stage", "preact", "relu")
"""Kinds of stage maps.

`stage`: RepDistiller's feature list (ResNet, VGG: after ReLU; WRN: the raw, signed residual sum).
`preact`: before the ReLU (ResNet: residual sum; VGG: BN output; WRN: the sum after the next BN).
`relu`: after it (ResNet, VGG: the same tensors as `stage`; WRN: after the next BN and ReLU).
"""


@dataclass(frozen=True)
class Outputs:
    """One forward pass of a batch of B images."""

    logits: Tensor  # (B, classes)
    embedding: Tensor  # (B, D), pooled, before the classifier
    maps: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """kind -> (stem, stage 1, ..., stage n), each (B, C, H, W). Index 0 (the stem, VGG: block 0) is as in RepDistiller's list in
    every kind. RepDistiller's feats[1:-1] is maps["stage"][1:], its feats[2] is maps["stage"][2], feats[-2] is [-1]."""


@dataclass(frozen=True)
class Shapes:
    """The shapes of a network's outputs for one image, read off a dry run (no data, no memory)."""

    name: str
    classes: int
    embedding: int  # D
    maps: Mapping[str, tuple[tuple[int, int, int], ...]]  # kind -> ((C, H, W) of stem, stage 1, ...)
