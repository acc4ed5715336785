"""A run's folder as its trainer writes it: configuration, rows, status, log, final record."""

import os
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from bench.errors import StoreError
from bench.plan.members import Member
from bench.store import snapshots
from bench.store.files import mend_torn_tail, write_bytes
from bench.store.lease import Lease
from bench.store.records import Status
from bench.store.rows import append_row, read_rows
from bench.store.runs import is_done, read_status, write_config, write_record, write_status
from bench.store.weights import pickled, plain, state_hash
from bench.train import checkpoint
from methods import registry

STATUS_SECONDS = 2.0


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file; a pipe that nobody reads is an OSError and not waited for."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


class RunFolder:
    """results/runs/<run id>/ under a lease of its own."""

    def __init__(self, results: Path, member: Member, title: str = "", changed: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.results, self.member, self.id = results, member, member.run.id
        self.title, self.changed = title or member.method.title, changed
        self.path = results / "runs" / self.id
        self.lease = Lease(self.path)
        self.attempt, self.epochs = 1, 0  # epochs: how many have a row
        self._status: dict[str, Any] = {}
        self._written = 0.0

    def settled(self) -> bool:
        """Whether nothing is left to do: it is done (never run again) or has diverged (it would again; --redo tries)."""
        return is_done(self.path) or ((found := self._stands()) is not None and found.status == "diverged")

    def _stands(self) -> Status | None:
        """Its status, as far as it can be read: it is not fsynced, and after a crash of the machine it may be anything."""
        try:
            return read_status(self.path)
        except StoreError:
            return None

    def open(self) -> None:
        """Clear away what killed saves left, write or check the configuration, mend a torn row, and count the attempt.

        Raises UsageError where it is another run's.
        """
        run = self.member.run
        checkpoint.sweep(self.results, self.id)
        self._source = registry.source_hash(run.method)  # now: the files may change while the run trains
        write_config(self.path, run.identity(), self._source, self.title, self.changed)
        if mend_torn_tail(self.path / "epochs.jsonl"):
            self.log("cut an unfinished last row")
        rows = read_rows(self.path / "epochs.jsonl", self.id).rows
        self.epochs = len(rows)
        last = self._stands()
        self.attempt = 1 + max([(last and last.attempt) or 0, *(row.attempt for row in rows)])

    def log(self, message: str) -> None:
        """One line in the run's log."""
        try:
            with open(self.path / "log.txt", "a", encoding="utf-8", errors="backslashreplace", opener=_open_at_once) as file:
                file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {message}\n")
        except OSError as error:  # no reason to end a run
            print(f"{self.id}: {message} (log.txt: {error.strerror})", flush=True)

    def status(self, status: str, reason: str | None = None, force: bool = True, **facts: Any) -> None:
        """Write status.json; with `force=False` at most every two seconds. A full disk takes the status and leaves the run."""
        now = time.monotonic()
        self._status |= facts
        if not force and now - self._written < STATUS_SECONDS:
            return
        self._written = now
        updated = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            try:
                write_status(self.path, status, reason=reason, attempt=self.attempt, **self._status, updated=updated)
            except OSError:
                if status != "failed":
                    raise
                self.lease.release()  # a failed run needs it no more, and its block is the room for these few words
                write_status(self.path, status, reason=reason, attempt=self.attempt, **self._status, updated=updated)
        except OSError as error:
            print(f"{self.id}: {status}{f' ({reason})' if reason else ''}, which status.json cannot say: {error.strerror}", flush=True)

    def row(self, row: dict[str, Any]) -> None:
        """Append one epoch's row. Raises LeaseLost."""
        self.lease.check()
        append_row(self.path / "epochs.jsonl", {"run": self.id, "attempt": self.attempt, **row})
        self.epochs = max(self.epochs, row["epoch"])

    def finish(self, student: dict[str, Tensor], method: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """The last acts of a run: the weights of the student and, beside them, of the method where it has any, then the final record, then
        the status; checkpoints go."""
        self.lease.check()
        for name, state in (("student.pt", student), ("method.pt", method)):
            if state:
                write_bytes(self.path / name, pickled(plain(state)))
        write_record(self.path, {**facts, "method_source": self._source, "finished": datetime.now(UTC).isoformat(timespec="seconds")})
        self.status("done")
        checkpoint.discard(self.results, self.id)

    def snapshot(self, epoch: int, student: dict[str, Tensor]) -> None:
        """Keep the student's weights after an epoch. Raises LeaseLost and OSError."""
        self.lease.check()
        snapshots.write(self.path, epoch, pickled(plain(student)), state_hash(student))

    def drop_snapshots(self, epoch: int) -> None:
        """Remove weights kept after this epoch or later ones, by an attempt that was lost. Raises LeaseLost, OSError."""
        self.lease.check()
        if gone := snapshots.drop_from(self.path, epoch):
            self.log(f"weights kept after epochs {', '.join(map(str, gone))} are of an attempt that was lost: removed")

    def missed(self, epochs: Iterable[int]) -> list[int]:
        """Which of these epochs have no weights kept."""
        return [epoch for epoch in epochs if not snapshots.place(self.path, epoch).exists()]
