"""`methods NAME` says what a method is, its settings, needs and costs; `new method NAME` writes one that works as it is."""

import importlib.util
from pathlib import Path

import pytest
import torch

from bench.__main__ import main
from bench.measure import method_pages
from bench.plan import new
from methods import registry
from methods.base import Batch
from tests.methods import cases
from tests.methods import test_conformance as conformance

EVIDENCE = Path(__file__).resolve().parents[3] / "results" / "evidence" / "smoke"


def test_a_page_says_what_a_method_is_needs_and_costs(capsys):
    assert main(["methods", "skd", "--results", str(EVIDENCE)]) == 0
    said = capsys.readouterr().out
    for part in ("skd: SKD", "methods/skd/__init__.py", "beta", "0.5", "0.05 for vgg13-vgg8", "a preparation from the teacher, skd-embedding",
                 "cannot do vgg13-mobilenetv2: ", "costs\n  resnet20-resnet8"):  # fmt: skip
        assert part in said, part


@pytest.mark.parametrize("name", registry.names())
def test_every_method_has_a_page(name):
    lines = method_pages.page(name)
    assert lines[0].startswith(f"{name}: ") and {"settings", "needs", "adds"} <= set(lines) and max(map(len, lines)) < 400


def test_the_list_names_all(capsys):
    assert main(["methods"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{said}" for name in registry.names())


def test_a_new_method_trains_as_it_is(tmp_path, monkeypatch):
    path = new.write("my_own", tmp_path)
    spec = importlib.util.spec_from_file_location("my_own", path)
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    method = registry.get("my_own")
    conformance.test_declares_itself("my_own")
    assert method.title == "MyOwn" and method.Hyper().weight == 0.5
    made = method(method.Hyper(), cases.setting()).train()
    images, labels = cases.pictures(16)
    student, teacher = cases.network(cases.STUDENT, "student"), cases.frozen_teacher()
    losses = made.losses(student(images, ()), teacher(images, ()), Batch(labels, torch.arange(16)))
    sum(losses.values()).backward()
    assert set(losses) == {"ce", "my_own"} and all(p.grad.isfinite().all() for p in student.parameters())


@pytest.mark.parametrize(("name", "said"), [("kd", "is there already"), ("My", "cannot name a method"), ("class", "cannot name a method")])
def test_a_name_that_cannot_be_one_writes_nothing(tmp_path, monkeypatch, capsys, name, said):
    monkeypatch.setattr(new.importlib.util, "find_spec", lambda _: type("Spec", (), {"submodule_search_locations": [str(tmp_path)]}))
    new.names.methods()
    assert main(["new", "method", name]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())
