"""--redo loses nothing: the old results stay where they are until the new record is there, however the new training ends."""

import dataclasses
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import models
from bench import data
from bench.errors import DONE, STOPPED_IN_TIME, TROUBLE, UsageError
from bench.launch import jobs
from bench.launch import run as launch
from bench.launch.ledger import Ledger
from bench.launch.options import Run
from bench.launch.tasks import Outcome
from bench.plan.expand import expand
from bench.plan.profiles import Pair, Profile
from bench.plan.protocols import Protocol
from bench.plan.registries import read
from bench.plan.selection import Selection
from bench.store import files, redo
from bench.store.lease import Lease
from bench.store.runs import read_status, scan, write_status
from bench.train import group_job, loop, teacher_networks
from bench.train.execution import Execution

TINY = Protocol("tiny", dataset="shapes100", epochs=2, milestones=(1,), train_images=200, test_images=100, image_size=16, batch=64)
PROFILE = Profile("tiny", "", "tiny", (Pair("resnet14", "resnet8"),), (1, 2), ("student",))


@pytest.fixture(scope="module")
def plan():
    patch = pytest.MonkeyPatch()
    from bench.plan import protocols

    patch.setattr(protocols, "PROTOCOLS", {"tiny": TINY})
    torch.set_num_threads(1)
    yield expand(PROFILE, Selection(), read(TINY))
    patch.undo()
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def done(plan, tmp_path_factory) -> Path:
    """A results folder in which every run of the plan is done."""
    results = tmp_path_factory.mktemp("done")
    assert all(group_job.run_group(group, execution(results)) == DONE for group in plan.groups)
    return results


@pytest.fixture
def results(done, tmp_path) -> Path:
    shutil.copytree(done, tmp_path / "results")
    return tmp_path / "results"


def execution(results: Path, **changes) -> Execution:
    return Execution(str(results), device="cpu", threads=1, deterministic=True, **changes)


def ledger(results: Path, plan, again: bool = True) -> Ledger:
    return Ledger(results, plan, data.load(TINY), again)


def content(results: Path) -> dict[str, bytes]:
    return {str(p.relative_to(results)): p.read_bytes() for p in sorted((results / "runs").rglob("*")) if p.is_file()}


def everything(results: Path) -> list[tuple[str, int]]:
    return sorted((str(path.relative_to(results)), path.lstat().st_ino) for path in results.rglob("*"))


def train(results: Path, book: Ledger, **changes) -> list[int]:
    return [group_job.run_group(group, execution(results, **changes)) for group in book.groups_left()]


def test_all_is_planned_as_if_forgotten_and_nothing_is_touched(results, plan):
    before, book = content(results), ledger(results, plan)
    assert book.counts() == (0, 2) and len(book.groups_left()) == 2
    assert ledger(results, plan, again=False).counts() == (2, 2)
    assert content(results) == before and not redo.root(results).exists()


def test_old_results_stand_until_the_new_ones_take_their_place(results, plan):
    before, old = content(results), {v.id: v.record for v in scan(results)[0]}
    files = {path: path.stat().st_ino for path in results.glob("runs/*/record.json")}
    book = ledger(results, plan)
    book.begin_redo()
    assert content(results) == before and {v.id: v.record for v in scan(results)[0]} == old
    assert train(results, book) == [DONE, DONE] and book.counts() == (2, 2) and not book.end_redo()
    views, problems = scan(results)
    assert not problems and all(v.record.weights_sha256 == old[v.id].weights_sha256 for v in views)
    assert len(files) == 2 and all(path.stat().st_ino != number for path, number in files.items())
    assert not list(redo.root(results).glob("*/*")) and not list(results.glob("runs/*/lease.json"))


def test_one_that_is_being_trained_stops_it_before_anything_is_marked(results, plan):
    before, book = content(results), ledger(results, plan)
    live = Lease(next((results / "runs").iterdir()))
    assert live.acquire()
    with pytest.raises(UsageError, match="is being trained; stop that before --redo"):
        book.begin_redo()
    live.release()
    assert content(results) == before and not list(redo.root(results).glob("*/*")) and not book.resumes_redo()


def test_a_stopped_one_goes_on_and_the_old_results_stand_meanwhile(results, plan):
    before, book = content(results), ledger(results, plan)
    book.begin_redo()
    groups = book.groups_left()
    assert group_job.run_group(groups[0], execution(results)) == DONE
    assert group_job.run_group(groups[1], execution(results, stop_after_seconds=0.001)) == STOPPED_IN_TIME
    unchanged = {name: text for name, text in content(results).items() if f"-s{groups[1].seed}-" in name}
    assert unchanged == {name: text for name, text in before.items() if name in unchanged} and unchanged
    later = ledger(results, plan)
    assert later.resumes_redo() and later.counts() == (1, 2)
    later.begin_redo()
    assert train(results, later) == [DONE] and later.counts() == (2, 2)


