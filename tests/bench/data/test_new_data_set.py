"""A data set of one's own: an entry in the plan and a file with `read`, MEAN and STD, nothing else."""

import sys
import types

import pytest
import torch

from bench import data
from bench.errors import UsageError
from bench.plan import datasets
from bench.plan.protocols import Protocol


@pytest.fixture
def stripes(monkeypatch):
    """Two classes of stripes."""

    def read(protocol, data_root, download):
        def images(count):
            pixels = torch.arange(protocol.image_size).expand(count, 3, protocol.image_size, protocol.image_size) % 2 * 255
            labels = torch.arange(count) % 2
            return torch.where(labels.view(-1, 1, 1, 1) == 1, pixels, pixels.mT).to(torch.uint8).contiguous(), labels

        (train, train_labels), (test, test_labels) = images(protocol.train_images or 40), images(10)
        images = {"train_images": train, "train_labels": train_labels, "test_images": test, "test_labels": test_labels}
        return {**images, "classes": ("rows", "columns"), "coarse": (0, 0), "mean": module.MEAN, "std": module.STD}

    module = types.ModuleType("bench.data.stripes")
    module.read, module.MEAN, module.STD = read, (0.5,) * 3, (0.25,) * 3
    monkeypatch.setitem(sys.modules, "bench.data.stripes", module)
    monkeypatch.setattr(datasets, "DATASETS", {**datasets.DATASETS, "stripes": datasets.DataSpec(2, 40, 10, (8, 32), drawn=True)})


def test_it_loads_and_is_sub_sampled_like_any_other(stripes):
    found = data.load(Protocol("p", dataset="stripes", image_size=8))
    assert (found.name, len(found.train_labels), found.image_size, found.classes) == ("stripes", 40, 8, ("rows", "columns"))
    assert data.normalisation("stripes") == (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)  # what an export is given along
    half = data.load(Protocol("p", dataset="stripes", image_size=8, sample_rate=0.5))
    assert len(half.train_labels) == 20 and half.hash != found.hash


def test_without_its_normalisation_it_cannot_be_exported(stripes):
    del sys.modules["bench.data.stripes"].STD
    with pytest.raises(UsageError, match="stripes.py has no MEAN and STD"):
        data.normalisation("stripes")


def test_what_it_cannot_have_is_refused(stripes):
    with pytest.raises(UsageError, match="image size 64; choose one from 8 to 32"):
        data.load(Protocol("p", dataset="stripes", image_size=64))
    with pytest.raises(UsageError, match="unknown data set 'stripe'; did you mean stripes"):
        data.load(Protocol("p", dataset="stripe"))


def test_the_size_of_files_is_the_protocols(monkeypatch):
    """The protocol's own is 32: what says so leads to one that loads."""
    monkeypatch.setattr(datasets, "DATASETS", {"tin": datasets.DataSpec(200, 100_000, 10_000, (64, 64))})
    said = r"tin has 100000 \+ 10000 images of 64x64; set image_size=64 of the protocol, and leave its train_images and test_images unset"
    for wrong in (Protocol("tin", dataset="tin"), Protocol("tin", dataset="tin", image_size=64, train_images=10)):
        with pytest.raises(UsageError, match=said):
            data.load(wrong)
    datasets.get("tin").check("tin", None, None, 64)
