"""Probes: shapes100's exact concepts, CIFAR-100's colours and classes, a Broden folder made here in its format."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from bench.analysis.frame import registry, subjects
from bench.analysis.frame.context import obtain
from bench.analysis.probes import broden, colours, own
from bench.analysis.probes.base import categories
from bench.data.augment import Augmenter
from bench.errors import UsageError
from tests.bench.analysis import small


@pytest.fixture(scope="module")
def images():
    return small.dataset()


def test_exact_pixels_are_the_data_sets_own(images):
    probe = own.ExactPixels(images, Augmenter(images), 30)
    assert probe.count == 30 and categories(probe.concepts)[0] == ("shape", "texture", "colour")
    first, last = list(probe.batches(20))
    assert len(first.images) == 20 and len(last.images) == 10
    names = images.concept_names
    for plane, labels in enumerate(last.pixels):
        word = probe.concepts[labels.max() - 1]
        assert word.name in names[plane]
        assert torch.equal(labels[:, 0] > 0, images.test_masks[20:30])
    assert probe.concepts[int(first.pixels[0].max(3).values[3].max()) - 1].name == names[0][int(images.test_concepts[3, 0].max()) - 1]


def test_colours_and_classes(images):
    plain = small.cifar_like(images)
    probe = own.ColoursAndClasses(plain, Augmenter(plain), 100)
    batch = next(probe.batches(50))
    assert len(probe.concepts) == 11 + 100 + 20
    assert [probe.concepts[k - 1].name for k in batch.whole[7].tolist()][0] == plain.classes[int(plain.test_labels[7])]
    assert plain.classes[int(plain.test_labels[7])] in probe.concepts[int(batch.whole[7, 1]) - 1].name.split("/")
    assert batch.pixels[0].min() >= 1 and batch.pixels[0].max() <= 11
    assert "red" in [concept.name for concept in probe.concepts if concept.category == "colour"]


def test_lab_has_its_published_values():
    found = colours.lab(torch.tensor([[255, 255, 255], [255, 0, 0], [0, 0, 0]]))
    torch.testing.assert_close(found, torch.tensor([[100, 0, 0], [53.24, 80.09, 67.20], [0, 0, 0]]), atol=0.02, rtol=0)


def test_prototypes_and_their_neighbours_are_named_so():
    near = torch.tensor(list(colours.PROTOTYPES.values()), dtype=torch.uint8) + torch.tensor([2, 0, 3], dtype=torch.uint8)
    assert colours.name_pixels(near.T[None, :, :, None]).flatten().tolist() == list(range(11))


def make(folder) -> None:
    """Two images: one with a disc (object 300 by pixel, colour 2 by pixel) in scene 5; one with two labels a pixel and no scene."""
    (folder / "images").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(folder / "images" / name)

    def mask(name: str, number: int, rows: slice) -> None:
        values = np.zeros((40, 40, 3), np.uint8)
        values[rows, :, 0], values[rows, :, 1] = number % 256, number // 256
        Image.fromarray(values).save(folder / "images" / name)

    mask("a_object.png", 300, slice(0, 20))
    mask("b_object1.png", 300, slice(0, 40))
    mask("b_object2.png", 7, slice(20, 40))
    mask("a_color.png", 2, slice(0, 40))
    write(folder / "index.csv", "image split ih iw sh sw object part scene color", [
        ("a.jpg", "train", 40, 40, 40, 40, "a_object.png", "", "5", "a_color.png"),
        ("b.jpg", "val", 40, 40, 40, 40, "b_object1.png;b_object2.png", "", "", ""),
    ])  # fmt: skip
    write(folder / "label.csv", "number name category", [(300, "disc", "object"), (7, "rim", "object"), (5, "attic", "scene"), (2, "grey", "color")])
    for category, numbers in (("object", (7, 300)), ("scene", (5,)), ("color", (2,))):
        rows = [(code, number, "", 1, 0.5) for code, number in enumerate((0, *numbers))]  # 0: none
        write(folder / f"c_{category}.csv", "code number name frequency coverage", rows)


def write(path, header: str, rows) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header.split(), *rows])


def read(folder, images):
    return broden.Broden(folder, images, Augmenter(images), 10)


def test_a_broden_folder_is_read(tmp_path, images):
    make(tmp_path / "b")
    probe = read(tmp_path / "b", images)
    assert [(c.name, c.category) for c in probe.concepts] == [("rim", "object"), ("disc", "object"), ("attic", "scene"), ("grey", "color")]
    batch = next(probe.batches(10))
    size = images.image_size
    assert batch.images.shape == (2, 3, size, size) and batch.pixels[0].shape == (2, 2, size, size)
    disc, rim = (batch.pixels[0] == 2).any(1), (batch.pixels[0] == 1).any(1)
    assert disc[0, : size // 2].all() and not disc[0, size // 2 :].any() and disc[1].all()
    assert not rim[0].any() and rim[1, size // 2 :].all() and not rim[1, : size // 2].any()
    assert batch.whole.tolist() == [[3], [0]] and (batch.pixels[1][0] == 4).all() and not batch.pixels[1][1].any()
    mean = (90 / 255 - images.mean[0]) / images.std[0]
    torch.testing.assert_close(batch.images[:, 0].mean().item(), mean, atol=0.05, rtol=0)


def test_a_hole_in_a_broden_folder_is_named(tmp_path, images):
    make(tmp_path / "whole")
    for number, (missing, said) in enumerate((
        ("images/b.jpg", "b.jpg: missing, and index.csv names it"),
        ("c_scene.csv", "c_scene.csv: cannot be read"),
        ("label.csv", "label.csv: cannot be read"),
        ("index.csv", "index.csv: cannot be read"),
    )):  # fmt: skip
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        (folder / missing).unlink()
        with pytest.raises(UsageError, match=said):
            read(folder, images)
    index = tmp_path / "whole" / "index.csv"
    whole = index.read_bytes()
    cut = "index.csv: row 2 of 2, below the first line, is cut short"
    for damaged, said in ((whole.rstrip()[:-20], cut), (b"\xff" + whole, "cannot be read as a table")):
        index.write_bytes(damaged)
        with pytest.raises(UsageError, match=said):
            read(tmp_path / "whole", images)
    index.write_bytes(whole)
    (tmp_path / "whole" / "images" / "b_object2.png").unlink()
    with pytest.raises(UsageError, match="b_object2.png: cannot be read as an image"):
        list(read(tmp_path / "whole", images).batches(10))


def test_a_label_that_is_not_declared_is_named(tmp_path, images):
    make(tmp_path / "b")
    write(tmp_path / "b" / "c_object.csv", "code number name frequency coverage", [(1, 7, "", 1, 0.5)])
    with pytest.raises(UsageError, match="a_object.png: label 300 is not in c_object.csv"):
        list(read(tmp_path / "b", images).batches(10))
    assert broden.fingerprint(tmp_path / "b") != ""


def test_a_broden_folder_is_named_by_all_its_tables_and_its_images(tmp_path):
    make(tmp_path / "b")
    named = broden.fingerprint(tmp_path / "b")
    for i, change in enumerate((
        lambda folder: write(folder / "c_color.csv", "code number name frequency coverage", [(1, 2, "", 2, 0.5)]),
        lambda folder: (folder / "c_scene.csv").rename(folder / "c_part.csv"),
        lambda folder: (folder / "images" / "b_object2.png").unlink(),
        lambda folder: Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "images" / "a_object.png"),
        lambda folder: None,
    )):  # fmt: skip
        shutil.copytree(tmp_path / "b", tmp_path / str(i))
        change(tmp_path / str(i))
        assert (broden.fingerprint(tmp_path / str(i)) == named) == (i == 4), i


def test_dissection_on_a_broden_folder_is_named_by_its_content(tmp_path, images):
    make(tmp_path / "b")
    shutil.copytree(tmp_path / "b", tmp_path / "elsewhere")
    small.add_teacher(tmp_path, images)
    subject = subjects.teacher(tmp_path, images.name, small.TEACHER)
    dissect = registry.get("dissect")
    first, second = (
        obtain(dissect(dissect.Options(probe=str(tmp_path / name), quantile=0.3)), small.context(tmp_path, images, [subject]))
        for name in ("b", "elsewhere")
    )
    assert first.key == second.key and first.options["probe"].startswith("broden ") and str(tmp_path) not in str(first.identity)
    assert first.facts["probe"] == "Broden" and first.facts["categories"] == ["object", "scene", "color"]
    assert first.arrays["stage3.iou_set"].shape == (64, 4) and first.arrays["stage3.iou_set"].max() > 0
