"""The registry of analyses: every file of bench/analysis, imported once; a broken file is listed with its error and breaks nothing else."""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Callable

import bench.analysis
from bench.analysis.frame.base import SCOPES, Analysis
from bench.errors import UsageError, unknown

_analyses: dict[str, type[Analysis]] = {}
_broken: dict[str, str] = {}
_discovered = False


def register(name: str) -> Callable[[type[Analysis]], type[Analysis]]:
    """Class decorator that adds an analysis under `name`. Raises ValueError for a bad or taken name or a class that breaks the contract's form."""

    def add(cls: type[Analysis]) -> type[Analysis]:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"analysis name {name!r} is not lower case letters, digits and underscores")
        if name in _analyses:
            raise ValueError(f"analysis name {name!r} is taken by {_analyses[name].__module__}")
        if not issubclass(cls, Analysis) or cls.scope not in SCOPES:
            raise ValueError(f"{cls.__name__} is not an Analysis with a scope of {' or '.join(SCOPES)}")
        if not dataclasses.is_dataclass(cls.Options) or not cls.Options.__dataclass_params__.frozen:
            raise ValueError(f"{cls.__name__}.Options is not a frozen dataclass")
        if cls.needs.students and cls.scope != "group":
            raise ValueError(f"{cls.__name__} needs students: its scope is group")
        cls.name = name
        _analyses[name] = cls
        return cls

    return add


def discover() -> None:
    """Import every file of the folder (not its packages) once."""
    global _discovered
    if _discovered:
        return
    _discovered = True
    for module in sorted(m.name for m in pkgutil.iter_modules(bench.analysis.__path__) if not m.ispkg):
        before = set(_analyses)
        try:
            importlib.import_module(f"bench.analysis.{module}")
        except (Exception, SystemExit) as error:  # a stranger's file may do anything; it is reported where analyses are listed
            for half in set(_analyses) - before:
                del _analyses[half]
            _broken[module] = " ".join(f"{type(error).__name__}: {error}".split())


def names() -> list[str]:
    """All registered names, sorted."""
    discover()
    return sorted(_analyses)


def broken() -> dict[str, str]:
    """Files that could not be loaded, with the error."""
    discover()
    return dict(_broken)


def get(name: str) -> type[Analysis]:
    """The class registered under `name`. Raises UsageError naming close matches, or the error of a broken file."""
    discover()
    if name in _analyses:
        return _analyses[name]
    if name in _broken:
        raise UsageError(f"analysis file {name!r} is broken: {_broken[name]}")
    raise unknown("analysis", name, names())
