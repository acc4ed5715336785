"""The registry: names, refusals, files that do not load, entry points, source hashes."""

import functools
import importlib
import importlib.metadata
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import methods
from methods import registry
from methods.base import Method, MethodError

PLAIN = '''
from torch.nn import functional as F
from methods.base import Method
from methods.registry import register

@register("{name}")
class Added(Method):
    def losses(self, student, teacher, batch):
        return {{"ce": F.cross_entropy(student.logits, batch.labels)}}
'''
NEEDING = PLAIN.replace("import Method", "import Method, Needs").format(name="needing") + "    teacher_outputs = Needs(maps=KINDS)\n"


@pytest.fixture
def own(monkeypatch):
    """A registry of the test's own, with what is found in the package put back after."""
    known, broken = dict(registry._methods), dict(registry._broken)
    monkeypatch.setattr(registry, "_methods", known)
    monkeypatch.setattr(registry, "_broken", broken)
    return registry


@pytest.fixture
def folder(tmp_path, monkeypatch, own):
    """An empty folder that is scanned as part of the package `methods`, and a registry that has found nothing yet."""
    monkeypatch.setattr(methods, "__path__", [str(tmp_path)])
    monkeypatch.setattr(registry, "_methods", {})
    monkeypatch.setattr(registry, "_broken", {})
    monkeypatch.setattr(registry, "_discovered", False)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    before = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - before:
        if module.startswith("methods."):
            del sys.modules[module]
            if hasattr(methods, module.removeprefix("methods.")):
                delattr(methods, module.removeprefix("methods."))


def test_finds_the_papers_rows():
    assert {"student", "kd", "fitnet", "at", "rkd", "sp", "cc", "cc_paper", "iep", "iep_bb", "skd"} <= set(registry.names())
    assert registry.names() == sorted(registry.names())
    assert all(registry.get(name).name == name for name in registry.names())


def test_taken_name_is_refused(own):
    with pytest.raises(MethodError, match="'kd' is taken by methods.kd"):
        own.register("kd")(type("Other", (Method,), {}))
    assert own.get("kd").__module__ == "methods.kd"


@pytest.mark.parametrize("name", ["KD", "my-method", "2kd", "", "a b", "_x", "kd\n", "é"])
def test_bad_name_is_refused(own, name):
    with pytest.raises(MethodError, match="lower case"):
        own.register(name)(type("Other", (Method,), {}))


def test_what_is_no_method_is_refused(own):
    with pytest.raises(MethodError, match="not a methods.base.Method"):
        own.register("other")(type("Other", (), {}))

    @dataclass
    class Loose:
        weight: float = 1.0

    with pytest.raises(MethodError, match="frozen dataclass"):
        own.register("other")(type("Other", (Method,), {"Hyper": Loose}))
    assert "other" not in own.names()


def test_title_defaults_to_the_name(own):
    assert own.register("other")(type("Other", (Method,), {})).title == "other"
    assert own.register("another")(type("Another", (Method,), {"title": "A"})).title == "A"


@pytest.mark.parametrize(("name", "hint"), [("fitnets", "fitnet"), ("rdk", "rkd"), ("cc_papr", "cc_paper"), ("studnet", "student")])
def test_unknown_name_lists_close_ones(name, hint):
    with pytest.raises(MethodError, match=rf"unknown method '{name}'; did you mean .*\b{hint}\b"):
        registry.get(name)


def test_unknown_name_without_close_ones_lists_all():
    with pytest.raises(MethodError, match="known: .*fitnet.*student"):
        registry.get("qqqqqqqqqqqqqqqq")


def test_dropped_in_file_is_found(folder):
    (folder / "added.py").write_text(PLAIN.format(name="mine"))
    assert registry.names() == ["mine"]
    assert registry.broken() == {}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("def (", "SyntaxError"),
        ("import no_such_package_here", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        (PLAIN.format(name="Bad"), "MethodError"),
        (PLAIN.format(name="half") + "\nraise RuntimeError('late,\\nin two lines')", "RuntimeError: late, in two lines"),
        (PLAIN.format(name="ended") + "\nimport sys\nsys.exit(3)", "SystemExit: 3"),
        ("import argparse\nargparse.ArgumentParser().parse_args(['--what'])", "SystemExit: 2"),
        (PLAIN.format(name="mine"), "taken"),
        (NEEDING.replace("KINDS", '("stage")'), "Needs(maps='stage'): give a tuple of kinds, as in maps=(\"stage\",)"),
        (NEEDING.replace("KINDS", '("stages",)'), "there is no kind 'stages'; the kinds are stage, preact, relu, last, cam"),
    ],
    ids=["syntax", "import", "zero", "name", "late", "exit", "arguments", "taken", "comma", "kind"],
)
def test_broken_file_is_listed_and_harmless(folder, text, error):
    (folder / "a_good.py").write_text(PLAIN.format(name="mine"))
    (folder / "broken.py").write_text(text)
    (folder / "z_good.py").write_text(PLAIN.format(name="yours"))
    assert registry.names() == ["mine", "yours"]  # a method registered before its file failed is taken back
    assert list(registry.broken()) == ["broken"] and error in registry.broken()["broken"]
    assert "\n" not in registry.broken()["broken"]
    with pytest.raises(MethodError, match="'broken' is broken"):
        registry.get("broken")


