"""Every test can fail: it asserts, or a function of tests/ that it calls does."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RAISING = ("raises", "fail", "assert_close", "assert_array_equal", "assert_allclose")
"""Calls that are assertions: pytest's, torch's and NumPy's."""
OTHERWISE = {
    "test_step_never_waits_for_the_device": "torch raises where the host waits: its mode is set to error",
    "test_sound_method_passes": "calls the tests of the contract that it is given",
}

Functions = dict[str, ast.FunctionDef]
"""By "module.name", e.g. tests.methods.independent.agrees."""


def functions(trees: dict[str, ast.Module]) -> Functions:
    """Those at the top of each module."""
    return {f"{module}.{node.name}": node for module, tree in trees.items() for node in tree.body if isinstance(node, ast.FunctionDef)}


def called(module: str, tree: ast.Module, function: ast.FunctionDef) -> Iterator[str]:
    """The full names of what a function calls, as far as the module's own functions and its imports tell them."""
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    known = {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            yield f"{known.get(first, f'{module}.{first}')}{'.' * bool(rest)}{rest}"


def asserts(function: ast.FunctionDef) -> bool:
    calls = (ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call))
    return any(isinstance(node, ast.Assert) for node in ast.walk(function)) or any(call.split(".")[-1] in RAISING for call in calls)


def idle(trees: dict[str, ast.Module]) -> list[str]:
    """The tests that neither assert nor call, directly or not, a function that does."""
    found = functions(trees)
    calls = {name: {*called(name.rpartition(".")[0], trees[name.rpartition(".")[0]], node)} for name, node in found.items()}
    sound = {name for name, node in found.items() if asserts(node)}
    while more := {name for name in found if name not in sound and calls[name] & sound}:
        sound |= more
    return sorted(name for name in found.keys() - sound if name.rpartition(".")[2].startswith("test"))


def test_every_test_asserts_something():
    paths = (ROOT / "tests").rglob("*.py")
    trees = {".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text()) for path in paths}
    assert len(functions(trees)) > 1000
    assert {name.rpartition(".")[2] for name in idle(trees)} == OTHERWISE.keys()


def test_one_that_does_not_is_found():
    near = "def agrees(x): assert x\ndef shows(x): print(x)"
    far = "from tests import near\nfrom tests.near import agrees as same, shows\ndef own(x): near.agrees(x)\n"
    far += "def test_a(): own(1)\ndef test_b(): same(1)\ndef test_c(): shows(1)\ndef test_d(): agrees(1)\n"
    far += "def test_e():\n    with pytest.raises(X): f()"
    assert idle({"tests.near": ast.parse(near), "tests.far": ast.parse(far)}) == ["tests.far.test_c", "tests.far.test_d"]
