"""How one cell came about: its runs, their numbers, and every step from them to what the table prints."""

import math
import re

from bench.errors import UsageError, unknown
from bench.report import compare
from bench.report.blocks import conditions, row_title, set_title
from bench.report.statistics import paired, summarise, t_quantile
from bench.report.table import Cell, Pair, ResultSet, Row, Table
from bench.text import clean


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def explain(sets: list[ResultSet], method: str, pair: str) -> str:
    """All cells of `method` on `pair` (teacher and student in any spelling: resnet56/resnet20, "WRN-40-2 -> WRN-16-2"). Raises UsageError."""
    tables = [(s, t) for s in sets for t in s.tables]
    methods = sorted({row.method for _, t in tables for row in t.rows})
    pairs = sorted({f"{p.teacher or ''}/{p.student}" for _, t in tables for p in t.pairs})
    if not tables:
        raise UsageError("--explain: there are no tables here")
    if method not in methods:
        raise unknown("--explain method", method, methods)
    if _plain(pair) not in {_plain(p) for p in pairs}:
        raise unknown("--explain pair", pair, pairs)
    parts = []
    for results, table in tables:
        for i, column in enumerate(table.pairs):
            if _plain(f"{column.teacher or ''}{column.student}") == _plain(pair):
                base = next((r.cells[i] for r in table.rows if r.method == table.baseline and not r.variant), None)
                versus = compare.against(table, table.baseline)
                for k, row in enumerate(table.rows):
                    if row.method == method:
                        lines = _cell(results, table, row, column, row.cells[i], base) + _corrected(versus, (k, i))
                        parts.append("\n".join(clean(line, 1000) for line in lines))
    return "\n\n".join(parts) + "\n"


def _corrected(versus: compare.Comparison | None, key: tuple[int, int]) -> list[str]:
    found = versus.cells.get(key) if versus else None
    if found is None or found.p is None:
        return []
    count = sum(c.p is not None for c in versus.cells.values())
    return [f"  against {versus.baseline}: p = {found.p:.4g}; after Holm over the {count} cells of the table: {found.holm:.4g}"]


def _cell(results: ResultSet, table: Table, row: Row, pair: Pair, cell: Cell, base: Cell | None) -> list[str]:
    lines = [f"{row_title(row)} on {pair.title} ({set_title(results)})", f"  {conditions(table)}"]
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
        lines.append(f"  seed {seed}: {shown}" + (f"  [runs/{run.id}]" if run is not None else ""))
    s, d, p, v = cell.summary, cell.difference, cell.published, cell.verdict
    if s:
        lines.append(f"  mean of {s.n}: {s.mean:.4f}" + ("" if s.sd is None else f"; standard deviation (ddof 1): {s.sd:.4f}"))
    if d and base:
        lines.append(f"  paired difference to {table.baseline}: {d.mean:+.4f} over {d.n} seed{'s' * (d.n != 1)}")
        sd = summarise(list(paired(cell.values, base.values).values())).sd
        if sd is not None:
            lines[-1] += f"; interval ± t({d.n - 1}) sd/√n = {t_quantile(d.n - 1):.3f} × {sd:.4f} / {math.sqrt(d.n):.4f} = {d.half:.4f}"
    if p:
        lines.append(f"  published: {p.top1:.2f}" + (f" ± {p.sd:.2f}" if p.sd is not None else ", no deviation") + f" (n={p.n or '?'}), {p.source}")
        lines[-1] += f" [{p.said}]" if p.said else ""
        lines += [f"  another source: {o.text} (n={o.n or '?'}), {o.source}" + (f" [{o.said}]" if o.said else "") for o in p.differing]
        if p.epoch == "best" and cell.beside:
            sd = "" if cell.beside.sd is None else f"; standard deviation (ddof 1): {cell.beside.sd:.4f}"
            lines.append(f"  our best epochs, which alone are held against a best epoch: mean of {cell.beside.n}: {cell.beside.mean:.4f}{sd}")
    else:
        lines.append("  none published for this protocol, pair and method")
    if v:
        interval = "" if v.half is None else f" ± {v.half:.4f} (Welch)"
        lines.append(f"  ours against it: {v.word}, {v.mean:+.4f}{interval}" + (f": {v.why}" if v.why else ""))
    return lines
