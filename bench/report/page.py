"""The report as one HTML page that needs nothing else: no network, light and dark, phone and paper. Templates and styles: page_parts/."""

import dataclasses
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bench.report import analysis_section, blocks, compare, evidence, paste, sentences, svg, trend_section
from bench.report.compare import Compared, Comparison
from bench.report.render import TITLE
from bench.report.sentences import signed
from bench.report.table import OWN, Cell, ResultSet, Row, Table, main_row, name
from bench.statistics import Difference
from bench.text import clean

PARTS = Path(__file__).parent / "page_parts"
DASH = "–"


def _finalize(value: object) -> object:
    return clean(value, 4000) if isinstance(value, str) and not isinstance(value, Markup) else "" if value is None else value


def _tight(text: str) -> str:
    """The same sentence with numbers and their signs kept on one line."""
    return text.replace(" %", "\u00a0%").replace(" ± ", "\u00a0±\u00a0").replace("n = ", "n\u00a0=\u00a0")


@lru_cache(1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PARTS),
        autoescape=True,
        finalize=_finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tight"] = _tight
    return environment


def _view(key: str, main: str, small: str = "", sort: float | None = None, kind: str = "", below: list[str] | None = None) -> dict[str, Any]:
    """One way to show a cell: `main` with `small` beside it and `below` under it; `sort`: its place in an ordering, None: last."""
    known = sort is not None and math.isfinite(sort)
    lines = [line for line in below or [] if line]
    return {"key": key, "main": main, "small": small, "sort": f"{sort:.6g}" if known else "", "kind": kind, "below": lines}


def _compared(key: str, found: Compared | None, is_base: bool, below: list[str] | None = None) -> dict[str, Any]:
    if is_base:
        return _view(key, "0", sort=0.0, kind="base")
    if found is None:
        return _view(key, DASH)
    d: Difference = found.difference
    return _view(key, signed(d.mean), "" if d.half is None else f"± {d.half:.2f}", d.mean, "clear" if found.clear else "unclear", below)


def _cell_views(cell: Cell, at: tuple[int, int], versus: list[Comparison], row: Row, some_published: bool) -> list[dict[str, Any]]:
    s, p, v = cell.summary, cell.published, cell.verdict
    best = p is not None and p.epoch == "best"
    beside = f" (best epoch, ours {cell.beside.mean:.2f})" if best and cell.beside else " (best epoch)" * best
    paper = (f"{p.top1:.2f} paper{beside}" if p else "no paper") if some_published and not row.variant else ""
    note = cell.note if cell.others else ""
    if s is None:
        views = [_view("mean", note or DASH, kind="none", below=[paper])]
    else:
        small = "n = 1" if s.sd is None else f"± {s.sd:.2f}"
        views = [_view("mean", f"{s.mean:.2f}", small, s.mean, below=[note and f"n = {s.n}, {note}", paper])]
    views += [_compared(c.baseline, c.cells.get(at), row.method == c.baseline and not row.variant) for c in versus]
    if some_published:
        if v:
            half, word = "" if v.half is None else f"± {v.half:.2f}", v.word + ", best epochs" * best
            views.append(_view("published", signed(v.mean), half, v.mean, v.word.replace(" ", "-"), [word]))
        else:
            views.append(_view("published", "none published" if p is None else DASH, kind="none"))
    return views


def _some_pairs(covered: int, table: Table) -> str:
    """What stands below a mean over pairs that does not cover all of them."""
    return f"{covered} of {len(table.pairs)} pairs" if 0 < covered < len(table.pairs) else ""


def _pooled_views(i: int, table: Table, versus: list[Comparison], some_published: bool) -> list[dict[str, Any]]:
    row = table.rows[i]
    views = []
    for c in versus:
        found = c.pooled.get(i)
        some = _some_pairs(found.difference.pairs, table) if found else ""
        views.append(_compared(c.baseline, found, row.method == c.baseline and not row.variant, [some]))
    first = {**views[0], "key": "mean"} if views else _view("mean", DASH)
    return [first, *views, *([_view("published", DASH)] if some_published else [])]


