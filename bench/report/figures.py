"""Figures as PNG and PDF: accuracy against cost, paired differences, learning curves, every seed. Markers and lines tell methods apart in grey."""

import io
import re
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.report.blocks import conditions, row_title, set_title
from bench.report.epochs import mean_curve
from bench.report.table import Pair, ResultSet, Table
from bench.store.files import write_bytes
from bench.text import clean

MARKERS = "osD^vP<X>*hp"
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#666666")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 3)), (0, (3, 1)), (0, (6, 2, 2, 2)))


def _look(index: int) -> dict[str, Any]:
    return {"marker": MARKERS[index % len(MARKERS)], "color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index % len(STYLES)]}


def _plain(text: str, limit: int = 60) -> str:
    return clean(text, limit).replace("$", r"\$")  # a dollar sign would start a formula


def _figure(width: float, height: float, results: ResultSet, table: Table, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}: {_plain(set_title(results))}", fontsize=11)
    figure.supxlabel(textwrap.fill(_plain(conditions(table), 300), int(width * 16)), fontsize=7)
    return figure


def accuracy_against_cost(results: ResultSet, table: Table) -> Figure | None:
    """Pooled difference to the baseline (points) over relative throughput. None without costs or differences."""
    rows = [(i, row) for i, row in enumerate(table.rows) if row.speed and (row.pooled or row.method == table.baseline)]
    if len(rows) < 2:
        return None
    figure = _figure(6.4, 4.6, results, table, "Accuracy against cost")
    axes = figure.subplots()
    axes.axhline(0, color="0.6", linewidth=0.8)
    for i, row in rows:
        mean, half = (row.pooled.mean, row.pooled.half) if row.pooled else (0.0, None)
        look = _look(i)
        look["linestyle"] = ""
        axes.errorbar(row.speed, mean, yerr=half, capsize=3, markeredgecolor="black", markersize=7, **look)
        axes.annotate(_plain(row_title(row)), (row.speed, mean), xytext=(7, 5), textcoords="offset points", fontsize=8)
    axes.set_xlabel("training throughput relative to the plain student (geometric mean over pairs)")
    axes.set_ylabel(f"top-1 difference to {_plain(table.baseline)} (points)")
    axes.margins(x=0.18, y=0.12)
    axes.grid(color="0.9", linewidth=0.6)
    return figure


def paired_differences(results: ResultSet, table: Table) -> Figure | None:
    """For each method: the difference to the baseline on every pair (small) and pooled (large, with its 95 % interval). None without differences."""
    rows = [row for row in table.rows if row.pooled]
    if not rows:
        return None
    figure = _figure(7.2, 1.8 + 0.42 * len(rows), results, table, f"Difference to {_plain(table.baseline)}, paired by seed")
    axes = figure.subplots()
    axes.axvline(0, color="0.5", linewidth=0.8)
    for y, row in enumerate(reversed(rows)):
        for j, (pair, cell) in enumerate(zip(table.pairs, row.cells, strict=True)):
            if cell.difference:
                label = _plain(pair.title) if y == len(rows) - 1 else None
                shift = 0.22 - 0.5 * (j + 1) / (len(table.pairs) + 1)
                axes.plot(cell.difference.mean, y + shift, linestyle="", marker=MARKERS[j % len(MARKERS)], color="0.45", markersize=4, label=label)
        axes.errorbar(row.pooled.mean, y + 0.27, xerr=row.pooled.half, marker="s", color="black", capsize=3, markersize=6)
    axes.set_yticks(range(len(rows)), [_plain(row_title(row)) for row in reversed(rows)])
    axes.set_xlabel("top-1 difference (points); square: all pairs with 95 % interval")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    return figure


def learning_curves(results: ResultSet, table: Table) -> Figure | None:
    """Test top-1 over epochs, mean over seeds, a panel for each pair. None where nothing is done."""
    curves = {(i, j): c for i, row in enumerate(table.rows) for j in range(len(table.pairs)) if (c := mean_curve(row.cells[j]))}
    shown: list[tuple[int, Pair]] = [(j, p) for j, p in enumerate(table.pairs) if any(key[1] == j for key in curves)]
    if not shown:
        return None
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    figure = _figure(max(6.4, 3.6 * across), 1.4 + 2.8 * down, results, table, "Learning curves, mean over seeds")
    panels = figure.subplots(down, across, squeeze=False).flat
    for axes in list(panels)[len(shown) :]:
        axes.axis("off")
    handles: dict[str, Any] = {}
    for axes, (j, pair) in zip(figure.axes, shown, strict=False):
        for i, row in enumerate(table.rows):
            if (i, j) in curves:
                curve, look = curves[i, j], _look(i)
                every = max(1, len(curve) // 6)
                marks = (i * every // len(table.rows), every)
                (line,) = axes.plot(range(1, len(curve) + 1), curve, linewidth=1.1, markersize=4, markevery=marks, **look)
                handles[_plain(row_title(row))] = line
        ends = [c[-1] for key, c in curves.items() if key[1] == j]
        low = min(c[len(c) // 3] for key, c in curves.items() if key[1] == j)
        axes.set_ylim(min(low, min(ends) - 5), max(ends) + 2)
        axes.set_title(_plain(pair.title), fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(color="0.9", linewidth=0.6)
    figure.axes[0].set_ylabel("top-1 (%)", fontsize=8)
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def every_seed(results: ResultSet, table: Table) -> Figure | None:
    """A panel for each pair: the top-1 of each seed (dots), their mean (line) and the published mean of the last epoch (diamond) of each method."""
    shown = [(j, p) for j, p in enumerate(table.pairs) if any(row.cells[j].values for row in table.rows)]
    if not shown:
        return None
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    figure = _figure(max(6.4, 3.6 * across), 1.4 + (0.6 + 0.24 * len(table.rows)) * down, results, table, "Every seed")
    panels = figure.subplots(down, across, squeeze=False).flat
    for axes in list(panels)[len(shown) :]:
        axes.axis("off")
    for axes, (j, pair) in zip(figure.axes, shown, strict=False):
        for y, row in enumerate(reversed(table.rows)):
            cell = row.cells[j]
            axes.plot(list(cell.values.values()), [y] * len(cell.values), "o", color="0.35", markersize=3.5)
            if cell.summary:
                axes.plot([cell.summary.mean] * 2, [y - 0.35, y + 0.35], "-", color="black", linewidth=1.2)
            if cell.published and cell.published.epoch != "best":  # the panel shows last epochs
                axes.plot(cell.published.top1, y, "D", markerfacecolor="none", markeredgecolor="black", markersize=5)
        axes.set_yticks(range(len(table.rows)), [_plain(row_title(row), 24) for row in reversed(table.rows)], fontsize=7)
        axes.set_title(_plain(pair.title), fontsize=9)
        axes.set_xlabel("top-1 (%); line: mean, diamond: published", fontsize=7)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", color="0.9", linewidth=0.6)
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
    """Draw into `folder`, each file atomically, PNG (150 dpi) and PDF; returns the paths. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in draw(sets).items():
        for ending, settings in (("png", {"dpi": 150}), ("pdf", {"metadata": {"CreationDate": None}})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, **settings)
            paths.append(folder / f"{name}.{ending}")
            write_bytes(paths[-1], buffer.getvalue())
    return paths
