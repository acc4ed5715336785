"""Tables to paste into a paper, one file a table and form: rows methods, columns pairs, as the papers print them."""

import dataclasses
from dataclasses import dataclass
from itertools import groupby

from bench.plan.profiles import CRD_ROWS, ROWS
from bench.report.blocks import NONE, banner, row_title, second_best, set_title
from bench.report.render import csv_text, latex_escape, markdown_escape
from bench.report.table import Cell, ResultSet, Row, Table, name, ranked_seeds
from bench.text import LONG, clean, count

PUBLISHED = "published"
PACKAGES = (r"\usepackage[T1]{fontenc}", r"\usepackage[utf8]{inputenc}", r"\usepackage{booktabs}", r"\usepackage{graphicx}")


@dataclass(frozen=True)
class Entry:
    """One printed cell: a number, its deviation, what follows in brackets, and how it is marked."""

    number: str
    sd: str = ""
    after: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Grid:
    """A table as papers print it. `head`: teachers and students of the columns; `groups`: rows between rules, as (label, entries, below another)."""

    caption: str
    label: str
    banner: str
    head: tuple[list[str], list[str]]
    groups: list[list[tuple[str, list[Entry], bool]]]


def files(results: ResultSet, published: bool) -> dict[str, str]:
    """The files of all tables of a set: name -> content, with a comment that says which set. `published`: the published numbers below ours."""
    made = {}
    title = set_title(results)
    for number, table in enumerate(results.tables, 1):
        grid = lay_out(table, published)
        alone = dataclasses.replace(results, tables=[table])
        made[f"table{number}.tex"] = f"% {clean(title)}\n{tabular(grid)}"
        made[f"table{number}-standalone.tex"] = f"% {clean(title)}\n{standalone(grid)}"
        made[f"table{number}.md"] = f"<!-- {markdown_escape(title)} -->\n{markdown(grid)}"
        made[f"table{number}.csv"] = csv_text([alone])
    return made


def lay_out(table: Table, published: bool) -> Grid:
    """A table as a grid. Groups: teacher and baseline, the rows of CRD's Table 1, later methods, the user's own."""
    most = max((len(cell.values) for row in table.rows for cell in row.cells), default=0)
    seconds = [second_best(table, j) for j in range(len(table.pairs))]
    teachers: list[tuple[str, list[Entry], bool]] = []
    if any(pair.top1 is not None for pair in table.pairs):
        teachers.append(("Teacher", [Entry(NONE if pair.top1 is None else f"{pair.top1:.2f}") for pair in table.pairs], False))
        teachers += _below([pair.published for pair in table.pairs], published)
    groups = [teachers] * bool(teachers)
    for kind, members in groupby(sorted(enumerate(table.rows), key=_kind), key=_kind):
        group = groups.pop() if kind == 0 and groups else []
        for i, row in members:
            cells = [_entry(cell, most, "second" if i in seconds[j] else "") for j, cell in enumerate(row.cells)]
            group.append((row_title(row), cells, False))
            group += _below([cell.published for cell in row.cells], published)
        groups.append(group)
    head = ([name(p.teacher) if p.teacher else NONE for p in table.pairs], [name(p.student) for p in table.pairs])
    return Grid(caption(table, most, published), label(table), banner(table), head, groups)


def _kind(placed: tuple[int, Row]) -> int:
    _, row = placed
    if row.method == "student":
        return 0
    return 1 if row.method in CRD_ROWS else 2 if row.method in ROWS else 3


def _entry(cell: Cell, most: int, second: str) -> Entry:
    s = cell.summary
    if s is None:
        return Entry(NONE)
    after = f"n={s.n}" if s.n < most else ""
    return Entry(f"{s.mean:.2f}", "" if s.sd is None else f"{s.sd:.2f}", after, "best" if cell.best else second)


def _below(numbers: list, wanted: bool) -> list[tuple[str, list[Entry], bool]]:
    """The row of published numbers; none where none is wanted or there is none."""
    if not wanted or not any(numbers):
        return []
    cells = []
    for p in numbers:
        after = ", ".join(["best epoch"] * (p.epoch == "best") + [p.origin] * (p.origin != "own")) if p else ""
        cells.append(Entry(f"{p.top1:.2f}", "" if p.sd is None else f"{p.sd:.2f}", after) if p else Entry(NONE))
    return [(PUBLISHED, cells, True)]


def caption(table: Table, most: int, published: bool) -> str:
    """What a paper would write below the table."""
    p = table.protocol
    what = "CIFAR-100" if p.dataset == "cifar100" else p.dataset
    means = f"mean and standard deviation over {count(most, 'seed')}" if most > 1 else count(most, "seed")
    text = f"Test top-1 accuracy (%) on {what} after the last of {count(p.epochs, 'epoch')} ({p.name.upper()} protocol), {means}"
    text += f", precision {table.precision}. Best in bold, second underlined{_ranked_over(table)}."
    seeds = {len(cell.values) for row in table.rows for cell in row.cells}
    text += f" {NONE}: no finished run." if 0 in seeds else ""
    text += " (n=): of fewer seeds." if len(seeds - {0}) > 1 else ""
    there = any(p.published for p in table.pairs) or any(cell.published for row in table.rows for cell in row.cells)
    text += " Published: as printed in the papers." if published and there else ""
    return f"{banner(table)} {text}".strip()


