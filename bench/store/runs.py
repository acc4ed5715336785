"""The results folder: how its files are written so that they are there whole or not at all, and how they are read back. No torch here.

JSON files are replaced atomically (temporary file in the same folder, flush, fsync, rename, fsync of the folder). Rows are appended with one
write each. Files and rows carry a CRC-32. The final record is written last, once, and names the SHA-256 of the configuration and of the rows.
"""
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import StoreError, UsageError
from bench.plan.identity import FORMAT, canonical, digest
from bench.store.files import read_json, sha256, sync_folder, write_json
from bench.store.rows import _number, read_rows

STATUSES = ("planned", "running", "done", "diverged", "failed", "interrupted", "skipped")
"""The closed list of what a run can be."""


def _differences(kept: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(kept, dict) and isinstance(now, dict):
        for key in sorted(kept.keys() | now.keys()):
            yield from _differences(kept.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif kept != now:
        yield f"{name} is {kept!r} there and {now!r} here"


def check_config(folder: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The configuration in `folder`, whose identity must be `identity`.

    Raises UsageError naming the fields that differ, StoreError for an unreadable file.
    """
    config = read_json(folder / "config.json")
    if config is None:
        raise StoreError(f"{folder / 'config.json'}: missing")
    if canonical(config.get("identity")) != canonical(identity):
        found = "; ".join(list(_differences(config.get("identity"), identity))[:3])
        raise UsageError(f"{folder}: its config.json is not of this run ({found}); move that folder away")
    return config


def write_config(folder: Path, identity: dict[str, Any], method_source: str, title: str) -> dict[str, Any]:
    """Make the run's folder and write its config.json once; a folder that has one is checked instead and left as it is. Raises as check_config."""
    if (folder / "config.json").exists():
        return check_config(folder, identity)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config := {"format": FORMAT, "identity": identity, "method_source": method_source, "title": title})
    sync_folder(folder.parent)
    return config


def write_status(folder: Path, status: str, **fields: Any) -> None:
    """Replace status.json (atomic, not fsynced: it is frequent and worth nothing after a crash). Raises ValueError for a status not in the list."""
    if status not in STATUSES:
        raise ValueError(f"status {status!r} is none of {', '.join(STATUSES)}")
    write_json(folder / "status.json", {"format": FORMAT, "run": folder.name, "status": status, **fields}, durable=False)


def read_status(folder: Path) -> dict[str, Any] | None:
    """status.json, or None where there is none. Raises StoreError for a file that is no status."""
    status = read_json(folder / "status.json")
    if status is not None and status.get("status") not in STATUSES:
        raise StoreError(f"{folder / 'status.json'}: status {status.get('status')!r} is not known")
    return status


def write_record(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write the final record, last and once; adds format, run, status, and the SHA-256 of config.json and epochs.jsonl. Returns what was written.

    Raises StoreError where a record stands already, the rows are not whole, or the record's epoch and test top-1 are not those of the last row.
    """
    if (folder / "record.json").exists():
        raise StoreError(f"{folder / 'record.json'}: already written")
    rows = read_rows(folder / "epochs.jsonl", folder.name)
    if rows.torn or not rows.rows:
        raise StoreError(f"{folder / 'epochs.jsonl'}: {'torn' if rows.torn else 'no rows'}: no record can be written")
    last = rows.rows[-1]
    if (record.get("epochs"), record.get("test_top1")) != (last["epoch"], last["test_top1"]):
        ours, rows_say = f"{record.get('test_top1')} after epoch {record.get('epochs')}", f"{last['test_top1']} after {last['epoch']}"
        raise StoreError(f"{folder}: the record says {ours}, the rows {rows_say}")
    whole = {
        **record,
        "format": FORMAT,
        "run": folder.name,
        "status": "done",
        "config_sha256": sha256(folder / "config.json"),
        "rows_sha256": sha256(folder / "epochs.jsonl"),
    }
    write_json(folder / "record.json", whole)
    return whole


def read_record(folder: Path, verify_rows: bool = True) -> dict[str, Any] | None:
    """The final record, checked: it names this run, its numbers are percents, and config.json and epochs.jsonl are those it was written with.

    None where there is none (the run is not done). Raises StoreError naming the file (and line) at fault.
    """
    if (record := read_json(where := folder / "record.json", sealed=True)) is None:
        return None
    if record.get("format") != FORMAT:
        raise StoreError(f"{where}: format {record.get('format')!r}, this version reads {FORMAT}")
    if record.get("run") != folder.name or record.get("status") != "done":
        raise StoreError(f"{where}: is not the record of a finished run {folder.name}")
    for key in ("test_top1", "best_top1"):
        if not _number(record.get(key)) or not 0 <= record[key] <= 100:
            raise StoreError(f"{where}: {key} {record.get(key)!r} is not a percentage")
    if not isinstance(record.get("teacher"), dict | None):
        raise StoreError(f"{where}: teacher is neither an object nor null")
    if sha256(folder / "config.json") != record.get("config_sha256"):
        raise StoreError(f"{folder / 'config.json'}: changed after the record was written")
    if verify_rows and sha256(folder / "epochs.jsonl") != record.get("rows_sha256"):
        read_rows(folder / "epochs.jsonl", folder.name)  # names the line, if it is one
        raise StoreError(f"{folder / 'epochs.jsonl'}: changed after the record was written")
    return record


@dataclass(slots=True)
class RunView:
    """What a reader needs of one run folder. `status` is from the closed list; `record` is there for `done` only."""

    folder: Path
    identity: dict[str, Any]
    title: str
    method_source: str
    status: str
    reason: str = ""
    epoch: int | None = None
    record: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def teacher(self) -> str | None:
        return self.identity.get("teacher")

    @property
    def student(self) -> str:
        return self.identity["student"]

    @property
    def method(self) -> str:
        return self.identity["method"]

    @property
    def seed(self) -> int:
        return self.identity["seed"]

    @property
    def protocol(self) -> dict[str, Any]:
        return self.identity["protocol"]

    @property
    def precision(self) -> str:
        return self.identity["precision"]


@dataclass(frozen=True)
class Problem:
    """A run (or other file) that is left out, and why. `where`: the run id or the path below the results folder."""

    where: str
    reason: str


_FIELDS = {"student": str, "method": str, "seed": int, "protocol": dict, "precision": str, "data_hash": str, "method_version": int, "hyper": dict}


def read_run(folder: Path, verify_rows: bool = True) -> RunView:
    """One run folder. Raises StoreError for one that cannot be trusted."""
    config = read_json(folder / "config.json")
    if config is None:
        raise StoreError(f"{folder / 'config.json'}: missing")
    identity = config.get("identity")
    if not isinstance(identity, dict) or any(not isinstance(identity.get(key), kind) for key, kind in _FIELDS.items()):
        raise StoreError(f"{folder / 'config.json'}: not the configuration of a run")
    if config.get("format") != FORMAT:
        raise StoreError(f"{folder / 'config.json'}: format {config.get('format')!r}, this version reads {FORMAT}")
    name = "-".join(p for p in (identity.get("teacher"), identity["student"], identity["method"], f"s{identity['seed']}", digest(identity)) if p)
    if folder.name != name:
        raise StoreError(f"{folder / 'config.json'}: belongs to a run {name}, not to this folder")
    record = read_record(folder, verify_rows)
    view = RunView(folder, identity, str(config.get("title") or identity["method"]), str(config.get("method_source", "")), "planned", record=record)
    if record is not None:
        if record.get("epochs") != identity["protocol"].get("epochs"):
            raise StoreError(f"{folder / 'record.json'}: {record.get('epochs')} epochs, the protocol has {identity['protocol'].get('epochs')}")
        view.status, view.epoch = "done", record["epochs"]
        return view
    if (status := read_status(folder)) is not None:
        if status["status"] == "done":
            raise StoreError(f"{folder}: says done and has no record.json")
        view.status, view.reason = status["status"], str(status.get("reason") or "")
        view.epoch = status["epoch"] if isinstance(status.get("epoch"), int) else None
    return view


def scan(results: Path, verify_rows: bool = True) -> tuple[list[RunView], list[Problem]]:
    """All runs below `results`/runs by name, and those that cannot be trusted with the reason. No such folder reads as no runs. Raises OSError."""
    views, problems = [], []
    try:
        with os.scandir(results / "runs") as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except FileNotFoundError:
        return [], []
    for name in names:
        try:
            views.append(read_run(results / "runs" / name, verify_rows))
        except StoreError as error:
            problems.append(Problem(name, str(error).removeprefix(f"{results}{os.sep}")))
    return views, problems
