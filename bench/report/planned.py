"""The plan of a results folder as the tables see it; an empty one where none was left."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.plan.identity import canonical
from bench.plan.protocols import Protocol
from bench.store.files import read_json, typed
from bench.store.records import PlannedCell, PlanRecord, known_protocol
from bench.text import settings_text

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
    cells: dict[tuple[str | None, str, str, int], PlannedCell] = field(default_factory=dict)

    @property
    def runs(self) -> set[str]:
        """The ids that are known."""
        return {cell.run for cell in self.cells.values() if cell.run}

    def cell(self, pair: PairKey, method: str, seed: int) -> PlannedCell | None:
        return self.cells.get((*pair, method, seed))

    def changes(self, pair: PairKey, method: str) -> tuple[dict[str, Any], str]:
        """Of the planned row of a method: the settings that it changes, as the method's own row has them, and its label (empty: its own row)."""
        cell = next((c for seed in self.seeds if (c := self.cell(pair, method, seed))), None)
        changed = cell.changed if cell else {}
        return {name: own for name, (own, _) in changed.items()}, settings_text({name: here for name, (_, here) in changed.items()})


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
        {(c.teacher, c.student, c.method, c.seed): c for c in plan.cells},
    )
