"""The shape of the house, read from the sources: which way imports run, no circles, no torch on the report's side, nothing too long."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("report", "nightly", "launch", "analysis", "measure", "train", "data", "store", "plan")
"""From the top down: a room imports itself and those below it."""
SHARED = {"bench.errors", "bench.text", "bench.options", "bench.statistics"}
DOOR = {"bench", "bench.__main__", "bench.commands", "bench.completion", "bench.doctor", "bench.report.__main__"}
NO_TORCH = (
    "bench.report",
    "bench.store.files",
    "bench.store.runs",
    "bench.plan.expand",
    "bench.launch.progress",
    "bench.launch.status",
    "bench.nightly.verdict",
    "bench.analysis.frame.commands",
    "bench.commands",
)
LINES = 400


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package in ("models", "methods", "bench"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path
    return found


def imports(name: str, everywhere: bool = True) -> set[str]:
    """Modules of the product that a module imports; `everywhere`: inside functions too, though not for type checkers alone."""
    found: set[str] = set()

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            deeper = inside or isinstance(child, ast.FunctionDef | ast.Lambda)
            if (everywhere or not inside) and isinstance(child, ast.Import):
                found.update(a.name for a in child.names)
            elif (everywhere or not inside) and isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{name}: a relative import"
                for a in child.names:
                    whole = f"{child.module}.{a.name}"
                    found.add(whole if whole in modules() else child.module)
            visit(child, deeper)

    visit(ast.parse(modules()[name].read_text()), False)
    return {m for m in found if m.split(".")[0] in ("bench", "methods", "models", "torch", "torchvision", "matplotlib")}


def rank(name: str) -> int:
    """Where a module stands, from the top: the door, the rooms, the shared words, methods, models."""
    package, *rest = name.split(".")
    if package != "bench":
        return {"methods": 101, "models": 102}.get(package, 1000)
    if name in SHARED:
        return 100
    if name in DOOR:
        return 0
    return 1 + ROOMS.index(rest[0])


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_run_down(name):
    for other in imports(name):
        if rank(other) == 1000:
            continue
        assert rank(other) >= rank(name), f"{name} imports {other}, which stands above it"


def test_no_circle():
    graph = {name: {m for m in imports(name) if m in modules()} - {name} for name in modules()}
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join((*path[path.index(name) :], name))}"
        if name not in done:
            for other in graph[name]:
                walk(other, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


@pytest.mark.parametrize("name", NO_TORCH)
def test_no_torch_on_the_readers_side(name):
    code = f"import {name}, sys; sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_top_level_is_small():
    top = {p.stem for p in (ROOT / "bench").glob("*.py")} - {"__init__"}
    assert len(top) <= 8, sorted(top)
    assert {p.name for p in (ROOT / "bench").iterdir() if (p / "__init__.py").exists()} == set(ROOMS)


def test_no_file_is_too_long():
    files = [p for folder in ("models", "methods", "bench", "tests") for p in (ROOT / folder).rglob("*.py")]
    assert not [(p.name, n) for p in files if (n := p.read_text().count("\n")) > LINES]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for(room):
    text = ast.get_docstring(ast.parse((ROOT / "bench" / room / "__init__.py").read_text())) or ""
    assert len([line for line in text.splitlines() if line]) >= 3, room
    assert (ROOT / "tests" / "bench" / room).is_dir(), f"tests/bench/{room} is missing"


COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp


SCOPES = ast.FunctionDef | ast.Lambda


def confused(function: ast.FunctionDef | ast.Lambda) -> set[str]:
    """Names that one comprehension of a function binds and another reads, though nothing else in the function binds them."""
    own: set[str] = set()
    bound: set[str] = set()
    read: set[str] = set()

    def visit(node: ast.AST, around: frozenset[str], inside: bool) -> None:
        if isinstance(node, SCOPES) and node is not function:
            own.add(getattr(node, "name", ""))
            return
        if isinstance(node, COMPREHENSIONS | ast.GeneratorExp):
            targets = {name.id for part in node.generators for name in ast.walk(part.target) if isinstance(name, ast.Name)}
            around, inside = around | targets, inside or isinstance(node, COMPREHENSIONS)
            if isinstance(node, COMPREHENSIONS):
                bound.update(targets)
        elif isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.alias):
            own.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and node.id not in around:
            if isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif inside:
                read.add(node.id)
        for child in ast.iter_child_nodes(node):
            visit(child, around, inside)

    visit(function, frozenset(), False)
    return (bound & read) - own


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_comprehension_takes_a_name_that_another_one_reads(name):
    """Python 3.12.0 to 3.12.3 reads the variable of the first in the second (CPython issue 118513), and every version since where the name is an
    enclosing function's (issue 156664): the report's page fell over it."""
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, SCOPES):
            assert not confused(node), f"{name}, line {node.lineno}"


def test_confused_comprehensions_are_found():
    innocent = "return [b for b in a], [b for _ in a], [[z for z in y] for y in a], lambda name: [y for y in name]"
    for body, names in (("x = {name: 1 for name in a}; return x, [name(y) for y in b]", {"name"}), (innocent, set())):
        (function,) = ast.parse(f"def f(a, b): {body}").body
        assert confused(function) == names
