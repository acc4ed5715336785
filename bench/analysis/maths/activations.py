"""Statistics of activation maps over images, streamed."""

import torch
from torch import Tensor

from methods.skd.loss import relation, rows


class MeanCosines:
    """E over images of the cosines between channels. A channel that is 0 on an image has cosine 0 there, with itself too."""

    def __init__(self) -> None:
        self.total, self.count = None, 0

    def add(self, maps: Tensor) -> None:
        """maps (B, C, H, W)."""
        summed = relation(rows(maps)).sum(0, dtype=torch.float64).cpu()
        self.total, self.count = summed if self.total is None else self.total + summed, self.count + len(maps)

    def value(self) -> Tensor:
        """(C, C) fp64, on the CPU."""
        return self.total / self.count
