"""What a probe gives: images with the concepts of their pixels or of the whole image."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from bench.errors import UsageError


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


def position(concepts: tuple[Concept, ...], name: str) -> int:
    """Where a concept of that name is. Raises UsageError."""
    for i, concept in enumerate(concepts):
        if name in (concept.name, f"{concept.category}:{concept.name}"):
            return i
    raise UsageError(f"this probe has no concept {name!r}; it has {', '.join(c.name for c in concepts[:20])}{', ...' * (len(concepts) > 20)}")
