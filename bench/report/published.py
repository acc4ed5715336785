"""Numbers that papers print, from results/published/*.json, each with its source."""

from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from msgspec import Struct, structs

from bench.plan.protocols import PROTOCOLS, Protocol
from bench.store.files import read_json, typed
from bench.store.records import Amount, Name, Percent, Positive, Text

HERE = Path(__file__).resolve().parents[2] / "results" / "published"
Epoch = Literal["last", "not said", "best"]
Origin = Literal["own", "copied", "rerun"]


class Published(Struct, frozen=True, kw_only=True):
    """One printed number: CIFAR-100 top-1 in percent; `sd` and `n` are None where the source does not give them.

    `epoch`: which epoch's number it is; `origin`: whether the source ran it itself, copied it, or ran another's code; `remark`: of this number
    alone; `others`: what other sources print for the same cell.
    """

    WHAT: ClassVar[str] = "a published number"
    top1: Percent
    sd: Amount | None = None
    n: Positive | None
    name: Text
    source: Text
    note: Text = ""
    epoch: Epoch = "not said"
    origin: Origin = "own"
    remark: Text = ""
    others: tuple["Published", ...] = ()

    @property
    def rank(self) -> tuple[int, int, bool]:
        """Of several numbers for a cell the lowest stands in the tables: last epoch first, own first, those that can be judged first."""
        return get_args(Epoch).index(self.epoch), get_args(Origin).index(self.origin), self.sd is None or self.n is None

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
    """All entries by (protocol, dataset, sample rate, teacher, student, row). Of several for one key the first by `rank`, then by the name of its
    file, counts, and has the rest as its `others`. An entry whose `protocols` are none stands beside nothing.

    A row is the method, or `method [field=value, ...]` for an entry with a `variant`: the settings in which it differs from the method's own.
    What a file says of all its entries, an entry may say otherwise. Raises StoreError for a file of another form.
    """
    found: dict[tuple[str, str, float, str, str, str], list[Published]] = defaultdict(list)
    for path in sorted((folder or HERE).glob("*.json")):
        data = read_json(path) or {}
        for number, entry in enumerate(typed(path, data, _File).entries, 1):
            e = typed(f"{path}, entry {number}", data | entry, _Entry)
            for protocol in e.protocols:
                found[protocol, e.dataset, e.sample_rate, e.teacher, e.student, _row(e.method, e.variant)].append(e)
    ranked = {key: sorted(numbers, key=lambda number: number.rank) for key, numbers in found.items()}  # stable: files keep their order among equals
    return {key: structs.replace(first, others=tuple(others)) for key, (first, *others) in ranked.items()}


def is_comparable(protocol: Protocol) -> bool:
    """Whether numbers under this protocol may stand beside published ones: a declared protocol itself, and no trial of one."""
    return PROTOCOLS.get(protocol.name) == protocol


def _row(method: str, variant: str) -> str:
    return f"{method} [{variant}]" if variant else method


def look_up(index: Index, protocol: Protocol, teacher: str | None, student: str, method: str, variant: str = "") -> Published | None:
    """The published number for a cell, or None: none published, or the protocol is not the one it was published for."""
    if teacher is None or not is_comparable(protocol):
        return None
    return index.get((protocol.name, protocol.dataset, protocol.sample_rate, teacher, student, _row(method, variant)))
