"""Engines: recorded steps give the eager numbers, bit for bit, on any path that a CPU can run; trouble stays where it is."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.errors import UsageError
from bench.train import engine
from bench.train.engine import Eager, Graph, Static, state
from bench.train.engine.static import TRIALS
from methods import registry
from methods.base import Method, Needs
from tests.bench import groups
from tests.bench.groups import BATCH, CPU, everything, unequal
from tests.bench.tape import Taped

EPOCHS = range(1, 5)
STEPS = 5 * len(EPOCHS)
LAST = 4 * BATCH
"""Where the remainder begins."""
recorded = pytest.mark.parametrize("kind", [Static, Taped])


@pytest.fixture(autouse=True)
def deterministic():
    with groups.deterministic():
        yield


@pytest.fixture
def stray(monkeypatch):
    """Registers a method for one test: its name, losses and class attributes."""
    added = []

    def add(name, losses, **attributes):
        registry.names()
        cls = type(name, (Method,), {"losses": losses, "__module__": "methods.student", **attributes})
        registry.register(name)(cls)
        added.append(name)

    yield add
    for name in added:
        del registry._methods[name]


def cross_entropy(student, batch):
    return F.cross_entropy(student.logits, batch.labels)


@pytest.fixture(scope="module")
def eager():
    """Every registered method's numbers after each of 20 eager steps, remainders and two milestones among them."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    learners = [groups.learner(name) for name in registry.names()]
    seen: dict[tuple[int, int], list[dict]] = {}
    groups.run(groups.engine(Eager, learners), EPOCHS, lambda e, s: seen.update({(e, s): [everything(one) for one in learners]}))
    return seen


def test_the_steps_to_repeat(eager):
    assert len(eager) == STEPS and len({start for _, start in eager}) == 5
    assert len(groups.PROTOCOL.milestones) == 2 and max(groups.PROTOCOL.milestones) < EPOCHS[-1]
    names = registry.names()
    first, last = eager[1, 0], eager[EPOCHS[-1], LAST]
    assert all(unequal(first[i], last[i]) for i in range(len(names)))


@recorded
def test_recorded_steps_are_the_eager_ones_bit_for_bit(kind, eager):
    learners = [groups.learner(name) for name in registry.names()]
    runner = groups.engine(kind, learners)
    replays = []
    replay = runner._replay
    runner._replay = lambda step: (replays.append(None), replay(step))

    def compare(epoch, start):
        for one, expected in zip(learners, eager[epoch, start], strict=True):
            assert not unequal(everything(one), expected), (one.run.method, epoch, start)

    groups.run(runner, EPOCHS, compare)
    assert runner.name == kind.name and {runner.ran(one) for one in learners} == {kind.name}
    assert len(replays) == STEPS and len(runner._recordings) == 2


@recorded
@pytest.mark.parametrize("name", ["kd", "iep"])
def test_alone_as_in_the_group(kind, name, eager):
    one = groups.learner(name)
    groups.run(groups.engine(kind, [one]), EPOCHS)
    assert not unequal(everything(one), eager[EPOCHS[-1], LAST][registry.names().index(name)])


def test_a_learner_that_leaves_changes_nothing_for_the_others(eager):
    names = [n for n in ("student", "at", "fitnet", "skd") if n in registry.names()]
    learners = [groups.learner(name) for name in names]
    runner = groups.engine(Taped, learners)

    def leave(epoch, start):
        if (epoch, start) == (2, 2 * BATCH):
            runner.drop(learners[1])

    groups.run(runner, EPOCHS, leave)
    for name, one in zip(names, learners, strict=True):
        expected = eager[2, 2 * BATCH] if name == names[1] else eager[EPOCHS[-1], LAST]
        assert not unequal(everything(one), expected[registry.names().index(name)]), name


@pytest.mark.parametrize("kinds", [(Eager, Taped), (Taped, Eager), (Taped, Static)])
def test_resume_across_engines(kinds, eager):
    """An epoch and two steps with one engine, the rest with another from the saved state."""
    names = [n for n in ("student", "fitnet", "cc", "iep", "skd") if n in registry.names()]
    learners = [groups.learner(name) for name in names]
    runner = groups.engine(kinds[0], learners)
    groups.run(runner, [1])
    groups.begin(runner, 2)
    for start, stop in groups.bounds()[:2]:
        runner.step(start, stop)
    resumed = [groups.learner(name) for name in names]
    for old, new in zip(learners, resumed, strict=True):
        new.load({k: {n: v.clone() for n, v in part.items()} for k, part in old.state().items()})
    torch.manual_seed(99)
    runner = groups.engine(kinds[1], resumed)
    runner.begin_epoch(groups.augment.draws(1, 2, len(runner.data.train_labels)))
    for one in resumed:
        one.begin_epoch(2)
    for start, stop in groups.bounds()[2:]:
        assert runner.step(start, stop) == []
    groups.run(runner, EPOCHS[2:])
    for name, one in zip(names, resumed, strict=True):
        assert not unequal(everything(one), eager[EPOCHS[-1], LAST][registry.names().index(name)]), name


def test_trials_leave_nothing_behind():
    one = groups.learner("fitnet")
    groups.begin(runner := groups.engine(Static, [one]), 1)
    before = everything(one)
    index = runner.draws.order[:BATCH]
    kept = state.take([one])
    assert runner._trial(index, [one], 0) == []
    changed = unequal(before, everything(one))
    assert "sums.correct" in changed and any("num_batches_tracked" in name for name in changed) and TRIALS > 1
    state.put_back([one], kept)
    after = everything(one)
    assert all(not after[name].any() for name in after.keys() - before.keys())  # sums
    assert not unequal(before, {name: after[name] for name in before})


