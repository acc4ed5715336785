import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from bench import data
from bench.data import shapes100
from bench.data.shapes100 import CLASSES, COARSE, COLOURS, SHAPES, TEXTURES, draw
from bench.errors import UsageError
from bench.plan.protocols import Protocol

TINY = Protocol("tiny", dataset="shapes100", train_images=300, test_images=100, image_size=16)


def sum_of(drawing: shapes100.Drawing) -> str:
    return hashlib.sha256(b"".join(part.tobytes() for part in drawing)).hexdigest()[:16]


@pytest.mark.parametrize(("size", "expected"), [(16, "176acd8f16b35d34"), (24, "4dcefb66b832a61d"), (33, "1df46b6c9bee8a51")])
def test_pixels_are_these_on_every_machine(size, expected):
    # A change of the drawing is another data set: raise VERSION with it.
    assert sum_of(draw("train", 100, size)) == expected


def test_smaller_sets_begin_larger_ones():
    large, small = draw("test", 230, 16), draw("test", 30, 16)
    assert all(np.array_equal(b, a[:30]) for a, b in zip(large, small, strict=True))
    assert large.images.shape == (230, 3, 16, 16) and large.images.dtype == np.uint8 and large.labels.dtype == np.int64


def test_no_image_comes_twice():
    images = np.concatenate([draw(split, 300, 16).images for split in ("train", "test")])
    assert len({image.tobytes() for image in images}) == 600


@pytest.fixture(scope="module")
def drawn():
    return draw("train", 2000, 24)


def test_masks_are_the_union_of_the_shape_plane(drawn):
    assert drawn.masks.dtype == bool and drawn.concepts.dtype == np.uint8
    for plane in range(3):  # every pixel of the object carries all three concepts, the background none
        assert np.array_equal(drawn.masks, drawn.concepts[:, plane] > 0)
    covered = drawn.masks.mean((1, 2))
    assert covered.min() > 0.05 and covered.max() < 0.6


def test_concepts_say_the_class(drawn):
    shape, texture, colour = drawn.concepts.reshape(2000, 3, -1).max(-1).T.astype(int) - 1
    for label, s, t, c in zip(drawn.labels, shape, texture, colour, strict=True):
        family = "warm" if COLOURS[c] in ("red", "orange", "yellow") else "cool"
        assert CLASSES[label] == f"{family} {TEXTURES[t]} {SHAPES[s]}"
        assert COARSE[label] == label // 5 == 2 * s + (family == "cool")
    assert np.bincount(colour, minlength=6).min() > 2000 / 6 * 0.8  # free within the family


def test_concepts_are_constant_within_an_object(drawn):
    inside = np.where(drawn.masks[:, None], drawn.concepts, 255).min((2, 3))
    assert np.array_equal(inside, drawn.concepts.max((2, 3)))


def test_pixels_have_the_colour_the_concept_names(drawn):
    # Which channels lead in the mean over an object, by colour; the background leads nowhere.
    for index, name in enumerate(COLOURS):
        pixels = drawn.images.transpose(0, 2, 3, 1)[drawn.concepts[:, 2] == index + 1].mean(0)
        bright = set(np.flatnonzero(pixels > pixels.max() * 0.75).tolist())
        assert bright == {"red": {0}, "orange": {0}, "yellow": {0, 1}, "green": {1}, "cyan": {1, 2}, "blue": {2}}[name], (name, pixels)
    background = drawn.images.transpose(0, 2, 3, 1)[~drawn.masks].mean(0)
    assert np.ptp(background) < 5


def test_solid_objects_are_smoother_than_textured_ones(drawn):
    grey = drawn.images.astype(int).sum(1)
    spread = [np.mean([grey[i][drawn.masks[i]].std() for i in range(t, 1000, 5)]) for t in range(5)]
    assert spread[0] * 2 < min(spread[1:])


def test_upright_masks_of_symmetric_shapes_survive_mirroring():
    axis = (np.arange(-1000, 1001, 20), np.arange(-1000, 1001, 20))
    v, u = np.meshgrid(*axis, indexing="ij")
    areas = set()
    for shape in SHAPES:
        inside = shapes100._inside(shape, u, v)
        assert np.array_equal(inside, inside[:, ::-1]), shape
        areas.add(inside.tobytes())
    assert len(areas) == len(SHAPES)


