"""The files of a machine class below results/nightly: history.jsonl (one checked row a night, appended), baseline.json (replaced whole).

A row: {"format", "night" (counter from 1), "date" (ISO, UTC), "commit", "plan" (hash of what was run), "parts", "facts" (versions and
settings that may change), "sources" (method -> hash), "failures" (method -> reason), "metrics"}. A metric: {"method", "pair", "metric",
"unit", "part", "worse" ("lower" or "higher"), "scale" ("linear" or "log"), "values" (replicate -> number; replicates are seeds where
nights are paired by them), "bits" (replicate -> hash, where runs can be bit-equal), "noise" (log units, optional)}.
"""

import contextlib
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from bench.errors import StoreError, UsageError
from bench.plan.identity import canonical
from bench.store.files import read_json, write_json
from bench.store.rows import append_row

FORMAT = 1
Row = dict[str, Any]


def machine_class(facts: dict[str, Any], threads: int) -> str:
    """The name under which nights compare: kind and number of processors, threads of a run; not the host, not the versions."""
    name = re.sub(r"[^a-z0-9]+", "-", str(facts["name"]).lower()).strip("-") or facts["type"]
    return name if facts["type"] == "cuda" else f"{name}-{facts.get('cores')}-cores-{threads}-threads"


def folder(results: Path, machine: str) -> Path:
    return results / "nightly" / machine


def machines(results: Path) -> list[str]:
    """The machine classes that have a history, by name."""
    return sorted(path.parent.name for path in (results / "nightly").glob("*/history.jsonl"))


@contextlib.contextmanager
def alone(place: Path) -> Iterator[None]:
    """One nightly of a machine class at a time. Raises UsageError where another one runs, or the folder cannot be written."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(place / ".lock")
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UsageError(f"another nightly is running in {place}; wait for it") from None
    except OSError as error:
        raise UsageError(f"cannot write in {place}: {error.strerror}; choose another --results folder") from None
    try:
        yield
    finally:
        lock.release()


def read(place: Path) -> list[Row]:
    """The nights, oldest first; an unfinished last line is left out. Raises StoreError naming the line that is damaged or of another version."""
    path = place / "history.jsonl"
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    lines.pop()
    rows = [_row(f"{path}:{number}", line) for number, line in enumerate(lines, 1)]
    for before, row in zip(rows, rows[1:], strict=False):
        if row["night"] <= before["night"]:
            raise StoreError(f"{path}: night {row['night']} stands after night {before['night']}")
    return rows


def _row(where: str, line: bytes) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise StoreError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise StoreError(f"{where}: not a JSON object")
    crc = f"{zlib.crc32(canonical({k: v for k, v in row.items() if k != 'crc'}).encode()):08x}"
    if row.pop("crc", None) != crc:
        raise StoreError(f"{where}: the row does not match its checksum")
    if row.get("format") != FORMAT:
        raise StoreError(f"{where}: format {row.get('format')!r}, this version reads {FORMAT}")
    return row


def append(place: Path, row: Row) -> None:
    """Add tonight's row. Raises ValueError for a number that is not finite, OSError."""
    append_row(place / "history.jsonl", row)


def read_baseline(place: Path) -> dict[str, Any] | None:
    """{"format", "night", "commit", "date", "reason", "row", "earlier"}; None where there is none. Raises StoreError."""
    baseline = read_json(place / "baseline.json")
    if baseline is not None and (baseline.get("format") != FORMAT or not isinstance(baseline.get("row"), dict)):
        raise StoreError(f"{place / 'baseline.json'}: not a baseline of this version; accept a new one with --accept")
    return baseline


def set_baseline(place: Path, row: Row, reason: str) -> dict[str, Any]:
    """Make `row` what later nights are compared with; earlier baselines stay listed with their reasons."""
    try:
        old = read_baseline(place)
    except StoreError:
        old = None  # it is being replaced, that settles it
    facts = {"night": row["night"], "commit": row["commit"], "date": row["date"], "reason": reason}
    earlier = [*old["earlier"], {name: old[name] for name in facts}] if old else []
    baseline = {"format": FORMAT, **facts, "row": row, "earlier": earlier}
    write_json(place / "baseline.json", baseline)
    return baseline
