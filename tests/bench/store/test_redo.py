"""Marking runs to be trained again: what stands in the way is told before anything is marked."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.errors import UsageError
from bench.store import redo
from bench.store.files import write_json
from bench.store.lease import LOCK, Lease
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


@pytest.mark.parametrize("file", ["config.json", "epochs.jsonl"])
def test_one_that_is_damaged_starts_over(tmp_path, run, file):
    other = add_run(tmp_path, run_of("kd", "resnet56", "resnet20", 1), 70.0).name
    redo.begin(tmp_path, [run, other])
    place = add_run(redo.root(tmp_path), run_of("student", None, "resnet20", 1), 70.0, status="running", rows=1)
    (place / "snapshots").mkdir()
    redo.begin(tmp_path, [run])
    assert (place / file).exists() and (place / "snapshots").exists()  # sound: it goes on
    (place / file).write_bytes(b"{\n")
    lease = Lease(place)
    assert lease.acquire()
    redo.begin(tmp_path, [run])
    assert (place / file).exists()  # whoever trains it is left alone
    lease.release()
    redo.begin(tmp_path, [run])
    assert {path.name for path in place.iterdir()} - {LOCK} == {redo.COVERS} and redo.covered(tmp_path, [run]) == {run, other}


def test_one_whose_folder_was_emptied_is_still_to_be_trained(tmp_path, run):
    """The cure for a checkpoint of other code. One whose folder is gone counts as done by the --redo that goes on."""
    other = add_run(tmp_path, run_of("kd", "resnet56", "resnet20", 1), 70.0).name
    redo.begin(tmp_path, [run, other])
    place = add_run(redo.root(tmp_path), run_of("student", None, "resnet20", 1), 70.0, status="failed", rows=1)
    for path in place.iterdir():
        path.unlink()
    redo.begin(tmp_path, [run, other])
    assert redo.pending(tmp_path, run) and not list(place.glob("*.json*"))
    shutil.rmtree(place)
    redo.begin(tmp_path, [run, other])
    assert not redo.pending(tmp_path, run)


def test_what_it_belongs_to_may_be_anything(tmp_path, run):
    for said in (5, None, "abc", [[1], {"a": 1}, 3]):
        redo.begin(tmp_path, [run])
        write_json(redo.root(tmp_path) / "runs" / run / redo.COVERS, {"runs": said})
        assert redo.covered(tmp_path, [run]) == {run}
