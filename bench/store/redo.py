"""Runs that are trained again (--redo): beside the old ones, which stay until the new record is there.

results/redo/ is laid out as results/ is: a run being trained again has its folder in results/redo/runs, and takes the old one's place in
results/runs in two renames when it is done. Whatever ends it before leaves the old run as it was.

Its redo.json names the runs of the --redo it belongs to: as long as one of them is pending, those that are not were trained again by it.
"""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.errors import StoreError, UsageError
from bench.store.files import read_json, write_json
from bench.store.lease import LOCK, NAME, Lease, acquire_all
from bench.store.rows import read_rows

COVERS = "redo.json"


def root(results: Path) -> Path:
    """Where runs are trained again: a results folder inside the results folder."""
    return results / "redo"


def _new(results: Path, run: str) -> Path:
    return root(results) / "runs" / run


def pending(results: Path, run: str) -> bool:
    """Whether a run is to be trained again and has not been yet."""
    return _new(results, run).exists()


def covered(results: Path, runs: Iterable[str]) -> set[str]:
    """The runs of every stopped --redo of which one of these is still pending. One whose redo.json is missing or damaged speaks for itself only."""
    found = {run for run in runs if pending(results, run)}
    for run in tuple(found):
        with contextlib.suppress(StoreError):
            said = (read_json(_new(results, run) / COVERS) or {}).get("runs")
            found.update(name for name in (said if isinstance(said, list) else ()) if isinstance(name, str))
    return found


def begin(results: Path, runs: Iterable[str]) -> None:
    """Mark runs as to be trained again, but those that a stopped --redo of some of them covers: it is gone on with, what it has done stays done.
    One whose files it cannot go on from, since they are damaged, starts over.

    Raises UsageError, and marks none, where one that would be marked is being trained.
    """
    runs = list(runs)
    before = covered(results, runs)
    fresh = [run for run in runs if run not in before]
    there = [run for run in fresh if (results / "runs" / run).exists()]
    _same_disk(results)
    leases = [Lease(results / "runs" / run) for run in there]
    won = [False] * len(leases)
    try:
        won = acquire_all(leases)
        if not all(won):
            raise UsageError(f"{there[won.index(False)]} is being trained; stop that before --redo")
        for run in fresh:  # all of them first: killed in between, the next --redo marks the rest
            _new(results, run).mkdir(parents=True, exist_ok=True)
        for run in runs if fresh else ():
            with contextlib.suppress(FileNotFoundError):  # done by it before, or just now
                write_json(_new(results, run) / COVERS, {"runs": sorted(before.union(runs))}, durable=False)
        for run in runs:
            if pending(results, run) and _is_damaged(_new(results, run)):
                _clear(results, run)
    except OSError as error:
        raise UsageError(f"cannot write below {root(results)}: {error.strerror}") from None
    finally:
        for lease, ours in zip(leases, won, strict=True):
            if ours:
                lease.release()


def _is_damaged(folder: Path) -> bool:
    """Whether a run cannot be gone on with in this folder: its configuration or rows cannot be read."""
    try:
        read_json(folder / "config.json")
        read_rows(folder / "epochs.jsonl", folder.name)
    except StoreError:
        return True
    return False


def _clear(results: Path, run: str) -> None:
    """Take away what was trained of a pending run that nobody trains; it stays pending. Raises OSError."""
    with _owned(results, run) as lease:
        for path in _new(results, run).iterdir() if lease else ():
            if path.name not in (COVERS, NAME, LOCK):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _same_disk(results: Path) -> None:
    """Raises UsageError where a run could not be renamed from `root` into results/runs: told before the training, not after it."""
    runs, beside = results / "runs", root(results)
    try:
        apart = runs.stat().st_dev != (beside if beside.exists() else results).stat().st_dev
    except OSError:  # not there yet, or not to be read, which what comes next tells
        return
    if apart:
        raise UsageError(f"{runs} and {beside} lie on different disks, and --redo renames; make {results} itself the link")


def publish(results: Path, run: str, lease: Lease) -> None:
    """Put a finished run in the old one's place. `lease`: that of the new one, which is held; it goes along."""
    old, aside = results / "runs" / run, root(results) / "replaced" / run
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        old.rename(aside)
    _new(results, run).rename(old)
    lease.moved(old)
    (old / COVERS).unlink(missing_ok=True)
    shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _owned(results: Path, run: str) -> Iterator[Lease | None]:
    """The lease of a pending run, held meanwhile; None where another holds it, where it is pending no more, or where no lease can be written."""
    lease = Lease(_new(results, run))
    try:
        ours = not lease.held() and lease.acquire()
    except (OSError, StoreError):  # StoreError: a lease that cannot be read; whatever it is, the run is left as it stands
        ours = False
    try:
        yield lease if ours else None
    finally:
        if ours:
            lease.release()


def settle(results: Path, run: str) -> bool:
    """Put a pending run that nobody trains in the old one's place. Whether that was done."""
    with _owned(results, run) as lease:
        if lease:
            publish(results, run, lease)
        return lease is not None


def recover(results: Path) -> None:
    """Finish what a kill between the two renames left, and take away what it did not. What is being published just now is left alone."""
    with contextlib.suppress(FileNotFoundError):
        for aside in sorted((root(results) / "replaced").iterdir()):
            old = results / "runs" / aside.name
            with _owned(results, aside.name) as lease:
                if lease is None and pending(results, aside.name):
                    continue
                if old.exists():
                    shutil.rmtree(aside, ignore_errors=True)
                else:
                    aside.rename(old)


def drop(results: Path, run: str) -> bool:
    """Forget that a run was to be trained again: the old one stays. False, and nothing is touched, where somebody trains it."""
    with _owned(results, run) as lease:
        if lease:
            shutil.rmtree(_new(results, run), ignore_errors=True)
        return lease is not None
