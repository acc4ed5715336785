"""Stored preparations: one result serves all who ask for the same; another teacher's, another version's or a damaged one is refused."""

import ctypes
import dataclasses
import gc
import json
import os
import threading

import pytest
import torch
from torch import nn

import models
from bench import data
from bench.data.augment import Augmenter
from bench.errors import UsageError
from bench.plan.protocols import Protocol
from bench.store.files import read_json, write_json
from bench.train import prepare, teacher_networks
from bench.train.preparations import Origin, TrainingImages, _Memory, identity, obtain, place
from bench.train.stop import Stopped
from methods import registry
from methods.base import Batch, MethodError, Preparation, Prepared
from models.outputs import Outputs
from tests.methods import cases

METHODS = ("skd", "iep", "iep_bb")


TINY = Protocol("tiny", dataset="shapes100", batch=16, train_images=200, test_images=100, image_size=16, trial="for tests")


class Stage:
    """A preparation that counts how often it is built."""

    def __init__(self, **changes) -> None:
        self.built = 0
        settings = {"layers": ["stage1", "stage2"], "seed": 0}
        self.preparation = dataclasses.replace(Preparation("counted", 1, settings, self.build), **changes)

    def build(self, teacher, data) -> Prepared:
        self.built += 1
        return Prepared({"value": torch.arange(6.0).view(2, 3)}, {"images": data.count})


def origin(teacher_hash="teacher-a", data_hash="data-a", arithmetic="fp32"):
    dataset = data.load(TINY)
    return Origin(nn.Identity, teacher_hash, data_hash, arithmetic, TrainingImages(dataset, Augmenter(dataset, torch.device("cpu"))))


def ask(results, stage: Stage, log=lambda message: None, **changes):
    return obtain(results, stage.preparation, origin(**changes), log)


def folder(results, stage: Stage, teacher_hash="teacher-a"):
    return place(results, identity(stage.preparation, origin(teacher_hash)))


def test_built_once_and_read_back_with_its_cost(tmp_path):
    stage = Stage()
    first, second = ask(tmp_path, stage), ask(tmp_path, stage)
    assert stage.built == 1
    assert torch.equal(first.prepared.tensors["value"], second.prepared.tensors["value"])
    assert (second.key, second.seconds, second.peak_bytes, second.device) == (first.key, first.seconds, first.peak_bytes, first.device)
    cost = json.loads((folder(tmp_path, stage) / "prepared.json").read_text())["cost"]
    assert cost["seconds"] > 0 and cost["cpu_seconds"] >= 0 and cost["peak_memory_bytes"] >= 0 and cost["threads"] >= 1 and cost["device"]


def test_memory_on_a_cpu_is_what_the_building_took(tmp_path):
    class Large(Stage):
        def build(self, teacher, data):
            torch.ones(40 << 20, dtype=torch.uint8).sum()
            return super().build(teacher, data)

    stage = Large()
    gc.collect()  # what other tests left behind in this process must not be given back while it builds
    ctypes.CDLL(None).malloc_trim(0)
    assert 36 << 20 < ask(tmp_path, stage).peak_bytes < 400 << 20


def test_memory_on_a_gpu_is_what_the_building_took_there(monkeypatch):
    """Beyond the data set, and on the device that it is built on."""
    device, asked = torch.device("cuda:1"), []
    held = {"memory_allocated": 700, "max_memory_allocated": 1000, "reset_peak_memory_stats": None}
    for name, value in held.items():
        monkeypatch.setattr(torch.cuda, name, lambda device=None, name=name, value=value: asked.append((name, device)) or value)
    memory = _Memory(device)
    assert memory.peak() == 300 and asked[0] == ("reset_peak_memory_stats", device) and {where for _, where in asked} == {device}


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, {"teacher_hash": "teacher-b"}),
        ({}, {"data_hash": "data-b"}),
        ({}, {"arithmetic": "tf32"}),
        ({"version": 2}, {}),
        ({"settings": {"layers": ["stage2"], "seed": 0}}, {}),
    ],
    ids=["teacher", "data", "arithmetic", "version", "layers"],
)
def test_what_was_made_for_something_else_is_not_used(tmp_path, changes, asked):
    stage, other = Stage(), Stage(**changes)
    ask(tmp_path, stage)
    ask(tmp_path, other, **asked)
    assert other.built == 1 and len(list((tmp_path / "preparations").glob("counted-*"))) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("teacher_hash", "teacher-b"), ("data_hash", "data-b"), ("version", 0), ("name", "other"), ("settings", {"layers": ["stage3"]}), ("format", 9)],
)
def test_a_record_of_something_else_in_its_place_is_refused(tmp_path, field, value):
    stage = Stage()
    ask(tmp_path, stage)
    path = folder(tmp_path, stage) / "prepared.json"
    write_json(path, read_json(path) | {field: value})
    refused(tmp_path, stage, f"another {field}")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def without(*names):
    """Written whole, with a valid checksum, but for one value."""

    def change(path):
        record = inner = read_json(path)
        for name in names[:-1]:
            inner = inner[name]
        del inner[names[-1]]
        write_json(path, record)

    return change


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("prepared.pt", truncate, "SHA-256"),
        ("prepared.pt", flip, "SHA-256"),
        ("prepared.pt", lambda path: path.write_bytes(b""), "SHA-256"),
        ("prepared.pt", lambda path: path.unlink(), "damaged"),
        ("prepared.json", truncate, "damaged"),
        ("prepared.json", lambda path: path.write_text(""), "damaged"),
        ("prepared.json", lambda path: path.write_text("[]"), "damaged"),
        ("prepared.json", lambda path: write_json(path, {"cost": 3, "facts": {}, "sha256": ""}), "damaged"),
        ("prepared.json", without("sha256"), "damaged"),
        ("prepared.json", without("cost", "seconds"), "damaged"),
    ],
)
def test_a_damaged_one_is_refused_and_says_what_to_do(tmp_path, file, damage, said):
    stage = Stage()
    ask(tmp_path, stage)
    damage(folder(tmp_path, stage) / file)
    refused(tmp_path, stage, said)


