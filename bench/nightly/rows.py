"""What a row of a history must be before anything is computed from it. Files come from other hands too (a kept set, a cache, an artifact)."""

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from bench.errors import StoreError
from bench.store.files import typed

FORMAT = 1
Row = dict[str, Any]

LARGEST = 1e100
"""Of a value: its square is still a number. On a logarithmic scale nothing is smaller than one over it."""
Value = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Plain = str | int | float | bool | None


class Metric(Struct, frozen=True, kw_only=True):
    """One metric of a night; see bench.nightly.history."""

    WHAT: ClassVar[str] = "a metric of a night"
    method: str
    pair: str
    metric: str
    unit: str
    part: str
    worse: Literal["lower", "higher"]
    scale: Literal["linear", "log"]
    values: Annotated[dict[str, Value], Meta(min_length=1)]
    bits: dict[str, str] = {}
    noise: Annotated[float, Meta(ge=0, le=LARGEST)] = 0.0

    def __post_init__(self) -> None:
        if any(value != value for value in self.values.values()):
            raise ValueError("a value is no number")
        if self.scale == "log" and min(self.values.values()) < 1 / LARGEST:
            raise ValueError("values of a logarithmic scale are above 0")


class Night(Struct, frozen=True, kw_only=True):
    """A row; each of its metrics is a `Metric`."""

    WHAT: ClassVar[str] = "a night"
    format: int
    night: Annotated[int, Meta(ge=1, le=10**9)]
    date: Annotated[datetime, Meta(tz=True)]
    commit: str | None
    plan: str
    parts: list[str]
    facts: dict[str, Plain]
    sources: dict[str, Plain]
    failures: dict[str, str]
    metrics: Annotated[dict[str, dict[str, Any]], Meta(min_length=1)]


def check(row: Any, where: str) -> Row:
    """`row` where it is one. Raises StoreError that names `where` and the first field that is missing or wrong."""
    if not isinstance(row, dict):
        raise StoreError(f"{where}: not a JSON object")
    typed(where, row, Night)
    try:
        datetime.fromisoformat(row["date"])  # which reads less than what may stand in JSON: no small t and z
    except ValueError as error:
        raise StoreError(f"{where}: not a night ({error})") from None
    for key, metric in row["metrics"].items():
        typed(f"{where}: metric {key[:60]!r}", metric, Metric)
    return row


def sift(metrics: dict[str, dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The metrics that can be kept, and for each of the others, by its method, what is wrong with it."""
    good, failures = {}, {}
    for key, metric in metrics.items():
        try:
            typed(key, metric, Metric)
            good[key] = metric
        except StoreError as error:
            failures[str(metric.get("method") or key)] = str(error)
    return good, failures
