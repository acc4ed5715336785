"""The results folder: how its files are written so that they are there whole or not at all, and how they are read back. No torch here.

JSON files are replaced atomically (temporary file in the same folder, flush, fsync, rename, fsync of the folder). Rows are appended with one
write each. Files and rows carry a CRC-32. The final record is written last, once, and names the SHA-256 of the configuration and of the rows.
"""
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

from bench.errors import StoreError, UsageError
from bench.plan.identity import FORMAT, canonical, digest
from bench.plan.protocols import Protocol
from bench.store.files import Problem, folders, read, read_json, sha256, sync_folder, typed, write_json
from bench.store.lease import NAME as LEASE
from bench.store.lease import Lease
from bench.store.records import Config, Identity, Record, Status, known_protocol
from bench.store.rows import curve, read_rows

STATUSES: tuple[str, ...] = get_args(get_type_hints(Status)["status"])
"""The closed list of what a run can be."""

TEACHER = "Teacher"
"""The title of a teacher's own training."""
GONE = "it stopped without a word, and nobody runs it"
"""The reason of a run whose status says that it is running and whose lease nobody holds."""
_RUN = re.compile(r"\S+-s-?\d+-[0-9a-f]{10}")
"""The name of a run: see plan.identity.Run.id."""


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


def write_config(
    folder: Path, identity: dict[str, Any], method_source: str, title: str, changed: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Make the run's folder and write its config.json once; a folder that has one is checked instead and left as it is, but for the method's
    source where nothing was trained with the one it names. Raises as check_config.

    `changed`: of a variant, the settings that its method's own row has otherwise."""
    if (folder / "config.json").exists():
        config = check_config(folder, identity)
        trained = any((folder / name).exists() for name in ("epochs.jsonl", "group.json"))  # group.json: there is a checkpoint
        if not trained and config.get("method_source") != method_source:
            write_json(folder / "config.json", config := config | {"method_source": method_source})
        return config
    folder.mkdir(parents=True, exist_ok=True)
    config = {"format": FORMAT, "identity": identity, "method_source": method_source, "title": title}
    write_json(folder / "config.json", config := config | ({"changed": dict(changed)} if changed else {}))
    sync_folder(folder.parent)
    return config


def write_status(folder: Path, status: str, **fields: Any) -> None:
    """Replace status.json (atomic, not fsynced: it is frequent and worth nothing after a crash). Raises ValueError for a status not in the list."""
    if status not in STATUSES:
        raise ValueError(f"status {status!r} is none of {', '.join(STATUSES)}")
    write_json(folder / "status.json", {"format": FORMAT, "run": folder.name, "status": status, **fields}, durable=False)


def read_status(folder: Path) -> Status | None:
    """status.json, or None where there is none. Raises StoreError for a file that is no status."""
    return read(folder / "status.json", Status)


def write_record(folder: Path, record: dict[str, Any]) -> Record:
    """Write the final record, last and once; adds format, run, status, and the SHA-256 of config.json and epochs.jsonl. Returns what was written.

    A damaged record is replaced. Raises StoreError where a sound one stands, the rows are not whole, or the record is not theirs.
    """
    if is_done(folder):
        raise StoreError(f"{folder / 'record.json'}: already written")
    rows = read_rows(folder / "epochs.jsonl", folder.name)
    if rows.torn or not rows.rows:
        raise StoreError(f"{folder / 'epochs.jsonl'}: {'torn' if rows.torn else 'no rows'}: no record can be written")
    whole = {
        **record,
        "format": FORMAT,
        "run": folder.name,
        "status": "done",
        "config_sha256": sha256(folder / "config.json"),
        "rows_sha256": sha256(folder / "epochs.jsonl"),
    }
    made = typed(folder / "record.json", whole, Record)
    curve(folder / "epochs.jsonl", folder.name, made)
    write_json(folder / "record.json", whole)
    return made


def read_record(folder: Path) -> Record | None:
    """As `read_finished`, the record alone."""
    found = read_finished(folder)
    return found and found[0]


def read_finished(folder: Path) -> tuple[Record, list[float]] | None:
    """The final record and test top-1 by epoch, checked: it names this run, and config.json and epochs.jsonl are those it was written with
    and say the same.

    None where there is none (the run is not done). Raises StoreError naming the file (and line) at fault.
    """
    where = folder / "record.json"
    if (record := read(where, Record, sealed=True)) is None:
        return None
    if record.run != folder.name:
        raise StoreError(f"{where}: is not the record of {folder.name}")
    if sha256(folder / "config.json") != record.config_sha256:
        raise StoreError(f"{folder / 'config.json'}: changed after the record was written")
    return record, curve(folder / "epochs.jsonl", folder.name, record)


def is_done(folder: Path) -> bool:
    """Whether the run in `folder` is finished: its record is there and sound. An empty or damaged one is none."""
    files = (folder / "record.json", folder / "config.json", folder / "epochs.jsonl")
    try:
        return _sound(folder, tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in map(os.stat, files)))
    except (OSError, ValueError):  # a name with a null byte is no run's
        return False