def test_a_wider_one_goes_on_with_a_stopped_one_and_redoes_the_rest_too(results, plan):
    three = expand(dataclasses.replace(PROFILE, seeds=(1, 2, 3)), Selection(), read(TINY))
    assert train(results, ledger(results, three, again=False)) == [DONE]
    files = {path.parent.name: path.stat().st_ino for path in results.glob("runs/*/record.json")}
    first = ledger(results, plan)  # seeds 1 and 2
    first.begin_redo()
    groups = first.groups_left()
    assert group_job.run_group(groups[0], execution(results)) == DONE
    assert group_job.run_group(groups[1], execution(results, stop_after_seconds=0.001)) == STOPPED_IN_TIME
    wider = ledger(results, three)
    assert wider.counts() == (1, 3)  # as the plan is printed: what the stopped one has done stays done
    wider.begin_redo()
    assert wider.counts() == (1, 3) and ledger(results, plan).counts() == (1, 2) and ledger(results, three).counts() == (1, 3)
    again = {path.name for path in redo.root(results).glob("runs/*")}
    assert again == {run for run in files if f"-s{groups[0].seed}-" not in run}
    assert train(results, wider) == [DONE, DONE] and wider.counts() == (3, 3)
    assert all(path.stat().st_ino != files[path.parent.name] for path in results.glob("runs/*/record.json"))
    assert not list(results.glob("**/redo.json")) and ledger(results, three).counts() == (0, 3)  # the next one begins anew


def test_one_that_was_killed_while_it_marked_its_runs_marks_the_rest(results, plan):
    run, other = sorted(path.name for path in (results / "runs").iterdir())
    (redo.root(results) / "runs" / run).mkdir(parents=True)
    book = ledger(results, plan)
    assert book.counts() == (0, 2)
    book.begin_redo()
    assert redo.pending(results, run) and redo.pending(results, other)


