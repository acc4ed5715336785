"""What a probe gives: images with the concepts of their pixels or of the whole image."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Concept:
    """One thing that is annotated."""

    name: str
    category: str  # shape, texture, colour, class, ...


@dataclass(frozen=True)
class Annotated:
    """A batch of B images, S pixels square. Labels: 0 = none, else 1 + the position in the probe's concepts."""

    images: Tensor  # fp32 (B, 3, S, S), normalised as the network wants it
    pixels: tuple[Tensor, ...]  # int64 (B, n, S, S), one for each category labelled by pixel; n labels a pixel at most
    whole: Tensor  # int64 (B, m), labels of whole images
    shown: Tensor  # uint8 (B, 3, S, S), for figures


class Probe(Protocol):
    """A set of annotated images in a fixed order."""

    name: str
    concepts: tuple[Concept, ...]
    count: int
    size: int

    def batches(self, batch: int, start: int = 0, stop: int | None = None) -> Iterator[Annotated]:
        """The images from `start` to before `stop`."""


def categories(concepts: tuple[Concept, ...]) -> tuple[tuple[str, ...], list[int]]:
    """The categories in their order of appearance, and that of each concept as a number."""
    names = tuple(dict.fromkeys(c.category for c in concepts))
    return names, [names.index(c.category) for c in concepts]
