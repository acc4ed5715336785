"""What methods.base promises a method, step by step and without the trainer: draws, the stage, own rates, own logits, what losses must be."""

import math

import pytest
import torch
from torch.nn import functional as F

from bench.plan import protocols
from bench.train.engine import Eager, Static
from bench.train.learner import Learner, evaluate
from methods.base import Inference, MethodError, ParameterGroup, Pretraining
from models.randomness import key
from tests.bench import groups
from tests.bench.capture_safe import CaptureSafe
from tests.bench.groups import BATCH, everything, unequal
from tests.bench.tape import Taped
from tests.bench.train.toys import Everything, Plain, registered


@pytest.fixture(autouse=True)
def alone_with_toys():
    with groups.deterministic(), registered(everything=Everything, plain=Plain):
        yield


def _learner(name: str, pretraining: Pretraining | None = None) -> Learner:
    made = groups.learner(name)
    if pretraining is None:
        return made
    return Learner(made.run, type(made.method), made.method.hyper, made.method.setting, None, made.device, pretraining)


# The stage before the main one.
def test_the_stage_trains_stem_stages_and_method_and_nothing_else():
    learner = _learner("everything", pretraining=Pretraining(2, 0.02))
    runner = groups.engine(Eager, [learner])
    before = everything(learner)
    learner.begin_epoch(-1)
    runner.begin_epoch(groups.augment.draws(1, -1, len(runner.data.train_labels)))
    assert runner.step(0, BATCH) == []
    changed = unequal(before, everything(learner))
    assert not any("student.fc" in name for name in changed)
    assert {"student.conv1.weight", "student.layer3.0.conv1.weight", "student.bn1.num_batches_tracked", "method.connect.weight"} <= set(changed)
    assert not {"method.project.0.weight", "method.bank"} & set(changed)  # what those losses do not read
    assert not learner.student.fc.training and learner.student.layer1.training
    assert [rate.item() for rate, _ in learner.rates] == pytest.approx([0.02, 0.002])


def test_the_stage_is_scaled_as_milestones_are():
    crd = protocols.get("crd")
    assert [crd.share(30), crd.scaled(120).share(30), crd.scaled(24).share(30), crd.scaled(2).share(30)] == [30, 15, 3, 1]
    assert crd.scaled(24).scaled(120).share(30) == 15 and crd.sampled(0.1).share(30) == 30


# Start, draws, rates.
def test_draws_are_keyed_and_made_outside_of_the_step():
    seen, learner = [], _learner("everything")
    begin = learner.method.begin_step
    learner.method.begin_step = lambda index, g: (seen.append((index.clone(), g.device.type, g.initial_seed())), begin(index, g))
    runner = groups.engine(Taped, [learner])
    groups.run(runner, [1, 2])
    order = {epoch: groups.augment.draws(1, epoch, len(runner.data.train_labels)).order for epoch in (1, 2)}
    expected = [(order[e][a:b], key(1, f"method/everything/step/{a}", e)) for e in (1, 2) for a, b in groups.bounds()]
    assert [(device, seed) for _, device, seed in seen] == [("cpu", seed) for _, seed in expected]
    assert all(torch.equal(index, batch) for (index, _, _), (batch, _) in zip(seen, expected, strict=True))
    assert runner.ran(learner) == "taped"


@pytest.mark.parametrize("kind", [Static, Taped])
def test_recorded_steps_are_the_eager_ones(kind):
    ours, plain = [_learner("everything"), _learner("kd")], [_learner("everything"), _learner("kd")]
    groups.run(runner := groups.engine(kind, ours), [1, 2])
    groups.run(groups.engine(Eager, plain), [1, 2])
    assert {runner.ran(one) for one in ours} == {kind.name}
    for a, b in zip(ours, plain, strict=True):
        assert not unequal(everything(a), everything(b)), a.run.method
    stage = [_learner("everything", pretraining=Pretraining(2, 0.02)) for _ in range(2)]
    groups.run(runner := groups.engine(kind, stage[:1]), [-1, 0])
    groups.run(groups.engine(Eager, stage[1:]), [-1, 0])
    assert runner.ran(stage[0]) == kind.name and not unequal(*map(everything, stage))


