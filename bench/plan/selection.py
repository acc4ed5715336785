"""What the command line changes of a profile, and how its words are read."""

import contextlib
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import UsageError, unknown
from bench.plan.profiles import ALL_PAIRS, Pair

LARGEST = 2**63 - 1
"""Of the seeds that a record can hold."""
MOST = 10_000
"""Seeds (or epochs) in one list, far more than anybody trains."""


@dataclass(frozen=True)
class Selection:
    """What the command line changes of a profile; None or empty: as the profile says."""

    methods: tuple[str, ...] = ()  # replaces the rows; a name with "+" before it joins them
    pairs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    protocol: str | None = None
    epochs: int | None = None
    sample_rate: float | None = None
    precision: str | None = None
    hyper: tuple[tuple[str, str, object], ...] = ()  # (method, field, value)


def parse_seeds(texts: Iterable[str], option: str = "--seeds") -> tuple[int, ...]:
    """Seeds (or epochs: `option` says which) from "1", "1,2" or "1-3", in order, each once. Raises UsageError."""
    seeds: list[int] = []
    for part in (p for text in texts for p in text.split(",") if p):
        first, dash, last = part.partition("-")
        ends = (first, last if dash else first)
        low, high = (int(end) if end.isdecimal() and len(end) < 20 else LARGEST + 1 for end in ends)  # longer ones are larger, or filled up with 0
        if not all(end.isdecimal() for end in ends) or high < low:
            raise UsageError(f"{option} {part[:80]}: expected whole numbers or a range, as in 1,2 or 1-3")
        if high > LARGEST or len(seeds) + high - low >= MOST:
            raise UsageError(f"{option} {part[:80]}: at most {MOST:,} numbers, none above {LARGEST}")
        seeds += range(low, high + 1)
    return tuple(dict.fromkeys(seeds))


def parse_pair(text: str, networks: Sequence[str]) -> Pair:
    """A pair from "teacher-student" or "teacher/student". Raises UsageError, with close matches."""
    splits = [[part.strip() for part in text.partition(separator)] for separator in ("/", "->", "-")]
    for teacher, found, student in splits:
        if found and teacher in networks and student in networks:
            return Pair(teacher, student)
    for teacher, found, student in splits:
        if found and (teacher in networks or student in networks):
            raise unknown("network", student if teacher in networks else teacher, list(networks))
    if text in networks:
        raise UsageError(f"pair {text!r} is one network: write teacher-student, as in resnet56-resnet20")
    if not any(separator in text for separator in "-/"):
        raise unknown("network", text, list(networks))
    raise unknown("pair", text, [p.name for p in ALL_PAIRS])


def parse_set(text: str) -> tuple[str, str, str]:
    """One `--set method.field=value`. The value stays text; its type is the field's. Raises UsageError."""
    name, equals, value = text.partition("=")
    method, dot, field = name.partition(".")
    if not (equals and dot and method and field):
        raise UsageError(f"--set {text}: expected method.field=value, as in kd.temperature=2")
    return method, field, value


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def typed(text: str, kind: Any) -> object:
    """`text` as an annotation asks for it: bool, int, float, str, None, a Literal, a union or a tuple of these. Raises ValueError that says
    what was expected."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for part in sorted(parts, key=lambda part: part is str):  # last: every text is a str
            with contextlib.suppress(ValueError):
                return typed(text, part)
    elif origin is typing.Literal:
        for part in parts:
            if text == str(part):
                return part
    elif origin is tuple:
        items = [item.strip(" '\"") for item in text.strip("()[] ").split(",") if item.strip()]
        each = parts[:1] * len(items) if parts[1:] == (...,) else parts
        with contextlib.suppress(ValueError):
            return tuple(typed(item, part) for item, part in zip(items, each, strict=True))
    elif kind is types.NoneType and text.lower() == "none":
        return None
    elif kind is bool and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    elif kind in (int, float, str):
        with contextlib.suppress(ValueError):
            return kind(text)
    raise ValueError(f"expected {_called(kind)}")


def _called(kind: Any) -> str:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is tuple:
        return f"{_called(parts[0])} or several with commas" if parts[1:] == (...,) else f"({', '.join(map(_called, parts))})"
    if parts:
        return " or ".join(map(_called, parts))
    return {types.NoneType: "none", int: "an int"}.get(kind) or f"a {getattr(kind, '__name__', kind)}"


def words(texts: Iterable[str]) -> tuple[str, ...]:
    """Names separated by spaces or commas, each once."""
    return tuple(dict.fromkeys(word for text in texts for word in text.replace(",", " ").split()))
