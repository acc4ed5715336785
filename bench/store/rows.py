"""A run's rows: appended one by one, read back and checked."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import StoreError
from bench.plan.identity import canonical
from bench.store.files import crc, mend_torn_tail, parse, sound


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one row as one line in a single write, with its CRC, and fsync. A torn tail left by an earlier writer is cut first.

    Raises ValueError for a number that is not finite, OSError (disk full: what was written of the line is taken back).
    """
    line = (canonical({**row, "crc": crc(row)}) + "\n").encode()
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

    rows: list[dict[str, Any]]
    torn: bool = False
    superseded: int = 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_rows(path: Path, run: str | None = None) -> Rows:
    """Read and check the epoch rows. Once an attempt has written an epoch, lower attempts' rows from that epoch on are superseded.

    `run`: the run id that every row must name. No file reads as no rows. Raises StoreError naming file and line: bad JSON or CRC, a foreign row,
    an epoch written twice by one attempt with different numbers, an epoch missing from the chain.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Rows([])
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    lines = data.split(b"\n")
    torn = bool(lines.pop())
    seen: dict[tuple[int, int], dict[str, Any]] = {}
    first: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        row = parse(Path(f"{path}:{number}"), line)
        where = f"{path}:{number}"
        if not sound(row):
            raise StoreError(f"{where}: the row does not match its checksum")
        if run is not None and row.get("run") != run:
            raise StoreError(f"{where}: a row of another run ({row.get('run')})")
        epoch, attempt = row.get("epoch"), row.get("attempt")
        if not isinstance(epoch, int) or not isinstance(attempt, int):
            raise StoreError(f"{where}: no epoch or attempt")
        if seen.setdefault((attempt, epoch), row) != row:
            raise StoreError(f"{where}: epoch {epoch} written twice by attempt {attempt} with different numbers")
        first[attempt] = min(first.get(attempt, epoch), epoch)
    chain: dict[int, dict[str, Any]] = {}
    for (attempt, epoch), row in seen.items():
        if all(later <= attempt or epoch < start for later, start in first.items()):
            chain[epoch] = row
    rows = [chain[epoch] for epoch in sorted(chain)]
    for expected, row in enumerate(rows, 1):
        if row["epoch"] != expected:
            raise StoreError(f"{path}: epoch {expected} is missing (next is {row['epoch']})")
    return Rows(rows, torn, len(seen) - len(rows))
