"""Numbers that papers print, from results/published/*.json, each with its source."""

from pathlib import Path
from typing import Any, ClassVar

from msgspec import Struct

from bench.plan.protocols import PROTOCOLS, Protocol
from bench.store.files import read_json, typed
from bench.store.records import Amount, Name, Percent, Positive, Text

HERE = Path(__file__).resolve().parents[2] / "results" / "published"


class Published(Struct, frozen=True, kw_only=True):
    """One printed number: CIFAR-100 top-1 in percent; `sd` and `n` are None where the source does not give them."""

    WHAT: ClassVar[str] = "a published number"
    top1: Percent
    sd: Amount | None = None
    n: Positive | None
    name: Text
    source: Text
    note: Text = ""


class _Entry(Published, frozen=True, kw_only=True):
    """A number and what it was published for."""

    protocols: list[Name]
    dataset: Name
    sample_rate: float
    teacher: Name
    student: Name
    method: Name
    variant: Text = ""


class _File(Struct):
    WHAT: ClassVar[str] = "a file of published numbers"
    entries: list[dict[str, Any]]


Index = dict[tuple[str, str, float, str, str, str], Published]


def load(folder: Path | None = None) -> Index:
    """All entries by (protocol, dataset, sample rate, teacher, student, row). Of two for one key the first file by name counts.

    A row is the method, or `method [field=value, ...]` for an entry with a `variant`: the settings in which it differs from the method's own.

    Raises StoreError for a file of another form.
    """
    index: Index = {}
    for path in sorted((folder or HERE).glob("*.json")):
        data = read_json(path) or {}
        for number, entry in enumerate(typed(path, data, _File).entries, 1):
            e = typed(f"{path}, entry {number}", data | entry, _Entry)
            for protocol in e.protocols:
                index.setdefault((protocol, e.dataset, e.sample_rate, e.teacher, e.student, _row(e.method, e.variant)), e)
    return index


def is_comparable(protocol: Protocol) -> bool:
    """Whether numbers under this protocol may stand beside published ones: the declared protocol itself, at any sample rate."""
    declared = PROTOCOLS.get(protocol.name)
    return declared is not None and protocol == declared.sampled(protocol.sample_rate)


def _row(method: str, variant: str) -> str:
    return f"{method} [{variant}]" if variant else method


def look_up(index: Index, protocol: Protocol, teacher: str | None, student: str, method: str, variant: str = "") -> Published | None:
    """The published number for a cell, or None: none published, or the protocol is not the one it was published for."""
    if teacher is None or not is_comparable(protocol):
        return None
    return index.get((protocol.name, protocol.dataset, protocol.sample_rate, teacher, student, _row(method, variant)))
