"""Augmentation in batches on the device, bit for bit torchvision's RandomCrop(S, padding=4), RandomHorizontalFlip, ToTensor, Normalize.

The padding is zero in uint8 pixel space, before normalisation. Draws are made on the CPU, once an epoch, one per image of the training
set, so every device and engine sees the same ones and a batch is a pure function of (images, index, draws).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.data import Dataset
from models.randomness import generator

PADDING = 4


@dataclass(frozen=True)
class Draws:
    """One epoch's draws. `order` lists dataset positions in training order; the others are indexed by dataset position."""

    order: Tensor  # int64 (N,)
    dy: Tensor  # int64 (N,), 0..8: first row of the crop in the padded image
    dx: Tensor  # int64 (N,), 0..8: first column
    flip: Tensor  # bool (N,): mirrored left to right after the crop

    def to(self, device: torch.device | str) -> "Draws":
        return Draws(*(t.to(device) for t in (self.order, self.dy, self.dx, self.flip)))


def draws(seed: int, epoch: int, count: int) -> Draws:
    """The draws of an epoch for `count` images, on the CPU, keyed by (seed, "order", epoch) and (seed, "augment", epoch)."""
    order = torch.randperm(count, generator=generator(seed, "order", epoch))
    return Draws(order, *crops(generator(seed, "augment", epoch), count))


def crops(source: torch.Generator, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """dy, dx, flip of Draws for `count` images, from a CPU generator."""
    corner = torch.randint(2 * PADDING + 1, (2, count), generator=source)
    flip = torch.randint(2, (count,), generator=source) == 1
    return corner[0], corner[1], flip


def plain(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """dy, dx, flip that leave `count` images as they are."""
    centre = torch.full((count,), PADDING)
    return centre, centre, torch.zeros(count, dtype=torch.bool)


def normal_table(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """float32 (3, 256): the normalised value of every byte in every channel, by ToTensor's and Normalize's own operations."""
    values = torch.arange(256, dtype=torch.uint8).to(torch.float32).div(255)
    return values.sub(torch.tensor(mean)[:, None]).div(torch.tensor(std)[:, None])


class Augmenter:
    """A data set on a device as uint8, the training images padded. Batches are float32 (B, 3, S, S), normalised.

    Shapes are static and nothing is read by the host, so `train_batch` can be captured. With `channels_last` the batches have that
    memory format; values are the same.
    """

    def __init__(self, dataset: Dataset, device: torch.device | str = "cpu", channels_last: bool = False) -> None:
        self.device, self.channels_last, size = torch.device(device), channels_last, dataset.image_size
        self.size = size
        side = size + 2 * PADDING
        self.padded = torch.nn.functional.pad(dataset.train_images, (PADDING,) * 4).to(self.device)  # uint8 (N, 3, S + 8, S + 8)
        self.train_labels = dataset.train_labels.to(self.device)
        self.test_images = self._in_memory_order(dataset.test_images).to(self.device)
        self.test_labels = dataset.test_labels.to(self.device)
        # A table gives the same bits on every device, where a device's own division need not.
        self._table = normal_table(dataset.mean, dataset.std).flatten().to(self.device)
        channel = torch.arange(3)[:, None, None]
        self._channel = self._in_memory_order((256 * channel).int().expand(1, 3, size, size)).flatten().to(self.device)
        # Offsets of a crop's pixels from its corner, in the batch's memory order: plain and mirrored, (2, 3 * S * S).
        row, column = torch.arange(size)[:, None], torch.arange(size)
        windows = torch.stack([(channel * side + row) * side + c for c in (column, column.flip(0))])
        self._window = self._in_memory_order(windows).reshape(2, -1).to(self.device)

    def train_batch(self, index: Tensor, dy: Tensor, dx: Tensor, flip: Tensor) -> Tensor:
        """The augmented training images `index` int64 (B,); `dy`, `dx`, `flip` are an epoch's Draws (N,). All on the device."""
        side = self.size + 2 * PADDING
        corner = (index * (3 * side) + dy[index]) * side + dx[index]
        pixels = corner[:, None] + self._window[flip[index].long()]
        return self._normalised(self.padded.view(-1).index_select(0, pixels.view(-1)))

    def test_batch(self, index: Tensor | slice) -> Tensor:
        """Test images, only normalised: a slice of them or those of an index int64 (B,) on the device."""
        return self._normalised(self.test_images[index].reshape(-1))

    def test_batches(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) over the test set in its order; the last batch may be smaller."""
        for start in range(0, len(self.test_labels), batch):
            part = slice(start, start + batch)
            yield self.test_batch(part), self.test_labels[part]

    def _in_memory_order(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) to the dense order of a batch's memory: (N, S, S, 3) with channels_last."""
        return (images.permute(0, 2, 3, 1) if self.channels_last else images).contiguous()

    def _normalised(self, values: Tensor) -> Tensor:
        """uint8 (B * 3 * S * S,) in memory order to the float32 batch."""
        size = self.size
        entry = values.view(-1, 3 * size * size) + self._channel
        dense = self._table.index_select(0, entry.view(-1))
        return dense.view(-1, size, size, 3).permute(0, 3, 1, 2) if self.channels_last else dense.view(-1, 3, size, size)
