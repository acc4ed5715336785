"""Training a teacher: as a plain student of its own architecture, whose last weights are then published."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from bench import data
from bench.errors import DONE, TROUBLE, StoreError, UsageError
from bench.plan.groups import Group
from bench.plan.protocols import Protocol
from bench.store import redo
from bench.store.files import write_bytes
from bench.store.records import Status
from bench.store.runs import TEACHER, read_record, read_status
from bench.store.teachers import TeacherFile, check, find, folder, redo_mark
from bench.store.weights import read_state, state_hash
from bench.text import say
from bench.train import group_job
from bench.train.context import runs_of
from bench.train.execution import Execution
from bench.train.teacher_networks import publish


def group_of(architecture: str, protocol: Protocol, seed: int, precision: str) -> Group:
    """The group of the one run that a teacher comes from."""
    return Group(None, architecture, seed, protocol, precision, ("student",), title=TEACHER)


def train(architecture: str, protocol: Protocol, seed: int, precision: str, execution: Execution) -> int:
    """Train a teacher as a plain student of its own architecture, then publish its last-epoch weights. Returns an exit code; TROUBLE, and
    nothing is published, where the run was left alone because it diverged before.

    Raises UsageError where one stands there that does not fit this protocol, unless it is to be trained again, and where its weights are not
    its record's.
    """
    results = Path(execution.results)
    dataset = data.load(protocol, Path(execution.data_root) if execution.data_root else None, execution.download)

    def there() -> bool:
        found = None if execution.redo else find(results, dataset.name, architecture)
        if found:
            check(found, protocol)
        return found is not None

    mark = redo_mark(folder(results, dataset.name, architecture))
    if there():
        if mark.exists():
            say(f"the old {architecture} teacher stands: it is being trained again, and the new weights are not there yet; --redo goes on with it")
        return DONE
    group = group_of(architecture, protocol, seed, precision)
    run = runs_of(group, dataset, None)[0].run
    if execution.redo and not _is_unpublished(results, run.id, mark, lambda: find(results, dataset.name, architecture)):
        _begin_again(results, run.id)
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(mark, run.id.encode())
        except OSError as error:
            raise UsageError(f"cannot write {mark}: {error.strerror}; free some space or choose another --results folder") from None
    code = group_job.run_group(group, execution)
    if code != DONE:
        return code
    if there():  # another writer's, of meanwhile: students may learn from it already
        return DONE
    again = redo.pending(results, run.id)
    place = (redo.root(results) if again else results) / "runs" / run.id
    record = read_record(place)
    if again or record is None:
        say(f"{run.id} {_standing(place)}; --redo tries it again")
        return TROUBLE
    state = read_state(place / "student.pt")
    if state_hash(state) != record.weights_sha256:
        raise UsageError(f"{place / 'student.pt'} is not what its record names; train it again: python -m bench teachers train {architecture} --redo")
    facts = {"source": "trained", "run": run.id, "trained": True, "protocol": protocol.name, "trial": protocol.trial, "seed": seed}
    measured = {"top1": record.test_top1, "top5": record.test_top5}
    publish(results, dataset.name, dataset.hash, architecture, state, measured, {**facts, "precision": precision})
    return DONE


def _is_unpublished(results: Path, run: str, mark: Path, find_teacher: Callable[[], TeacherFile | None]) -> bool:
    """Whether a --redo trained the run to its end and was cut off before its weights took the teacher's place."""
    try:
        named = mark.read_bytes() == run.encode()
    except FileNotFoundError:
        return False
    if not named or redo.pending(results, run):
        return False
    record, teacher = read_record(results / "runs" / run), find_teacher()
    return record is not None and (teacher is None or teacher.hash != record.weights_sha256)


def _begin_again(results: Path, run: str) -> None:
    """Mark a run as to be trained again. One that is marked goes on where it was stopped; one that diverged then, or is damaged, starts over.

    Raises UsageError where it is being trained.
    """
    if redo.pending(results, run) and (found := _status(redo.root(results) / "runs" / run)) and found.status == "diverged":
        redo.drop(results, run)
    redo.begin(results, [run])


def _standing(folder: Path) -> str:
    """Why a run is not done, in words."""
    found = _status(folder)
    return f"{found.status}: {found.reason}" if found else "is not done"


def _status(folder: Path) -> Status | None:
    """A run's status, as far as it can be read: it is not fsynced, and after a crash of the machine it may be anything."""
    with contextlib.suppress(StoreError):
        return read_status(folder)
    return None
