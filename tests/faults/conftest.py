"""A trained teacher and the numbers of an undisturbed group, made once for all faults; in memory where there is a file system for that."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from bench.errors import DONE
from bench.train import teacher_training
from tests.faults import lives


@pytest.fixture(scope="session")
def memory():
    """A folder for the session: these tests write many checkpoints, and none of them has to survive a power cut."""
    folder = Path(tempfile.mkdtemp(prefix="kdfaults", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tmp_path(memory):
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def trained(memory) -> Path:
    """A results folder with a teacher and the run that made it."""
    torch.set_num_threads(1)
    assert lives.live(lambda: teacher_training.train("resnet8", lives.TINY, 0, "tf32", lives.execution(memory / "trained"))) == DONE
    return memory / "trained"


@pytest.fixture(scope="session")
def teacher_folder(trained, memory) -> Path:
    """A results folder with the teacher and nothing else."""
    shutil.copytree(trained / "teachers", memory / "teacher" / "teachers")
    return memory / "teacher"


@pytest.fixture(scope="session")
def unbroken(teacher_folder, memory) -> dict[str, tuple]:
    """The numbers of student and kd without any fault."""
    folder = memory / "unbroken"
    shutil.copytree(teacher_folder, folder)
    assert lives.train(folder) == DONE
    return lives.outcome(folder)


@pytest.fixture
def results(teacher_folder, tmp_path) -> Path:
    """A fresh results folder with the teacher in it."""
    shutil.copytree(teacher_folder, tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture(scope="session")
def halfway(teacher_folder, memory) -> Path:
    """A results folder whose group was killed in its second epoch, with two generations of checkpoints. Copy it; do not change it."""
    folder = memory / "halfway"
    shutil.copytree(teacher_folder, folder)
    assert lives.live(lambda: lives.dies_after(folder, lives.STEPS + 1)) == 99
    return folder