def _ranked_over(table: Table) -> str:
    """Over which seeds the best is found, where cells of a ranked column have different ones."""
    ranked: dict[str, list[str]] = {}
    different = False
    for j, pair in enumerate(table.pairs):
        if any(row.cells[j].best for row in table.rows):
            seeds = ranked_seeds(table.rows, j)
            different |= any(cell.values and sorted(cell.values) != seeds for cell in (row.cells[j] for row in table.rows))
            ranked.setdefault(f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}", []).append(pair.title)
    if not different:
        return ""
    return ", over " + ("; ".join(f"{seeds} on {', '.join(pairs)}" for seeds, pairs in ranked.items()) if len(ranked) > 1 else next(iter(ranked)))


def label(table: Table) -> str:
    """A LaTeX label, e.g. tab:kd-crd-tf32."""
    parts = ("kd", table.protocol.name, table.precision, "trial" if table.trial else "")
    return "tab:" + "-".join("".join(c if c.isascii() and c.isalnum() else "-" for c in part) for part in parts if part)


def _tex_entry(entry: Entry) -> str:
    command = {"best": "textbf", "second": "underline"}.get(entry.mark)
    number = latex_escape(entry.number)
    shown = rf"\{command}{{{number}}}" if command else number
    small = (rf"$\pm${entry.sd}" if entry.sd else "") + (f" ({latex_escape(entry.after)})" if entry.after else "")
    return shown + (r"{\tiny" + small + "}" if small else "")


def tabular(grid: Grid) -> str:
    r"""A bare tabular (\usepackage{booktabs}); caption and label, as a table environment would have them, stand above it as comments."""
    across = len(grid.head[0])
    out = [r"% needs \usepackage{booktabs}; in a table environment:", rf"% \caption{{{latex_escape(grid.caption, LONG)}}}"]
    out.append(rf"% \label{{{grid.label}}}")
    out += [rf"\begin{{tabular}}{{l{'c' * across}}}", r"\toprule"]
    if grid.banner:
        out += [rf"\multicolumn{{{across + 1}}}{{l}}{{\textbf{{{latex_escape(grid.banner)}}}}} \\", r"\midrule"]
    for title, names in zip(("Teacher", "Student"), grid.head, strict=True):
        out.append(f"{title} & " + " & ".join(map(latex_escape, names)) + r" \\")
    for group in grid.groups:
        out.append(r"\midrule")
        for title, entries, below in group:
            start = rf"\quad {latex_escape(title)}" if below else latex_escape(title)
            out.append(f"{start} & " + " & ".join(map(_tex_entry, entries)) + r" \\")
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}"]) + "\n"


def standalone(grid: Grid) -> str:
    """A document of one page with the table, its caption and its label; the paper is as high as the rows need."""
    height = max(29.7, 8 + 0.5 * sum(map(len, grid.groups)))
    body = tabular(grid).rstrip()
    return "\n".join(
        [
            r"\documentclass{article}",
            *PACKAGES,
            rf"\usepackage[papersize={{21cm,{height:.1f}cm}},margin=1.5cm]{{geometry}}",
            r"\pagestyle{empty}",
            r"\begin{document}",
            r"\begin{table}[!h]",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{latex_escape(grid.caption, LONG)}}}",
            rf"\label{{{grid.label}}}",
            r"\medskip",
            r"\sbox0{%",
            body + "%",
            r"}\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi",
            r"\end{table}",
            r"\end{document}",
            "",
        ]
    )


def _markdown_entry(entry: Entry) -> str:
    mark = {"best": "**", "second": "*"}.get(entry.mark, "")
    after = f" ({markdown_escape(entry.after)})" if entry.after else ""
    return f"{mark}{markdown_escape(entry.number)}{mark}" + (f" ± {entry.sd}" if entry.sd else "") + after


def markdown(grid: Grid) -> str:
    """The caption, then the table; the second best is in italics, where LaTeX underlines it."""
    head = [f"{teacher} → {student}" for teacher, student in zip(*grid.head, strict=True)]
    out = [markdown_escape(grid.caption.replace("second underlined", "second in italics"), LONG), ""]
    out += ["| Method | " + " | ".join(map(markdown_escape, head)) + " |", "|---|" + "---:|" * len(head)]
    for title, entries, below in (row for group in grid.groups for row in group):
        start = "&nbsp;&nbsp;" * below + markdown_escape(title)
        out.append(f"| {start} | " + " | ".join(map(_markdown_entry, entries)) + " |")
    return "\n".join(out) + "\n"
