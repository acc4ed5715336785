"""Figures as PNG and PDF, a column of a paper wide: accuracy against cost, paired differences, learning curves, every seed.

Markers and lines tell methods apart in grey.
"""

import io
import re
import textwrap
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from bench.report.blocks import conditions, row_title, set_title
from bench.report.epochs import mean_curve
from bench.report.table import Pair, ResultSet, Table
from bench.store.files import write_bytes
from bench.text import clean

WIDTH = 3.3
"""Inches: a column of the papers."""
FONT, SMALL, NOTE = 7, 6, 5
"""Points."""
MARKERS = "osD^vP<X>*hp"
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#666666")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 3)), (0, (3, 1)), (0, (6, 2, 2, 2)))


def _look(index: int) -> dict[str, Any]:
    return {"marker": MARKERS[index % len(MARKERS)], "color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index % len(STYLES)]}


def _plain(text: str, limit: int = 60) -> str:
    return clean(text, limit).replace("$", r"\$")  # a dollar sign would start a formula


def _figure(height: float, results: ResultSet, table: Table, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    said = textwrap.fill(_plain(conditions(table), 300), 80)
    figure.suptitle(f"{title}: {_plain(set_title(results))}\n{said}", fontsize=NOTE)
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
        look = _look(i)
        look["linestyle"] = ""
        axes.errorbar(row.speed, mean, yerr=half, capsize=2, elinewidth=0.7, markeredgecolor="black", markeredgewidth=0.5, markersize=4, **look)
        points.append((row.speed, mean, _plain(row_title(row), 24)))
    axes.set_xlabel("training throughput, × the plain student", fontsize=FONT)
    axes.set_ylabel(f"top-1 over {_plain(table.baseline)} (points)", fontsize=FONT)
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
    figure = _figure(height, results, table, f"Difference to {_plain(table.baseline)}, paired by seed")
    axes = figure.subplots()
    axes.axvline(0, color="0.5", linewidth=0.8)
    for y, row in enumerate(reversed(rows)):
        for j, (pair, cell) in enumerate(zip(table.pairs, row.cells, strict=True)):
            if cell.difference:
                label = _plain(pair.title) if y == len(rows) - 1 else None
                shift = 0.22 - 0.5 * (j + 1) / (len(table.pairs) + 1)
                axes.plot(cell.difference.mean, y + shift, linestyle="", marker=MARKERS[j % len(MARKERS)], color="0.45", markersize=2.2, label=label)
        axes.errorbar(row.pooled.mean, y + 0.27, xerr=row.pooled.half, marker="s", color="black", capsize=2, elinewidth=0.8, markersize=3)
    axes.set_yticks(range(len(rows)), [_plain(row_title(row), 24) for row in reversed(rows)])
    axes.set_xlabel("top-1 difference (points); square: all pairs, 95 % interval", fontsize=FONT)
    figure.legend(fontsize=NOTE, loc="outside lower center", ncols=2, frameon=False, handletextpad=0.2)
    _dress(axes, "x")
    return figure


def learning_curves(results: ResultSet, table: Table) -> Figure | None:
    """Test top-1 over epochs, mean over seeds, a panel for each pair. None where nothing is done."""
    curves = {(i, j): c for i, row in enumerate(table.rows) for j in range(len(table.pairs)) if (c := mean_curve(row.cells[j]))}
    shown: list[tuple[int, Pair]] = [(j, p) for j, p in enumerate(table.pairs) if any(key[1] == j for key in curves)]
    if not shown:
        return None
    figure = _figure(1.0 + 1.35 * -(-len(shown) // 2) + 0.12 * -(-len(table.rows) // 4), results, table, "Learning curves, mean over seeds")
    panels = _panels(figure, len(shown))
    handles: dict[str, Any] = {}
    for axes, (j, pair) in zip(panels, shown, strict=True):
        for i, row in enumerate(table.rows):
            if (i, j) in curves:
                curve, look = curves[i, j], _look(i)
                every = max(1, len(curve) // 6)
                marks = (i * every // len(table.rows), every)
                (line,) = axes.plot(range(1, len(curve) + 1), curve, linewidth=0.7, markersize=2.2, markevery=marks, **look)
                handles[_plain(row_title(row))] = line
        axes.set_title(_plain(pair.title), fontsize=SMALL)
        axes.set_xlabel("epoch", fontsize=SMALL)
        _dress(axes)
    panels[0].set_ylabel("top-1 (%)", fontsize=SMALL)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", fontsize=NOTE, ncols=4, frameon=False, columnspacing=1)
    return figure


def every_seed(results: ResultSet, table: Table) -> Figure | None:
    """A panel for each pair: the top-1 of each seed (dots), their mean (line) and the published mean of the last epoch (diamond) of each method."""
    shown = [(j, p) for j, p in enumerate(table.pairs) if any(row.cells[j].values for row in table.rows)]
    if not shown:
        return None
    height = 0.9 + (0.45 + 0.13 * len(table.rows)) * -(-len(shown) // 2)
    figure = _figure(height, results, table, "Every seed, their mean (line) and the published one (diamond)")
    panels = _panels(figure, len(shown))
    for axes, (j, pair) in zip(panels, shown, strict=True):
        for y, row in enumerate(reversed(table.rows)):
            cell = row.cells[j]
            axes.plot(list(cell.values.values()), [y] * len(cell.values), "o", color="0.35", markersize=1.8)
            if cell.summary:
                axes.plot([cell.summary.mean] * 2, [y - 0.35, y + 0.35], "-", color="black", linewidth=0.9)
            if cell.published and cell.published.epoch != "best":  # the panel shows last epochs
                axes.plot(cell.published.top1, y, "D", markerfacecolor="none", markeredgecolor="black", markeredgewidth=0.5, markersize=3)
        axes.set_yticks(range(len(table.rows)), [_plain(row_title(row), 16) for row in reversed(table.rows)])
        axes.set_title(_plain(pair.title), fontsize=SMALL)
        axes.set_xlabel("top-1 (%)", fontsize=SMALL)
        _dress(axes, "x")
        axes.tick_params(axis="y", labelsize=NOTE)
    return figure


FIGURES = {"accuracy-cost": accuracy_against_cost, "differences": paired_differences, "curves": learning_curves, "seeds": every_seed}


def draw(sets: list[ResultSet]) -> dict[str, Figure]:
    """All figures by file name without ending, e.g. own-runs-table1-curves."""
    figures = {}
    for results in sets:
        slug = re.sub(r"[^A-Za-z0-9]+", "-", results.name).strip("-") or "set"
        for number, table in enumerate(results.tables, 1):
            for kind, make in FIGURES.items():
                figure = make(results, table)
                if figure is not None:
                    figures[f"{slug}-table{number}-{kind}"] = figure
    return figures


def write(sets: list[ResultSet], folder: Path) -> list[Path]:
    """Draw into `folder`, each file atomically, PNG (300 dpi) and PDF; returns the paths. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in draw(sets).items():
        for ending, settings in (("png", {"dpi": 300}), ("pdf", {"metadata": {"CreationDate": None}})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, **settings)
            paths.append(folder / f"{name}.{ending}")
            write_bytes(paths[-1], buffer.getvalue())
    return paths
