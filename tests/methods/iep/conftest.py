"""A preparation's data and a pair small enough for seconds: resnet8 on random textures."""

import pytest
import torch

import models
from methods.base import Setting
from models.randomness import generator, keyed

CLASSES = 10


class Textures:
    """`methods.base.PreparationData` on seeded random images whose colour and orientation depend on the class."""

    device = torch.device("cpu")
    classes = CLASSES

    def __init__(self, count: int = 49) -> None:
        self.count = count
        draw = generator(0, "textures")
        self.labels = torch.arange(count) % CLASSES
        ramp = torch.linspace(0, 6.28, 32)
        angle = self.labels * 3.14 / CLASSES
        waves = torch.cos(angle)[:, None, None] * ramp[None, :, None] + torch.sin(angle)[:, None, None] * ramp[None, None, :]
        colours = torch.randn(CLASSES, 3, generator=draw)[self.labels]
        self.images = colours[:, :, None, None] * torch.sin(3 * waves)[:, None] + 0.5 * torch.randn(count, 3, 32, 32, generator=draw)
        self.lines: list[str] = []

    def batches(self, batch_size, *, epoch=0, augment=False, shuffle=False):
        order = torch.randperm(self.count, generator=generator(0, "order", epoch)) if shuffle else torch.arange(self.count)
        for index in order.split(batch_size):
            yield self.images[index], self.labels[index]

    def generator(self, purpose, epoch=0):
        return generator(0, f"preparation/{purpose}", epoch)

    def log(self, message):
        self.lines.append(message)

    def resume(self):
        return None

    def save(self, state):
        pass


def network(name, seed, **options):
    with keyed(seed, name):
        return models.build(name, CLASSES, **options)


@pytest.fixture(scope="session")
def textures():
    return Textures()


@pytest.fixture(scope="session")
def teacher(textures):
    """A frozen resnet8 whose batch-norm statistics are those of the textures."""
    net = network("resnet8", 1).train()
    with torch.no_grad():
        for _ in range(20):
            net(textures.images)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def setting():
    shapes = models.shapes("resnet8", CLASSES)
    return Setting(shapes, shapes, CLASSES, 49)
