"""A teacher that diverges: its training says so and publishes nothing, and --redo tries it again."""

import threading

import pytest
import torch

from bench.errors import DONE, TROUBLE, UsageError
from bench.plan.protocols import Protocol
from bench.store import redo, teachers
from bench.store.runs import scan
from bench.store.weights import read_state, state_hash
from bench.train import teacher_networks, teacher_training
from bench.train.execution import Execution
from bench.train.learner import Learner

TINY = Protocol("tiny", dataset="shapes100", epochs=1, milestones=(), train_images=100, test_images=100, image_size=16, batch=64)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains the teacher below tmp_path; `finite`: whether its loss stays so."""

    def call(finite: bool = True, again: bool = False) -> int:
        monkeypatch.setattr(Learner, "finite", lambda learner: finite)
        execution = Execution(str(tmp_path), device="cpu", threads=1, deterministic=True, redo=again)
        return teacher_training.train("resnet8", TINY, 0, "tf32", execution)

    return call


def test_a_teacher_that_diverged_is_told_again_and_its_leftovers_are_not_published(tmp_path, train, capsys):
    assert train(finite=False) == TROUBLE
    capsys.readouterr()
    ((view,), _) = scan(tmp_path)
    said = f"{view.id} diverged: loss is not finite in epoch 1; --redo tries it again\n"
    for left in (False, True):
        if left:
            (view.folder / "student.pt").write_bytes(b"left by another version")
        assert train() == TROUBLE
        assert capsys.readouterr().out == said
    assert teachers.find(tmp_path, "shapes100", "resnet8") is None
    assert train(again=True) == DONE
    assert teachers.find(tmp_path, "shapes100", "resnet8")


def test_a_redo_that_diverged_is_tried_again_and_publishes_nothing_meanwhile(tmp_path, train, capsys):
    assert train() == DONE
    place = teachers.find(tmp_path, "shapes100", "resnet8").folder
    before = (place / "teacher.json").stat().st_mtime_ns
    assert train(finite=False, again=True) == TROUBLE
    capsys.readouterr()
    assert train(finite=False, again=True) == TROUBLE  # tried, not left
    assert "diverged: loss is not finite in epoch 1" in capsys.readouterr().out
    assert (place / "teacher.json").stat().st_mtime_ns == before
    assert train(again=True) == DONE
    (view,) = scan(tmp_path)[0]
    assert view.status == "done" and not redo.pending(tmp_path, view.id)
    assert (place / "teacher.json").stat().st_mtime_ns > before


def test_a_redo_whose_rows_are_damaged_starts_over(tmp_path, train, capsys):
    assert train() == DONE
    assert train(finite=False, again=True) == TROUBLE
    (place,) = (redo.root(tmp_path) / "runs").iterdir()
    (place / "status.json").unlink()  # as of one that was stopped
    (place / "epochs.jsonl").write_bytes(b"{}\n")
    assert train() == DONE and place.exists()  # the old one stands
    assert train(again=True) == DONE
    assert "is left alone" not in capsys.readouterr().out and not place.exists()


def test_an_absent_teacher_whose_redo_diverged_says_why(tmp_path, train, capsys):
    assert train() == DONE
    assert train(finite=False, again=True) == TROUBLE
    place = teachers.find(tmp_path, "shapes100", "resnet8").folder
    (place / "teacher.json").unlink()
    capsys.readouterr()
    assert train() == TROUBLE
    assert "diverged: loss is not finite in epoch 1; --redo tries it again" in capsys.readouterr().out
    assert teachers.find(tmp_path, "shapes100", "resnet8") is None


def test_a_full_disk_leaves_the_teacher_that_was_to_be_replaced(tmp_path, train, monkeypatch):
    assert train() == DONE
    before = teachers.find(tmp_path, "shapes100", "resnet8")

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(teacher_networks, "write_bytes", full)
    with pytest.raises(UsageError, match="teachers/shapes100-resnet8: No space left on device"):
        train(again=True)
    assert teachers.find(tmp_path, "shapes100", "resnet8") == before
    monkeypatch.undo()
    assert train() == DONE
    assert sorted(path.name for path in before.folder.iterdir()) == ["teacher.json", "teacher.pt", "verified.json"]


def test_a_redo_that_was_trained_and_not_published_is_not_trained_once_more(tmp_path, train, monkeypatch, capsys):
    assert train() == DONE
    trained = teachers.find(tmp_path, "shapes100", "resnet8")
    state = {name: value + 1 if value.is_floating_point() else value for name, value in read_state(trained.folder / "teacher.pt").items()}
    facts = {"source": "imported", "trained": True}
    other = teacher_networks.publish(tmp_path, "shapes100", "d", "resnet8", state, {"top1": 50.0}, facts)

    def full(path, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(UsageError, match="No space left on device"):
        patched.setattr(teacher_networks, "write_bytes", full)
        train(again=True)
    capsys.readouterr()
    assert train() == DONE and "is being trained again, and the new weights are not there yet" in capsys.readouterr().out
    assert teachers.find(tmp_path, "shapes100", "resnet8").hash == other.hash
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "step", lambda *arguments: pytest.fail("trained once more"))
        assert train(again=True) == DONE
    assert teachers.find(tmp_path, "shapes100", "resnet8").hash == trained.hash
    mark = teachers.redo_mark(trained.folder)
    assert not mark.exists()
    teacher_networks.publish(tmp_path, "shapes100", "d", "resnet8", state, {"top1": 50.0}, facts)
    mark.write_text("the run of another precision or seed")
    steps, step = [], Learner.step
    monkeypatch.setattr(Learner, "step", lambda *arguments: (steps.append(1), step(*arguments))[1])
    assert train(again=True) == DONE and steps  # asked for anew


def test_two_at_once_leave_one_teacher_that_is_whole(tmp_path, monkeypatch):
    """Two imports, the second of which would end while the first is between its weights and its record."""
    write, ended = teacher_networks.write_bytes, threading.Event()

    def slowly(path, content):
        write(path, content)
        if threading.current_thread() is first:
            second.start()
            ended.wait(1.0)  # in vain where they take turns

    monkeypatch.setattr(teacher_networks, "write_bytes", slowly)
    errors = []

    def publish(value: float) -> None:
        try:
            teacher_networks.publish(tmp_path, "shapes100", "d", "resnet8", {"x": torch.tensor(value)}, {"top1": 50.0}, facts)
        except UsageError as error:
            errors.append(error)
        if value == 2.0:
            ended.set()

    facts = {"source": "imported", "trained": True}
    first, second = (threading.Thread(target=publish, args=(value,)) for value in (1.0, 2.0))
    first.start()
    first.join()
    second.join()
    found = teachers.find(tmp_path, "shapes100", "resnet8")
    assert not errors and found and state_hash(read_state(found.folder / "teacher.pt")) == found.hash
    assert teachers.available(tmp_path) == ([found], [])