def refused(results, stage: Stage, said: str) -> None:
    with pytest.raises(UsageError) as error:
        ask(results, stage)
    text = str(error.value)
    assert said in text and f"remove {folder(results, stage)} and it is built again" in text and "\n" not in text
    assert stage.built == 1


def test_a_build_that_was_cut_off_is_built_again(tmp_path):
    stage = Stage()
    ask(tmp_path, stage)
    (folder(tmp_path, stage) / "prepared.json").unlink()  # it is written last
    ask(tmp_path, stage)
    assert stage.built == 2


class Long(Stage):
    """Three parts, kept after each; `stop_at`: a signal comes in that one."""

    stop_at = 0

    def build(self, teacher, data) -> Prepared:
        self.built += 1
        state = data.resume() or {"part": 0, "value": torch.zeros(3)}
        self.began = state["part"]
        for part in range(state["part"] + 1, 4):
            if part == self.stop_at:
                raise Stopped
            state = {"part": part, "value": state["value"] + torch.rand(3, generator=data.generator("noise", part))}
            data.save(state)
        return Prepared({"value": state["value"]})


def test_a_stage_that_was_stopped_goes_on_where_it_saved_last(tmp_path):
    whole = ask(tmp_path / "whole", Long())
    stage = Long()
    stage.stop_at = 3
    with pytest.raises(Stopped):
        ask(tmp_path, stage)
    stage.stop_at = 0
    found = ask(tmp_path, stage)
    assert stage.began == 2 and torch.equal(found.prepared.tensors["value"], whole.prepared.tensors["value"])
    assert sorted(p.name for p in folder(tmp_path, stage).iterdir()) == ["prepared.json", "prepared.pt"]


def test_a_damaged_state_of_a_stage_is_named_and_not_used(tmp_path):
    stage, said = Long(), []
    stage.stop_at = 3
    with pytest.raises(Stopped):
        ask(tmp_path, stage)
    flip(folder(tmp_path, stage) / "unfinished.pt")
    stage.stop_at = 0
    ask(tmp_path, stage, said.append)
    assert stage.began == 0 and any("unfinished.pt is damaged" in line for line in said)


def test_a_pipe_in_the_place_of_a_state_is_named_and_not_waited_for(tmp_path):
    stage, said = Long(), []
    folder(tmp_path, stage).mkdir(parents=True)
    os.mkfifo(folder(tmp_path, stage) / "unfinished.pt")
    ask(tmp_path, stage, said.append)
    assert stage.began == 0 and any("unfinished.pt: is no regular file: starting over" in line for line in said)


def test_who_comes_second_waits_and_reads(tmp_path):
    entered, go = threading.Event(), threading.Event()

    class Slow(Stage):
        def build(self, teacher, data):
            entered.set()
            assert go.wait(30)
            return super().build(teacher, data)

    stage, found = Slow(), []
    workers = [threading.Thread(target=lambda: found.append(ask(tmp_path, stage).key)) for _ in range(2)]
    workers[0].start()
    assert entered.wait(30)
    workers[1].start()
    go.set()
    for worker in workers:
        worker.join(60)
    assert stage.built == 1 and len(found) == 2 and found[0] == found[1]