def test_one_that_fails_keeps_its_old_results_and_what_it_has_trained(results, plan, monkeypatch):
    before, book = content(results), ledger(results, plan)
    book.begin_redo()
    monkeypatch.setattr(loop.Training, "_finish", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert train(results, book, checkpoint_seconds=0.0) == [TROUBLE, TROUBLE]
    assert not book.end_redo() and content(results) == before
    assert ledger(results, plan, again=False).counts() == (2, 2)
    monkeypatch.undo()
    later = ledger(results, plan)
    later.begin_redo()
    assert train(results, later) == [DONE, DONE] and later.counts() == (2, 2)
    assert [v.record.attempts for v in scan(results)[0]] == [2, 2]  # it went on where it had failed


def stands(results: Path, run: str, status: str) -> None:
    """A run that is trained again and came to this status."""
    write_status(redo.root(results) / "runs" / run, status, reason="loss is not finite in epoch 1")


def test_one_that_diverges_keeps_its_old_results(results, plan):
    before, book = content(results), ledger(results, plan)
    book.begin_redo()
    diverged, killed = sorted(path.name for path in (results / "runs").iterdir())
    stands(results, diverged, "diverged")
    stands(results, killed, "running")  # by a job that was killed without a word
    assert book.end_redo() == [diverged] and content(results) == before
    assert not redo.pending(results, diverged) and redo.pending(results, killed)


def test_the_last_job_on_a_cluster_ends_it(results, plan, monkeypatch, capsys):
    """Else what diverged again would stand in the way of every later --redo."""
    monkeypatch.setattr(jobs, "write_report", lambda execution: DONE)
    before, book = content(results), ledger(results, plan)
    diverged, killed = sorted(path.name for path in (results / "runs").iterdir())
    for again in (False, True):
        last = jobs.on_cluster(Run(redo=again, costs=False), plan, book, execution(results))[-1]
        book.begin_redo()
        stands(results, diverged, "diverged")
        assert last.function(**last.arguments, execution=last.execution) == DONE
        assert redo.pending(results, killed) and redo.pending(results, diverged) != again and content(results) == before
    said = capsys.readouterr().out
    assert f"{diverged} could not be trained again: its old results stay\nthe same command with --redo goes on" in said


def test_what_another_launch_trains_is_left_to_it(results, plan):
    book = ledger(results, plan)
    book.begin_redo()
    run, _ = sorted(path.name for path in (results / "runs").iterdir())
    stands(results, run, "diverged")
    live = Lease(redo.root(results) / "runs" / run)
    assert live.acquire()
    assert not book.end_redo() and redo.pending(results, run)
    live.check()
    live.release()
    assert book.end_redo() == [run] and not redo.pending(results, run)


def test_one_that_diverges_without_old_results_says_so(results, plan):
    book = ledger(results, plan)
    run, _ = sorted(path.name for path in (results / "runs").iterdir())
    shutil.rmtree(results / "runs" / run)
    book.begin_redo()
    stands(results, run, "diverged")
    assert not book.end_redo() and not redo.pending(results, run)
    assert read_status(results / "runs" / run).status == "diverged"


def test_what_is_missing_of_a_group_and_who_holds_it(results, plan):
    book = ledger(results, plan)
    book.begin_redo()
    group = plan.groups[0]
    (run,) = book.ids(group).values()
    assert book.missing(group) == {run: False}
    live = Lease(redo.root(results) / "runs" / run)  # of the training that goes on, not of the old results
    assert live.acquire() and book.missing(group) == {run: True}
    live.release()
    assert book.missing(group) == {run: False} and not ledger(results, plan, again=False).missing(group)


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_while_the_new_one_takes_its_place_loses_neither(results, plan, monkeypatch, renames):
    book = ledger(results, plan)
    book.begin_redo()
    calls, real = [], Path.rename

    def rename(path, target):
        if len(calls) == renames:
            raise KeyboardInterrupt
        calls.append(path)
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        train(results, book)
    monkeypatch.setattr(Path, "rename", real)
    later = ledger(results, plan)  # as the next launch makes it
    assert len(scan(results)[0]) == 2 and not scan(results)[1]
    later.begin_redo()
    assert set(train(results, later)) == {DONE} and later.counts() == (2, 2) and not later.end_redo()


def test_a_launch_that_looks_while_the_new_one_takes_its_place_is_not_in_its_way(results, plan, monkeypatch):
    book, real = ledger(results, plan), Path.rename
    book.begin_redo()

    def rename(path, target):
        done = real(path, target)
        ledger(results, plan)  # another launch begins, or a --dry-run
        return done

    monkeypatch.setattr(Path, "rename", rename)
    assert train(results, book) == [DONE, DONE] and book.counts() == (2, 2)
    monkeypatch.undo()
    assert not scan(results)[1] and not list(redo.root(results).glob("*/*")) and not list(results.glob("runs/*/lease.json"))


def test_one_that_is_finished_and_not_yet_in_its_place_waits_for_whoever_holds_it(results, plan):
    book = ledger(results, plan)
    book.begin_redo()
    run, _ = sorted(path.name for path in (results / "runs").iterdir())
    live = Lease(redo.root(results) / "runs" / run)
    assert live.acquire() and not redo.settle(results, run) and redo.pending(results, run)
    live.release()
    assert redo.settle(results, run) and not redo.pending(results, run)


def test_who_declines_loses_nothing(results, plan, monkeypatch):
    """Asked on a terminal, refused for want of anybody to ask, on a cluster."""
    before = content(results)
    monkeypatch.setattr(launch, "make_plan", lambda options: plan)
    monkeypatch.setattr(launch, "on_slurm", lambda: True)
    options = Run(profile="tiny", results=results, redo=True, cluster="slurm", device="cpu")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    with pytest.raises(UsageError, match="Nobody is there to ask"):
        launch.run(options)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "")
    with pytest.raises(UsageError, match="nothing was started"):
        launch.run(options)
    launch.run(dataclasses.replace(options, dry_run=True))
    assert content(results) == before and not redo.root(results).exists()


@pytest.mark.parametrize(
    ("changes", "answers", "said"),
    [
        ({"cluster": "slurm"}, ("y", ""), "nothing was started"),  # to the number of jobs
        ({"cluster": "slurm", "redo": False, "methods": ("student",)}, ("",), "nothing was started"),
        ({"cluster": "slurm", "yes": True, "keep_epochs": ("3",)}, (), "--keep-epochs 3: training ends with epoch 2"),
        ({"keep_epochs": ("3",)}, (), "--keep-epochs 3: training ends with epoch 2"),
        ({"profile": None}, ("n",), "nothing was started"),  # it takes days
    ],
)
def test_what_is_refused_has_written_nothing(results, plan, monkeypatch, changes, answers, said):
    if not changes.get("redo", True):
        shutil.rmtree(next((results / "runs").iterdir()))
    before = everything(results)
    monkeypatch.setattr(launch, "make_plan", lambda options: plan)
    monkeypatch.setattr(launch, "on_slurm", lambda: True)
    monkeypatch.setattr(launch, "DAY", 0.0)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    replies = iter(answers)
    monkeypatch.setattr("builtins.input", lambda question: next(replies))
    options = Run(profile="tiny", results=results, redo=True, cluster="local", device="cpu", threads=1, costs=False)
    with pytest.raises(UsageError, match=said):
        launch.run(dataclasses.replace(options, **changes))
    assert everything(results) == before


