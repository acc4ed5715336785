"""Weights kept on the way (--keep-epochs): those of that epoch, and nothing of the run changes for it."""

import dataclasses

import pytest
import torch

import models
from bench import data
from bench.__main__ import parse
from bench.errors import DONE, STOPPED_IN_TIME, TROUBLE, StoreError, UsageError
from bench.launch.run import _kept, make_plan
from bench.plan.groups import Group
from bench.plan.protocols import PROTOCOLS, Protocol
from bench.store import snapshots
from bench.store.files import write_json
from bench.store.runs import scan
from bench.store.weights import read_state, state_hash
from bench.train import group_job, loop, run_folder, teacher_networks
from bench.train.execution import Execution
from bench.train.stop import Stop

TINY = Protocol("tiny", dataset="shapes100", epochs=2, milestones=(1,), train_images=100, test_images=100, image_size=16, batch=50)


def trained(folder, **changes):
    group = Group(None, "resnet8", 1, TINY, "tf32", ("student",))
    threads = torch.get_num_threads()
    assert group_job.run_group(group, Execution(str(folder), device="cpu", threads=threads, deterministic=True, **changes)) == DONE
    return scan(folder)[0][0]


def test_weights_of_the_epochs_asked_for_and_the_same_run(tmp_path):
    plain = trained(tmp_path / "plain")
    kept = trained(tmp_path / "kept", keep_epochs=(0, 2))
    assert snapshots.kept(plain.folder) == {}
    assert (kept.id, kept.record.weights_sha256) == (plain.id, plain.record.weights_sha256)
    found = snapshots.kept(kept.folder)
    assert list(found) == [0, 2] and found[0] != found[2] == kept.record.weights_sha256
    assert all(state_hash(read_state(snapshots.place(kept.folder, epoch))) == value for epoch, value in found.items())


def with_ab(results) -> Group:
    """A group with a teacher and a method that pre-trains."""
    dataset, state = data.load(TINY), models.build("resnet8", 100).state_dict()
    teacher_networks.publish(results, dataset.name, dataset.hash, "resnet8", state, {"top1": 1.0, "top5": 5.0}, {"source": "x", "trained": True})
    return Group("resnet8", "resnet8", 1, TINY, "tf32", ("student", "ab"), (("ab", "epochs", 2),))


def test_epoch_0_is_before_a_stage_before_the_main_one(tmp_path):
    """The plain student's and AB's epoch 0 are the same weights: distances begin there for both."""
    group = with_ab(tmp_path)
    execution = Execution(str(tmp_path), device="cpu", threads=torch.get_num_threads(), keep_epochs=(0, 1))
    assert group_job.run_group(group, execution) == DONE
    kept = {view.method: snapshots.kept(view.folder) for view in scan(tmp_path)[0]}
    assert [*kept["ab"]] == [*kept["student"]] == [0, 1]
    assert kept["ab"][0] == kept["student"][0] and kept["ab"][1] != kept["student"][1]


def test_epoch_0_that_is_past_within_a_stage_is_named(tmp_path, monkeypatch):
    group = with_ab(tmp_path)
    execution = Execution(str(tmp_path), device="cpu", threads=torch.get_num_threads(), checkpoint_seconds=0)
    trained, whole = [], loop.Training._pretrained
    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_pretrained", lambda self, epoch, count: (trained.append(epoch), whole(self, epoch, count))[1])
        patch.setattr(Stop, "code", property(lambda stop: STOPPED_IN_TIME if trained else None))
        assert group_job.run_group(group, execution) == STOPPED_IN_TIME
    assert trained == [-1]
    assert group_job.run_group(group, dataclasses.replace(execution, keep_epochs=(0, 1))) == DONE
    (ab,) = (view for view in scan(tmp_path)[0] if view.method == "ab")
    assert list(snapshots.kept(ab.folder)) == [1]
    assert "weights asked for after epochs that are past are not kept: 0\n" in (ab.folder / "log.txt").read_text()


