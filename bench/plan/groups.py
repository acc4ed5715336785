"""A group: the unit of work."""

from dataclasses import dataclass

from bench.plan.protocols import Protocol
from bench.plan.rows import method_of, settings_of


@dataclass(frozen=True)
class Group:
    """The runs of one (pair, seed, protocol, precision): the unit of work."""

    teacher: str | None
    student: str
    seed: int
    protocol: Protocol
    precision: str
    methods: tuple[str, ...]  # its rows: names of methods, some with settings of their own (bench.plan.rows)
    hyper: tuple[tuple[str, str, object], ...] = ()  # overrides: (method, field, value)
    changed: tuple[tuple[str, str, object], ...] = ()  # (row, field, value): what makes runs variants of their method's own row
    title: str = ""  # of its runs in place of the methods' titles: "Teacher" keeps a teacher's own training out of the tables

    def overrides(self, row: str) -> dict[str, object]:
        return {field: value for name, field, value in self.hyper if name == method_of(row)} | settings_of(row)

    def variant(self, row: str) -> dict[str, object]:
        """The settings of a row's runs that its method's own row has otherwise; empty: they are its own row's."""
        return {field: value for name, field, value in self.changed if name == row}
