"""The suite's own data sets as probes: embedded images with exact concepts of every pixel; CIFAR-100 with colours of pixels and classes of images."""

from collections.abc import Iterator
from pathlib import Path

import torch

from bench.analysis.probes.base import Annotated, Concept, Probe
from bench.analysis.probes.broden import Broden
from bench.analysis.probes.colours import PROTOTYPES, name_pixels
from bench.data.augment import Augmenter

PLANES = ("shape", "texture", "colour")


class ExactPixels:
    """Test images of embedded data; each pixel of the object carries a shape, a texture and a colour, the background none."""

    name = "exact pixels"

    def __init__(self, dataset, images: Augmenter, count: int) -> None:
        self.concepts = tuple(Concept(name, PLANES[i]) for i, names in enumerate(dataset.concept_names) for name in names)
        self.count, self.size = min(count, len(dataset.test_labels)), dataset.image_size
        self._dataset, self._images = dataset, images
        self._offsets = [sum(map(len, dataset.concept_names[:i])) for i in range(len(dataset.concept_names))]

    def batches(self, batch: int, start: int = 0, stop: int | None = None) -> Iterator[Annotated]:
        stop, device = min(stop or self.count, self.count), self._images.device
        for at in range(start, stop, batch):
            part = slice(at, min(at + batch, stop))
            planes = self._dataset.test_concepts[part].long().to(device)
            pixels = tuple((planes[:, i] + offset * (planes[:, i] > 0))[:, None] for i, offset in enumerate(self._offsets))
            whole = torch.zeros(len(planes), 0, dtype=torch.int64, device=device)
            yield Annotated(self._images.test_batch(part), pixels, whole, self._dataset.test_images[part])


class ColoursAndClasses:
    """Test images without annotations: the colour of each pixel is read from it, the class and its coarse class count as full masks."""

    name = "colours of pixels, classes of images"

    def __init__(self, dataset, images: Augmenter, count: int) -> None:
        coarse = sorted(set(dataset.coarse))
        concepts = [Concept(name, "colour") for name in PROTOTYPES] + [Concept(name, "class") for name in dataset.classes]
        members = {c: [n for n, group in zip(dataset.classes, dataset.coarse, strict=True) if group == c] for c in coarse}
        self.concepts = (*concepts, *(Concept("/".join(members[c]), "coarse class") for c in coarse))
        self.count, self.size = min(count, len(dataset.test_labels)), dataset.image_size
        self._dataset, self._images = dataset, images
        self._coarse = torch.tensor([coarse.index(c) for c in dataset.coarse])

    def batches(self, batch: int, start: int = 0, stop: int | None = None) -> Iterator[Annotated]:
        stop, device = min(stop or self.count, self.count), self._images.device
        first, second = len(PROTOTYPES) + 1, len(PROTOTYPES) + 1 + len(self._dataset.classes)
        for at in range(start, stop, batch):
            part = slice(at, min(at + batch, stop))
            shown, labels = self._dataset.test_images[part], self._dataset.test_labels[part]
            whole = torch.stack([first + labels, second + self._coarse[labels]], 1).to(device)
            yield Annotated(self._images.test_batch(part), ((name_pixels(shown.to(device)) + 1)[:, None],), whole, shown)


def probe(chosen: str, context, count: int) -> Probe:
    """`chosen`: "data" for the data set's own (its first `count` test images), else a Broden folder. Raises UsageError."""
    if chosen != "data":
        return Broden(Path(chosen), context.dataset, context.images, count)
    kind = ExactPixels if context.dataset.test_concepts is not None else ColoursAndClasses
    return kind(context.dataset, context.images, count)