@lru_cache(10_000)
def _sound(folder: Path, stamps: tuple[tuple[int, ...], ...]) -> bool:
    """`stamps`: of the three files, so that they are read again where one was replaced."""
    try:
        return read_run(folder).record is not None
    except StoreError:
        return False


@dataclass(slots=True)
class RunView:
    """What a reader needs of one run folder. `status` is from the closed list; `record` and `curve` (test top-1 by epoch) are there for `done` only.

    `identity` is the object that the folder is named by, with whatever a newer version put there; `known` is what this one knows of it.
    """

    folder: Path
    identity: dict[str, Any]
    known: Identity
    protocol: Protocol
    title: str
    method_source: str
    status: str
    reason: str = ""
    epoch: int | None = None
    record: Record | None = field(default=None, repr=False)
    curve: list[float] = field(default_factory=list, repr=False)
    changed: dict[str, Any] = field(default_factory=dict)  # of a variant: see Config

    id = property(attrgetter("folder.name"))
    teacher = property(attrgetter("known.teacher"))
    student = property(attrgetter("known.student"))
    method = property(attrgetter("known.method"))
    seed = property(attrgetter("known.seed"))
    precision = property(attrgetter("known.precision"))

    @property
    def table(self) -> tuple[str, str]:
        """What runs of one table have in common: the whole protocol, and the precision."""
        return canonical(self.identity["protocol"]), self.precision


def of_students(views: Sequence[RunView], planned: Collection[str] = ()) -> list[RunView]:
    """Without teachers' own trainings, which are no rows: they are the context of their students'.

    One that is a plain student too stays (a teacher has seed 0, and so may students): it is planned, or other runs have its student and seed.
    """
    beside = {(view.table, view.student, view.seed) for view in views if view.title != TEACHER}
    return [v for v in views if v.title != TEACHER or v.id in planned or (v.table, v.student, v.seed) in beside]


def read_run(folder: Path) -> RunView:
    """One run folder. Raises StoreError for one that cannot be trusted."""
    where = folder / "config.json"
    if (raw := read_json(where)) is None:
        raise StoreError(f"{where}: missing")
    config = typed(where, raw, Config)
    identity, known = raw["identity"], config.identity
    name = "-".join(p for p in (known.teacher, known.student, known.method, f"s{known.seed}", digest(identity)) if p)
    if folder.name != name:
        raise StoreError(f"{where}: belongs to a run {name}, not to this folder")
    protocol = known_protocol(identity["protocol"], known.protocol)
    view = RunView(folder, identity, known, protocol, config.title or known.method, config.method_source, "planned", changed=config.changed)
    if _finished(view) or (status := read_status(folder)) is None:
        return view
    if status.status == "done":
        raise StoreError(f"{folder}: says done and has no record.json")
    view.status, view.reason, view.epoch = status.status, status.reason or "", status.epoch
    if status.status == "running" and not Lease(folder).held() and not _finished(view):  # it may have ended while this was read
        view.status, view.reason = "interrupted", GONE
    return view


def _finished(view: RunView) -> bool:
    """Whether the run has its record, which is put in the view. Raises StoreError."""
    if (found := read_finished(view.folder)) is None:
        return False
    view.record, view.curve = found
    if view.record.epochs != view.protocol.epochs:
        raise StoreError(f"{view.folder / 'record.json'}: {view.record.epochs} epochs, the protocol has {view.protocol.epochs}")
    view.status, view.reason, view.epoch = "done", "", view.record.epochs
    return True


def scan(results: Path) -> tuple[list[RunView], list[Problem]]:
    """All runs below `results`/runs by name, and those that cannot be trusted with the reason. No such folder, and one of a run that was not
    begun yet, read as no runs."""
    views, problems = [], []
    names, problem = folders(results, "runs")
    for name in names:
        try:
            views.append(read_run(results / "runs" / name))
        except StoreError as error:
            if _begun(results / "runs" / name):
                problems.append(Problem(name, str(error).removeprefix(f"{results}{os.sep}")))
    return views, problem + problems


def _begun(folder: Path) -> bool:
    """Whether anything is there that is not of a run's first moment: its writer makes the folder and holds the lease, and waits for those of
    the group's other members before it writes more."""
    if not _RUN.fullmatch(folder.name):
        return True
    try:
        return any(not name.startswith(".") and name != LEASE for name in os.listdir(folder))
    except OSError:  # it cannot be looked at, which is a problem
        return True
