"""Figures as PNG and PDF, a column of a paper wide: accuracy against cost, paired differences, learning curves, every seed.

Markers and lines tell methods apart in grey.
"""

import re
import textwrap
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from bench.analysis.frame import drawing
from bench.analysis.frame.drawing import MARKERS
from bench.plan.identity import digest
from bench.report.blocks import conditions, row_title, set_title
from bench.report.epochs import mean_curve
from bench.report.table import Cell, Pair, ResultSet, Row, Table
from bench.text import shortened

FONT, SMALL, NOTE = 7, 6, 5
"""Points."""


def _figure(height: float, results: ResultSet, table: Table, title: str) -> Figure:
    figure = drawing.figure(height)
    lines = (f"{title}: {drawing.plain(set_title(results))}", drawing.plain(conditions(table), 300))
    figure.suptitle("\n".join(textwrap.fill(line, 80) for line in lines), fontsize=NOTE)
    return figure


def _dress(axes: Axes, grid: Literal["x", "both"] = "both") -> None:
    axes.tick_params(labelsize=SMALL, width=0.5, length=2)
    axes.grid(axis=grid, color="0.9", linewidth=0.4)
    axes.set_axisbelow(True)


def _panels(figure: Figure, count: int) -> list[Axes]:
    across = min(2, count)
    found = list(figure.subplots(-(-count // across), across, squeeze=False).flat)
    for axes in found[count:]:
        axes.axis("off")
    return found[:count]


SPOTS = [(dx, dy) for radius in (4, 9, 14, 20, 27) for dx, dy in ((radius, 0), (-radius, 0), (0, radius), (0, -radius), (radius, radius))]
SPOTS += [(sign * abs(dx), -dy) for dx, dy in SPOTS if dx and dy for sign in (1, -1)]


def _name(axes: Axes, points: list[tuple[float, float, str]]) -> None:
    """Write each name beside its point where it covers no other name or point and stays within the axes, else where it covers least."""
    figure = axes.get_figure()
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    at = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [Bbox.from_extents(x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale) for x, y in at]
    frame = axes.get_window_extent()
    for (x, y, text), own in zip(points, list(taken), strict=True):
        best: tuple[float, Any, Any] | None = None
        for dx, dy in SPOTS:
            sides = {"ha": "left" if dx > 0 else "right" if dx < 0 else "center", "va": "bottom" if dy > 0 else "top" if dy < 0 else "center"}
            label = axes.annotate(text, (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=SMALL, **sides)
            box = label.get_window_extent()
            covered = sum(box.overlaps(other) for other in taken if other is not own)
            covered += not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
            if best is None or covered < best[0]:
                if best:
                    best[1].remove()
                best = (covered, label, box)
            else:
                label.remove()
            if not covered:
                break
        taken.append(best[2])


def accuracy_against_cost(results: ResultSet, table: Table) -> Figure | None:
    """Pooled difference to the baseline (points) over relative throughput. None without costs or differences."""
    rows = [(i, row) for i, row in enumerate(table.rows) if row.speed and (row.pooled or row.method == table.baseline)]
    if len(rows) < 2:
        return None
    figure = _figure(2.7, results, table, "Accuracy against cost")
    axes = figure.subplots()
    axes.axhline(0, color="0.6", linewidth=0.6)
    points = []
    for i, row in rows:
        mean, half = (row.pooled.mean, row.pooled.half) if row.pooled else (0.0, None)
        look = drawing.look(i)
        look["linestyle"] = ""
        axes.errorbar(row.speed, mean, yerr=half, capsize=2, elinewidth=0.7, markeredgecolor="black", markeredgewidth=0.5, markersize=4, **look)
        points.append((row.speed, mean, drawing.plain(shortened(row_title(row), 24), 24)))
    axes.set_xlabel("training throughput, × the plain student", fontsize=FONT)
    axes.set_ylabel(f"top-1 over {drawing.plain(table.baseline)} (points)", fontsize=FONT)
    axes.margins(x=0.15, y=0.12)
    _dress(axes)
    _name(axes, points)
    return figure


def paired_differences(results: ResultSet, table: Table) -> Figure | None:
    """For each method: the difference to the baseline on every pair (small) and pooled (large, with its 95 % interval). None without differences."""
    rows = [row for row in table.rows if row.pooled]
    if not rows:
        return None
    height = 1.4 + 0.14 * -(-len(table.pairs) // 2) + 0.24 * len(rows)
    figure = _figure(height, results, table, f"Difference to {drawing.plain(table.baseline)}, paired by seed")
    axes = figure.subplots()
    axes.axvline(0, color="0.5", linewidth=0.8)
    named: set[str] = set()
    for y, row in enumerate(reversed(rows)):
        for j, (pair, cell) in enumerate(zip(table.pairs, row.cells, strict=True)):
            if cell.difference:
                label = None if pair.title in named else drawing.plain(pair.title)
                named.add(pair.title)
                shift = 0.22 - 0.5 * (j + 1) / (len(table.pairs) + 1)
                axes.plot(cell.difference.mean, y + shift, linestyle="", marker=MARKERS[j % len(MARKERS)], color="0.45", markersize=2.2, label=label)
        axes.errorbar(row.pooled.mean, y + 0.27, xerr=row.pooled.half, marker="s", color="black", capsize=2, elinewidth=0.8, markersize=3)
    axes.set_yticks(range(len(rows)), [drawing.plain(shortened(row_title(row), 24), 24) for row in reversed(rows)])
    axes.set_xlabel("top-1 difference (points); square: all pairs, 95 % interval", fontsize=FONT)
    figure.legend(fontsize=NOTE, loc="outside lower center", ncols=2, frameon=False, handletextpad=0.2)
    _dress(axes, "x")
    return figure


def learning_curves(results: ResultSet, table: Table) -> Figure | None:
    """Test top-1 over epochs, mean over seeds, a panel for each pair; of one pair alone a second one, of the epochs after the first drop of the
    rate (three at least), where methods are nearer to each other. None where nothing is done."""
    curves = {(i, j): c for i, row in enumerate(table.rows) for j in range(len(table.pairs)) if (c := mean_curve(row.cells[j]))}
    shown: list[tuple[int, Pair]] = [(j, p) for j, p in enumerate(table.pairs) if any(key[1] == j for key in curves)]
    if not shown:
        return None
    low = min(table.protocol.milestones, default=0)
    low = low if len(shown) == 1 and table.protocol.epochs - low > 2 else 0
    parts = [(j, pair.title, 0) for j, pair in shown] + [(j, f"after epoch {low}", low) for j, _ in shown if low]
    figure = _figure(1.0 + 1.35 * -(-len(parts) // 2) + 0.12 * -(-len(table.rows) // 4), results, table, "Learning curves, mean over seeds")
    panels = _panels(figure, len(parts))
    handles: dict[str, Any] = {}
    for axes, (j, title, first) in zip(panels, parts, strict=True):
        for i, row in enumerate(table.rows):
            if (i, j) in curves:
                curve, look = curves[i, j][first:], drawing.look(i)
                every = max(1, len(curve) // 6)
                marks = (i * every // len(table.rows), every)
                (line,) = axes.plot(range(first + 1, first + len(curve) + 1), curve, linewidth=0.7, markersize=2.2, markevery=marks, **look)
                handles[drawing.plain(row_title(row)) + _fewer(row, [j for j, _ in shown], len(table.seeds))] = line
        axes.set_title(drawing.plain(title), fontsize=SMALL)
        axes.set_xlabel("epoch", fontsize=SMALL)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _dress(axes)
    panels[0].set_ylabel("top-1 (%)", fontsize=SMALL)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", fontsize=NOTE, ncols=4, frameon=False, columnspacing=1)
    return figure


def _fewer(row: Row, pairs: list[int], seeds: int) -> str:
    """The seeds behind a row's curves where they are fewer than the table's: a mean of one is not to be read as one of three."""
    counts = sorted({len(row.cells[j].values) for j in pairs if row.cells[j].values})
    return f" (n = {', '.join(map(str, counts))})" if counts and counts[0] < seeds else ""


def _compared(cell: Cell) -> bool:
    """Whether there is a published mean of what the panel shows: last epochs."""
    return cell.published is not None and cell.published.epoch != "best"


def every_seed(results: ResultSet, table: Table) -> Figure | None:
    """A panel for each pair: the top-1 of each seed (dots), their mean (line) and the published mean of the last epoch (diamond) of each method."""
    shown = [(j, p) for j, p in enumerate(table.pairs) if any(row.cells[j].values for row in table.rows)]
    if not shown:
        return None
    height = 0.9 + (0.45 + 0.13 * len(table.rows)) * -(-len(shown) // 2)
    held = any(_compared(row.cells[j]) for row in table.rows for j, _ in shown)
    figure = _figure(height, results, table, "Every seed, their mean (line)" + " and the published one (diamond)" * held)
    panels = _panels(figure, len(shown))
    for axes, (j, pair) in zip(panels, shown, strict=True):
        for y, row in enumerate(reversed(table.rows)):
            cell = row.cells[j]
            axes.plot(list(cell.values.values()), [y] * len(cell.values), "o", color="0.35", markersize=1.8)
            if cell.summary:
                axes.plot([cell.summary.mean] * 2, [y - 0.35, y + 0.35], "-", color="black", linewidth=0.9)
            if _compared(cell):
                axes.plot(cell.published.top1, y, "D", markerfacecolor="none", markeredgecolor="black", markeredgewidth=0.5, markersize=3)
        axes.set_yticks(range(len(table.rows)), [drawing.plain(shortened(row_title(row), 16), 16) for row in reversed(table.rows)])
        axes.set_title(drawing.plain(pair.title), fontsize=SMALL)
        axes.set_xlabel("top-1 (%)", fontsize=SMALL)
        _dress(axes, "x")
        axes.tick_params(axis="y", labelsize=NOTE)
    return figure


FIGURES = {"accuracy-cost": accuracy_against_cost, "differences": paired_differences, "curves": learning_curves, "seeds": every_seed}


def draw(sets: list[ResultSet]) -> dict[str, Figure]:
    """All figures by file name without ending, e.g. own-runs-table1-curves."""
    figures: dict[str, Figure] = {}
    slugs: set[str] = set()
    for results in sets:
        slug = re.sub(r"[^A-Za-z0-9]+", "-", results.name).strip("-") or "set"
        if slug in slugs:  # of another set: gtx_1080 and gtx-1080
            slug += f"-{digest(results.name, 4)}"
        slugs.add(slug)
        for number, table in enumerate(results.tables, 1):
            for kind, make in FIGURES.items():
                figure = make(results, table)
                if figure is not None:
                    figures[f"{slug}-table{number}-{kind}"] = figure
    return figures


def write(sets: list[ResultSet], folder: Path) -> set[str]:
    """Draw into `folder`; the names, without ending. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw(sets)
    for name, figure in drawn.items():
        drawing.save(figure, folder / name)
    return set(drawn)
