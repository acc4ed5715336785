"""`status`: counts and a table of the runs in a results folder."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.errors import StoreError, UsageError
from bench.launch.progress import Progress
from bench.options import ResultsOption
from bench.plan.rows import row_of
from bench.store import redo
from bench.store.files import Problem, read
from bench.store.records import PlannedCell, PlanRecord
from bench.store.runs import STATUSES, is_done, scan
from bench.text import say, settings_text, table


@dataclass(frozen=True)
class Status(ResultsOption):
    """Counts and a table of the runs in a results folder."""

    all: bool = False
    """List the done runs too."""
    watch: bool = False
    """Show the live table until interrupted."""

    def main(self) -> int:
        if not self.results_there():
            raise UsageError(f"{self.results} is no folder; name the results folder with --results")
        return watch(self.results) if self.watch else show(self.results, self.all)


def show(results: Path, everything: bool) -> int:
    """Print counts by status, the runs that are not done (or all), what cannot be trusted, and changed methods."""
    from bench.launch.ledger import changed_sources  # reads the methods, and so torch

    views, problems = scan(results)
    cells, problem = planned_cells(results)
    problems += problem
    known = {v.id for v in views}
    count = Counter(v.status for v in views)
    # A run that several pairs share stands in several cells; a cell without an id waits for its teacher.
    count["planned"] += len({c.run for c in cells if c.run and c.run not in known}) + sum(not c.run and not c.skipped for c in cells)
    count["skipped"] += sum(bool(c.skipped) for c in cells)
    print(", ".join(f"{count[s]} {s}" for s in STATUSES if count[s]) or "no runs")
    rows = []
    for view in views:
        if view.status != "done" or everything:
            top1 = f"{view.record.test_top1:.2f} %" if view.record else "-"
            changed = settings_text(view.changed or {}) or "-"
            rows.append((view.id, view.status, f"{view.epoch or 0}/{view.protocol.epochs}", top1, changed, view.reason or "-"))
    if rows:
        header = ("run", "status", "epoch", "top-1", "changed", "reason")
        if all(row[4] == "-" for row in rows):  # one column less
            rows, header = [(*row[:4], row[5]) for row in rows], (*header[:4], header[5])
        print("\n".join(table(rows, header)))
    if again := redone(results):
        say(f"to be trained again (--redo); the old results stay meanwhile: {len(again)}")
        print("\n".join(table(again, ("run", "status", "epoch", "reason"))))
    for c in dict.fromkeys(f"{c.teacher}-{c.student}, {_row(c)}: {c.skipped}" for c in cells if c.skipped):
        say(f"skipped {c}")
    for problem in problems:
        say(f"not to be trusted: {problem.where}: {problem.reason}")
    for warning in changed_sources(results, views):
        say(f"warning: {warning}")
    return 0


def _row(cell: PlannedCell) -> str:
    return row_of(cell.method, {name: here for name, (_, here) in cell.changed.items()})


def redone(results: Path) -> list[tuple[str, str, str, str]]:
    """The runs that are to be trained again, each with its status there, epoch and reason; planned: it has not begun."""
    views, problems = scan(redo.root(results))
    rows = [(v.id, v.status, f"{v.epoch or 0}/{v.protocol.epochs}", v.reason or "-") for v in views]
    for problem in problems:
        begun = (redo.root(results) / "runs" / problem.where / "config.json").exists()
        rows.append((problem.where, *(("failed", "-", problem.reason) if begun else ("planned", "-", "-"))))
    return sorted(rows)


def planned_cells(results: Path) -> tuple[list[PlannedCell], list[Problem]]:
    """The cells of plan.json, none where there is none or it cannot be read, which is named."""
    try:
        plan = read(results / "plan.json", PlanRecord)
    except StoreError as error:
        return [], [Problem("plan.json", str(error))]
    return plan.cells if plan else [], []


def counts(results: Path) -> tuple[int, int]:
    """How many planned runs are done, and how many there are; one to be trained again is done when its new result is there."""
    runs = {c.run or (c.teacher, c.student, c.method, str(c.changed), c.seed) for c in planned_cells(results)[0] if not c.skipped}
    done = [isinstance(run, str) and is_done(results / "runs" / run) and not redo.pending(results, run) for run in runs]
    return sum(done), len(runs)


def watch(results: Path) -> int:
    """The live table until interrupted."""
    show = Progress(results, lambda: counts(results), labels=lambda: {c.run: c.label for c in planned_cells(results)[0] if c.run and c.label})
    try:
        while True:
            show.update()
            time.sleep(0.5)
    finally:
        show.close()