def test_precision_and_tolerance_of_the_verification():
    """A step that is off in one tensor is found, with and without deterministic algorithms; noise is not."""
    one = groups.learner("kd")
    groups.begin(runner := groups.engine(Eager, [one]), 1)
    before = state.take([one])[0]
    runner.step(0, BATCH)
    expected = state.take([one])[0]
    assert state.difference(before, expected, expected, "tf32") is None
    torch.use_deterministic_algorithms(False)
    noisy = {n: t + 1e-4 * (t - before.get(n, 0 * t)) if t.is_floating_point() else t for n, t in expected.items()}
    assert state.difference(before, expected, noisy, "tf32") is None
    for kind in ("parameter", "momentum", "buffer", "sum"):
        name = max((n for n in expected if n[0] == kind), key=lambda n: (expected[n] - before.get(n, 0)).double().norm())
        stale = {**expected, name: before.get(name, torch.zeros_like(expected[name]))}
        assert state.difference(before, expected, stale, "bf16"), name
    torch.use_deterministic_algorithms(True)
    assert state.difference(before, expected, noisy, "tf32")


def test_a_recording_that_differs_is_not_used(capsys, stray):
    """A method that keeps a number of its own outside of tensors: the recording would repeat the first step's."""

    def losses(self, student, teacher, batch):
        self.calls = getattr(self, "calls", 0) + 1
        return {"ce": cross_entropy(student, batch) * self.calls}

    stray("counts", losses)
    learners = [groups.learner("counts"), groups.learner("student")]
    runner = groups.engine(Taped, learners)
    groups.begin(runner, 1)
    assert runner.step(0, BATCH) == []
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "counts: the recorded step is not the eager one" in said
    assert runner.name == "eager" == runner.ran(learners[1])
    plain = groups.learner("student")
    other = groups.engine(Eager, [plain])
    groups.run(other, [1])
    for start, stop in groups.bounds()[1:]:
        assert runner.step(start, stop) == []
    assert not unequal(everything(plain), everything(learners[1]))


def test_recording_that_fails_goes_on_eagerly(capsys, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Static, "_record", refuse)
    one, plain = groups.learner("kd"), groups.learner("kd")
    groups.run(runner := groups.engine(Static, [one]), [1])
    groups.run(groups.engine(Eager, [plain]), [1])
    assert "recording failed: operation not permitted" in capsys.readouterr().out
    assert runner.ran(one) == "eager" and not unequal(everything(one), everything(plain))


@recorded
def test_methods_that_opt_out_and_dropout_run_eagerly_on_the_shared_batch(kind, stray):
    def losses(self, student, teacher, batch):
        assert teacher.logits.shape == student.logits.shape
        scale = 1.0 + float(student.logits.detach().abs().mean())  # reads the host
        return {"ce": cross_entropy(student, batch) * scale + 0 * teacher.logits.sum()}

    stray("reads_host", losses, capturable=False, teacher_outputs=Needs(logits=True))
    drops = dataclasses.replace(groups.PROTOCOL, dropout=0.3)

    def learners():
        return [groups.learner("kd"), groups.learner("reads_host"), groups.learner("student", student="wrn_16_1", protocol=drops)]

    ours, plain = learners(), learners()
    groups.run(runner := groups.engine(kind, ours), [1, 2])
    groups.run(groups.engine(Eager, plain), [1, 2])
    assert [runner.ran(one) for one in ours] == [kind.name, "eager", "eager"]
    for a, b in zip(ours, plain, strict=True):
        assert not unequal(everything(a), everything(b)), a.run.method


@recorded
def test_a_failing_learner_is_named_and_the_others_take_the_step(kind, stray):
    def losses(self, student, teacher, batch):
        raise ValueError("a method of a stranger")

    stray("raises", losses)
    bad, good, plain = groups.learner("raises"), groups.learner("kd"), groups.learner("kd")
    runner = groups.engine(kind, [bad, good])
    groups.begin(runner, 1)
    failed = runner.step(0, BATCH)
    assert [(one, str(error)) for one, error in failed] == [(bad, "a method of a stranger")]
    runner.drop(bad)
    for start, stop in groups.bounds()[1:]:
        assert runner.step(start, stop) == []
    groups.run(groups.engine(Eager, [plain]), [1])
    assert not unequal(everything(good), everything(plain)) and runner.name == kind.name


def test_buffers_replaced_between_epochs_make_a_new_recording(stray):
    """A hook that puts a new tensor in the place of a buffer, instead of filling it."""

    def begin_epoch(self, epoch, generator):
        self.register_buffer("weight", torch.tensor(float(epoch)))

    def losses(self, student, teacher, batch):
        return {"ce": cross_entropy(student, batch) * self.weight}

    stray("moves", losses, begin_epoch=begin_epoch)
    one, plain = groups.learner("moves"), groups.learner("moves")
    groups.run(groups.engine(Taped, [one]), [1, 2, 3])
    groups.run(groups.engine(Eager, [plain]), [1, 2, 3])
    assert not unequal(everything(one), everything(plain))


def test_choice():
    assert engine.choose("auto", torch.device("cuda", 0)) is Graph
    assert engine.choose("eager", CPU) is Eager and engine.choose("static", CPU) is Static
    with pytest.raises(UsageError, match="did you mean graph"):
        engine.choose("grahp", CPU)
    with pytest.raises(UsageError, match="needs a CUDA device"):
        engine.choose("graph", CPU)


def test_modules_of_the_step_stay_on_their_device():
    for one in (groups.learner(name) for name in registry.names()):
        assert isinstance(one.method, nn.Module) and {t.device for t in state.tensors(one).values()} == {CPU}
