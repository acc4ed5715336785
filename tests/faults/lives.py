"""Small groups and short lives for tests of faults: a group of two that trains in about a second, and children forked from this process."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import torch

from bench.plan.groups import Group
from bench.plan.protocols import Protocol
from bench.store.rows import read_rows
from bench.store.runs import scan
from bench.train import engine, environment, group_job
from bench.train.execution import Execution
from methods import registry

torch.use_deterministic_algorithms(False)  # imports torch._inductor: a second of work for each life otherwise

TINY = Protocol("tiny", dataset="shapes100", epochs=3, milestones=(2,), train_images=100, test_images=100, image_size=16, batch=64)
STEPS = 2  # an epoch
FORK = multiprocessing.get_context("fork")


def group(*methods: str, teacher: str | None = "resnet8", seed: int = 1, protocol: Protocol = TINY) -> Group:
    return Group(teacher, "resnet8", seed, protocol, "tf32", methods or ("student", "kd"))


def execution(folder: Path, **changes) -> Execution:
    return Execution(**{"results": str(folder), "device": "cpu", "threads": 1, "deterministic": True, "checkpoint_seconds": 0.0, **changes})


def live(work: Callable[[], int]) -> int | None:
    """The exit code of `work` in a child; an exception, with its traceback on stderr, is 1. A killed child's is negative."""

    def life() -> None:
        torch.set_num_threads(1)
        os._exit(work())

    for found in (environment.commit, environment.versions, registry.names):  # once, here: else every life asks git and imports them anew
        found()
    child = FORK.Process(target=life)
    child.start()
    child.join(600)
    if child.exitcode is None:  # it must not train on beside other tests
        child.kill()
    return child.exitcode


def train(folder: Path, one: Group | None = None, **changes) -> int | None:
    """A group trained in a child, to its exit code."""
    return live(lambda: group_job.run_group(one or group(), execution(folder, **changes)))


def outcome(folder: Path) -> dict[str, tuple]:
    """The numbers of every finished run, rows included; fails where a run cannot be trusted."""
    views, problems = scan(folder)
    assert not problems, problems
    found = {}
    for view in views:
        if view.record:
            rows = read_rows(view.folder / "epochs.jsonl", view.id).rows
            kept = tuple((r.epoch, r.loss, r.train_top1, r.test_top1, r.test_loss) for r in rows)
            found[view.id] = (view.record.weights_sha256, view.record.test_top1, view.record.best_epoch, kept)
    return found


def statuses(folder: Path) -> dict[str, tuple[str, str]]:
    """(status, reason) by method, the teacher's own training left out."""
    return {v.method: (v.status, v.reason) for v in scan(folder)[0] if v.seed != 0}


def dies_after(folder: Path, steps: int) -> int:
    """A life that ends, without a word, when the checkpoint after so many steps is published."""
    from bench.train.checkpoint import GroupCheckpoint

    taken = 0
    step, save = engine.Eager.step, GroupCheckpoint.save

    def counted(runner, start, stop):
        nonlocal taken
        taken += 1
        return step(runner, start, stop)

    def dying(self, position, states):
        size = save(self, position, states)
        if taken >= steps:
            os._exit(99)
        return size

    engine.Eager.step, GroupCheckpoint.save = counted, dying
    return group_job.run_group(group(), execution(folder))
