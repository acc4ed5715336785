"""What a row of a history must be before anything is computed from it. Files come from other hands too (a kept set, a cache, an artifact)."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from bench.errors import StoreError

FORMAT = 1
Row = dict[str, Any]

LARGEST = 1e100
"""Of a value: its square is still a number. On a logarithmic scale nothing is smaller than one over it."""
LAST_NIGHT = 10**9


def _night(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LAST_NIGHT


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _date(value: Any) -> bool:
    try:
        return _text(value) and datetime.fromisoformat(value).utcoffset() is not None
    except ValueError:
        return False


def _plain(value: Any) -> bool:
    """A fact: text, number, yes or no, nothing."""
    return value is None or isinstance(value, str | int | float)


def _table(inner: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(inner, value.values()))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST  # NaN is neither


ROW: dict[str, tuple[Callable[[Any], bool], str]] = {
    "night": (_night, "a whole number from 1"),
    "date": (_date, "an ISO date and time with its offset to UTC"),
    "commit": (lambda value: value is None or _text(value), "text or null"),
    "plan": (_text, "text"),
    "parts": (lambda value: isinstance(value, list) and all(map(_text, value)), "a list of names"),
    "facts": (_table(_plain), "plain values by name"),
    "sources": (_table(_plain), "hashes by method"),
    "failures": (_table(_text), "reasons by method"),
    "metrics": (lambda value: isinstance(value, dict) and bool(value), "at least one metric"),
}
METRIC: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{name: (_text, "text") for name in ("method", "pair", "metric", "unit", "part")},
    "worse": (lambda value: value in ("lower", "higher"), "lower or higher"),
    "scale": (lambda value: value in ("linear", "log"), "linear or log"),
    "values": (lambda value: isinstance(value, dict) and value and all(map(_number, value.values())), f"numbers up to {LARGEST:g}, at least one"),
}
OPTIONAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bits": (_table(_text), "hashes by replicate"),
    "noise": (lambda value: _number(value) and value >= 0, "a number from 0"),
}


def check(row: Any, where: str) -> Row:
    """`row` where it is one. Raises StoreError that names `where` and the first field that is missing or wrong."""
    if not isinstance(row, dict):
        raise StoreError(f"{where}: not a JSON object")
    if row.get("format") != FORMAT:
        raise StoreError(f"{where}: format {_short(row.get('format'))}, this version reads {FORMAT}")
    _fields(row, ROW, where)
    for key, metric in row["metrics"].items():
        check_metric(metric, f"{where}: metric {_short(key)}")
    return row


def check_metric(metric: Any, where: str) -> None:
    """Raises StoreError as `check`."""
    if not isinstance(metric, dict):
        raise StoreError(f"{where}: not a JSON object")
    _fields(metric, METRIC, where)
    _fields(metric, {name: rule for name, rule in OPTIONAL.items() if name in metric}, where)
    if metric["scale"] == "log" and not all(value >= 1 / LARGEST for value in metric["values"].values()):
        raise StoreError(f"{where}: values of a logarithmic scale are above 0")


def sift(metrics: dict[str, dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The metrics that can be kept, and for each of the others, by its method, what is wrong with it."""
    good, failures = {}, {}
    for key, metric in metrics.items():
        try:
            check_metric(metric, key)
            good[key] = metric
        except StoreError as error:
            failures[str(metric.get("method") or key)] = str(error)
    return good, failures


def _fields(found: dict[str, Any], rules: dict[str, tuple[Callable[[Any], bool], str]], where: str) -> None:
    for name, (right, said) in rules.items():
        if name not in found:
            raise StoreError(f"{where}: no {name}")
        if not right(found[name]):
            raise StoreError(f"{where}: {name} is {_short(found[name])}, not {said}")


def _short(value: Any) -> str:
    """A value of any kind and size in a few words."""
    if isinstance(value, dict | list):
        return f"a {'table' if isinstance(value, dict) else 'list'} of {len(value)}"
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a number too large"
    return repr(value[:60] if isinstance(value, str) else value)
