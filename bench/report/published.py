"""Numbers that papers print, from results/published/*.json, each with its source."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import StoreError
from bench.plan.protocols import PROTOCOLS
from bench.store.files import read_json

HERE = Path(__file__).resolve().parents[2] / "results" / "published"


@dataclass(frozen=True)
class Published:
    """One printed number: CIFAR-100 top-1 in percent; `sd` and `n` are None where the source does not give them."""

    top1: float
    sd: float | None
    n: int | None
    name: str
    source: str
    note: str


Index = dict[tuple[str, str, float, str, str, str], Published]


def load(folder: Path | None = None) -> Index:
    """All entries by (protocol, dataset, sample rate, teacher, student, row). Of two for one key the first file by name counts.

    A row is the method, or `method [field=value, ...]` for an entry with a `variant`: the settings in which it differs from the method's own.

    Raises StoreError for a file of another form.
    """
    index: Index = {}
    for path in sorted((folder or HERE).glob("*.json")):
        data = read_json(path) or {}
        try:
            for entry in data["entries"]:
                whole = {**data, **entry}
                number = Published(float(entry["top1"]), whole.get("sd"), whole["n"], data["name"], data["source"], data.get("note", ""))
                for protocol in data["protocols"]:
                    row = _row(whole["method"], whole.get("variant", ""))
                    index.setdefault((protocol, whole["dataset"], whole["sample_rate"], whole["teacher"], whole["student"], row), number)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: not a file of published numbers ({type(error).__name__}: {error})") from error
    return index


def is_comparable(protocol: dict[str, Any]) -> bool:
    """Whether numbers under this protocol may stand beside published ones: the declared protocol itself, at any sample rate."""
    declared = PROTOCOLS.get(protocol.get("name", ""))
    if declared is None:
        return False
    same = declared.sampled(protocol.get("sample_rate", 1.0))
    facts = {**dataclasses.asdict(same), "milestones": list(same.milestones)}
    return all(protocol.get(key, value) == value for key, value in facts.items())


def _row(method: str, variant: str) -> str:
    return f"{method} [{variant}]" if variant else method


def look_up(index: Index, protocol: dict[str, Any], teacher: str | None, student: str, method: str, variant: str = "") -> Published | None:
    """The published number for a cell, or None: none published, or the protocol is not the one it was published for."""
    if teacher is None or not is_comparable(protocol):
        return None
    return index.get((protocol["name"], protocol["dataset"], protocol.get("sample_rate", 1.0), teacher, student, _row(method, variant)))
