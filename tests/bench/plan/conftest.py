"""The images that pairs take their steps on."""

import os
from pathlib import Path

import pytest

from bench.data import cifar100
from bench.plan.protocols import Protocol

IMAGES = 100
"""Of CIFAR-100's, for training and for testing."""


@pytest.fixture(scope="module")
def preparations(tmp_path_factory) -> Path:
    """What methods prepare from a teacher, which all pairs of a file that have it share, as the runs of one results folder would."""
    return tmp_path_factory.mktemp("preparations")


@pytest.fixture
def few(monkeypatch) -> Protocol:
    """A protocol of one epoch on a few images: drawn ones; real ones with KD_BENCH_REAL_STEPS."""
    protocol = Protocol("few", dataset="shapes100", epochs=1, milestones=(1,), train_images=24, test_images=20, image_size=16, batch=16)
    if "KD_BENCH_REAL_STEPS" not in os.environ:
        return protocol
    read = cifar100.read

    def cut(protocol, data_root, download=False):
        fields = read(protocol, Path(os.environ["KD_BENCH_DATA"]))
        return fields | {name: fields[name][:IMAGES] for name in fields if name.startswith(("train_", "test_"))}

    monkeypatch.setattr(cifar100, "read", cut)
    return Protocol("few", dataset="cifar100", epochs=1, milestones=(1,), batch=32)
