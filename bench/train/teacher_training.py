"""Training a teacher: as a plain student of its own architecture, whose last weights are then published."""

from pathlib import Path

from bench import data
from bench.errors import DONE, UsageError
from bench.plan.groups import Group
from bench.plan.protocols import Protocol
from bench.store import redo
from bench.store.runs import read_record
from bench.store.teachers import check, find
from bench.store.weights import read_state, state_hash
from bench.train import group_job
from bench.train.context import runs_of
from bench.train.execution import Execution
from bench.train.teacher_networks import publish


def group_of(architecture: str, protocol: Protocol, seed: int, precision: str) -> Group:
    """The group of the one run that a teacher comes from."""
    return Group(None, architecture, seed, protocol, precision, ("student",), title="Teacher")


def train(architecture: str, protocol: Protocol, seed: int, precision: str, execution: Execution) -> int:
    """Train a teacher as a plain student of its own architecture, then publish its last-epoch weights. Returns an exit code.

    Raises UsageError where one stands there that does not fit this protocol, unless it is to be trained again.
    """
    results = Path(execution.results)
    dataset = data.load(protocol, Path(execution.data_root) if execution.data_root else None, execution.download)

    def there() -> bool:
        found = None if execution.redo else find(results, dataset.name, architecture)
        if found:
            check(found, protocol)
        return found is not None

    if there():
        return DONE
    group = group_of(architecture, protocol, seed, precision)
    run = runs_of(group, dataset, None)[0].run
    if execution.redo and not redo.pending(results, run.id):
        redo.begin(results, [run.id])
    code = group_job.run_group(group, execution)
    if code != DONE:
        return code
    if there():  # another writer's, of meanwhile: students may learn from it already
        return DONE
    place = results / "runs" / run.id
    record = read_record(place)
    state = read_state(place / "student.pt")
    if state_hash(state) != record.weights_sha256:
        raise UsageError(f"{place / 'student.pt'} is not what its record names; train it again: python -m bench teachers train {architecture} --redo")
    facts = {"source": "trained", "run": run.id, "trained": True, "protocol": protocol.name, "trial": protocol.trial, "seed": seed}
    measured = {"top1": record.test_top1, "top5": record.test_top5}
    publish(results, dataset.name, dataset.hash, architecture, state, measured, {**facts, "precision": precision})
    return DONE
