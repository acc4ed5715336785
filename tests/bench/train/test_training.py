"""Groups: a run alone equals the run in a group, a resumed run equals an unbroken one, trouble stays with the learner that has it."""

import dataclasses
import json
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from bench.errors import DONE, STOPPED_IN_TIME, TROUBLE, UsageError
from bench.plan.groups import Group
from bench.plan.members import resolve
from bench.plan.protocols import Protocol
from bench.report import table
from bench.store import redo
from bench.store.files import read_json, write_json
from bench.store.runs import read_status, scan
from bench.train import checkpoint, engine, environment, group_job, teacher_networks, teacher_training
from bench.train.execution import Execution
from bench.train.loop import Training
from bench.train.stop import Stop
from methods import registry
from methods.base import Method
from tests.bench.train import toys

TINY = Protocol("tiny", dataset="shapes100", epochs=2, milestones=(1,), train_images=200, test_images=100, image_size=16, batch=64)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(False)


def execution(folder: Path, **changes) -> Execution:
    return Execution(results=str(folder), device="cpu", threads=1, deterministic=True, **changes)


def group(*methods: str, teacher: str | None = "resnet14", protocol: Protocol = TINY, seed: int = 1) -> Group:
    return Group(teacher, "resnet8", seed, protocol, "tf32", methods)