def test_a_run_that_goes_on_earlier_keeps_none_of_what_was_lost(tmp_path):
    """Killed behind its newest checkpoint: what came after that may not come again."""
    plain = trained(tmp_path, keep_epochs=(0, 2))
    for name in ("record.json", "student.pt", "epochs.jsonl"):
        (plain.folder / name).unlink()
    for epoch in (1, 2, 12):
        snapshots.write(plain.folder, epoch, b"of an attempt that was lost", "f" * 16)
    again = trained(tmp_path, keep_epochs=(0,))
    assert again.id == plain.id and list(snapshots.kept(again.folder)) == [0]
    assert sorted(path.name for path in (again.folder / "snapshots").iterdir()) == ["epoch-0.json", "epoch-0.pt"]


def test_a_damaged_index_is_said(tmp_path):
    snapshots.write(tmp_path, 3, b"", "abc")
    path = snapshots.place(tmp_path, 3).with_suffix(".json")
    path.write_text(path.read_text().replace("abc", "abd"))
    with pytest.raises(StoreError, match="epoch-3.json"):
        snapshots.kept(tmp_path)


@pytest.mark.parametrize("epoch", ["(", "(a|a)*b", ".*", None, [3], 3.0, True])
def test_an_index_with_something_else_for_an_epoch_is_said(tmp_path, epoch):
    snapshots.write(tmp_path, 3, b"", "abc")
    write_json(snapshots.place(tmp_path, 3).with_suffix(".json"), {"epoch": epoch, "weights_sha256": "abc"})
    with pytest.raises(StoreError, match="epoch-3.json: says nothing of a snapshot"):
        snapshots.kept(tmp_path)


def test_files_that_are_no_snapshots_are_left(tmp_path):
    snapshots.write(tmp_path, 3, b"", "abc")
    odd = snapshots.place(tmp_path, 3).with_name("epoch-²3.json")
    odd.touch()
    assert snapshots.drop_from(tmp_path, 2) == [3] and odd.exists()


@pytest.mark.parametrize("given, said", [("99", f"ends with epoch {PROTOCOLS['smoke'].epochs};"), ("x", "--keep-epochs x: expected whole numbers")])
def test_epochs_that_are_none_are_refused(given, said):
    options = parse("run", ["--profile", "smoke", "--keep-epochs", given])
    with pytest.raises(UsageError, match=said):
        _kept(options, make_plan(options))


def test_a_snapshot_that_cannot_be_written_fails_the_run_and_the_next_launch_keeps_it(tmp_path, monkeypatch):
    group = Group(None, "resnet8", 1, TINY, "tf32", ("student",))
    execution = Execution(str(tmp_path), device="cpu", threads=torch.get_num_threads(), checkpoint_seconds=0, keep_epochs=(0, 1, 2))

    def full(folder, epoch, data, weights_hash, write=snapshots.write):
        if epoch == 1:
            raise OSError(28, "No space left on device")
        write(folder, epoch, data, weights_hash)

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "write", full)
        assert group_job.run_group(group, execution) == TROUBLE
    (view,), _ = scan(tmp_path)
    assert view.status == "failed" and "No space left" in view.reason
    assert group_job.run_group(group, execution) == DONE
    assert list(snapshots.kept(view.folder)) == [0, 1, 2]


def test_epochs_that_are_past_when_a_run_goes_on_are_named(tmp_path, monkeypatch):
    group = Group(None, "resnet8", 1, TINY, "tf32", ("student",))
    execution = Execution(str(tmp_path), device="cpu", threads=torch.get_num_threads(), checkpoint_seconds=0, keep_epochs=(1,))
    rows = []
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "code", property(lambda stop: STOPPED_IN_TIME if rows else None))
        patch.setattr(run_folder, "append_row", lambda path, row, write=run_folder.append_row: (write(path, row), rows.append(row)))
        assert group_job.run_group(group, execution) == STOPPED_IN_TIME
    assert group_job.run_group(group, dataclasses.replace(execution, keep_epochs=(0, 1, 2))) == DONE
    (view,) = scan(tmp_path)[0]
    assert list(snapshots.kept(view.folder)) == [1, 2]
    assert (view.folder / "log.txt").read_text().count("weights asked for after epochs that are past are not kept: 0\n") == 1