def test_a_step_with_all_of_it_can_be_captured():
    for stage in (None, Pretraining(2, 0.02)):
        learner = _learner("everything", pretraining=stage)
        groups.begin(runner := groups.engine(Eager, [learner]), 1)
        index = runner.draws.order[:BATCH]
        assert runner.draw(index, 0) == []
        shared = runner.shared(index)
        with CaptureSafe() as mode:
            learner.step(shared.images, shared.teacher, shared.batch)
        assert mode.seen > 100


def test_methods_without_draws_do_not_pay(monkeypatch):
    draws, real = [], Learner.begin_step
    monkeypatch.setattr(Learner, "begin_step", lambda *arguments: draws.append(arguments) or real(*arguments))
    groups.run(groups.engine(Static, [_learner("kd"), _learner("student")]), [1])
    assert not draws
    groups.run(groups.engine(Static, [_learner("crd")]), [1])
    assert len(draws) == len(groups.bounds())  # a method that has some makes them in each step


@pytest.mark.parametrize("kind", [Eager, Taped])
def test_draws_that_fail_are_their_learners(kind, monkeypatch):
    def begin_step(self, index, generator):
        raise ValueError("no draws today")

    monkeypatch.setattr(Everything, "begin_step", begin_step)
    bad, good, plain = _learner("everything"), _learner("kd"), _learner("kd")
    groups.begin(runner := groups.engine(kind, [bad, good]), 1)
    assert [(one, str(error)) for one, error in runner.step(0, BATCH)] == [(bad, "no draws today")]
    groups.begin(other := groups.engine(Eager, [plain]), 1)
    assert other.step(0, BATCH) == [] and not unequal(everything(good), everything(plain))


def test_rates_and_decay_of_their_own():
    """One step against the update by hand: v = g + decay * p, p - rate * v."""
    learner = _learner("everything")
    groups.begin(runner := groups.engine(Eager, [learner]), 3)  # behind one milestone
    before = {name: p.detach().clone() for name, p in learner.method.named_parameters()}
    assert runner.step(0, BATCH) == []
    p = learner.run.protocol
    rate = p.lr * p.decay
    for name, parameter in learner.method.named_parameters():
        if parameter.grad is None:
            continue
        times, decay = (0.1, 0.0) if name == "scale" else (1.0, p.weight_decay)
        expected = before[name] - times * rate * (parameter.grad + decay * before[name])
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-8)
        assert not torch.equal(parameter, before[name])


def test_groups_of_foreign_parameters_are_refused(monkeypatch):
    monkeypatch.setattr(Everything, "parameter_groups", lambda self: [ParameterGroup([torch.nn.Parameter(torch.ones(1))])])
    with pytest.raises(ValueError, match="everything: parameter_groups"):
        _learner("everything")


# What is evaluated.
def test_the_prediction_is_what_is_evaluated():
    learner = _learner("everything")
    groups.run(runner := groups.engine(Eager, [learner]), [1])
    before = everything(learner)
    network, batches = learner.evaluated, list(runner.data.test_batches(5))
    found = evaluate(network, batches, "tf32")
    assert not unequal(before, everything(learner)) and learner.student.training and learner.method.project.training
    learner.student.eval()
    learner.method.eval()
    with torch.no_grad():
        right = sum((learner.method.project(learner.student(x).embedding).argmax(1) == y).sum().item() for x, y in batches)
        own = sum((learner.student(x).logits.argmax(1) == y).sum().item() for x, y in batches)
    assert found["top1"] == pytest.approx(100 * right / 8)
    assert own != right  # the two do differ here


def test_training_top1_is_the_predictions(monkeypatch):
    monkeypatch.setattr(Everything, "predict", lambda self, student: F.one_hot(self.chosen, 10).float())
    learner = _learner("everything")
    groups.begin(runner := groups.engine(Eager, [learner]), 1)
    labels = runner.data.train_labels[runner.draws.order[:BATCH]]
    learner.method.chosen = torch.where(torch.arange(BATCH) < 5, labels, (labels + 1) % 10)
    assert runner.step(0, BATCH) == [] and learner.sums["correct"].item() == 5