def with_teacher(folder: Path) -> Path:
    assert teacher_training.train("resnet14", TINY, 0, "tf32", execution(folder)) == DONE
    return folder


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A results folder with a teacher, to be copied."""
    torch.set_num_threads(1)
    return with_teacher(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def unbroken(taught, tmp_path_factory):
    """Records of a group that was not stopped."""
    folder = copytree(taught, tmp_path_factory.mktemp("unbroken"), dirs_exist_ok=True)
    assert group_job.run_group(group("student", "kd", "skd"), execution(folder)) == DONE
    return records(folder)


def records(folder: Path) -> dict[str, dict]:
    views, problems = scan(folder)
    assert not problems
    return {view.method: read_json(view.folder / "record.json") for view in views if view.student == "resnet8" and view.record}


def numbers(record: dict) -> tuple:
    return record["weights_sha256"], record["test_top1"], record["test_loss"], record["best_top1"], record["best_epoch"]


def statuses(folder: Path) -> dict[str, str]:
    return {view.method: view.status for view in scan(folder)[0] if view.student == "resnet8"}


class Interrupting:
    """Stops a group after so many optimiser steps, as a signal would."""

    def __init__(self, monkeypatch, steps: int) -> None:
        self.left = steps
        original = engine.Eager.step

        def step(runner, start, stop):
            self.left -= 1
            return original(runner, start, stop)

        monkeypatch.setattr(engine.Eager, "step", step)
        monkeypatch.setattr(Stop, "code", property(lambda stop: STOPPED_IN_TIME if self.left <= 0 else None))


def test_group_equals_single_bit_for_bit(tmp_path, unbroken):
    alone = with_teacher(tmp_path / "alone")  # trained once more: it has the same bits too
    for method in ("skd", "student", "kd"):
        assert group_job.run_group(group(method), execution(alone)) == DONE
    a, b = unbroken, records(alone)
    assert a.keys() == b.keys() == {"student", "kd", "skd"}
    for method in a:
        assert numbers(a[method]) == numbers(b[method])
    assert len({numbers(r)[0] for r in a.values()}) == 3  # the methods do differ


def test_rows_of_one_method_in_a_group_are_the_runs_of_launches_of_their_own(tmp_path, taught):
    together, alone = copytree(taught, tmp_path / "together"), copytree(taught, tmp_path / "alone")
    row, changed = "kd:temperature=2", (("kd", "temperature", 2.0),)
    both = dataclasses.replace(group("kd", row), changed=((row, "temperature", 2.0),))
    assert group_job.run_group(both, execution(together)) == DONE
    assert group_job.run_group(group("kd"), execution(alone)) == DONE
    assert group_job.run_group(dataclasses.replace(group("kd"), hyper=changed, changed=changed), execution(alone)) == DONE
    runs = [[view for view in scan(folder)[0] if view.method == "kd"] for folder in (together, alone)]
    found = [{v.id: (v.changed, numbers(read_json(v.folder / "record.json"))) for v in views} for views in runs]
    assert found[0] == found[1] and len(found[0]) == 2
    assert sorted(str(changed) for changed, _ in found[0].values()) == ["{'temperature': 2.0}", "{}"]


def test_a_run_that_goes_on_elsewhere_says_what_differs(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        Interrupting(patch, 3)
        assert group_job.run_group(group("student"), execution(tmp_path)) == STOPPED_IN_TIME
    elsewhere = environment.versions() | {"torch": "9.9"}
    with monkeypatch.context() as patch:
        patch.setattr(environment, "versions", lambda: elsewhere)
        Interrupting(patch, 1)
        assert group_job.run_group(group("student"), execution(tmp_path)) == STOPPED_IN_TIME
    assert group_job.run_group(group("student"), execution(tmp_path)) == DONE
    (view,) = scan(tmp_path)[0]
    here = environment.versions()["torch"]
    assert view.record.changes == [f"epoch 1, step 3: torch {here} -> 9.9", f"epoch 1, step 4: torch 9.9 -> {here}"]
    assert f"the last bits may with them: torch {here} -> 9.9" in (view.folder / "log.txt").read_text()
    (results, *_) = table.build(tmp_path)
    (warning,) = results.tables[0].warnings
    assert "went on under other conditions" in warning and "epoch 1, step 3" in warning


def test_a_run_that_was_not_deterministic_throughout_is_none(tmp_path, monkeypatch):
    """Two conditions of three attempts: the last one alone would say yes."""
    for steps, sure in ((3, True), (2, False)):
        with monkeypatch.context() as patch:
            Interrupting(patch, steps)
            assert group_job.run_group(group("student"), dataclasses.replace(execution(tmp_path), deterministic=sure)) == STOPPED_IN_TIME
    assert group_job.run_group(group("student"), execution(tmp_path)) == DONE
    (view,) = scan(tmp_path)[0]
    assert view.record.deterministic is False
    assert view.record.changes == ["epoch 1, step 3: deterministic yes -> no", "epoch 2, step 1: deterministic no -> yes"]


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 7])
def test_resumed_equals_unbroken_bit_for_bit(tmp_path, monkeypatch, taught, unbroken, steps):
    """Four steps an epoch: stopped inside an epoch, before its evaluation, at its end, and in the last epoch."""
    broken = copytree(taught, tmp_path / "broken")
    with monkeypatch.context() as patch:
        Interrupting(patch, steps)
        assert group_job.run_group(group("student", "kd", "skd"), execution(broken)) == STOPPED_IN_TIME
    assert set(statuses(broken).values()) == {"interrupted"}
    key, restored = checkpoint.restore(broken, scan(broken)[0][0].id)
    assert key and restored.state is not None and restored.position >= checkpoint.Position(1 + steps // 5, 0)
    torch.manual_seed(12345)  # nothing may depend on the ambient generator
    assert group_job.run_group(group("student", "kd", "skd"), execution(broken)) == DONE
    a, b = unbroken, records(broken)
    assert a.keys() == b.keys()
    for method in a:
        assert numbers(a[method]) == numbers(b[method]), method
        assert (a[method]["attempts"], b[method]["attempts"]) == (1, 2)
        assert a[method]["changes"] == b[method]["changes"] == []
    assert not list(broken.glob("runs/*/checkpoint-*"))


def test_damaged_checkpoint_falls_back_and_says_so(tmp_path, monkeypatch, taught, unbroken):
    broken = copytree(taught, tmp_path / "broken")
    with monkeypatch.context() as patch:
        Interrupting(patch, 6)
        assert group_job.run_group(group("student", "kd"), execution(broken, checkpoint_seconds=0)) == STOPPED_IN_TIME
    kd = next(v for v in scan(broken)[0] if v.method == "kd")
    manifest = json.loads(next(broken.glob("groups/*/manifest.json")).read_text())
    newest = kd.folder / manifest["members"][kd.id]["file"]
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    _, restored = checkpoint.restore(broken, kd.id)
    assert restored.state is not None and restored.position < checkpoint.Position(manifest["epoch"], manifest["step"])
    assert "differs from its SHA-256" in " ".join(restored.notes)
    assert group_job.run_group(group("student", "kd"), execution(broken)) == DONE  # the two stand apart and train one after the other
    found = records(broken)
    assert found.keys() == {"student", "kd"}
    for method, record in found.items():
        assert numbers(record) == numbers(unbroken[method])


@pytest.fixture
def stray_methods():
    """Registers methods for one test."""
    added = []

    def add(name, losses):
        added.append(name)
        registry.names()
        cls = type(name, (Method,), {"losses": losses, "__module__": "methods.student"})
        registry.register(name)(cls)

    yield add
    for name in added:
        del registry._methods[name]


def _nan_after(steps: int):
    def losses(self, student, teacher, batch):
        self.seen = getattr(self, "seen", 0) + 1
        ce = F.cross_entropy(student.logits, batch.labels)
        return {"ce": ce * (float("nan") if self.seen > steps else 1.0)}

    return losses


def _raise_after(steps: int):
    def losses(self, student, teacher, batch):
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen > steps:
            raise ValueError("a method of a stranger")
        return {"ce": F.cross_entropy(student.logits, batch.labels)}

    return losses


def test_divergence_and_failure_stay_with_their_learner(tmp_path, stray_methods, monkeypatch):
    monkeypatch.setattr(registry, "source_hash", lambda name: "0" * 16)
    stray_methods("turns_nan", _nan_after(6))
    stray_methods("raises", _raise_after(2))
    assert group_job.run_group(group("turns_nan", "raises", "student", teacher=None), execution(tmp_path)) == TROUBLE
    views = {v.method: v for v in scan(tmp_path)[0]}
    assert {m: v.status for m, v in views.items()} == {"turns_nan": "diverged", "raises": "failed", "student": "done"}
    assert "epoch 2" in views["turns_nan"].reason and "a method of a stranger" in views["raises"].reason
    assert views["turns_nan"].record is None and views["raises"].record is None
    alone = tmp_path / "alone"
    assert group_job.run_group(group("student", teacher=None), execution(alone)) == DONE
    assert numbers(records(tmp_path)["student"]) == numbers(records(alone)["student"])
    # A diverged run would diverge again and is left; a failed one is tried again.
    assert group_job.run_group(group("turns_nan", "raises", "student", teacher=None), execution(tmp_path)) == TROUBLE
    assert read_status(views["turns_nan"].folder).attempt == 1
    assert read_status(views["raises"].folder).attempt == 2


def test_a_run_says_what_makes_it_a_variant(tmp_path):
    changed = (("student", "kept", 2.0),)  # of a method of the plan that the group was made for
    assert group_job.run_group(dataclasses.replace(group("student", teacher=None), changed=changed), execution(tmp_path)) == DONE
    (view,) = scan(tmp_path)[0]
    assert view.changed == {"kept": 2.0} and view.record


def after_steps(monkeypatch, steps: int, act) -> None:
    """Does `act` once, after so many steps of the group."""
    taken, original = [], engine.Eager.step

    def step(runner, start, stop):
        failed = original(runner, start, stop)
        taken.append(start)
        if len(taken) == steps:
            act()
        return failed

    monkeypatch.setattr(engine.Eager, "step", step)


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["at a save", "at a row"])
def test_a_lease_that_cannot_be_read_any_more_stops_its_own_run_only(tmp_path, monkeypatch, taught, seconds):
    def spoil():
        (lease,) = tmp_path.glob("runs/*-kd-*/lease.json")
        lease.unlink()
        lease.mkdir()

    copytree(taught, tmp_path, dirs_exist_ok=True)
    after_steps(monkeypatch, 2, spoil)
    assert group_job.run_group(group("student", "kd"), execution(tmp_path, checkpoint_seconds=seconds)) == TROUBLE
    views, problems = scan(tmp_path)
    assert {view.method: view.status for view in views if view.student == "resnet8"} == {"student": "done"}
    assert ["-kd-" in problem.where for problem in problems] == [True]


def test_a_run_that_another_writer_took_is_not_said_to_have_diverged(tmp_path, stray_methods, monkeypatch):
    def take():
        (lease,) = tmp_path.glob("runs/*/lease.json")
        lease.write_text(json.dumps(json.loads(lease.read_text()) | {"token": "another"}))

    monkeypatch.setattr(registry, "source_hash", lambda name: "0" * 16)
    stray_methods("turns_nan", _nan_after(1))
    after_steps(monkeypatch, 2, take)
    assert group_job.run_group(group("turns_nan", teacher=None), execution(tmp_path)) == TROUBLE
    (view,) = scan(tmp_path)[0]
    assert view.status == "running"


def test_done_is_not_run_again(tmp_path):
    assert group_job.run_group(group("student", teacher=None), execution(tmp_path)) == DONE
    first = records(tmp_path)["student"]
    assert group_job.run_group(group("student", teacher=None), execution(tmp_path)) == DONE
    assert records(tmp_path)["student"] == first


def test_a_missing_teacher_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="teachers train resnet14"):
        group_job.run_group(group("student", "kd"), execution(tmp_path))
    assert not (tmp_path / "runs").exists()


def test_a_group_without_need_of_a_teacher_never_loads_it(tmp_path, monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(teacher_networks, "load", refuse)
    assert group_job.run_group(group("student"), execution(tmp_path)) == DONE


def test_another_seed_gives_other_numbers_and_methods_share_the_start(tmp_path):
    for seed in (1, 2):
        assert group_job.run_group(group("student", teacher=None, seed=seed), execution(tmp_path)) == DONE
    views = [v for v in scan(tmp_path)[0]]
    assert len({v.record.weights_sha256 for v in views}) == 2


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    assert group_job.run_group(group("student", teacher=None), execution(tmp_path)) == DONE
    folder = scan(tmp_path)[0][0].folder
    (folder / "record.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["identity"]["seed"] = 7
    write_json(folder / "config.json", config)
    with pytest.raises(UsageError, match="seed"):
        group_job.run_group(group("student", teacher=None), execution(tmp_path))


def test_scaled_protocol_changes_the_identity():
    runs = {resolve(group("student", teacher=None, protocol=p), "d", 100, 16, 200, None)[0].run.id for p in (TINY, TINY.scaled(3))}
    assert len(runs) == 2
    assert TINY.scaled(3).trial and not dataclasses.replace(TINY).trial


def test_a_checkpoint_of_other_code_names_the_way_out(tmp_path, monkeypatch):
    class Changing(Method):
        def losses(self, student, teacher, batch):
            return {"ce": F.cross_entropy(student.logits, batch.labels)}

    class Changed(Changing):
        def __init__(self, hyper, setting, prepared=None):
            super().__init__(hyper, setting, prepared)
            self.added = torch.nn.ModuleDict({f"layer{i}": torch.nn.Linear(2, 2) for i in range(30)})

    with toys.registered(changing=Changing), monkeypatch.context() as patch:
        Interrupting(patch, 3)
        assert group_job.run_group(group("changing", teacher=None), execution(tmp_path)) == STOPPED_IN_TIME
    with toys.registered(changing=Changed):
        assert group_job.run_group(group("changing", teacher=None), execution(tmp_path)) == TROUBLE
        (view,) = scan(tmp_path)[0]
        assert view.status == "failed" and view.reason.startswith("StoreError: Error(s) in loading state_dict for Changed: ")
        cure = "--redo starts it over; one that is pending already: empty its folder in redo/runs"
        assert view.reason.endswith(f"; its checkpoint is of other code; {cure}")
        assert view.reason.isprintable()
        assert "Traceback" in (view.folder / "log.txt").read_text()
        redo.begin(tmp_path, [view.id])
        assert group_job.run_group(group("changing", teacher=None), execution(tmp_path)) == DONE


def test_a_device_without_memory_for_a_state_is_no_other_code():
    def load(state):
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        checkpoint.load_into(SimpleNamespace(load=load), {})


def test_what_fails_after_a_record_is_not_of_its_run(tmp_path, monkeypatch, taught):
    copytree(taught, tmp_path, dirs_exist_ok=True)
    finish, finished = Training._finish, []

    def short(self, place):
        finished.append(place)
        if len(finished) == 2:
            raise torch.OutOfMemoryError("no room")
        finish(self, place)

    monkeypatch.setattr(Training, "_finish", short)
    assert group_job.run_group(group("student", "kd"), execution(tmp_path)) == TROUBLE
    assert [read_status(place.folder.path).status for place in finished] == ["done", "failed"]
