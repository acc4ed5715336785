"""Network dissection (Bau et al., Network Dissection, CVPR 2017): thresholds of channels, their intersection over union with concepts.

A channel is active where its map lies above T_k, the value that a fraction of 0.005 of all its activations exceeds. Set IoU of channel k and
concept c: pixels both active and labelled c over pixels that are either, pooled over images. Individual IoU: the mean over the images that
contain c of each image's own ratio.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class TopQuantile:
    """The value that a fraction q of a channel's values exceeds, exact, for values that come in batches.

    Kept for each channel: its largest k = floor(q * total) + 1 values and as many candidates again, so memory is bounded by
    2 (k + batch) numbers a channel whatever the number of images.
    """

    def __init__(self, channels: int, total: int, quantile: float) -> None:
        """`total`: how many values each channel will have."""
        self.keep = min(total, int(quantile * total) + 1)
        self._kept = [torch.empty(0) for _ in range(channels)]
        self._bound = torch.full((channels,), -torch.inf)

    def add(self, values: Tensor) -> None:
        """values (C, n) fp32."""
        values = values.cpu()
        above = values > self._bound[:, None]
        for channel in above.any(1).nonzero().flatten().tolist():
            merged = torch.cat([self._kept[channel], values[channel][above[channel]]])
            if len(merged) >= 2 * self.keep or len(self._kept[channel]) < self.keep <= len(merged):
                merged = merged.topk(self.keep).values
                self._bound[channel] = merged[-1]
            self._kept[channel] = merged

    def value(self) -> Tensor:
        """T (C,): at most a fraction q of a channel's values is strictly above it."""
        return torch.stack([kept.topk(self.keep).values[-1] for kept in self._kept])


def active(maps: Tensor, thresholds: Tensor, size: int, order: str = "threshold") -> Tensor:
    """Where channels are active: maps (B, C, H, W), T (C,) -> bool (B, C, size, size). Strictly above T: a channel that is 0 nearly everywhere
    has T = 0 and is active where it is not 0. Bilinear upsampling, corners not aligned. `order`: "threshold", then upsample the 0/1 map and take
    what is above 0.5 (Net2Vec); "upsample", then threshold (NetDissect)."""
    limit = thresholds[:, None, None]
    if maps.shape[-1] == size:
        return maps > limit
    if order == "upsample":
        return F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False) > limit
    return F.interpolate((maps > limit).float(), size=(size, size), mode="bilinear", align_corners=False) > 0.5


@dataclass
class Counts:
    """Sums over images that give every IoU of C channels with K concepts; all fp64, on the CPU."""

    channels: int
    categories: Sequence[int]  # the category of each concept, as a number from 0
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        c, k, groups = self.channels, len(self.categories), max(self.categories, default=-1) + 1
        shapes = {"both": (c, k), "label": (k,), "with_concept": (c, k), "with_category": (c, groups), "ratios": (c, k), "images": (k,)}
        self.tensors = self.tensors or {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    @classmethod
    def of(cls, sums: Mapping[str, np.ndarray], layer: str, channels: int, categories: Sequence[int]) -> "Counts":
        """From arrays named "<layer>.<sum>"."""
        found = {name: torch.from_numpy(sums[f"{layer}.{name}"]) for name in cls(channels, categories).tensors}
        return cls(channels, categories, found)

    def add(self, on: Tensor, pixels: Sequence[Tensor], whole: Tensor) -> None:
        """A batch: on bool (B, C, S, S); pixels int64 (B, n, S, S) for each category labelled by pixel and whole int64 (B, m) for whole images,
        0 = none, else 1 + the concept."""
        flat = on.flatten(2).float()
        area = flat.sum(2)
        annotated = torch.zeros(len(on), self.tensors["with_category"].shape[1], dtype=torch.bool, device=on.device)
        groups = torch.tensor(self.categories, device=on.device)
        for planes in pixels:
            labels = planes.flatten(2)
            found = labels.unique()
            found = found[found > 0]
            if not len(found):
                continue
            is_label = (labels[..., None] == found).any(1).float()  # (B, P, U)
            self._concepts(found - 1, area, torch.bmm(flat, is_label), is_label.sum(1))
            annotated[:, groups[found[0] - 1]] = (labels > 0).flatten(1).any(1)
        found = whole.unique()
        found = found[found > 0]
        if len(found):
            has = (whole[..., None] == found).any(1).float()  # (B, U)
            self._concepts(found - 1, area, area[:, :, None] * has[:, None], has * flat.shape[2])
            for group in groups[found - 1].unique():
                annotated[:, group] |= has[:, groups[found - 1] == group].any(1)
        self.tensors["with_category"] += (area.T @ annotated.float()).double().cpu()

    def _concepts(self, which: Tensor, area: Tensor, both: Tensor, label: Tensor) -> None:
        """which (U,) concepts, area (B, C), both (B, C, U) pixels active and labelled, label (B, U) pixels labelled."""
        has = (label > 0).float()
        ratios = both / (area[:, :, None] + label[:, None] - both).clamp_min(1) * has[:, None]
        which = which.cpu()
        t = self.tensors
        t["both"][:, which] += both.sum(0, dtype=torch.float64).cpu()
        t["ratios"][:, which] += ratios.sum(0, dtype=torch.float64).cpu()
        t["label"][which] += label.sum(0, dtype=torch.float64).cpu()
        t["images"][which] += has.sum(0, dtype=torch.float64).cpu()
        t["with_concept"][:, which] += (area.T @ has).double().cpu()

    def iou_set(self, over: str = "category") -> Tensor:
        """(C, K), 0 where nothing is active or labelled. `over`: a channel's activations enter the union on images annotated in the concept's
        "category" (NetDissect), or on those that contain the "concept"."""
        t = self.tensors
        on = t["with_concept"] if over == "concept" else t["with_category"][:, list(self.categories)]
        return t["both"] / (on + t["label"] - t["both"]).clamp_min(1)

    def iou_individual(self) -> Tensor:
        """(C, K): the mean over the images that contain the concept, 0 where none does."""
        return self.tensors["ratios"] / self.tensors["images"].clamp_min(1)


def detectors(iou: Tensor, categories: Sequence[int], threshold: float = 0.04) -> tuple[Tensor, Tensor, dict[int, int]]:
    """iou (C, K) -> the best concept of each channel int64 (C,), whether its IoU is above `threshold` bool (C,), and for each category how many
    different concepts have a detector."""
    value, best = iou.max(1)
    is_detector = value > threshold
    unique = set(best[is_detector].tolist())
    return best, is_detector, {group: sum(categories[c] == group for c in unique) for group in range(max(categories, default=-1) + 1)}
