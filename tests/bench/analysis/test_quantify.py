"""Quantified knowledge end to end on small networks: snapshots, foregrounds, definitions, and what is refused."""

import dataclasses
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from bench.analysis.frame import registry
from bench.analysis.frame.context import obtain
from bench.analysis.probes import foregrounds
from bench.errors import UsageError
from bench.store import snapshots
from bench.store.weights import read_state, state_hash
from tests.bench.analysis import small

analysis = registry.get("quantify")
QUICK = small.quick(analysis)


@pytest.fixture(scope="module")
def images():
    return small.dataset()


def students(folder, images, seeds=2):
    """A teacher, and a plain student and one by kd for each seed."""
    from bench.analysis.frame import subjects
    from bench.store import runs

    small.add_teacher(folder, images)
    for seed in range(1, seeds + 1):
        for method in ("student", "kd"):
            small.add_student(folder, images, method, seed)
    found = [subjects.student(v, images.hash) for v in runs.scan(folder)[0]]
    return [subjects.teacher(folder, images.name, small.TEACHER), *found]


def keep(subject, epoch, factor):
    """A snapshot: the final weights times a factor."""
    state = {k: v * factor if v.is_floating_point() and factor != 1 else v for k, v in read_state(subject.file).items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    snapshots.write(subject.file.parent, epoch, buffer.getvalue(), state_hash(state))


def run(folder, images, subjects, **changes):
    return obtain(analysis(dataclasses.replace(QUICK, **changes)), small.context(folder, images, subjects))


def test_snapshots_give_learning_speed_and_detours(tmp_path, images):
    subjects = students(tmp_path, images, 3)
    for one in subjects[1:]:
        for epoch, factor in ((0, 0.5), (1, 0.75), (2, 1.0)):
            keep(one, epoch, factor)
    stored = run(tmp_path, images, subjects, learning=True, bootstrap=50)
    assert stored.facts["epochs"] == [0, 1, 2]
    for row in stored.facts["rows"]:
        assert 0 <= row["d_mean"] <= 1.0 + 1e-6  # from half the weights to all of them: as long as the first
    metrics = {(h["metric"], h["method"]) for h in stored.facts["hypotheses"]}
    assert {("d_mean", "kd"), ("d_var", "kd"), ("fg", "kd")} <= metrics
    assert all(h["seeds"] == 3 and h["both_verdict"] in ("better", "tie", "worse") for h in stored.facts["hypotheses"])
    assert [d.name for d in analysis.draw(stored)] == ["maps", "learning"]
    assert len(analysis.tables(stored)[1].rows) == len(metrics)
    fewer = run(tmp_path, images, subjects, learning=True, epochs=(0, 2))
    assert fewer.key != stored.key and fewer.facts["epochs"] == [0, 2]


def test_lengths_of_a_path_are_of_all_weights_and_relative_to_the_first():
    """Weights of half, three quarters and the whole of (3, 4) and 12, norm 13: steps of 0.25 each, relative to 0.5. A buffer is no weight."""

    def network(factor):
        layers = torch.nn.ModuleList([torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1, affine=False)])
        for layer, weights in zip(layers, ([[3.0, 4.0]], [[12.0]]), strict=False):
            layer.weight = torch.nn.Parameter(factor * torch.tensor(weights))
        layers[2].running_mean.fill_(100 * factor)
        return layers

    assert analysis(QUICK)._lengths(SimpleNamespace(network=network), (0.5, 0.75, 1.0)) == pytest.approx([0, 0.5, 0.5])


def test_the_same_networks_are_a_tie_and_definitions_are_told_apart(tmp_path, images):
    subjects = students(tmp_path, images)
    plain = {s.seed: s for s in subjects if s.method == "student"}
    same = [dataclasses.replace(s, hash=plain[s.seed].hash) if s.method == "kd" else s for s in subjects]
    for s in same:
        if s.method == "kd":
            s.file.write_bytes(plain[s.seed].file.read_bytes())
    stored = run(tmp_path, images, same)
    assert stored.facts["hypotheses"] and all(h["mean"] == 0 and h["images_verdict"] == "tie" for h in stored.facts["hypotheses"])
    assert "both" not in stored.facts["hypotheses"][0]  # two seeds
    printed = run(tmp_path, images, same, definitions="printed")
    assert printed.key != stored.key
    assert "not applied" in analysis.tables(printed)[0].notes[0]


