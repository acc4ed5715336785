"""Death at any instant: a group that is killed again and again ends with the bits of one that was not.

Children are forked from this process, so that a life costs a second and not the import of torch.
"""

import dataclasses
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from bench.errors import DONE
from bench.plan.groups import Group
from bench.plan.protocols import Protocol
from bench.store.rows import read_rows
from bench.store.runs import scan
from bench.train import checkpoint, group_job, teacher_training
from bench.train.execution import Execution

TINY = Protocol("tiny", dataset="shapes100", epochs=12, milestones=(8,), train_images=200, test_images=100, image_size=16, batch=64)
SHORT = dataclasses.replace(TINY, epochs=3, milestones=(2,), train_images=56, batch=16)  # the same steps and saves: three whole batches, one of 8
FORK = multiprocessing.get_context("fork")


def execution(folder: Path, checkpoint_seconds: float) -> Execution:
    return Execution(results=str(folder), device="cpu", threads=1, deterministic=True, checkpoint_seconds=checkpoint_seconds)


def run_group(folder: Path, checkpoint_seconds: float, protocol: Protocol) -> int:
    torch.set_num_threads(1)
    group = Group("resnet8", "resnet8", 1, protocol, "tf32", ("student", "kd", "skd"))
    return group_job.run_group(group, execution(folder, checkpoint_seconds))


def train(folder: Path, checkpoint_seconds: float = 0.0, protocol: Protocol = TINY) -> None:
    """A child's life: exits with the group's code."""
    os._exit(run_group(folder, checkpoint_seconds, protocol))


def live(folder: Path, target=train, *arguments) -> int | None:
    child = FORK.Process(target=target, args=(folder, *arguments))
    child.start()
    child.join(600)
    if child.exitcode is None:
        child.kill()
    return child.exitcode


def outcome(folder: Path) -> dict[str, tuple]:
    views, problems = scan(folder)
    assert not problems
    found = {}
    for view in views:
        assert view.status == "done", (view.id, view.status, view.reason)
        rows = read_rows(view.folder / "epochs.jsonl", view.id).rows
        kept = [(row.epoch, row.loss, row.train_top1, row.test_top1, row.test_loss) for row in rows]
        record = view.record
        found[view.id] = (record.weights_sha256, record.test_top1, record.best_top1, record.best_epoch, tuple(kept))
    return found


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("unbroken")
    assert teacher_training.train("resnet8", dataclasses.replace(TINY, epochs=3, milestones=(2,)), 0, "tf32", execution(folder, 60)) == DONE
    assert live(folder, train, 60.0) == DONE
    return folder, outcome(folder)


def fresh(tmp_path: Path, unbroken_folder: Path) -> Path:
    """A results folder with the same teacher and nothing else."""
    shutil.copytree(unbroken_folder / "teachers", tmp_path / "teachers")
    return tmp_path


def logged(folder: Path) -> int:
    """Bytes that the runs have logged."""
    return sum(path.stat().st_size for path in folder.glob("runs/*/log.txt"))


def test_thirty_kills_at_random_instants_change_no_bit(tmp_path, unbroken):
    folder = fresh(tmp_path, unbroken[0])
    source = random.Random(7)
    lives = kills = 0
    while kills < 30:
        lives += 1
        said = logged(folder)
        child = FORK.Process(target=train, args=(folder,))
        child.start()
        while lives % 2 and child.is_alive() and logged(folder) == said:  # every other life comes to its runs, on the slowest machine too
            time.sleep(0.002)
        time.sleep(source.uniform(0.0, 0.2) if lives % 2 else source.uniform(0.02, 0.7))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
    code = live(folder)
    assert kills == 30 and code == DONE
    students = outcome(folder)
    expected = {run: value for run, value in unbroken[1].items() if run in students}
    assert len(students) == 3 and students == expected
    attempts = [row.attempt for view in scan(folder)[0] for row in read_rows(view.folder / "epochs.jsonl").rows]
    assert max(attempts) > 3


def _die_at(folder: Path, number: int, saves: int) -> None:
    """Dies right before the `number`-th fsync, rename or unlink after so many manifests are published, i.e. at each step of a later save."""
    calls = {"manifests": 0, "after": 0}
    names = ("fsync", "replace", "unlink")
    originals = {name: getattr(os, name) for name in names}

    def counted(name):
        def call(*arguments, **named):
            if calls["manifests"] >= saves:
                calls["after"] += 1
                if calls["after"] == number:
                    os._exit(99)
            if name == "replace" and Path(arguments[1]).name == checkpoint.CURRENT:
                calls["manifests"] += 1
            return originals[name](*arguments, **named)

        return call

    for name in names:
        setattr(os, name, counted(name))
    train(folder, protocol=SHORT)


def test_a_kill_at_each_step_of_a_save_leaves_a_sound_generation(tmp_path, unbroken):
    """Every fsync, rename and unlink of one save, from the first file to the last one pruned; every third death is trained to its end."""
    whole = fresh(tmp_path / "whole", unbroken[0])
    assert run_group(whole, 60.0, SHORT) == DONE  # here, so that every life finds the kernels compiled
    expected = outcome(whole)
    start = fresh(tmp_path / "start", unbroken[0])
    assert live(start, _die_at, 1, 3) == 99  # two generations stand, and each save from here on removes one
    before = {view.id: checkpoint.restore(start, view.id)[1].position for view in scan(start)[0]}
    assert len(before) == 3 and min(before.values()) > checkpoint.START
    for number in range(1, 31):
        folder = tmp_path / f"at{number}"
        shutil.copytree(start, folder)
        assert live(folder, _die_at, number, 2) == 99
        for run, position in before.items():
            restored = checkpoint.restore(folder, run)[1]
            assert restored.state is not None and restored.position > position and not restored.notes
        if number % 3 == 0:
            assert live(folder, train, 60.0, SHORT) == DONE
            assert len(expected) == 3 and outcome(folder) == expected