def _accuracy(table: Table, mark: str, versus: list[Comparison]) -> dict[str, Any]:
    some_published = any(c.published for r in table.rows for c in r.cells)
    views = [("mean", "Mean ± std")] + [(c.baseline, f"Difference to {c.title}") for c in versus]
    views += [("published", "Difference to published")] if some_published else []
    seconds = [blocks.second_best(table, j) for j in range(len(table.pairs))]
    rows = []
    for i, row in enumerate(table.rows):
        cells = []
        for j, cell in enumerate(row.cells):
            rank = "best" if cell.best else "second" if i in seconds[j] else ""
            cells.append({"id": f"{mark}-{i}-{j}", "rank": rank, "views": _cell_views(cell, (i, j), versus, row, some_published)})
        extra = [{"views": _pooled_views(i, table, versus, some_published)}]
        few = _some_pairs(row.cost_pairs, table)
        for value, noisy in ((row.speed, row.noisy), (row.memory, False)):
            shown = DASH if value is None else f"{value:.2f}×{blocks.NOISY * noisy}"
            extra.append({"views": [_view("", shown, sort=value, below=[few])]})
        extra.append({"views": [_view("", DASH if row.preparation is None else f"{row.preparation:,.0f} s", sort=row.preparation)]})
        use = None if row.parameters is None else row.parameters / 1e3
        extra.append({"views": [_view("", DASH if use is None else f"{use:+,.0f} k", sort=use)]})
        extra.append({"views": [_view("", DASH if row.pretraining is None else f"{row.pretraining:,.0f} s", sort=row.pretraining)]})
        rows.append({"m": i, "title": blocks.row_title(row), "cells": cells, "extra": extra})
    teacher = [(f"{p.top1:.2f}" if p.top1 is not None else DASH, f"{p.published.top1:.2f} paper" if p.published else "") for p in table.pairs]
    # The first column shows what the pairs' do: a head for each view.
    over_all = [("mean", f"Δ {versus[0].title if versus else table.baseline}"), *((c.baseline, f"Δ {c.title}") for c in versus)]
    plain = (("speed", "× student"), ("memory", "× student"), ("preparation", "once a teacher"), ("at use", "parameters"))
    heads = [("over all pairs", over_all), *((top, [("", below)]) for top, below in (*plain, ("pre-training", "each student")))]
    told = [k for k in range(len(heads)) if len({row["extra"][k]["views"][0]["main"] for row in rows}) > 1]  # the same for all says nothing
    heads = [heads[k] for k in told]
    for row in rows:
        row["extra"] = [row["extra"][k] for k in told]
    return {"views": views, "rows": rows, "teacher": teacher if any(t[0] != DASH for t in teacher) else [], "extra": heads}


def _costs(table: Table) -> dict[str, Any] | None:
    sheet = table.sheet
    block = sheet and blocks.cost_block(sheet, "Costs", table)
    if not block:
        return None
    rows = []
    for i, row in enumerate(table.rows):
        cells = []
        for pair in table.pairs:
            cost, ratio = (None, None) if row.variant else (sheet.get(*pair.key, row.method), sheet.relative(*pair.key, row.method))
            total = None if row.variant else blocks.total_seconds(sheet, pair.key, row.method, table)
            mark = blocks.NOISY if cost and sheet.noisy(*pair.key, row.method) else ""
            speed = cost and sheet.speed(*pair.key, row.method)
            views = [_view("speed", f"{speed:,.0f}{mark}" if cost else DASH, f"{ratio[0]:.2f}×" if ratio else "", speed)]
            held = f"{cost.memory / blocks.MIB:,.0f}" if cost else DASH
            views.append(_view("memory", held, f"{ratio[1]:.2f}×" if ratio else "", cost and cost.memory))
            prepared, peak = (cost.preparation, cost.preparation_memory) if cost else (None, None)
            shown = f"{peak / blocks.MIB:,.0f} MiB" if peak is not None else ""
            views.append(_view("preparation", DASH if prepared is None else f"{prepared:,.0f} s", shown, prepared))
            views.append(_view("total", blocks.hours(total), sort=total))
            alone = blocks.total_seconds(sheet, pair.key, row.method, table, alone=True) if prepared is not None else total
            views.append(_view("alone", blocks.hours(alone), sort=alone))
            claim = None if row.variant else sheet.without_teacher(*pair.key, row.method)
            views.append(_view("freed", f"{claim[0]:.2f}×" if claim else DASH, f"ideally {claim[1]:.2f}×" if claim else "", claim and claim[0]))
            cells.append({"id": "", "rank": "", "views": views})
        if any(view["sort"] for cell in cells for view in cell["views"]):
            rows.append({"m": i, "title": blocks.row_title(row), "cells": cells, "extra": []})
    views = [("speed", "Images a second"), ("memory", "Peak memory, MiB"), ("preparation", "Preparation"), ("total", "Time for one student")]
    views += [("alone", "Time, preparation not shared"), ("freed", "Step, × KD's")]
    some = {view["key"] for row in rows for cell in row["cells"] for view in cell["views"] if view["sort"]}
    views = [view for view in views if view[0] in some]  # a view without a number is no choice
    return {"views": views, "rows": rows, "teacher": [], "extra": [], "caption": block.caption, "notes": block.notes}


def _figures(table: Table, versus: list[Comparison]) -> dict[str, Any]:
    first = versus[0] if versus else None
    best = first.furthest(first.pooled) if first and first.pooled else 0
    panels = {
        "seeds": [(p.title, f) for j, p in enumerate(table.pairs) if (f := svg.seeds(table, j))],
        "curves": [(p.title, f) for j, p in enumerate(table.pairs) if (f := svg.curves(table, j))],
    }
    wide = {"differences": svg.differences(table, first) if first else None, "cost": svg.cost(table, first)}
    return {**wide, **panels, "best": best, "base": first.title if first else ""}


