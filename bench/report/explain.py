"""How one cell came about: its runs, their numbers, and every step from them to what the table prints."""

import re

from bench.errors import UsageError, unknown
from bench.plan.rows import method_of, settings_of
from bench.report import compare, derivation
from bench.report.blocks import conditions, row_title, set_title
from bench.report.table import OWN, Cell, Pair, ResultSet, Row, Table, main_row
from bench.text import clean


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", text.lower())


def explain(sets: list[ResultSet], method: str, pair: str) -> str:
    """All cells of `method` (its name or what tables print) on `pair` (teacher and student in any spelling: resnet56/resnet20,
    "WRN-40-2 -> WRN-16-2"). Raises UsageError."""
    tables = [(s, t) for s in sets for t in s.tables]
    if not tables:
        raise UsageError("--explain: there are no tables here")
    rows = [row for _, t in tables for row in t.rows]
    wanted = _named(method, rows)
    if not wanted:
        raise unknown("--explain method", method, sorted({row.method for row in rows} | {row_title(row) for row in rows}))
    pairs = sorted({f"{p.teacher or ''}/{p.student}" for _, t in tables for p in t.pairs})
    if _plain(pair) not in {_plain(p) for p in pairs}:
        raise unknown("--explain pair", pair, pairs)
    parts = []
    for results, table in tables:
        for i, column in enumerate(table.pairs):
            if _plain(f"{column.teacher or ''}{column.student}") == _plain(pair):
                base = (plain := main_row(table.rows, table.baseline)) and plain.cells[i]
                versus = compare.against(table, table.baseline)
                for k, row in enumerate(table.rows):
                    if (row.method, row.variant) in wanted:
                        lines = _cell(results, table, row, column, row.cells[i], base)
                        steps = derivation.steps(table, row.cells[i], base, [(versus, (k, i))] if versus else [])
                        parts.append("\n".join(clean(line, 1000) for line in [*lines, *(f"  {step}" for step in steps)]))
    if not parts:
        raise UsageError(f"--explain: {clean(method, 60)} has no cell on {clean(pair, 80)}")
    return "\n\n".join(parts) + "\n"


def _named(said: str, rows: list[Row]) -> set[tuple[str, str]]:
    """The (method, variant) that a name means: a method with all its variants, a row as a launch names it, or the name that a table prints;
    capitals and signs may differ."""
    if ":" in said:
        try:
            wanted = {name: _value(text) for name, text in settings_of(said).items()}
        except UsageError:  # no row of a launch
            return set()
        return {(r.method, r.variant) for r in rows if _plain(r.method) == _plain(method_of(said)) and _settings(r) == wanted}
    for same in (lambda name: name == said, lambda name: _plain(name) == _plain(said)):
        found = {(r.method, r.variant) for r in rows if same(r.method) or same(r.title) or same(row_title(r))}
        if found:
            return found
    return set()


def _settings(row: Row) -> dict[str, float | str]:
    parts = (part.partition("=") for part in row.variant.split(", ") if part)
    return {name: _value(value) for name, _, value in parts}


def _value(text: str) -> float | str:
    """A number as such: 2 and 2.0 are one."""
    try:
        return float(text)
    except ValueError:
        return text.lower()


def _cell(results: ResultSet, table: Table, row: Row, pair: Pair, cell: Cell, base: Cell | None) -> list[str]:
    lines = [f"{row_title(row)} on {pair.title} ({set_title(results)})", f"  {conditions(table)}"]
    place = "" if results.name == OWN else f"{results.name}/"
    if pair.error:
        lines.append(f"  this pair {pair.error}")
    for seed in sorted(cell.values.keys() | cell.others.keys()):
        run = cell.runs.get(seed)
        if seed in cell.values:
            record = run.record
            shown = f"{cell.values[seed]:.2f} after epoch {record.epochs} (best {record.best_top1:.2f} in epoch {record.best_epoch})"
            if base and base is not cell and seed in base.values:
                shown += f"; {table.baseline} {base.values[seed]:.2f}, difference {cell.values[seed] - base.values[seed]:+.2f}"
        else:
            at = f" in epoch {run.epoch}" if run is not None and run.epoch else ""
            shown = cell.others[seed] + at + (f": {cell.reasons[seed]}" if cell.reasons.get(seed) else "")
        lines.append(f"  seed {seed}: {shown}" + (f"  [{place}runs/{run.id}]" if run is not None else ""))
    return lines