def test_the_grammar_counts():
    assert len(CLASSES) == len(set(CLASSES)) == 100 and COARSE == tuple(i // 5 for i in range(100))
    assert CLASSES[43] == "warm checked ring"


def test_load_gives_a_balanced_dataset_with_annotations():
    dataset = data.load(TINY)
    assert torch.bincount(dataset.train_labels).tolist() == [3] * 100 and dataset.image_size == 16
    assert dataset.train_masks.shape == (300, 16, 16) and dataset.test_concepts.shape == (100, 3, 16, 16)
    assert dataset.concept_names == (SHAPES, TEXTURES, COLOURS) and dataset.classes == CLASSES
    assert dataset.train_images.is_contiguous() and dataset.train_images.dtype == torch.uint8
    moments = dataset.train_images.float().div(255).mean((0, 2, 3)), dataset.train_images.float().div(255).std((0, 2, 3))
    assert torch.allclose(moments[0], torch.tensor(dataset.mean), atol=0.02) and torch.allclose(moments[1], torch.tensor(dataset.std), atol=0.02)


def test_sub_sampling_takes_annotations_along():
    whole, third = data.load(TINY), data.load(TINY.sampled(1 / 3))
    assert torch.bincount(third.train_labels).tolist() == [1] * 100 and len(third.test_labels) == 100
    assert torch.equal(third.train_concepts[:, 0] > 0, third.train_masks)
    assert (third.train_concepts[:, 0].amax((1, 2)) == third.train_labels // 10 + 1).all()
    assert third.hash != whole.hash


@pytest.mark.parametrize("change", [{"train_images": 200}, {"test_images": 200}, {"image_size": 17}])
def test_the_hash_follows_the_content(change):
    assert data.load(TINY).hash == data.load(dataclasses.replace(TINY, name="other", epochs=3)).hash
    assert data.load(dataclasses.replace(TINY, **change)).hash != data.load(TINY).hash


def test_the_hash_sees_one_bit_a_label_and_the_normalisation():
    dataset = data.load(TINY)
    images, labels = dataset.train_images, dataset.train_labels
    before = data.content_hash((images, labels), dataset.mean, dataset.std)
    assert len(before) == 16 and before == data.content_hash((images.clone(), labels.clone()), dataset.mean, dataset.std)
    flipped, moved = images.clone(), labels.clone()
    flipped[5, 1, 2, 3] ^= 1
    moved[7] += 1
    changed = [((flipped, labels), dataset.mean), ((images, moved), dataset.mean), ((images.view(300, 3, 8, 32), labels), dataset.mean)]
    changed.append(((images, labels), (0.5, 0.5, 0.5)))
    sums = {data.content_hash(tensors, mean, dataset.std) for tensors, mean in changed}
    assert len(sums | {before}) == 5


@pytest.mark.parametrize(("split", "count", "size"), [("train", 0, 16), ("train", -5, 16), ("train", 10, 15), ("test", 10, 65), ("valid", 10, 16)])
def test_what_cannot_be_drawn_is_bad_input(split, count, size):
    with pytest.raises(UsageError, match="shapes100"):
        draw(split, count, size)


def test_the_smoke_protocol_loads():
    from bench.plan.protocols import get

    smoke, teacher = get("smoke"), get("smoke_teacher")
    dataset, whole = data.load(smoke), data.load(teacher)
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (smoke.train_images, smoke.test_images) and not smoke.trial
    assert torch.equal(dataset.test_images, whole.test_images) and torch.equal(dataset.test_labels, whole.test_labels)
    assert torch.equal(dataset.train_images, whole.train_images[: smoke.train_images])  # the teacher saw the students' images and more


def test_shapes20_is_shapes100_under_its_coarse_classes():
    protocol = Protocol("few", dataset="shapes20", epochs=1, milestones=(1,), train_images=100, test_images=100, image_size=16)
    fine, coarse = data.load(dataclasses.replace(protocol, dataset="shapes100")), data.load(protocol)
    assert torch.equal(fine.train_images, coarse.train_images) and fine.hash != coarse.hash
    assert len(coarse.classes) == 20 and coarse.test_labels.bincount().tolist() == [5] * 20
    for label, name in zip(fine.test_labels.tolist(), (coarse.classes[i] for i in coarse.test_labels), strict=True):
        family, _, shape = fine.classes[label].split()
        assert name == f"{family} {shape}"
    assert [coarse.classes[i].split()[1] for i in range(20)] == [SHAPES[i] for i in coarse.coarse]
