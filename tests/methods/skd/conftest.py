"""A toy teacher with known channel groups, training images and settings, all in memory."""

from dataclasses import dataclass
from types import MappingProxyType

import pytest
import torch
from torch import nn

from methods.base import Setting
from methods.skd import Hyper
from methods.skd.embedding import Embedding
from models.outputs import Outputs, Shapes
from models.randomness import generator

CLASSES = 4
STAGES = ((3, 8, 8), (12, 8, 8), (20, 4, 4))  # stem first


def shapes(name: str = "toy", stages=STAGES) -> Shapes:
    return Shapes(name, CLASSES, stages[-1][0], {"stage": stages, "preact": stages, "relu": stages})


class Toy(nn.Module):
    """Two convolution stages; `relu` maps differ from the signed `stage` maps. Counts its forward passes."""

    def __init__(self, stages=STAGES) -> None:
        super().__init__()
        widths = [c for c, _, _ in stages]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2 if i else 1, 1) for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)))
        self.head = nn.Linear(widths[-1], CLASSES)
        self.calls = 0

    def forward(self, x, kinds=()):
        self.calls += 1
        maps = [x]
        for conv in self.convs:
            x = conv(x.relu() if len(maps) > 1 else x)
            maps.append(x)
        embedding = x.relu().mean((2, 3))
        kept = {"stage": tuple(maps), "preact": tuple(maps), "relu": tuple(m.relu() for m in maps)}
        return Outputs(self.head(embedding), embedding, {k: kept[k] for k in kinds})


class Images:
    """methods.base.PreparationData over random images; `augment` shifts the values, so that it shows when it is used."""

    device = torch.device("cpu")
    classes = CLASSES

    def __init__(self, count: int = 150) -> None:
        self.count = count
        self.images = torch.randn(count, 3, 8, 8, generator=generator(0, "test images"))
        self.passes, self.lines = [], []

    def batches(self, batch_size, *, epoch=0, augment=False, shuffle=False):
        self.passes.append({"batch": batch_size, "epoch": epoch, "augment": augment, "shuffle": shuffle})
        order = torch.randperm(self.count, generator=generator(0, "order", epoch)) if shuffle else torch.arange(self.count)
        for index in order.split(batch_size):
            yield self.images[index] + (0.5 if augment else 0), index % CLASSES

    def generator(self, purpose, epoch=0):
        return generator(0, purpose, epoch)

    def log(self, message):
        self.lines.append(message)

    def resume(self):
        return None

    def save(self, state):
        pass


@dataclass(frozen=True)
class Planted:
    """Maps (B, C, H, W) of channels in groups, a pattern each, and the group of each channel."""

    maps: torch.Tensor
    group: torch.Tensor


@pytest.fixture
def planted():
    def make(channels: int, groups: int, images: int = 32, seed: int = 0) -> Planted:
        g = torch.Generator().manual_seed(seed)
        group = torch.arange(channels) % groups
        patterns = torch.randn(images, groups, 64, generator=g)
        own = torch.randn(images, channels, 64, generator=g)
        scale = 0.5 + torch.rand(images, channels, 1, generator=g)
        return Planted((scale * (patterns[:, group] + 0.5 * own).relu()).view(images, channels, 8, 8), group)

    return make


@pytest.fixture
def toy():
    """A frozen toy teacher."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Toy().eval().requires_grad_(False)


@pytest.fixture
def make_toy():
    return Toy


@pytest.fixture
def images():
    return Images()


@pytest.fixture
def setting():
    return Setting(student=shapes("toy_student"), teacher=shapes("toy_teacher"), classes=CLASSES, images=150)


@pytest.fixture
def make_shapes():
    return shapes


@pytest.fixture
def embedding():
    """Embedding settings with the paper's values but for what is given."""

    def make(steps: int = 500, epochs: int = 100, layers=MappingProxyType({"stage1": 1, "stage2": 2}), **changes) -> Embedding:
        return Embedding(layers, Hyper(fit_steps=steps, paper_epochs=epochs, **changes))

    return make