def test_private_files_are_not_methods(folder):
    (folder / "_helper.py").write_text("raise RuntimeError")
    assert registry.names() == [] and registry.broken() == {}


class Point:
    """An entry point, as importlib.metadata gives it."""

    def __init__(self, name: str, load) -> None:
        self.name, self.load = name, load


def test_entry_points_are_loaded(folder, monkeypatch):
    asked = []

    def add():
        registry.register("outside")(type("Outside", (Method,), {}))

    def fail():
        raise ImportError("their package is broken")

    def points(group):
        asked.append(group)
        return [Point("bad", fail), Point("good", add)]

    monkeypatch.setattr(importlib.metadata, "entry_points", points)
    assert registry.names() == ["outside"]
    assert asked == ["kd_bench.methods"]
    assert registry.broken() == {"bad": "ImportError: their package is broken"}


def test_an_installed_package_is_found(tmp_path):
    """A package with an entry point, installed for a process of its own."""
    (tmp_path / "outside.py").write_text(PLAIN.format(name="outside"))
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kd_bench.methods]\noutside = outside\n")
    code = "from methods import registry; print(registry.get('outside').__module__, len(registry.source_hash('outside')), 'kd' in registry.names())"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": f"{root}:{tmp_path}"}, cwd=tmp_path)
    assert result.stdout.split() == ["outside", "16", "True"], result.stderr


def test_source_hash_follows_the_file(folder):
    (folder / "added.py").write_text(PLAIN.format(name="mine"))
    (folder / "other.py").write_text(PLAIN.format(name="yours"))
    first, other = registry.source_hash("mine"), registry.source_hash("yours")
    assert len(first) == 16 and int(first, 16) >= 0
    assert first == registry.source_hash("mine") != other
    (folder / "added.py").write_text(PLAIN.format(name="mine") + "# changed\n")
    assert registry.source_hash("mine") != first
    assert registry.source_hash("yours") == other


@pytest.mark.parametrize(
    ("far", "near"),
    [
        ("from methods import _far", "from methods._near import x"),
        ("from . import _far", "from ._near import x"),
        ("from ._far import y", "from . import _near"),
    ],
)
def test_source_hash_follows_what_the_file_imports(folder, far, near):
    """Helpers of the package too, and those of helpers; not the contract that all share."""
    (folder / "_near.py").write_text(far + "\nx = 1\n")
    (folder / "_far.py").write_text("import methods.mine\ny = 1\n")
    (folder / "mine.py").write_text(near + "\n" + PLAIN.format(name="mine"))
    (folder / "yours.py").write_text(PLAIN.format(name="yours"))
    found = [registry.source_hash("mine")]
    for name in ("_far.py", "_near.py", "mine.py"):
        (folder / name).write_text((folder / name).read_text() + "# changed\n")
        found.append(registry.source_hash("mine"))
    assert len(set(found)) == 4
    yours = registry.source_hash("yours")
    (folder / "base.py").write_text("")
    assert (registry.source_hash("mine"), registry.source_hash("yours")) == (found[-1], yours)


def test_the_source_of_a_function_is_that_of_its_file(folder):
    (folder / "_stage.py").write_text("def build(teacher, data):\n    pass\n\nclass Made:\n    def build(self):\n        pass\n")
    stage = importlib.import_module("methods._stage")
    ways = (stage.build, functools.partial(stage.build, data=1), stage.Made().build)
    (first,) = {registry.source_of(way) for way in ways}
    (folder / "_stage.py").write_text("# changed\n")
    assert {registry.source_of(way) for way in ways} != {first}


def test_what_is_called_like_a_function_has_the_source_of_its_class():
    class Build:
        def __call__(self, teacher, data):
            pass

    here = registry.source_of(test_what_is_called_like_a_function_has_the_source_of_its_class)
    assert registry.source_of(Build()) == registry.source_of(functools.partial(Build(), data=1)) == registry.source_of(Build) == here
    space: dict = {}
    exec("def build(teacher, data): pass", space)  # noqa: S102
    for build in (space["build"], len):
        with pytest.raises(MethodError, match="is in no file"):
            registry.source_of(build)


def test_source_hash_of_a_package_covers_all_its_files(folder):
    package = folder / "large"
    package.mkdir()
    (package / "__init__.py").write_text(PLAIN.format(name="large"))
    (package / "part.py").write_text("x = 1\n")
    first = registry.source_hash("large")
    (package / "part.py").write_text("x = 2\n")
    second = registry.source_hash("large")
    assert first != second
    shutil.rmtree(package / "__pycache__", ignore_errors=True)
    assert registry.source_hash("large") == second
