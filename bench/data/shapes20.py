"""shapes20: the images of shapes100 under its twenty coarse classes (family and shape, "warm ring"); the coarse classes are the ten shapes."""

from pathlib import Path
from typing import Any

import torch

from bench.data import shapes100
from bench.plan.protocols import Protocol

CLASSES = tuple(f"{family} {shape}" for shape in shapes100.SHAPES for family in shapes100.FAMILIES)
COARSE = tuple(fine // len(shapes100.FAMILIES) for fine in range(len(CLASSES)))
MEAN, STD = shapes100.MEAN, shapes100.STD


def read(protocol: Protocol, data_root: Path | None = None, download: bool = False) -> dict[str, Any]:
    """Fields of a Dataset, as many images as the protocol says. Raises UsageError for sizes it cannot draw."""
    fields = shapes100.read(protocol, data_root, download)
    coarse = torch.tensor(shapes100.COARSE)
    labels = {f"{split}_labels": coarse[fields[f"{split}_labels"]] for split in shapes100.SPLITS}
    return {**fields, **labels, "classes": CLASSES, "coarse": COARSE}
