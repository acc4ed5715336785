"""What a method's numbers come from: its own file or package, and every module of `methods` that these import, and those import."""

import ast
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import methods
from methods.base import MethodError

PLUMBING = {"base", "registry"}
"""Modules of this package that are no method; they are the same to all, and in no hash."""


def of_file(path: Path) -> bytes:
    """What the hash of the code in a file is made of: see `content`. A package of its own counts with all its files."""
    package = path.parent not in _roots() and (path.parent / "__init__.py").exists()
    return content(path.parent.rglob("*.py") if package else [path])


def of_function(function: Callable) -> str:
    """SHA-256, 16 hex digits, of the file that a function (or the class of what is called like one) is written in and of what that imports of
    this package. Raises MethodError for one that is in no file."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    try:
        return hashlib.sha256(content([Path(inspect.getfile(_written(function)))])).hexdigest()[:16]
    except (TypeError, OSError) as error:
        raise MethodError(f"{function!r} is in no file that can be read ({error}); write it in a module") from None


def _written(function: Callable) -> Callable:
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function)


def content(files: Iterable[Path]) -> bytes:
    """The bytes of these files and of all modules of `methods` that they import, directly or not, in the order of their paths."""
    found: dict[Path, bytes] = {}
    left = [file.resolve() for file in files]
    while left:
        file = left.pop()
        if file not in found:
            found[file] = file.read_bytes()
            left += [path.resolve() for name in _imported(found[file], _package(file)) for path in _places(name)]
    return b"".join(found[file] for file in sorted(found))


def _roots() -> list[Path]:
    return [Path(path) for path in methods.__path__]


def _package(file: Path) -> tuple[str, ...]:
    """The package that a file's relative imports begin at: ("methods", "skd") of methods/skd/loss.py; empty for one outside of `methods`."""
    root = next((root.resolve() for root in _roots() if root.resolve() in file.parents), None)
    return () if root is None else ("methods", *file.parent.relative_to(root).parts)


@functools.lru_cache(1024)
def _imported(source: bytes, package: tuple[str, ...]) -> tuple[str, ...]:
    """Names below `methods` that a module of that package imports; what cannot be parsed imports nothing."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ()
    return tuple(dict.fromkeys(name.removeprefix("methods.") for name in _names(tree, package) if name.startswith("methods.")))


def _names(tree: ast.Module, package: tuple[str, ...]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            name = ".".join((*above, *([node.module] if node.module else [])))
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)  # of a module, or of what is in it


def _places(name: str) -> list[Path]:
    """The file of a module below `methods`; none for the plumbing and for what is no module."""
    if name.split(".")[0] in PLUMBING:
        return []
    paths = [root.joinpath(*name.split(".")) for root in _roots()]
    return [place for path in paths for place in (path.with_suffix(".py"), path / "__init__.py") if place.is_file()]