def test_images_without_any_concept_are_counted_and_0_in_the_codes_rho_alone(tmp_path, images):
    subjects = students(tmp_path, images, 1)
    for one in subjects[1:]:
        for epoch, factor in ((0, 0.5), (2, 1.0)):
            keep(one, epoch, factor)
    for definitions in ("ours", "printed"):
        stored = run(tmp_path, images, subjects, learning=True, b=100.0, definitions=definitions)  # no cell is a concept
        assert all(row["rho"] is None and row["never"] == stored.facts["images"] for row in stored.facts["rows"])
        assert "never had a concept on the object (left out of rho): " in analysis.tables(stored)[0].notes[0]
    code = analysis(dataclasses.replace(QUICK, learning=True, definitions="code"))
    values = code._values(np.zeros((2, 3, 4, 4)), np.tile(np.eye(4, dtype=bool), (3, 1, 1)), [0.0, 1.0])
    assert values["rho"].tolist() == [0, 0, 0] and code._summary(values)["never"] == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight": 7.0}, "quantify.weight has no effect with mode=match; leave it out"),
        ({"mode": "penalty", "target": -3.0}, "quantify.target has no effect with mode=penalty"),
        ({"mode": "code", "steps": 30}, "quantify.steps has no effect with mode=code"),
        ({"learning": False, "epochs": (0, 2)}, "quantify.epochs has no effect with learning=false"),
        ({"rate": -1.0}, "rate is above 0"),
        ({"target": 2.0}, "target from -5.4 to 1.4 nats"),
    ],
)
def test_options_that_would_do_nothing_or_cannot_be_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        analysis.Options(**changes)


def test_missing_snapshots_are_one_line_with_a_command(tmp_path, images):
    subjects = students(tmp_path, images, 1)
    with pytest.raises(UsageError, match="has no snapshots.*--keep-epochs 0-2 .*learning=false"):
        run(tmp_path, images, subjects, learning=True)
    for one in subjects[1:]:
        keep(one, 1, 0.5)
    with pytest.raises(UsageError, match="begin with epoch 0"):
        run(tmp_path, images, subjects, learning=True)
    with pytest.raises(UsageError, match="no snapshot of epoch 0, only of 1"):
        run(tmp_path, images, subjects, learning=True, epochs=(0, 2, 1))


def test_what_cannot_be_done_is_refused(tmp_path, images):
    subjects = students(tmp_path, images, 1)
    with pytest.raises(UsageError, match="does not divide images of 16 pixels; 2, 4, 8, 16 do"):
        run(tmp_path, images, subjects, grid=5)
    with pytest.raises(UsageError, match="has no layer 'stage9'"):
        run(tmp_path, images, subjects, layer="stage9")
    with pytest.raises(UsageError, match="no masks of the objects"):
        foregrounds.pixels("masks", small.cifar_like(images), [0])
    with pytest.raises(UsageError, match="no folder of masks"):
        run(tmp_path, images, subjects, foreground=str(tmp_path / "nowhere"))


def test_masks_from_a_folder_and_the_centre(tmp_path, images):
    size = images.image_size
    box = foregrounds.pixels("centre", images, [3, 4])
    assert box.shape == (2, size, size) and box[0].sum() == 12 * 12 and not box[0, :2].any()
    assert foregrounds.cells(box, 8)[0].sum() == 36 and foregrounds.cells(box, 16)[0].sum() == 144
    for i in (3, 4):
        Image.fromarray(np.where(box[0], 255, 0).astype(np.uint8)).save(tmp_path / f"{i}.png")
    first = foregrounds.fingerprint(tmp_path)
    np.testing.assert_array_equal(foregrounds.pixels(str(tmp_path), images, [4, 3]), box)
    with pytest.raises(UsageError, match="5.png: missing"):
        foregrounds.pixels(str(tmp_path), images, [5])
    Image.fromarray(np.zeros((size, 2 * size), dtype=np.uint8)).save(tmp_path / "4.png")
    assert foregrounds.fingerprint(tmp_path) != first
    with pytest.raises(UsageError, match="4.png: 32 x 16 pixels, the images have 16 x 16"):
        foregrounds.pixels(str(tmp_path), images, [4])
    opaque = np.dstack([np.where(box[0], 255, 0)] * 3 + [np.full((size, size), 255)]).astype(np.uint8)
    Image.fromarray(opaque, "RGBA").save(tmp_path / "3.png")  # as editors of images save
    np.testing.assert_array_equal(foregrounds.pixels(str(tmp_path), images, [3])[0], box[0])
    opaque[..., 3] = np.where(box[0], 255, 0)
    Image.fromarray(opaque, "RGBA").save(tmp_path / "3.png")
    with pytest.raises(UsageError, match="3.png: parts of it are transparent"):
        foregrounds.pixels(str(tmp_path), images, [3])
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="3.png: cannot be read as a picture"):
        foregrounds.pixels(str(tmp_path), images, [3])
