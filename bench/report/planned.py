"""The plan of a results folder as the tables see it; an empty one where none was left."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.plan.identity import canonical
from bench.plan.protocols import Protocol
from bench.store.files import read_json, typed
from bench.store.records import PlannedCell, PlanRecord, known_protocol

PairKey = tuple[str | None, str]


@dataclass(frozen=True)
class Planned:
    """What is planned of one table. `table`: the protocol and precision that its runs have in common; None: nothing is planned."""

    table: tuple[str, str] | None = None
    protocol: Protocol | None = None
    precision: str = ""
    seeds: tuple[int, ...] = ()
    pairs: tuple[PairKey, ...] = ()
    titles: dict[str, str] = field(default_factory=dict)
    cells: dict[tuple[str | None, str, str, str, int], PlannedCell] = field(default_factory=dict)  # by pair, method, label and seed

    @property
    def runs(self) -> set[str]:
        """The ids that are known."""
        return {cell.run for cell in self.cells.values() if cell.run}

    def cell(self, pair: PairKey, method: str, label: str, seed: int) -> PlannedCell | None:
        return self.cells.get((*pair, method, label, seed))

    def labels(self, pair: PairKey, method: str) -> list[str]:
        """The labels of a method's planned rows, in the plan's order (empty: the method's own row)."""
        return list(dict.fromkeys(key[3] for key in self.cells if key[:3] == (*pair, method)))

    def own(self, pair: PairKey, method: str, label: str) -> dict[str, Any]:
        """The settings that a planned row changes, as the method's own row has them."""
        cell = next((c for seed in self.seeds if (c := self.cell(pair, method, label, seed))), None)
        return {name: own for name, (own, _) in cell.changed.items()} if cell else {}


def read(folder: Path) -> Planned:
    """The plan in `folder`. Raises StoreError."""
    raw = read_json(folder / "plan.json")
    if raw is None:
        return Planned()
    plan = typed(folder / "plan.json", raw, PlanRecord)
    return Planned(
        (canonical(raw["protocol"]), plan.precision),
        known_protocol(raw["protocol"], plan.protocol),
        plan.precision,
        tuple(sorted(plan.seeds)),
        tuple((p.teacher, p.student) for p in plan.pairs),
        {row.method: row.title for row in plan.rows},
        {(c.teacher, c.student, c.method, c.label, c.seed): c for c in plan.cells},
    )
