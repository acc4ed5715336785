"""Figures of the page as inline SVG, coloured by its style sheet: one method stands out (class `hl`), the others are grey. No plotting library.

Every mark of a method carries `data-m`, its row, so that the page can let another one stand out. Text is escaped here.
"""

import math
from collections.abc import Callable, Iterable
from itertools import dropwhile

from markupsafe import Markup, escape

from bench.report.blocks import row_title
from bench.report.compare import Comparison
from bench.report.epochs import mean_curve, thin
from bench.report.table import Table
from bench.text import clean, shortened

POINTS = 90
"""Epochs drawn of a learning curve: enough for a screen, and the page stays small."""
_DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3", "10 4", "4 2 1 2", "3 5", "12 3 3 3")


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _short(text: object, limit: int = 18) -> Markup:
    return escape(shortened(text, limit))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values within [low, high], about so many."""
    span = max(high - low, 1e-9)
    raw = span / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick_text(value: float, values: list[float]) -> str:
    step = values[1] - values[0] if len(values) > 1 else 1
    places = max(0, -math.floor(math.log10(step) + 1e-9)) if step < 1 else 0
    return f"{value:.{places}f}".replace("-", "−")


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Values low..high -> places start..end."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _svg(width: float, height: float, title: str, parts: Iterable[str]) -> Markup:
    label = escape(clean(title, 300))
    body = "".join(parts)
    return Markup(f'<svg viewBox="0 0 {_n(width)} {_n(height)}" role="img" aria-label="{label}"><title>{label}</title>{body}</svg>')


def _x_axis(values: list[float], at, top: float, bottom: float) -> list[str]:
    out = []
    for v in values:
        x = _n(at(v))
        out.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_n(top)}" y2="{_n(bottom)}"/>')
        out.append(f'<text class="tick" x="{x}" y="{_n(bottom + 14)}" text-anchor="middle">{_tick_text(v, values)}</text>')
    return out


def _y_axis(values: list[float], up, left: float, right: float, text: float) -> list[str]:
    out = []
    for v in values:
        y = _n(up(v))
        out.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        out.append(f'<text class="tick" x="{text}" y="{_n(up(v) + 4)}" text-anchor="end">{_tick_text(v, values)}</text>')
    return out


def differences(table: Table, versus: Comparison) -> Markup | None:
    """Per method: the difference to the baseline on each pair (rings) and over all pairs with its 95 % interval (square and line)."""
    rows = [i for i in range(len(table.rows)) if i in versus.pooled]
    if not rows:
        return None
    spans = [0.0]
    for i in rows:
        d = versus.pooled[i].difference
        spans += [d.mean - (d.half or 0), d.mean + (d.half or 0)]
        spans += [c.difference.mean for (k, _), c in versus.cells.items() if k == i]
    low, high = min(spans), max(spans)
    pad = max(0.1, (high - low) * 0.06)
    low, high = low - pad, high + pad
    left, right, step, top = 104.0, 368.0, 30.0, 8.0
    bottom, at = top + step * len(rows), _scale(low, high, left, right)
    parts = _x_axis(ticks(low, high), at, top, bottom)
    parts.append(f'<line class="zero" x1="{_n(at(0))}" x2="{_n(at(0))}" y1="{top}" y2="{_n(bottom)}"/>')
    for k, i in enumerate(rows):
        y = top + step * (k + 0.5)
        d = versus.pooled[i].difference
        parts.append(f'<g class="m" data-m="{i}">')
        parts.append(f'<text class="name" x="{left - 10}" y="{_n(y + 4)}" text-anchor="end">{_short(row_title(table.rows[i]), 13)}</text>')
        for j, pair in enumerate(table.pairs):
            if (i, j) in versus.cells:
                v = versus.cells[i, j].difference.mean
                tip = escape(f"{clean(pair.title, 60)}: {v:+.2f}")
                parts.append(f'<circle class="ring" cx="{_n(at(v))}" cy="{_n(y + 7)}" r="2.6"><title>{tip}</title></circle>')
        yy = _n(y - 3)
        if d.half is not None:
            parts.append(f'<line class="bar" x1="{_n(at(d.mean - d.half))}" x2="{_n(at(d.mean + d.half))}" y1="{yy}" y2="{yy}"/>')
        parts.append(f'<rect class="dot" x="{_n(at(d.mean) - 4)}" y="{_n(y - 7)}" width="8" height="8"/>')
        shown = f"{d.mean:+.2f}" + ("" if d.half is None else f" ± {d.half:.2f}")
        parts.append(f'<text class="value" x="478" y="{_n(y + 4)}" text-anchor="end">{shown.replace("-", "−")}</text></g>')
    parts.append(f'<text class="axis" x="{_n((left + right) / 2)}" y="{_n(bottom + 32)}" text-anchor="middle">points of top-1</text>')
    return _svg(480, bottom + 38, f"Difference to {versus.title}, paired by seed: all pairs with 95 % interval, and each pair", parts)


def cost(table: Table, versus: Comparison | None) -> Markup | None:
    """Accuracy (pooled difference to the baseline) against the time of a training step relative to the plain student."""
    points = []
    for i, row in enumerate(table.rows):
        found = versus.pooled.get(i) if versus else None
        if row.speed and (found or row.method == table.baseline) and not row.variant:
            points.append((i, 1 / row.speed, found.difference.mean if found else 0.0, found.difference.half if found else None))
    if len(points) < 2:
        return None
    xs = [p[1] for p in points]
    ys = [p[2] - (p[3] or 0) for p in points] + [p[2] + (p[3] or 0) for p in points]
    x_low, x_high = min(xs), max(xs)
    x_pad = max(0.05, (x_high - x_low) * 0.12)
    x_low, x_high = x_low - x_pad, x_high + x_pad
    y_pad = max(0.1, (max(ys) - min(ys)) * 0.1)
    y_low, y_high = min(ys) - y_pad, max(ys) + y_pad
    left, right, top, bottom = 44.0, 470.0, 10.0, 250.0
    at, up = _scale(x_low, x_high, left, right), _scale(y_low, y_high, bottom, top)
    parts = _x_axis(ticks(x_low, x_high), at, top, bottom) + _y_axis(ticks(y_low, y_high), up, left, right, left - 6)
    taken = [(at(x) - 6, up(y) - 6, at(x) + 6, up(y) + 6) for _, x, y, _ in points]
    for i, x, y, half in points:
        cx, cy = at(x), up(y)
        name = shortened(row_title(table.rows[i]), 15)
        wide = 6.6 * len(name)
        spots = [(8, 4), (-8 - wide, 4), (8, -8), (8, 16), (-8 - wide, -8), (-8 - wide, 16), (-wide / 2, -14), (-wide / 2, 24)]
        spots += [(12, -22), (-12 - wide, -22), (12, 30), (-12 - wide, 30), (-wide / 2, -28), (-wide / 2, 38), (22, 4), (-22 - wide, 4)]
        spots = [(cx + dx, cy + dy) for dx, dy in spots]
        inside = [s for s in spots if s[0] > left and s[0] + wide < right and s[1] - 10 > top and s[1] < bottom] or spots
        covered = [sum(s[0] < b[2] and s[0] + wide > b[0] and s[1] - 10 < b[3] and s[1] + 2 > b[1] for b in taken) for s in inside]
        tx, ty = inside[covered.index(min(covered))]
        taken.append((tx, ty - 10, tx + wide, ty + 2))
        tip = escape(f"{name}: {x:.2f}× the time, {y:+.2f} points")
        parts.append(f'<g class="m" data-m="{i}">')
        if half is not None:
            parts.append(f'<line class="bar" x1="{_n(cx)}" x2="{_n(cx)}" y1="{_n(up(y - half))}" y2="{_n(up(y + half))}"/>')
        parts.append(f'<circle class="dot" cx="{_n(cx)}" cy="{_n(cy)}" r="4.5"><title>{tip}</title></circle>')
        parts.append(f'<text class="name" x="{_n(tx)}" y="{_n(ty)}">{escape(name)}</text></g>')
    label = "time of a training step, × the plain student"
    parts.append(f'<text class="axis" x="{_n((left + right) / 2)}" y="{_n(bottom + 32)}" text-anchor="middle">{label}</text>')
    base = escape(clean(versus.title if versus else table.baseline, 30))
    parts.append(f'<text class="axis" x="{left + 6}" y="{top + 12}">points above {base}</text>')
    return _svg(480, bottom + 38, "Accuracy against cost: pooled difference with 95 % interval over relative time of a training step", parts)


def seeds(table: Table, column: int) -> Markup | None:
    """One panel: each seed of each method as a dot, the mean as a tick, the published number as a diamond."""
    rows = [i for i, row in enumerate(table.rows) if row.cells[column].values]
    if not rows:
        return None
    cells = {i: table.rows[i].cells[column] for i in rows}
    papers = {i: p for i, c in cells.items() if (p := c.published) and p.epoch != "best"}  # the panel shows last epochs
    values = [v for c in cells.values() for v in c.values.values()] + [p.top1 for p in papers.values()]
    pad = max(0.1, (max(values) - min(values)) * 0.06)
    low, high = min(values) - pad, max(values) + pad
    left, right, step, top = 96.0, 312.0, 20.0, 4.0
    bottom, at = top + step * len(rows), _scale(low, high, left, right)
    parts = _x_axis(ticks(low, high), at, top, bottom)
    for k, i in enumerate(rows):
        y, cell = top + step * (k + 0.5), cells[i]
        parts.append(f'<g class="m" data-m="{i}"><title>{_short(row_title(table.rows[i]), 80)}</title>')
        parts.append(f'<text class="name" x="{left - 8}" y="{_n(y + 4)}" text-anchor="end">{_short(row_title(table.rows[i]), 14)}</text>')
        x = _n(at(cell.summary.mean))
        parts.append(f'<line class="bar" x1="{x}" x2="{x}" y1="{_n(y - 7)}" y2="{_n(y + 7)}"/>')
        if len(cell.values) <= 12:
            for seed, v in sorted(cell.values.items()):
                parts.append(f'<circle class="dot" cx="{_n(at(v))}" cy="{_n(y)}" r="3"><title>seed {seed}: {v:.2f}</title></circle>')
        else:  # a cloud of dots tells no more than its ends
            ends = f'x1="{_n(at(min(cell.values.values())))}" x2="{_n(at(max(cell.values.values())))}"'
            parts.append(f'<line class="bar" {ends} y1="{_n(y)}" y2="{_n(y)}"><title>{len(cell.values)} seeds, lowest to highest</title></line>')
        if i in papers:
            p = at(papers[i].top1)
            parts.append(f'<path class="paper" d="M{_n(p)} {_n(y - 5)}l5 5l-5 5l-5 -5z"><title>published: {papers[i].top1:.2f}</title></path>')
        parts.append("</g>")
    return _svg(320, bottom + 22, f"Seeds on {table.pairs[column].title}", parts)


def curves(table: Table, column: int) -> Markup | None:
    """One panel: test top-1 over epochs, mean over seeds, of each method."""
    found = {i: c for i, row in enumerate(table.rows) if len(c := mean_curve(row.cells[column])) > 1}
    if not found:
        return None
    epochs = max(map(len, found.values()))
    tops = [max(c) for c in found.values()]
    low = min(min(c[-1] for c in found.values()) - 2, min(c[len(c) // 4] for c in found.values()))
    high = max(tops) + 1
    left, right, top, bottom = 30.0, 312.0, 6.0, 176.0
    at, up = _scale(1, max(2, epochs), left, right), _scale(low, high, bottom, top)
    parts = _x_axis([e for e in ticks(1, epochs, 5) if e == int(e)] or [1, epochs], at, top, bottom)
    parts += _y_axis(ticks(low, high), up, left, right, left - 5)
    for i, values in found.items():
        points = list(dropwhile(lambda point: point[1] < low, thin(values, POINTS)))  # the steep start would be a line along the bottom
        line = " ".join(f"{_n(at(e))},{_n(up(max(v, low)))}" for e, v in points)
        dash = f' stroke-dasharray="{_DASHES[i % len(_DASHES)]}"' if i % len(_DASHES) else ""
        n = len(table.rows[i].cells[column].values)
        tip = escape(f"{shortened(row_title(table.rows[i]), 40)}: {values[-1]:.2f} after epoch {len(values)}, n = {n}")
        parts.append(f'<g class="m" data-m="{i}"><polyline class="curve" points="{line}"{dash}><title>{tip}</title></polyline></g>')
    parts.append(f'<text class="axis" x="{right}" y="{bottom + 30}" text-anchor="end">epoch</text>')
    return _svg(320, bottom + 36, f"Learning curves on {table.pairs[column].title}: test top-1 in percent by epoch", parts)
