"""The epoch rows of done runs: learning curves for the page and figures, and all rows as one tidy CSV for people's own analysis."""

from pathlib import Path
from typing import Any, TextIO

from bench.errors import StoreError
from bench.report.table import Cell, ResultSet
from bench.store.rows import read_rows

COLUMNS = ("set", "run", "protocol", "trial", "precision", "teacher", "student", "method", "method_version", "hyper", "seed")
ROW_COLUMNS = ("epoch", "attempt", "lr", "loss", "train_top1", "test_top1", "test_top5", "test_loss", "seconds")


def mean_curve(cell: Cell) -> list[float]:
    """Mean test top-1 over the done seeds of a cell, by epoch; empty where there is none."""
    curves = [cell.runs[seed].curve for seed in sorted(cell.values)]
    return [sum(values) / len(values) for values in zip(*curves, strict=False)]


def thin(values: list[float], points: int) -> list[tuple[int, float]]:
    """(epoch, value) of at most about `points` epochs, evenly spaced, the first and last among them."""
    step = max(1, -(-len(values) // points))
    kept = [*range(0, len(values), step)]
    if values and kept[-1] != len(values) - 1:
        kept.append(len(values) - 1)
    return [(i + 1, values[i]) for i in kept]


def write_csv(sets: list[ResultSet], file: TextIO) -> int:
    """One line for each epoch of each run that a table shows, any status; returns how many. Runs with unreadable rows are named by the scan."""
    import pandas  # imported here: the report starts without it

    from bench.report.render import csv_field

    columns = [*COLUMNS, *ROW_COLUMNS]
    pandas.DataFrame(columns=columns).to_csv(file, index=False, lineterminator="\n")
    count = 0
    for results in sets:
        shown = (cell.runs[seed] for t in results.tables for row in t.rows for cell in row.cells for seed in sorted(cell.runs))
        for run in {run.id: run for run in shown}.values():  # the plain student stands in several columns
            try:
                rows = read_rows(run.folder / "epochs.jsonl", run.id).rows
            except StoreError:
                continue
            hyper = " ".join(f"{key}={value}" for key, value in sorted(run.known.hyper.items()))
            fixed: list[Any] = [results.name, run.id, run.protocol.name, run.protocol.trial, run.precision, run.teacher, run.student]
            fixed += [run.method, run.known.method_version, hyper, run.seed]
            kept = [csv_field(value) for value in fixed]
            lines = [[*kept, *(getattr(row, name) for name in ROW_COLUMNS)] for row in rows]
            pandas.DataFrame(lines, columns=columns).to_csv(file, index=False, header=False, lineterminator="\n")
            count += len(rows)
    return count


def save_csv(sets: list[ResultSet], path: Path) -> int:
    """`write_csv` into `path`, there whole or not at all. Raises OSError."""
    part = path.parent / f".{path.name}.part"
    try:
        with open(part, "w", encoding="utf-8", newline="") as file:
            count = write_csv(sets, file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count
