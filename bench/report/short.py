"""What `report` prints: one table on a screenful, one line a method, and where everything else is."""

import textwrap
from pathlib import Path

from bench.report.blocks import NOISE, NOISY, NONE, conditions, is_few, of_pairs, remarks, row_title, set_title, signed, times
from bench.report.sentences import FEW, standing_line
from bench.report.table import Cell, ResultSet, Table, name
from bench.text import clean, count, shortened

LINES = 30
"""At most so many lines: what stands above is not scrolled away."""
_LABEL = 24
_FAULTS, _FAULT = 3, 300
"""Warnings and exclusions that are printed, and characters of one."""

Column = tuple[tuple[str, str], list[str]]
"""Two lines of header, and the cells of the teacher and of each method."""


def short(sets: list[ResultSet], shown: ResultSet, width: int, out: Path | None, analyses: bool = False) -> str:
    """The first table of `shown` and, where `out` is given, the files that hold the rest; at most LINES lines of `width` columns.

    `analyses`: there is a file of what analyses found.
    """
    if not shown.tables:
        below = _rest(sets, shown, out, analyses, _FAULTS)
        kept = [s.name.removeprefix("evidence/") for s in sets if s is not shown and (s.tables or s.sheets)]
        above = _wrap(f"{remarks(shown)[-1]}.", width)
        above += _wrap(f"Evidence sets: {', '.join(kept)}; report --set NAME shows one, --full all.", width) if kept else []
        return "\n".join([*above, *_fitted(below, width)]) + "\n"
    table = shown.tables[0]
    labels = ["Teacher", *(shortened(row_title(row), _LABEL) for row in table.rows)]
    columns, missing = _fitting(table, width - max(map(len, labels)))
    where = "" if shown is sets[0] else f"{set_title(shown)}. "
    above = _wrap(where + conditions(table), width) + _wrap(_legend(table, len(columns) > len(table.pairs)), width) + [""]
    first = [NOISE] * any(NOISY in cell for _, cells in columns for cell in cells) + missing
    if any(cell.open for row in table.rows for cell in row.cells):
        first.append(standing_line(table))
    for faults in range(_FAULTS, -1, -1):  # methods have their lines before warnings have theirs
        below = _fitted([*first, *_rest(sets, shown, out, analyses, faults)], width)
        lines, left_out = _table(labels, columns, LINES - len(above) - len(below) - 2)
        if not left_out:
            break
    else:
        below.insert(0, f"{count(left_out, 'more method')} in the files below.")
    return "\n".join([*above, *lines, "", *below]) + "\n"


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(clean(text, 2000), width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _fitted(lines: list[str], width: int) -> list[str]:
    return [part for line in lines for part in _wrap(line, width)]


def _legend(table: Table, gains: bool) -> str:
    """What the numbers are. `gains`: a column of differences is there."""
    seeds = max((len(c.values) for row in table.rows for c in row.cells), default=0)
    text = f"Top-1 (%) after the last epoch, mean ± standard deviation over {count(seeds, 'seed')}" if seeds > 1 else "Top-1 (%) after the last epoch"
    several = len({len(c.values) for row in table.rows for c in row.cells if c.values}) > 1
    text += ", (n=) where there are fewer; * best over the seeds that most have." if several else "; * best."
    if seeds and is_few(table):
        return f"{text} {FEW}"
    return f"{text} Δ {table.base_title}: difference paired by seed, ± its 95 % interval." if gains else text


def _rest(sets: list[ResultSet], shown: ResultSet, out: Path | None, analyses: bool, most: int) -> list[str]:
    """What stands below the table, with at most so many warnings and exclusions."""
    lines = []
    if len(shown.tables) > 1:
        lines.append(f"{count(len(shown.tables) - 1, 'more table')} of other protocols or precisions: --full prints all.")
    faults = [line for line in remarks(shown) if line.startswith(("warning: ", "excluded: "))]
    lines += [clean(line, _FAULT) for line in faults[:most]]
    if len(faults) > most:
        left = len(faults) - most
        lines.append(f"and {left} more: --full prints all." if most else f"Warnings and exclusions: {left}; --full prints all.")
    if out:
        kept = any(s is not shown and (s.tables or s.sheets) for s in sets)
        holds = ["notes", "published numbers", "costs by pair"] + ["evidence sets"] * kept
        lines.append(f"{', '.join(holds)[0].upper()}{', '.join(holds)[1:]}: {out}/report.txt (--full), .md, .tex, .csv")
        lines.append(f"Page: {out}/index.html")
        lines += [f"Analyses: {out}/analyses.txt"] if analyses else []
        lines += [f"Tables to paste: {out}/tables/"] if shown.tables else []
    return lines


def _mean(cell: Cell, most: int) -> str:
    s = cell.summary
    if s is None:
        return cell.note or NONE
    shown = f"{s.mean:5.2f}" + ("" if s.sd is None else f" ± {s.sd:.2f}") + (f" (n={s.n})" if s.n < most else "")
    return shown + "*" * cell.best


def _fitting(table: Table, width: int) -> tuple[list[Column], list[str]]:
    """The columns that fit into `width`, pairs first, and a line on those that do not."""
    most = max((len(c.values) for row in table.rows for c in row.cells), default=0)
    columns: list[Column] = []
    for j, pair in enumerate(table.pairs):
        head = (name(pair.teacher), f"→ {name(pair.student)}") if pair.teacher else ("", name(pair.student))
        cells = ["" if pair.top1 is None else f"{pair.top1:5.2f}", *(_mean(row.cells[j], most) for row in table.rows)]
        size = max(map(len, cells))
        columns.append((head, [cell.ljust(size) for cell in cells]))
    few, many = is_few(table), len(table.pairs) > 1
    found = [row.pooled if many else row.cells[0].difference if row.cells else None for row in table.rows]
    gains = ["" if d is None else f"{d.mean:+.2f}" if few else signed(d).replace(" ±", " ± ") for d in found]
    if many:
        gains = [gain + (of_pairs(d.pairs, table) if d else "") for gain, d in zip(gains, found, strict=True)]
    extra = [((f"Δ {table.base_title}", "all pairs" if many else ""), gains)]
    extra.append((("speed", ""), [times(row.speed) + NOISY * row.noisy + of_pairs(row.cost_pairs, table) for row in table.rows]))
    extra.append((("memory", ""), [times(row.memory) for row in table.rows]))
    extra.append((("prep.", ""), [NONE if row.preparation is None else f"{row.preparation:.0f} s" for row in table.rows]))
    extra.append((("at use", ""), [NONE if row.parameters is None else f"{row.parameters / 1e3:+,.0f} k" for row in table.rows]))
    extra.append((("pretr.", ""), [NONE if row.pretraining is None else f"{row.pretraining:,.0f} s" for row in table.rows]))
    columns += [(head, ["", *cells]) for head, cells in extra if len(set(cells)) > 1]  # the same for all says nothing
    columns = [((clean(top, 20), clean(bottom, 20)), [clean(cell, 32) for cell in cells]) for (top, bottom), cells in columns]
    used, kept = 0, 0
    for kept, column in enumerate(columns):
        used += 2 + _size(column)
        if used > width and kept:
            break
    else:
        kept = len(columns)
    pairs = max(0, len(table.pairs) - kept)
    lost = [count(pairs, "pair")] * bool(pairs) + [top for (top, _), _ in columns[max(kept, len(table.pairs)) :]]
    return columns[:kept], [f"Not shown for want of room: {', '.join(lost)}; see the files below."] * bool(lost)


def _size(column: Column) -> int:
    return max(map(len, [*column[0], *column[1]]))


def _table(labels: list[str], columns: list[Column], room: int) -> tuple[list[str], int]:
    """Lines of the table in `room` lines, and how many rows did not fit. The first row is the teacher's, which may be empty."""
    first = 0 if any(cells[0].strip() for _, cells in columns) else 1
    wide = max(map(len, labels))
    heads = [k for k in (0, 1) if any(head[k] for head, _ in columns)]
    lines = [("".ljust(wide) + "".join("  " + column[0][k].rjust(_size(column)) for column in columns)).rstrip() for k in heads]
    lines.append("-" * (wide + sum(2 + _size(column) for column in columns)))
    last = min(len(labels), first + max(1, room - len(lines)))
    for k in range(first, last):
        lines.append((labels[k].ljust(wide) + "".join("  " + column[1][k].rjust(_size(column)) for column in columns)).rstrip())
    return lines, len(labels) - last
