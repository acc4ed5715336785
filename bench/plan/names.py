"""The names of methods and networks as their files declare them, read without running them: so a wrong name is refused before torch is loaded."""

import ast
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from bench.errors import UsageError, check_known
from bench.plan.rows import method_of, settings_of

ENTRY_POINTS = "kd_bench.methods"


def _trees(package: str) -> Iterator[ast.Module]:
    """The syntax trees of a package's files; one that cannot be parsed is left to the registry, which names it."""
    (folder,) = importlib.util.find_spec(package).submodule_search_locations
    for path in sorted(Path(folder).rglob("*.py")):
        try:
            yield ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue


def _decorated(tree: ast.Module) -> Iterator[str]:
    """The names under which a file registers classes, by `register` or a module's, where they are literal."""
    for node in tree.body:
        for call in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            if isinstance(call, ast.Call) and "register" in (getattr(call.func, "id", ""), getattr(call.func, "attr", "")):
                given = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "name")]
                yield from (one.value for one in given[:1] if isinstance(one, ast.Constant) and isinstance(one.value, str))


def _declared(tree: ast.Module) -> Iterator[str]:
    """The keys of a file's NETWORKS, where that is a literal."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and getattr(node.targets[0], "id", "") == "NETWORKS":
            yield from (key.value for key in node.value.keys if isinstance(key, ast.Constant))


@cache
def methods() -> frozenset[str]:
    """Methods that the files of this package register, and the names of the files, which stand for broken ones."""
    (folder,) = importlib.util.find_spec("methods").submodule_search_locations
    files = {path.stem for path in Path(folder).iterdir() if (path.suffix == ".py" or path.is_dir()) and not path.name.startswith("_")}
    registered = {name for tree in _trees("methods") for name in _decorated(tree)}
    return frozenset(registered | (files - {"base", "registry"}))


@cache
def networks() -> tuple[str, ...]:
    """Networks, file by file."""
    return tuple(dict.fromkeys(name for tree in _trees("models") for name in _declared(tree)))


def check_methods(names: Iterable[str]) -> None:
    """Raises UsageError for a name that no file registers. Where other packages register methods, the registry decides later."""
    names = list(names)
    for name in names:
        if ":" in name:
            raise UsageError(f"{name}: name the method alone; rows with settings of their own are for run --methods")
    if importlib.metadata.entry_points(group=ENTRY_POINTS):
        return
    for name in names:
        for part in name.removeprefix("+").split("+"):
            check_known("method", part, sorted(methods()))


def check_rows(rows: Iterable[str]) -> None:
    """The same for the rows of a launch, which may have settings of their own (bench.plan.rows)."""
    rows = list(rows)
    for row in rows:
        settings_of(row)
    check_methods(map(method_of, rows))


def check_networks(names: Iterable[str]) -> None:
    """Raises UsageError for a name that no file declares."""
    for name in names:
        check_known("network", name, networks())


def parse_teacher(text: str) -> tuple[str | None, Path]:
    """Architecture and file of one `--teacher`, ARCHITECTURE=FILE or FILE alone. Raises UsageError."""
    architecture, equals, path = text.partition("=")
    if equals and architecture in networks():
        if not path:
            raise UsageError(f"--teacher {text}: names no file, as in --teacher {architecture}=FILE")
        return architecture, Path(path)
    if equals and not Path(text).exists():
        check_networks([architecture])
    return None, Path(text)
