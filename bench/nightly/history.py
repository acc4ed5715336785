"""The files of a machine class below results/nightly: history.jsonl (one checked row a night, appended), baseline.json (replaced whole),
told.json (the last night whose verdict was printed).

A row: {"format", "night" (counter from 1), "date" (ISO, UTC), "commit", "plan" (hash of what was run), "parts", "facts" (versions and
settings that may change), "sources" (method -> hash), "failures" (method -> reason), "metrics"}. A metric: {"method", "pair", "metric",
"unit", "part", "worse" ("lower" or "higher"), "scale" ("linear" or "log"), "values" (replicate -> number; replicates are seeds where
nights are paired by them), "bits" (replicate -> hash, where runs can be bit-equal), "noise" (log units, optional)}.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from bench.errors import StoreError, UsageError
from bench.nightly.rows import FORMAT, Row, check
from bench.store.files import checked, read_bytes, write_json
from bench.store.rows import append_row

FACTS = ("night", "commit", "date", "reason")
"""What is kept of a baseline that was replaced."""
LIMIT = 64 << 20
"""Bytes of a file that is read: some 3,000 nights."""


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


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """A full disk, or what else keeps a file in `place` from being written, is a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write in {place}: {error.strerror or error}; free some space or choose another --results folder") from None


def content(path: Path) -> bytes | None:
    """What stands in a regular file; None where there is none. Raises StoreError for anything else, without waiting for it."""
    try:
        return read_bytes(path, LIMIT)
    except FileNotFoundError:
        return None


def read(place: Path) -> list[Row]:
    """The nights, oldest first; an unfinished last line is left out. Raises StoreError naming the line that is damaged or of another version."""
    path = place / "history.jsonl"
    lines = (content(path) or b"").split(b"\n")
    lines.pop()
    rows = [check(checked(f"{path}:{number}", line), f"{path}:{number}") for number, line in enumerate(lines, 1)]
    for before, row in zip(rows, rows[1:], strict=False):
        if row["night"] <= before["night"]:
            raise StoreError(f"{path}: night {row['night']} stands after night {before['night']}")
    return rows


def last_night(rows: Sequence[Row], baseline: dict[str, Any] | None) -> int:
    """The number of the latest night that either file knows, so that a history that was lost or replaced by an older copy is gone on with."""
    return max([0, *(row["night"] for row in rows[-1:]), *([baseline["night"]] if baseline else [])])


def behind(place: Path, rows: Sequence[Row], baseline: dict[str, Any] | None) -> str:
    """What to say where the baseline knows of a later night than the history; else empty."""
    last = last_night(rows, None)
    if not baseline or baseline["night"] <= last:
        return ""
    ends = f"ends at night {last}" if rows else "has no night"
    return f"{place / 'history.jsonl'} {ends} and the baseline is of night {baseline['night']}: it was lost or replaced by an older copy"


def append(place: Path, row: Row) -> None:
    """Add tonight's row. Raises StoreError for one that could not be read again, OSError."""
    check(row, "tonight's row")
    append_row(place / "history.jsonl", row)


def read_baseline(place: Path) -> dict[str, Any] | None:
    """{"format", "night", "commit", "date", "reason", "row", "earlier"}; None where there is none. Raises StoreError."""
    path = place / "baseline.json"
    data = content(path)
    if data is None:
        return None
    try:
        baseline = checked(path, data, sealed=False)
        if baseline.get("format") != FORMAT:
            raise StoreError(f"{path}: not a baseline of this version")
        row = check(baseline.get("row"), f"{path}: row")
        if any(baseline.get(name) != row[name] for name in ("night", "commit", "date")) or not isinstance(baseline.get("reason"), str):
            raise StoreError(f"{path}: night, commit, date or reason are not those of its row")
        earlier = baseline.get("earlier")
        if not isinstance(earlier, list) or not all(isinstance(one, dict) and set(FACTS) <= one.keys() for one in earlier):
            raise StoreError(f"{path}: earlier is no list of baselines")
    except StoreError as error:
        raise StoreError(f"{error}; take the latest night as a new one: python -m bench nightly --accept REASON") from None
    return baseline


def set_baseline(place: Path, row: Row, reason: str) -> dict[str, Any]:
    """Make `row` what later nights are compared with; earlier baselines stay listed with their reasons."""
    try:
        old = read_baseline(place)
    except StoreError:
        old = None  # it is being replaced, that settles it
    facts = {"night": row["night"], "commit": row["commit"], "date": row["date"], "reason": reason}
    earlier = [*old["earlier"], {name: old[name] for name in FACTS}] if old else []
    baseline = {"format": FORMAT, **facts, "row": row, "earlier": earlier}
    write_json(place / "baseline.json", baseline)
    return baseline


def read_told(place: Path) -> float:
    """The last night whose verdict was printed; infinity where no file says: then all of them count as told. Raises StoreError."""
    path = place / "told.json"
    data = content(path)
    if data is None:
        return math.inf
    night = checked(path, data).get("night")
    if not isinstance(night, int):
        raise StoreError(f"{path}: names no night; remove it")
    return night


def set_told(place: Path, night: int) -> None:
    """Note that the verdict of this night was printed. Raises OSError."""
    write_json(place / "told.json", {"format": FORMAT, "night": night})
