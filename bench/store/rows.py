"""A run's rows: appended one by one, read back and checked."""

import hashlib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import StoreError
from bench.plan.identity import canonical
from bench.store.files import checked, crc, mend_torn_tail, read_bytes, typed
from bench.store.records import Record, Row


def row_line(row: dict[str, Any]) -> bytes:
    """One row as a line with its CRC. Raises ValueError for a number that is not finite."""
    return (canonical({**row, "crc": crc(row)}) + "\n").encode()


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one row as one line in a single write, with its CRC, and fsync. A torn tail left by an earlier writer is cut first.

    Raises ValueError for a number that is not finite, OSError (disk full: what was written of the line is taken back).
    """
    line = row_line(row)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            mend_torn_tail(path)
            size = os.fstat(handle).st_size
        if os.write(handle, line) != len(line):
            os.ftruncate(handle, size)
            raise OSError(f"{path}: no space for a row")
        os.fsync(handle)
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Rows:
    """The rows of a run that count, by epoch; `torn`: the last line was unfinished and left out; `superseded`: rows of lost attempts."""

    rows: list[Row]
    torn: bool = False
    superseded: int = 0


def read_rows(path: Path, run: str | None = None) -> Rows:
    """Read and check the epoch rows. Once an attempt has written an epoch, lower attempts' rows from that epoch on are superseded.

    `run`: the run id that every row must name. No file reads as no rows. Raises StoreError naming file and line: bad JSON or CRC, a field of
    another type, a foreign row, an epoch written twice by one attempt with different numbers, an epoch missing from the chain.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        return Rows([])
    lines = data.split(b"\n")
    torn = bool(lines.pop())
    seen: dict[tuple[int, int], tuple[dict[str, Any], Row]] = {}
    first: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        raw = checked(where, line)
        row = typed(where, raw, Row)
        if run is not None and row.run != run:
            raise StoreError(f"{where}: a row of another run ({row.run})")
        if seen.setdefault((row.attempt, row.epoch), (raw, row))[0] != raw:
            raise StoreError(f"{where}: epoch {row.epoch} written twice by attempt {row.attempt} with different numbers")
        first[row.attempt] = min(first.get(row.attempt, row.epoch), row.epoch)
    until: dict[int, float] = {}  # attempt -> the first epoch that a later one has written
    start = math.inf
    for attempt in sorted(first, reverse=True):
        until[attempt], start = start, min(start, first[attempt])
    chain = {epoch: row for (attempt, epoch), (_, row) in seen.items() if epoch < until[attempt]}
    rows = [chain[epoch] for epoch in sorted(chain)]
    for expected, row in enumerate(rows, 1):
        if row.epoch != expected:
            raise StoreError(f"{path}: epoch {expected} is missing (next is {row.epoch})")
    return Rows(rows, torn, len(seen) - len(rows))


_TOP1 = re.compile(rb'"test_top1":([-+.0-9eE]+)')


def curve(path: Path, run: str, record: Record) -> list[float]:
    """Test top-1 by epoch, from 1, of a finished run, after holding the rows against the record: their SHA-256, the last row and the best.

    The rows of a run of one attempt are one line an epoch, whose sum vouches for them, and are not parsed. Raises StoreError.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        data = b""
    if hashlib.sha256(data).hexdigest() != record.rows_sha256:
        read_rows(path, run)  # names the line, if it is one
        raise StoreError(f"{path}: changed after the record was written")
    found = _TOP1.findall(data) if record.attempts == 1 else []
    try:
        values = [float(value) for value in found]
        plain = len(values) == record.epochs == data.count(b"\n") and all(0 <= value <= 100 for value in values)
    except ValueError:
        plain = False
    if not plain:
        values = [row.test_top1 for row in read_rows(path, run).rows]
    best = (record.epochs, record.test_top1, record.best_top1)
    if (len(values), values[-1:], max(values, default=None)) != (best[0], [best[1]], best[2]):
        said = f"{values[-1]:.2f} after epoch {len(values)}, best {max(values):.2f}" if values else "nothing"
        raise StoreError(f"{path}: the rows say {said}, the record {best[1]:.2f} after epoch {best[0]}, best {best[2]:.2f}")
    return values