class Dead(nn.Module):
    """A network some of whose channels are zero on every image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x, kinds=()):
        found = self.network(x, kinds)
        maps = {kind: tuple(m * (torch.arange(m.shape[1]) % 3 > 0).view(-1, 1, 1) for m in group) for kind, group in found.maps.items()}
        return Outputs(found.logits, found.embedding, maps)


@pytest.fixture(scope="module")
def of_dead_teacher():
    """Preparations made from a teacher with dead channels."""
    teacher = Dead(cases.frozen_teacher())
    made = {}
    for name in METHODS:
        method = registry.get(name)
        made[name] = method.preparation(cases.hyper_of(method), cases.setting()).build(teacher, cases.Images())
    return made


@pytest.mark.parametrize("batch", [1, 2, 16])
@pytest.mark.parametrize("name", METHODS)
def test_dead_channels_of_teacher_and_student_give_no_nan(name, batch, of_dead_teacher):
    prepared = of_dead_teacher[name]
    assert all(t.isfinite().all() for t in prepared.tensors.values())
    json.dumps(dict(prepared.facts), allow_nan=False)
    method = registry.get(name)(cases.hyper_of(registry.get(name)), cases.setting(), prepared).train()
    student = cases.network(cases.STUDENT, "student").train()
    images, labels = cases.pictures(batch)
    with torch.no_grad():
        teacher = cases.asked(Dead(cases.frozen_teacher())(images, method.teacher_needs(method.hyper).maps), method.teacher_needs(method.hyper))
    losses = method.losses(Dead(student)(images, method.student_needs(method.hyper).maps), teacher, Batch(labels, torch.arange(batch)))
    parameters = list(student.parameters())
    cases.backward(method, losses, parameters)
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in parameters if p.grad is not None) and any(p.grad is not None for p in parameters)


@pytest.mark.parametrize("name", METHODS)
def test_a_teacher_of_other_widths_is_refused_by_the_method(name):
    """The store tells teachers apart by hash; the method still looks at the shapes it is given."""
    wide = ("resnet8x4", "resnet8x4")
    with pytest.raises(MethodError) as error:
        registry.get(name)(cases.hyper_of(registry.get(name), *wide), cases.setting(*wide), cases.prepared(name))
    assert "\n" not in str(error.value)


def test_prepare_builds_once_prints_figures_and_runs_use_the_same(tmp_path, monkeypatch, capsys):
    from bench.plan import protocols

    tiny = protocols.Protocol("tiny", dataset="shapes100", batch=16, train_images=200, test_images=100, trial="for tests")
    monkeypatch.setattr(protocols, "PROTOCOLS", {"tiny": tiny})
    dataset = data.load(tiny)
    state = cases.models.build("resnet8").state_dict()
    file = teacher_networks.publish(tmp_path, dataset.name, dataset.hash, "resnet8", state, {"top1": 1.0}, {"source": "trained", "trained": True})
    options = prepare.Prepare(
        method="skd", teacher="resnet8", protocol="tiny", overrides=("skd.dimensions=4", "skd.fit_steps=5"), results=tmp_path, device="cpu", threads=1
    )
    assert options.main() == 0 and options.main() == 0
    said = capsys.readouterr().out
    assert said.count("KL left") == 3 and said.count("kl_left") == 6 and "200 images" in said and "CPU s" in said
    (place_of,) = (tmp_path / "preparations").glob("skd-embedding-*")
    method = registry.get("skd")
    hyper = method.Hyper(dimensions=4, fit_steps=5)
    shapes = cases.models.shapes("resnet8")
    wanted = method.preparation(hyper, cases.Setting(shapes, cases.models.shapes("resnet8", 100, 32), 100, 200))
    assert place(tmp_path, identity(wanted, origin(file.hash, dataset.hash))) == place_of


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "kd"}, "kd prepares nothing"),
        ({"method": "skdd"}, "did you mean skd"),
        ({"overrides": ("kd.alpha=1",)}, "the method is skd"),
        ({"overrides": ("skd.dimension=4",)}, "did you mean dimensions"),
        ({"protocol": "crdd"}, "unknown protocol 'crdd'"),
        ({}, "no resnet8 teacher"),
    ],
)
def test_prepare_names_bad_input(tmp_path, options, said):
    given = {"method": "skd", "teacher": "resnet8", "protocol": "smoke", "results": tmp_path, "device": "cpu", **options}
    with pytest.raises((UsageError, MethodError)) as error:
        prepare.run(prepare.Prepare(**given))
    assert said in str(error.value)


def test_changed_code_makes_another(tmp_path, monkeypatch):
    """Its version says what was meant: the same settings under other code are no stored result, and none of its parts is gone on with."""
    stage = Stage()
    first = ask(tmp_path, stage)
    monkeypatch.setattr(registry, "source_of", lambda function: "f" * 16)
    second = ask(tmp_path, stage)
    assert stage.built == 2 and second.key != first.key
    assert ask(tmp_path, stage).key == second.key and stage.built == 2
    monkeypatch.setattr(models, "source_hash", lambda: "f" * 16)
    assert ask(tmp_path, stage).key not in (first.key, second.key) and stage.built == 3
