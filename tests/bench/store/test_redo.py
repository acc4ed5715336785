"""Marking runs to be trained again: what stands in the way is told before anything is marked."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.errors import UsageError
from bench.store import redo
from tests.bench.synthetic import add_run, run_of


@pytest.fixture
def run(tmp_path):
    return add_run(tmp_path, run_of("student", None, "resnet20", 1), 70.0).name


def test_what_cannot_be_leased_is_one_line(tmp_path, run, monkeypatch):
    def refused(leases):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(redo, "acquire_all", refused)
    with pytest.raises(UsageError, match="cannot write below .*redo: Permission denied"):
        redo.begin(tmp_path, [run])
    assert not redo.pending(tmp_path, run)


def test_runs_on_another_disk_are_refused_before_the_training(tmp_path, run, monkeypatch):
    """A run takes the old one's place by a rename."""
    real = Path.stat

    def elsewhere(self, **options):
        found = real(self, **options)
        return SimpleNamespace(st_dev=found.st_dev + 1, st_mode=found.st_mode) if self == tmp_path / "runs" else found

    monkeypatch.setattr(Path, "stat", elsewhere)
    with pytest.raises(UsageError, match="lie on different disks, and --redo renames"):
        redo.begin(tmp_path, [run])
    assert not redo.root(tmp_path).exists()
