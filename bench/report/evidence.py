"""Where each number of the page comes from: conditions of every column, runs behind every cell, and the steps from them to what is printed."""

from collections import Counter
from typing import Any

from bench.report import derivation
from bench.report.blocks import conditions, row_title
from bench.report.compare import Comparison
from bench.report.table import OWN, Cell, Pair, ResultSet, Row, Table
from bench.store.runs import RunView
from bench.text import clean


def _made(run: RunView) -> dict[str, str]:
    """What a done run was made with, as printed."""
    record = run.record
    made = {"device": record.device.name, "torch": record.versions.torch, "python": record.versions.python, "engine": record.engine}
    made |= {"threads": record.threads, "deterministic": "yes" if record.deterministic else "no", "commit": (record.commit or "?")[:24]}
    made |= {"teacher": (run.known.teacher_hash or "?")[:12] if record.teacher else "", "data": run.known.data_hash[:12]}
    return {key: clean(value, 60) for key, value in made.items() if value != ""}


LABELS = {
    "device": "Device", "torch": "torch", "python": "Python", "engine": "Engine", "threads": "Threads",
    "deterministic": "Deterministic", "commit": "Commit", "teacher": "Teacher (hash)", "data": "Data (hash)",
}  # fmt: skip


def column_facts(table: Table) -> tuple[list[tuple[str, str]], list[str], list[tuple[str, list[str]]]]:
    """The conditions: those that hold for every column, as (name, value); the names of those that vary; and per column its title and their values."""
    columns = []
    for j in range(len(table.pairs)):
        met: dict[str, Counter[str]] = {key: Counter() for key in LABELS}
        for run in (row.cells[j].runs[seed] for row in table.rows for seed in row.cells[j].values):
            for key, value in _made(run).items():
                met[key][value] += 1
        found = {key: " + ".join(f"{v} ({n})" for v, n in c.most_common()) if len(c) > 1 else next(iter(c), "–") for key, c in met.items()}
        done = sum(len(row.cells[j].values) for row in table.rows)
        planned = done + sum(row.cells[j].open for row in table.rows)
        columns.append({**found, "runs": f"{done} of {planned}"})
    protocol = table.protocol
    shown = [("Protocol", f"{protocol.name} on {protocol.dataset}, {protocol.epochs} epochs")]
    if table.trial:
        shown = [("TRIAL", f"not the protocol: {table.trial}"), *shown]
    shown += [("Precision", table.precision), ("Batch", str(protocol.batch)), ("Seeds", ", ".join(map(str, table.seeds[:12])))]
    if len(table.seeds) > 12:
        shown[-1] = ("Seeds", f"{len(table.seeds)}: {table.seeds[0]} to {table.seeds[-1]}")
    names = {**LABELS, "runs": "Done"}
    vary = [key for key in names if len({c[key] for c in columns}) > 1]
    if columns:
        shown += [(names[key], columns[0][key]) for key in names if key not in vary and columns[0][key] != "–"]
    lines = [(clean(pair.title, 80), [c[key] for key in vary]) for pair, c in zip(table.pairs, columns, strict=True)]
    return [(clean(k), clean(v)) for k, v in shown], [names[key] for key in vary], lines


def cell(
    results: ResultSet, table: Table, row: Row, pair: Pair, found: Cell, base: Cell | None, versus: list[tuple[Comparison, tuple[int, int]]],
    strings: dict[str, int],
) -> dict[str, Any]:
    """Everything behind one cell, ready for JSON. Runs: [seed, top-1 or what became of it, best and its epoch, difference, conditions, path].

    `strings`: those said once for the whole page, since runs repeat their device and commit, and where each stands; new ones are added.
    """

    def once(text: str) -> int:
        return strings.setdefault(text, len(strings))

    runs, root = [], "" if results.name == OWN else f"evidence/{results.folder.name}/"
    for seed in sorted(found.values.keys() | found.others.keys()):
        run = found.runs.get(seed)
        path = f"{root}runs/{run.id}" if run is not None else ""
        if seed in found.values:
            record, made = run.record, _made(run)
            best = f"{record.best_top1:.2f} ({record.best_epoch})"
            delta = f"{found.values[seed] - base.values[seed]:+.2f}" if base and base is not found and seed in base.values else ""
            said = ", ".join([made["device"], f"torch {made['torch']}", f"commit {made['commit']}"])
            runs.append([seed, f"{found.values[seed]:.2f}", best, delta, once(said), clean(f"{path}/record.json", 300)])
        else:
            reason = found.others[seed] + (f": {found.reasons[seed]}" if found.reasons.get(seed) else "")
            runs.append([seed, clean(reason, 200), "", "", once(""), clean(path and f"{path}/status.json", 300)])
    return {
        "t": clean(f"{row_title(row)} on {pair.title}", 200),
        "c": once(clean(conditions(table), 1000)),
        "r": runs,
        "s": [clean(step, 1000) for step in derivation.steps(table, found, base, versus)],
    }
