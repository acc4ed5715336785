"""Numbers that papers print, from results/published/*.json, each with its source."""

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import StoreError
from bench.plan.protocols import PROTOCOLS
from bench.store.files import read_json

HERE = Path(__file__).resolve().parents[2] / "results" / "published"
EPOCHS = ("last", "not said", "best")
ORIGINS = ("own", "copied", "rerun")


@dataclass(frozen=True)
class Published:
    """One printed number: CIFAR-100 top-1 in percent; `sd` and `n` are None where the source does not give them.

    `epoch`: which epoch's number it is, of EPOCHS; `origin`: whether the source ran it itself, copied it, or ran another's code, of ORIGINS;
    `remark`: of this number alone; `others`: what other sources print for the same cell.
    """

    top1: float
    sd: float | None
    n: int | None
    name: str
    source: str
    note: str
    epoch: str = "not said"
    origin: str = "own"
    remark: str = ""
    others: tuple["Published", ...] = ()

    @property
    def rank(self) -> tuple[int, int, bool]:
        """Of several numbers for a cell the lowest stands in the tables: last epoch first, own first, those that can be judged first."""
        return EPOCHS.index(self.epoch), ORIGINS.index(self.origin), self.sd is None or self.n is None

    @property
    def text(self) -> str:
        """The number with its deviation, and `best` where it is the best epoch's, e.g. `76.32 best`."""
        return f"{self.top1:.2f}" + ("" if self.sd is None else f" ±{self.sd:.2f}") + (" best" if self.epoch == "best" else "")

    @property
    def said(self) -> str:
        """What a reader must know of the number beside its source, e.g. `best epoch, copied: a slip`; empty for a paper's own last epoch."""
        words = [f"{self.epoch} epoch"] if self.epoch == "best" else []
        words += [{"copied": "copied", "rerun": "a re-run by others"}[self.origin]] if self.origin != "own" else []
        return ", ".join(words) + (": " if words and self.remark else "") + self.remark

    @property
    def differing(self) -> tuple["Published", ...]:
        """Of the others those that print another number, each number and epoch once."""
        found = {(p.top1, p.epoch): p for p in reversed(self.others) if p.top1 != self.top1}
        return tuple(reversed(found.values()))


Index = dict[tuple[str, str, float, str, str, str], Published]


def load(folder: Path | None = None) -> Index:
    """All entries by (protocol, dataset, sample rate, teacher, student, row). Of several for one key the first by `rank`, then by the name of its
    file, counts, and has the rest as its `others`. An entry whose `protocols` are none stands beside nothing.

    A row is the method, or `method [field=value, ...]` for an entry with a `variant`: the settings in which it differs from the method's own.
    What a file says of all its entries, an entry may say otherwise. Raises StoreError for a file of another form.
    """
    found: dict[tuple[str, str, float, str, str, str], list[Published]] = defaultdict(list)
    for path in sorted((folder or HERE).glob("*.json")):
        data = read_json(path) or {}
        try:
            for entry in data["entries"]:
                whole = {**data, **entry}
                number = _number(whole)
                for protocol in whole["protocols"]:
                    row = _row(whole["method"], whole.get("variant", ""))
                    found[protocol, whole["dataset"], whole["sample_rate"], whole["teacher"], whole["student"], row].append(number)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: not a file of published numbers ({type(error).__name__}: {error})") from error
    return {key: _first(numbers) for key, numbers in found.items()}


def _number(whole: dict[str, Any]) -> Published:
    epoch, origin = whole.get("epoch", "not said"), whole.get("origin", "own")
    if epoch not in EPOCHS or origin not in ORIGINS:
        raise ValueError(f"epoch {epoch!r} and origin {origin!r}; there are {', '.join(EPOCHS)} and {', '.join(ORIGINS)}")
    note, remark = whole.get("note", ""), whole.get("remark", "")
    return Published(float(whole["top1"]), whole.get("sd"), whole["n"], whole["name"], whole["source"], note, epoch, origin, remark)


def _first(numbers: list[Published]) -> Published:
    first, *others = sorted(numbers, key=lambda number: number.rank)  # stable: files keep their order among equals
    return dataclasses.replace(first, others=tuple(others))


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
