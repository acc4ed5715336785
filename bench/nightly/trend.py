"""The data of the trend figures: every metric over the nights of each machine class, as JSON values. No torch here."""

import math
from pathlib import Path
from typing import Any

from bench.errors import StoreError
from bench.nightly import history
from bench.nightly.rows import Row
from bench.nightly.verdict import gaps, judge


def trend(rows: list[Row], baseline: dict[str, Any] | None = None, every_hours: float = 24.0) -> dict[str, Any]:
    """The series of one machine class, oldest night first: nights of the last one's plan, since those of another do not compare with it.

    {"nights": [{"night", "date", "commit"}], "other_plans": nights left out, "series": [{"key", "method", "pair", "metric", "unit", "worse",
    "points": [[night, value], ...], "reported": [{"night", "kind", "since", "open"}]}], "gaps": [[date before, date after, nights missing]],
    "baselines": [{"night", "commit", "date", "reason"}]}. A value is the mean over seeds, in `unit`; nights without the metric have no point.
    `reported` covers the nights since the present baseline.
    """
    known, rows = len(rows), [row for row in rows if row["plan"] == rows[-1]["plan"]]
    verdict = judge(rows, baseline, every_hours) if rows and baseline else None
    still = {(f.key, f.reported) for f in [*verdict.open, *verdict.new]} if verdict else set()
    series = []
    for key in dict.fromkeys(key for row in rows for key in row["metrics"]):
        found = [(row["night"], row["metrics"][key]) for row in rows if key in row["metrics"]]
        latest = found[-1][1]
        reported = [
            {"night": f.reported, "kind": f.kind, "since": f.commit, "open": (f.key, f.reported) in still}
            for f in (verdict.all_findings if verdict else ())
            if f.key == key
        ]
        points = [[night, math.fsum(m["values"].values()) / len(m["values"])] for night, m in found]
        series.append({"key": key, **{n: latest[n] for n in ("method", "pair", "metric", "unit", "worse")}, "points": points, "reported": reported})
    return {
        "nights": [{name: row[name] for name in ("night", "date", "commit")} for row in rows],
        "other_plans": known - len(rows),
        "series": series,
        "gaps": [list(gap) for gap in gaps(rows, every_hours)],
        "baselines": [*baseline["earlier"], {n: baseline[n] for n in ("night", "commit", "date", "reason")}] if baseline else [],
    }


def trends(results: Path) -> dict[str, dict[str, Any]]:
    """`trend` of every machine class below results/nightly, by name; {"error": ...} for a history that cannot be read. No history: empty."""
    found: dict[str, dict[str, Any]] = {}
    for machine in history.machines(results):
        place = history.folder(results, machine)
        try:
            found[machine] = trend(history.read(place), history.read_baseline(place))
        except (StoreError, OSError) as error:
            found[machine] = {"error": str(error)}
    return found