def table_view(
    results: ResultSet, table: Table, mark: str, number: int, data: dict[str, Any], taken: dict[str, Any], strings: dict[str, int]
) -> dict[str, Any]:
    """What the template needs of one table; the evidence of its cells goes into `data`, the files to take away into `taken`."""
    methods = [table.baseline] + [m for m in ("student", "kd") if m != table.baseline]
    versus = [c for m in methods if (c := compare.against(table, m))]
    base = main_row(table.rows, table.baseline)
    for i, row in enumerate(table.rows):
        for j, (pair, found) in enumerate(zip(table.pairs, row.cells, strict=True)):
            plain = base.cells[j] if base else None
            data[f"{mark}-{i}-{j}"] = evidence.cell(results, table, row, pair, found, plain, [(c, (i, j)) for c in versus], strings)
    common, vary, columns = evidence.column_facts(table)
    found = compare.leaders(table)
    few = blocks.is_few(table)
    pooled = [] if few else [line for c in versus[:2] for line in sentences.pooled_lines(table, c)]
    findings = [sentences.standing_line(table), *pooled, *sentences.published_lines(table), *sentences.cost_lines(table)]
    short = sentences.in_short(table, versus[0] if versus else None)
    files = paste.files(dataclasses.replace(results, tables=[table]), published=True)
    files = {file.replace("table1", f"table{number}"): text for file, text in files.items() if "standalone" not in file}
    taken[mark] = files
    sources = {(c.published.name, c.published.source, c.published.note): None for r in table.rows for c in r.cells if c.published}
    return {
        "mark": mark,
        "title": f"Table {number}",
        "trial": table.trial,
        "caption": blocks.conditions(table),
        "embedded": blocks.EMBEDDED if table.protocol.train_images else "",
        "short": short,
        "leaders": [] if few else [sentences.leader_line(table, j, found).partition(": ") for j in range(len(table.pairs))],
        "findings": [line for line in findings if line not in short],
        "noise": blocks.shared_test_set(table),
        "files": sorted(files),
        "heads": [(name(p.teacher) if p.teacher else "no teacher", f"→ {name(p.student)}") for p in table.pairs],
        "accuracy": _accuracy(table, mark, versus),
        "costs": _costs(table),
        "figures": _figures(table, versus),
        "common": common,
        "vary": vary,
        "columns": columns,
        "sources": [f"{title}: {source}" + (f" ({note})" if note else "") for title, source, note in sources]
        + blocks.other_sources(table),
        "warnings": table.warnings,
        "excluded": [(p.where, p.reason) for p in table.excluded],
    }


def html(sets: list[ResultSet], drawn: dict[str, list[analysis_section.Figure]] | None = None, base: str = "..") -> str:
    """The whole page; with the results of analyses (`drawn`: their figures) and the trend of nightly runs where there are some.

    base: the results folder as seen from the page, for links to records.
    """
    own = next((s.folder for s in sets if s.name == OWN), None)
    trend = trend_section.section(own, _environment()) if own else None
    analyses = analysis_section.section(sets, _environment(), drawn or {})
    strings: dict[str, int] = {}
    data: dict[str, Any] = {}
    taken: dict[str, Any] = {}
    views = []
    newest, newest_set = "", ""
    for k, results in enumerate(sets):
        if results.name == OWN and not results.tables and not results.sheets and not results.problems and len(sets) > 1:
            continue  # a fresh clone: the evidence comes first
        tables = [table_view(results, table, f"s{k}t{n}", n, data, taken, strings) for n, table in enumerate(results.tables, 1)]
        used = [table.sheet.condition for table in results.tables if table.sheet]
        probed = [block for s in results.sheets if s.condition not in used and (block := blocks.cost_block(s, "Costs"))]
        probes = [{"caption": block.caption, "heads": block.header, "lines": block.lines, "notes": block.notes} for block in probed]
        said = {f"excluded: {p.where}: {p.reason}" for p in [*results.problems, *(p for t in results.tables for p in t.excluded)]}
        said |= {f"warning: {w}" for t in results.tables for w in t.warnings}
        views.append(
            {
                "id": f"set{k}",
                "own": results.name == OWN,
                "title": blocks.set_title(results),
                "tables": tables,
                "probes": probes,
                "problems": [(p.where, p.reason) for p in results.problems],
                "others": [line for line in blocks.remarks(results) if line not in said],
            }
        )
        for table in results.tables:
            for run in (run for row in table.rows for cell in row.cells for run in cell.runs.values() if run.record):
                if run.record.finished > newest:
                    newest, newest_set = run.record.finished, f"set{k}"
    island = json.dumps({"strings": list(strings), "cells": data, "files": taken, "base": base}, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":  # nothing in it can end the script element
        island = island.replace(char, f"\\u{ord(char):04x}")
    return _environment().get_template("page.html.j2").render(
        title=TITLE,
        sets=views,
        opened=next((v["id"] for v in views if v["own"] and v["tables"]), newest_set or (views[0]["id"] if views else "")),
        newest=newest[:16].replace("T", " "),
        trend=trend,
        analyses=analyses,
        island=Markup(island),
        css=Markup((PARTS / "page.css").read_text()),
        js=Markup((PARTS / "page.js").read_text()),
    )
