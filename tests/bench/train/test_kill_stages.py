"""Death inside what comes before training: a long preparation and a stage in which the student is pre-trained go on with the same bits."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from bench.errors import DONE
from bench.plan.groups import Group
from bench.plan.protocols import Protocol
from bench.store.lease import LOCK
from bench.train import checkpoint, group_job, teacher_training
from tests.bench.train.test_kill import FORK, execution, fresh, live, outcome

TINY = Protocol("tiny", dataset="shapes100", epochs=3, milestones=(2,), train_images=200, test_images=100, image_size=16, batch=64)
HYPER = (("ab", "epochs", 9), ("fsp", "epochs", 5), ("ft", "epochs", 6), ("crd", "negatives", 64))
KILLS = 6  # in each of the two


def train(folder: Path, checkpoint_seconds: float = 0.0) -> None:
    """A child's life: exits with the group's code."""
    torch.set_num_threads(1)
    group = Group("resnet8", "resnet8", 1, TINY, "tf32", ("ft", "ab", "crd", "fsp"), HYPER)
    os._exit(group_job.run_group(group, execution(folder, checkpoint_seconds)))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("unbroken")
    assert teacher_training.train("resnet8", TINY, 0, "tf32", execution(folder, 60)) == DONE
    assert live(folder, train, 60.0) == DONE
    return folder, outcome(folder)


def kill_when(folder: Path, inside: Callable[[float], bool], wait: float) -> bool:
    """A life that is ended a moment after it came inside (given when it began); whether it was still going."""
    began = time.time()
    child = FORK.Process(target=train, args=(folder,))
    child.start()
    until = time.monotonic() + 60
    while child.is_alive() and not inside(began) and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(wait)
    landed = child.is_alive() and inside(began)
    if child.is_alive():
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    return landed


def since(paths: Iterable[Path], began: float) -> list[Path]:
    """Those of the files that were written in this life."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # gone meanwhile
            if path.stat().st_mtime >= began:
                found.append(path)
    return found


def test_kills_inside_a_preparation_and_a_stage_before_training_change_no_bit(tmp_path, unbroken):
    folder, source = fresh(tmp_path, unbroken[0]), random.Random(5)

    def preparing(began: float) -> bool:
        return bool(since(folder.glob("preparations/ft-*/unfinished.pt"), began))

    def pretraining(began: float) -> bool:  # epochs of that stage end with 0
        manifests = since(folder.glob("groups/*/manifest.json"), began)
        return any(manifest["epoch"] < 1 for path in manifests if (manifest := checkpoint.read_manifest(path)))

    landed = {pretraining: 0, preparing: 0}  # in the order in which a life comes to them
    for inside in landed:
        for _ in range(3 * KILLS):
            if landed[inside] == KILLS:
                break
            landed[inside] += kill_when(folder, inside, source.uniform(0, 0.05))
    assert min(landed.values()) >= 2, landed
    assert live(folder, train) == DONE
    students = outcome(folder)
    assert len(students) == 4 and students == {run: value for run, value in unbroken[1].items() if run in students}
    assert not list(folder.glob("preparations/*/unfinished.pt")) and {path.name for path in folder.glob("runs/*/.*")} <= {LOCK}