@pytest.mark.parametrize("divisible", [True, False])
def test_a_recording_without_memory_is_for_the_trainer_where_it_can_divide(monkeypatch, capsys, divisible):
    def record(self, *arguments):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError:
            raise RuntimeError("capture failed")  # noqa: B904 -- as the end of a broken capture does

    monkeypatch.setattr(Static, "_record", record)
    runner = groups.engine(Static, [_learner("kd"), _learner("student")])
    groups.begin(runner, 1)
    runner.divisible = divisible
    if divisible:
        with pytest.raises(torch.OutOfMemoryError, match="capture failed"):
            runner.step(0, BATCH)
    else:
        assert runner.step(0, BATCH) == [] and "goes on in eager steps" in capsys.readouterr().out


# Losses that break the contract.
@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (lambda x, y: {"kl": x.sum(), "mse": x.mean()}, 'bad: losses() has no "ce" among its terms (kl, mse); add the cross-entropy'),
        (lambda x, y: {"ce": x[:, 0]}, f'bad: the loss "ce" of losses() is no scalar tensor (shape ({BATCH},)); take its mean or sum'),
        (lambda x, y: {"ce": x.sum(), "w": 0.5}, 'bad: the loss "w" of losses() is no scalar tensor (float)'),
        (lambda x, y: None, "bad: losses() gives NoneType None; return a dict of named scalar tensors"),
    ],
)
def test_losses_that_break_the_contract_are_named(losses, said):
    bad = type("Bad", (Plain,), {"losses": lambda self, student, teacher, batch: losses(student.logits, batch.labels)})
    with registered(bad=bad):
        groups.begin(runner := groups.engine(Eager, [_learner("bad")]), 1)
        ((_, error),) = runner.step(0, BATCH)
    assert said in str(error) and "\n" not in str(error)


def test_a_method_without_labels():
    unlabelled = type("Unlabelled", (Plain,), {"uses_labels": False, "losses": lambda self, s, t, b: {"size": s.logits.pow(2).mean()}})
    with registered(unlabelled=unlabelled):
        groups.run(groups.engine(Eager, [learner := _learner("unlabelled")]), [1])
    assert math.isfinite(learner.means(52)[0]["size"])


@pytest.mark.parametrize("deterministic", [True, False])
def test_buffers_that_hold_no_floats_are_recorded_too(deterministic, capsys):
    class Flags(Plain):
        def __init__(self, hyper, setting, prepared=None):
            super().__init__(hyper, setting, prepared)
            self.register_buffer("flag", torch.zeros(setting.images, dtype=torch.bool))
            self.register_buffer("at", torch.zeros(3, dtype=torch.int16))
            self.register_buffer("byte", torch.zeros(3, dtype=torch.uint8))

        def losses(self, student, teacher, batch):
            self.flag.index_fill_(0, batch.index, True)
            self.at.add_(1)
            self.byte.add_(1)
            return super().losses(student, teacher, batch)

    torch.use_deterministic_algorithms(deterministic)
    with registered(flags=Flags):
        groups.run(runner := groups.engine(Taped, [learner := _learner("flags")]), [1])
    assert runner.name == "taped" and capsys.readouterr().out == ""
    assert learner.method.at.tolist() == [5, 5, 5] and learner.method.flag[:52].all()


def test_who_predicts_in_his_own_way_says_what_that_needs():
    """Else the record says that the student alone was tested, and `export` writes it under that number."""

    class Silent(Plain):
        def predict(self, student):
            return 2 * student.logits

    class Said(Silent):
        @classmethod
        def inference(cls, hyper, setting):
            return Inference()

    with registered(silent=Silent, said=Said):
        assert _learner("said").evaluated is not _learner("said").student
        with pytest.raises(MethodError, match=r"silent: predict\(\) is its own; inference\(\) must say what is evaluated besides the student"):
            _learner("silent")
