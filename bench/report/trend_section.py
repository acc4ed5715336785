"""The nightly runs on the page: for each machine class every metric over the nights, the last value, and what the alarm has open."""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from bench.text import clean

DASH = "–"
NIGHTS = 120
"""Nights drawn of a history."""


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def spark(points: list[list[float]], marks: list[int], label: str) -> Markup:
    """A small line over the nights, a ring at its end and a tick at the nights in `marks`."""
    shown = points[-NIGHTS:]
    nights, values = [p[0] for p in shown], [p[1] for p in shown]
    low, high = min(values), max(values)
    wide, tall = 180.0, 30.0

    def at(night: float) -> float:
        return 4 + (night - nights[0]) / max(1, nights[-1] - nights[0]) * (wide - 10)

    def up(value: float) -> float:
        return tall - 5 - ((value - low) / (high - low) if high > low else 0.5) * (tall - 10)

    line = " ".join(f"{at(n):.1f},{up(v):.1f}" for n, v in zip(nights, values, strict=True))
    ticks = "".join(f'<line class="bar" x1="{at(n):.1f}" x2="{at(n):.1f}" y1="1" y2="{tall - 1}"/>' for n in marks if n >= nights[0])
    return Markup(
        f'<svg class="spark" viewBox="0 0 {wide:g} {tall:g}" role="img" aria-label="{escape(clean(label, 200))}">'
        f'<polyline class="curve" points="{line}"/><g class="hl">{ticks}</g>'
        f'<circle class="dot" cx="{at(nights[-1]):.1f}" cy="{up(values[-1]):.1f}" r="2.5"/></svg>'
    )


def _machine(name: str, found: dict[str, Any]) -> dict[str, Any]:
    if "error" in found:
        return {"name": clean(name), "error": clean(found["error"]), "lines": [], "nights": 0, "other_plans": 0}
    last = found["nights"][-1] if found["nights"] else None
    if last:
        last = {"night": last["night"], "date": last["date"], "commit": clean(last["commit"] or "unknown")}
    lines = []
    for series in found["series"]:
        points, reported = series["points"], series["reported"]
        is_open = [f for f in reported if f["open"]]
        state = "; ".join(f"{f['kind']} since {clean(f['since'] or 'an unknown commit', 24)}" for f in is_open)
        where = clean(" on ".join(filter(None, (series["method"], series["pair"]))))
        label = f"{series['metric']} of {where or 'the suite'}: {len(points)} nights, from {_number(points[0][1])} to {_number(points[-1][1])}"
        gone = last is not None and points[-1][0] != last["night"]
        lines.append(
            {
                "where": where or DASH,
                "metric": clean(series["metric"]),
                "unit": clean(series["unit"]),
                "first": _number(points[0][1]),
                "last": _number(points[-1][1]) + (" (not measured last night)" if gone else ""),
                "worse": series["worse"],
                "state": state,
                "spark": spark(points, [f["night"] for f in is_open], label),
            }
        )
    lines.sort(key=lambda line: not line["state"])
    count = len(found["nights"])
    is_open = sum(bool(line["state"]) for line in lines)
    return {"name": clean(name), "error": "", "lines": lines, "nights": count, "other_plans": found["other_plans"], "last": last, "open": is_open}


def section(results: Path, environment: jinja2.Environment) -> Markup | None:
    """The section for `results`/nightly; None where no nightly has run."""
    if not (results / "nightly").is_dir():
        return None
    from bench.nightly.trend import trends  # only where there is a history: its statistics take time to load

    machines = [_machine(name, found) for name, found in trends(results).items()]
    return Markup(environment.get_template("trend.html.j2").render(machines=machines)) if machines else None
