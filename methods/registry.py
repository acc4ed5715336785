"""The registry of methods: found by scanning this package, and through the entry-point group `kd_bench.methods`."""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import methods
from methods import _sources
from methods.base import Method, MethodError

ENTRY_POINTS = "kd_bench.methods"
_methods: dict[str, type[Method]] = {}
_beside: dict[str, Callable[[type[Method]], type[Method]]] = {}
_combined: dict[tuple[type[Method], str], type[Method]] = {}
_broken: dict[str, str] = {}
_discovered = False


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Class decorator that adds a method under `name` (lower case, digits, underscore).

    Raises MethodError for a bad or taken name, or a class that breaks the contract's form.
    """

    def add(cls: type[Method]) -> type[Method]:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise MethodError(f"method name {name!r} is not lower case letters, digits and underscores")
        if name in _methods:
            raise MethodError(f"method name {name!r} is taken by {_methods[name].__module__}")
        if not issubclass(cls, Method):
            raise MethodError(f"{cls.__name__} is not a methods.base.Method")
        if not dataclasses.is_dataclass(cls.Hyper) or not cls.Hyper.__dataclass_params__.frozen:
            raise MethodError(f"{cls.__name__}.Hyper is not a frozen dataclass")
        cls.name = name
        cls.title = cls.title or name
        _methods[name] = cls
        return cls

    return add


def register_beside(name: str) -> Callable[[Callable[[type[Method]], type[Method]]], Callable[[type[Method]], type[Method]]]:
    """Decorator of a function that adds the loss of the method `name` to any other's: it makes the class that `get("other+name")` gives, a
    subclass of the other, or raises MethodError with the reason why it cannot. Raises MethodError for a taken name."""

    def add(combine: Callable[[type[Method]], type[Method]]) -> Callable[[type[Method]], type[Method]]:
        if name in _beside:
            raise MethodError(f"what stands beside a method as {name!r} is taken by {_beside[name].__module__}")
        _beside[name] = combine
        return combine

    return add


def discover() -> None:
    """Import every module of this package and every entry point once; one that fails is kept with its error and breaks nothing else."""
    global _discovered
    if _discovered:
        return
    _discovered = True
    for module in sorted(m.name for m in pkgutil.iter_modules(methods.__path__)):
        if module not in _sources.PLUMBING and not module.startswith("_"):
            _load(module, lambda module=module: importlib.import_module(f"methods.{module}"))
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        _load(point.name, point.load)


def _load(name: str, action: Callable[[], object]) -> None:
    before, beside = set(_methods), set(_beside)
    try:
        action()
    except (Exception, SystemExit) as error:  # a stranger's file may do anything; it is reported where methods are listed
        for half in set(_methods) - before:
            del _methods[half]
        for half in set(_beside) - beside:
            del _beside[half]
        _broken[name] = " ".join(f"{type(error).__name__}: {error}".split())


def names() -> list[str]:
    """All registered names, natural order."""
    discover()
    return sorted(_methods)


def broken() -> dict[str, str]:
    """Files or entry points that could not be loaded, with the error."""
    discover()
    return dict(_broken)


def get(name: str) -> type[Method]:
    """The class registered under `name`, or made of two joined by "+": "at+kd" has the losses of both.

    Raises MethodError naming close matches, the error of a broken file, or why the two cannot be joined.
    """
    discover()
    if name in _methods:
        return _methods[name]
    if "+" in name:
        return _combination(name)
    if name in _broken:
        raise MethodError(f"method file {name!r} is broken: {_broken[name]}")
    close = difflib.get_close_matches(name, _methods, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(names())}"
    raise MethodError(f"unknown method {name!r}; {hint}")


def _combination(name: str) -> type[Method]:
    first, _, second = name.partition("+")
    try:
        method, other = get(first), get(second)
        if second not in _beside:
            raise MethodError(f"{second} cannot stand beside a method; {', '.join(sorted(_beside))} can, as in {first}+{min(_beside)}")
        if (method, second) not in _combined:
            made = _beside[second](method)
            made.name, made.title, made.version = name, f"{method.title} + {other.title}", made.version + other.version - 1
            _combined[method, second] = made
    except MethodError as error:
        raise MethodError(f"{name}: {error}") from None
    return _combined[method, second]


def source_hash(name: str) -> str:
    """SHA-256 of the method's source, 16 hex digits, recorded with each run: its file, or all files of its package, with what they import of
    `methods`; of both, where two are joined."""
    get(name)
    digest = hashlib.sha256()
    for part in name.split("+"):
        digest.update(_sources.of_file(Path(inspect.getfile(get(part)))))
    return digest.hexdigest()[:16]


def source_of(function: Callable) -> str:
    """SHA-256, 16 hex digits, of the file that a function is written in, with what that imports of `methods`."""
    return _sources.of_function(function)


def sources(wanted: Iterable[str]) -> dict[str, str]:
    """The source hash of each of these methods; one that is not there any more is left out."""
    found = {}
    for name in wanted:
        with contextlib.suppress(MethodError):
            found[name] = source_hash(name)
    return found