@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_who_declines_imports_no_teacher(results, plan, monkeypatch, cluster):
    shutil.rmtree(next((results / "runs").iterdir()))
    before = everything(results)
    monkeypatch.setattr(launch, "make_plan", lambda options: plan)
    monkeypatch.setattr(launch, "on_slurm", lambda: True)
    monkeypatch.setattr(launch, "DAY", 0.0)
    monkeypatch.setattr(launch.teacher_networks, "given", lambda *arguments: {"resnet14": results / "given.pt"})
    monkeypatch.setattr(launch.teacher_networks, "import_given", lambda *arguments: pytest.fail("imported before anybody was asked"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    with pytest.raises(UsageError, match="nothing was started"):
        launch.run(Run(results=results, cluster=cluster, device="cpu", threads=1, costs=False, teacher=("resnet14=given.pt",)))
    assert everything(results) == before


def test_a_launch_whose_report_cannot_be_written_ends_with_trouble(results, plan, monkeypatch, capfd):
    monkeypatch.setattr(launch, "make_plan", lambda options: plan)
    options = Run(profile="tiny", results=results, cluster="local", device="cpu", threads=1, costs=False)
    assert launch.run(options) == DONE
    shutil.rmtree(results / "report")
    (results / "report").touch()
    capfd.readouterr()
    assert launch.run(options) == TROUBLE
    said = capfd.readouterr()
    assert "2 of 2 runs done" in said.out and "cannot write the report" in said.err


def test_a_cost_that_could_not_be_measured_is_trouble(results, plan, monkeypatch, capfd):
    outcomes = iter([Outcome(), Outcome(unfinished={"costs-resnet14-resnet8": "the probe failed"})])
    monkeypatch.setattr(launch, "Pool", lambda *_: SimpleNamespace(run=lambda *_: next(outcomes)))
    monkeypatch.setattr(launch, "make_plan", lambda options: plan)
    assert launch.run(Run(profile="tiny", results=results, cluster="local", device="cpu", threads=1)) == TROUBLE
    said = capfd.readouterr().out
    assert "2 of 2 runs done" in said and "the probe failed" in said


def test_a_full_disk_hides_no_reason(results, plan, monkeypatch, capfd):
    """The launcher's own disk fills up while it trains: what ended, and why, is told all the same."""
    shutil.rmtree(next((results / "runs").iterdir()))

    class Filling:
        def __init__(self, *arguments):
            pass

        def run(self, tasks, until, on_end):
            monkeypatch.setattr(files, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            on_end(dataclasses.replace(tasks[0], succeeded=lambda: True))
            return Outcome(unfinished={tasks[0].name: "failed: No space left on device"})

    monkeypatch.setattr(launch, "Pool", Filling)
    monkeypatch.setattr(launch, "make_plan", lambda options: plan)
    options = Run(profile="tiny", results=results, cluster="local", device="cpu", threads=1, costs=False)
    assert launch.run(options) == TROUBLE
    said = capfd.readouterr().out
    assert said.count("warning: cannot write") == 2 and "failed: No space left on device" in said and "1 of 2 runs done" in said


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"source": "trained", "protocol": "tiny", "trial": ""}, None),
        ({"source": "imported"}, None),
        ({"source": "trained", "protocol": "tiny", "trial": "1 of 2 epochs"}, r"under tiny \(1 of 2 epochs\), this plan trains its own under tiny"),
        ({"source": "trained", "protocol": "crd", "trial": ""}, "under crd, this plan trains its own under tiny; remove that folder"),
    ],
    ids=["its own", "imported", "another schedule", "another protocol"],
)
def test_a_teacher_trained_in_another_way_is_refused(tmp_path, plan, record, said):
    dataset, state = data.load(TINY), models.build("resnet14").state_dict()
    measured = {"top1": 50.0, "top5": 80.0}
    teacher_networks.publish(tmp_path, dataset.name, dataset.hash, "resnet14", state, measured, {**record, "trained": True})
    book = Ledger(tmp_path, dataclasses.replace(plan, teachers=("resnet14",)), dataset)
    if said is None:
        book.check_teachers()
    else:
        with pytest.raises(UsageError, match=said):
            book.check_teachers()
