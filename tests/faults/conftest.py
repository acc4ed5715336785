"""A trained teacher and the numbers of an undisturbed group, made once for all faults."""

import shutil
from pathlib import Path

import pytest
import torch

from bench import jobs
from tests.faults import lives


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory) -> Path:
    """A results folder with a teacher and nothing else."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("teacher")
    assert lives.live(lambda: jobs.run_teacher("resnet8", lives.TINY, 0, "tf32", lives.where(folder))) == jobs.DONE
    shutil.rmtree(folder / "runs")
    return folder


@pytest.fixture(scope="session")
def unbroken(teacher_folder, tmp_path_factory) -> dict[str, tuple]:
    """The numbers of student and kd without any fault."""
    folder = tmp_path_factory.mktemp("unbroken")
    shutil.copytree(teacher_folder / "teachers", folder / "teachers")
    assert lives.train(folder) == jobs.DONE
    return lives.outcome(folder)


@pytest.fixture
def results(teacher_folder, tmp_path) -> Path:
    """A fresh results folder with the teacher in it."""
    folder = tmp_path / "results"
    shutil.copytree(teacher_folder / "teachers", folder / "teachers")
    return folder


@pytest.fixture(scope="session")
def halfway(teacher_folder, tmp_path_factory) -> Path:
    """A results folder whose group was killed in its second epoch, with two generations of checkpoints. Copy it; do not change it."""
    folder = tmp_path_factory.mktemp("halfway")
    shutil.copytree(teacher_folder / "teachers", folder / "teachers")
    assert lives.live(lambda: lives.dies_after(folder, lives.STEPS + 1)) == 99
    return folder
