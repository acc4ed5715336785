"""Augmented batches against torchvision's transforms on PIL images, bit for bit, for the same draws."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as F

from bench import data
from bench.data import Dataset
from bench.data.augment import PADDING, Augmenter, draws, plain
from bench.plan.protocols import get
from models.randomness import generator

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def made(count: int, size: int, test: int = 7) -> Dataset:
    source = torch.Generator().manual_seed(size)
    train, rest = (torch.randint(256, (n, 3, size, size), generator=source, dtype=torch.uint8) for n in (count, test))
    labels = [torch.randint(5, (n,), generator=source) for n in (count, test)]
    return Dataset("made", train, labels[0], rest, labels[1], tuple("abcde"), (0,) * 5, MEAN, STD, "0" * 16)


def torchvision_batch(dataset: Dataset, index: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    size, out = dataset.image_size, []
    for i in index.tolist():
        image = Image.fromarray(dataset.train_images[i].permute(1, 2, 0).numpy())
        image = F.crop(F.pad(image, [PADDING] * 4, 0), int(dy[i]), int(dx[i]), size, size)
        image = F.hflip(image) if flip[i] else image
        out.append(F.normalize(F.to_tensor(image), dataset.mean, dataset.std))
    return torch.stack(out)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [32, 17, 24])
def test_batches_equal_torchvision_bitwise(size, channels_last):
    dataset = made(90, size)
    images, d = Augmenter(dataset, channels_last=channels_last), draws(3, 2, 90)
    index = d.order[10:74]
    batch = images.train_batch(index, d.dy, d.dx, d.flip)
    assert torch.equal(batch, torchvision_batch(dataset, index, d.dy, d.dx, d.flip))
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.dtype == torch.float32 and batch.is_contiguous(memory_format=wanted)


def test_every_draw_and_every_byte_equal_torchvision():
    dataset = made(162, 20)
    dataset.train_images[0].view(-1)[:768] = torch.arange(256, dtype=torch.uint8).repeat(3)  # every byte at least once
    place = torch.arange(162)
    dy, dx, flip = place % 9, place // 9 % 9, place >= 81
    assert torch.equal(Augmenter(dataset).train_batch(place, dy, dx, flip), torchvision_batch(dataset, place, dy, dx, flip))


@pytest.mark.real
@pytest.mark.skipif("KD_BENCH_DATA" not in os.environ, reason="KD_BENCH_DATA names no data root")
def test_real_images_equal_torchvision():
    dataset = data.load(get("crd"), Path(os.environ["KD_BENCH_DATA"]))
    d = draws(1, 1, len(dataset.train_labels))
    index = d.order[:256]
    assert torch.equal(Augmenter(dataset).train_batch(index, d.dy, d.dx, d.flip), torchvision_batch(dataset, index, d.dy, d.dx, d.flip))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_gives_the_same_bits():
    dataset, d = made(90, 32), draws(3, 2, 90)
    here, there, on = Augmenter(dataset), Augmenter(dataset, "cuda", channels_last=True), d.to("cuda")
    batch = there.train_batch(on.order[:64], on.dy, on.dx, on.flip).cpu()
    assert torch.equal(batch, here.train_batch(d.order[:64], d.dy, d.dx, d.flip))


def test_padding_is_black_before_normalisation():
    dataset = made(1, 32)
    corner = Augmenter(dataset).train_batch(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]), torch.tensor([False]))[0, :, 0, 0]
    assert torch.allclose(corner, torch.tensor([-1.8957, -1.8975, -1.5965]), atol=1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_plain_draws_and_test_batches_only_normalise(channels_last):
    dataset = made(9, 32, test=70)
    images = Augmenter(dataset, channels_last=channels_last)
    index = torch.tensor([8, 0, 3])
    centred = images.train_batch(index, *plain(9))
    assert torch.equal(centred, F.normalize(dataset.train_images[index].float() / 255, MEAN, STD))
    expected = F.normalize(dataset.test_images.float() / 255, MEAN, STD)
    assert torch.equal(images.test_batch(index), expected[index])
    batches = list(images.test_batches(32))
    assert [len(labels) for _, labels in batches] == [32, 32, 6]
    assert torch.equal(torch.cat([batch for batch, _ in batches]), expected)
    assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.test_labels)


def test_batches_trace_without_reading_the_host():
    # Fake tensors hold no values: a host read or a shape that depends on data raises.
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        images, d = Augmenter(made(9, 32)), draws(1, 1, 9)
        index, dy, dx, flip = (fake.from_tensor(t) for t in (d.order, d.dy, d.dx, d.flip))
        assert images.train_batch(index[:5], dy, dx, flip).shape == (5, 3, 32, 32)


def test_draws_have_the_protocols_law():
    d = draws(1, 1, 50_000)
    assert torch.equal(d.order.sort().values, torch.arange(50_000))
    cells = torch.bincount((d.dy * 9 + d.dx) * 2 + d.flip, minlength=162).double()
    expected = 50_000 / 162
    # Chi-square of 162 cells, 161 degrees of freedom: the upper 1e-6 quantile is about 261.
    assert len(cells) == 162 and ((cells - expected) ** 2 / expected).sum() < 261


def test_draws_are_keyed_by_seed_and_epoch_and_purpose():
    one = draws(1, 1, 500)
    assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(draws(1, 1, 500)).values(), strict=True))
    for other in (draws(2, 1, 500), draws(1, 2, 500)):
        assert all(not torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))
    assert torch.equal(one.order, torch.randperm(500, generator=generator(1, "order", 1)))
    state = torch.random.get_rng_state()
    draws(1, 3, 500)
    assert torch.equal(state, torch.random.get_rng_state())
