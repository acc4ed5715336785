"""What methods.base promises a method: start, draws for a step, a stage before the main one, own rates, labels, what is evaluated and kept."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from bench.errors import DONE, STOPPED_IN_TIME, TROUBLE
from bench.launch import jobs
from bench.plan import protocols
from bench.plan.protocols import Protocol
from bench.store.files import read_json
from bench.store.rows import read_rows
from bench.store.runs import scan
from bench.train import checkpoint, engine, group_job
from bench.train.engine import Eager, Static
from bench.train.learner import Learner, evaluate
from bench.train.loop import Training
from methods.base import Method, ParameterGroup, Pretraining
from models.randomness import key
from tests.bench import groups
from tests.bench.capture_safe import CaptureSafe
from tests.bench.groups import BATCH, everything, unequal
from tests.bench.tape import Taped
from tests.bench.train.test_training import Interrupting, numbers, records, statuses
from tests.bench.train.test_training import execution as execution_of
from tests.bench.train.test_training import group as group_of
from tests.bench.train.toys import Everything, Plain, registered, with_trunk

TINY = Protocol("tiny", dataset="shapes100", epochs=2, milestones=(1,), train_images=150, test_images=60, image_size=16, batch=64)
STEPS = 3  # an epoch
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


@pytest.fixture(autouse=True)
def alone_with_toys():
    with groups.deterministic(), with_trunk(), registered(everything=Everything, plain=Plain):
        yield


def execution(folder, **changes):
    return execution_of(folder, **{"engine": "eager", **changes})


def group(*methods: str):
    return group_of(*methods, teacher="resnet8", protocol=TINY)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    with groups.deterministic():
        assert jobs.run_teacher("resnet8", TINY, 0, "tf32", execution(folder)) == DONE
    return folder / "teachers"


@pytest.fixture
def fresh(tmp_path, teachers):
    """Makes results folders with the teacher in them."""

    def make(name: str):
        (tmp_path / name).mkdir()
        (tmp_path / name / "teachers").symlink_to(teachers)
        return tmp_path / name

    return make


@pytest.fixture(scope="module")
def unbroken(teachers, tmp_path_factory):
    """Plain and everything, trained as a group: the records by method, the folder."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "teachers").symlink_to(teachers)
    with groups.deterministic(), with_trunk(), registered(everything=Everything, plain=Plain):
        assert jobs.run_group(group("plain", "everything"), execution(folder)) == DONE
        return records(folder), folder


# The whole contract through the trainer.
def test_group_equals_single_bit_for_bit(fresh, unbroken):
    folder = fresh("alone")
    for method in ("everything", "plain"):
        assert jobs.run_group(group(method), execution(folder)) == DONE
    found = records(folder)
    assert {m: numbers(r) for m, r in found.items()} == {m: numbers(r) for m, r in unbroken[0].items()}
    assert numbers(found["plain"])[0] != numbers(found["everything"])[0]


@pytest.mark.parametrize("name", ["static", "native"])
def test_other_engines(fresh, unbroken, name):
    folder = fresh(name)
    assert jobs.run_group(group("plain", "everything"), execution(folder, engine=name)) == DONE
    found = records(folder)
    assert {r["engine"] for r in found.values()} == {name}
    if name == "static":  # the native operator rounds otherwise
        assert {m: numbers(r) for m, r in found.items()} == {m: numbers(r) for m, r in unbroken[0].items()}


@pytest.mark.parametrize("steps", [1, 3, 5, 6, 7, 11])
def test_resumed_equals_unbroken_bit_for_bit(fresh, unbroken, monkeypatch, steps):
    """Six steps of the stage, then six of the group: stopped in the stage, between its epochs, at its end, in the main stage."""
    folder = fresh("broken")
    with monkeypatch.context() as patch:
        Interrupting(patch, steps)
        assert jobs.run_group(group("plain", "everything"), execution(folder)) == STOPPED_IN_TIME
    assert set(statuses(folder).values()) == {"interrupted"}
    (view,) = (v for v in scan(folder)[0] if v.method == "everything")
    position = checkpoint.restore(folder, view.id)[1].position
    done = divmod(steps, STEPS)
    assert position == checkpoint.Position(-1 + done[0], done[1])
    torch.manual_seed(12345)
    assert jobs.run_group(group("plain", "everything"), execution(folder)) == DONE
    found = records(folder)
    assert {m: numbers(r) for m, r in found.items()} == {m: numbers(r) for m, r in unbroken[0].items()}
    assert not list(folder.glob("runs/*/checkpoint-*")) and not list(folder.glob("groups/*"))


class Killed(BaseException):
    """The end of a process, for those that catch no more than exceptions."""


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7])
def test_a_kill_while_a_run_moves_to_the_main_group_loses_nothing(fresh, unbroken, monkeypatch, number):
    """Killed at each rename of the first save after the stage: the state from its end is found again, or the newer one is."""
    folder = fresh("killed")
    seen = {"main": False, "renames": 0}
    save, replace = checkpoint.GroupCheckpoint.save, checkpoint.os.replace

    def saving(self, position, states):
        seen["main"] = seen["main"] or position > checkpoint.START
        return save(self, position, states)

    def renaming(*arguments, **named):
        if seen["main"]:
            seen["renames"] += 1
            if seen["renames"] == number:
                raise Killed
        return replace(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.GroupCheckpoint, "save", saving)
        patch.setattr(checkpoint.os, "replace", renaming)
        with pytest.raises(Killed):
            jobs.run_group(group("plain", "everything"), execution(folder, checkpoint_seconds=0))
    (view,) = (v for v in scan(folder)[0] if v.method == "everything")
    restored = checkpoint.restore(folder, view.id)[1]
    assert restored.position >= checkpoint.START and restored.state is not None
    assert jobs.run_group(group("plain", "everything"), execution(folder)) == DONE
    assert {m: numbers(r) for m, r in records(folder).items()} == {m: numbers(r) for m, r in unbroken[0].items()}


def test_what_is_kept(unbroken):
    found, folder = unbroken
    (view,) = (v for v in scan(folder)[0] if v.method == "everything")
    rows = read_rows(view.folder / "epochs.jsonl", view.id).rows
    assert [row["epoch"] for row in rows] == [1, 2]  # of the main stage only
    assert set(rows[0]["losses"]) == {"ce", "own", "bank"}
    stage = found["everything"]["pretraining"]
    assert (stage["epochs"], stage["rate"]) == (2, 0.02) and stage["seconds"] > 0
    log = (view.folder / "log.txt").read_text()
    assert "pre-training epoch 1/2 loss" in log and "pre-training epoch 2/2 loss" in log
    assert found["everything"]["inference"] == {"parameters": 67 * 100, "macs": 64 * 100}
    assert found["plain"]["pretraining"] is None and found["plain"]["inference"] is None
    kept = torch.load(view.folder / "method.pt", weights_only=True)
    assert {name.split(".")[0] for name in kept} == {"project", "connect", "scale"}
    assert "bank" not in torch.load(view.folder / "student.pt", weights_only=True)
    assert not list(folder.glob("runs/*plain*/method.pt"))


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
def test_start_comes_once_before_a_state_is_loaded(fresh, monkeypatch):
    calls = []
    start, load = Everything.start, Learner.load
    monkeypatch.setattr(Everything, "start", lambda self, labels: (calls.append(("start", tuple(labels.shape), labels.dtype)), start(self, labels)))
    monkeypatch.setattr(Learner, "load", lambda self, state: (calls.append("load"), load(self, state)))
    folder = fresh("started")
    assert jobs.run_group(group("everything"), execution(folder)) == DONE
    begun = ("start", (150,), torch.int64)
    assert calls == [begun, begun, "load"]  # the stage's learner, then the main one's


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
    monkeypatch.setattr(Learner, "begin_step", None)
    groups.run(groups.engine(Static, [_learner("kd"), _learner("student")]), [1])


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
    groups.begin(runner := groups.engine(Eager, [learner]), 5)  # behind a milestone
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


# Trouble.
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("shared", [True, False], ids=["of all", "of one"])
def test_a_group_that_does_not_fit_is_split(fresh, unbroken, monkeypatch, capsys, at, shared):
    """No memory for more than one member in the `at`-th step of a training, whoever asks for it."""
    step, taken = engine.Eager.step, {}

    def short(runner, start, stop):
        taken[runner] = taken.get(runner, 0) + 1
        if len(runner.learners) > 1 and taken[runner] == at:
            error = torch.OutOfMemoryError("CUDA out of memory")
            if shared:
                raise error
            return [(runner.learners[-1], error)]
        return step(runner, start, stop)

    monkeypatch.setattr(engine.Eager, "step", short)
    folder = fresh("split")
    assert jobs.run_group(group("plain", "everything", "student"), execution(folder, checkpoint_seconds=0 if at == 3 else 60)) == DONE
    found = records(folder)
    assert {m: numbers(found[m]) for m in ("plain", "everything")} == {m: numbers(r) for m, r in unbroken[0].items()}
    assert numbers(found["student"]) == numbers(found["plain"])
    said = [line for line in capsys.readouterr().out.splitlines() if "more memory" in line]
    assert [line.split(": ")[1].split()[0] for line in said] == ["3", "2"]
    for view in scan(folder)[0]:
        assert view.seed == 0 or (view.record["attempts"], len(read_rows(view.folder / "epochs.jsonl", view.id).rows)) == (1, 2)
    assert not list(folder.glob("groups/*"))


def test_one_that_does_not_fit_alone_fails_in_one_line(fresh, unbroken, monkeypatch, capsys):
    def losses(self, student, teacher, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation")

    folder = fresh("large")
    with registered(large=type("Large", (Plain,), {"losses": losses})):
        assert jobs.run_group(group("plain", "large"), execution(folder)) == TROUBLE
        found = statuses(folder)
        assert found == {"plain": "done", "large": "failed"} and numbers(records(folder)["plain"]) == numbers(unbroken[0]["plain"])
    assert len(re.findall("large.* failed: out of memory", capsys.readouterr().out)) == 1


def test_no_memory_to_build_a_member_splits_too(fresh, unbroken, monkeypatch):
    add, building = Training.add, {}

    def short(training, *arguments):
        building[training] = building.get(training, 0) + 1
        if building[training] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return add(training, *arguments)

    monkeypatch.setattr(group_job.Training, "add", short)
    folder = fresh("built")
    assert jobs.run_group(group("plain", "everything"), execution(folder)) == DONE
    assert {m: numbers(r) for m, r in records(folder).items()} == {m: numbers(r) for m, r in unbroken[0].items()}


def test_a_failure_names_file_and_line(fresh, capsys):
    class Broken(Method):
        title = paper = "broken"

        def losses(self, student, teacher, batch):
            return {"ce": F.cross_entropy(student.logits.T, batch.labels)}  # the line

    folder = fresh("broken")
    with registered(broken=Broken):
        assert jobs.run_group(group("broken"), execution(folder)) == TROUBLE
    line = next(i for i, text in enumerate(open(__file__, encoding="utf-8"), 1) if text.rstrip().endswith("# the line"))
    (status,) = (read_json(path) for path in folder.glob("runs/*broken*/status.json"))
    where = f"tests/bench/train/test_contract.py:{line}: "
    assert status["status"] == "failed" and status["reason"].startswith(where) and "Error: " in status["reason"]
    assert where in capsys.readouterr().out


def _learner(name: str, pretraining: Pretraining | None = None) -> Learner:
    made = groups.learner(name)
    if pretraining is None:
        return made
    return Learner(made.run, type(made.method), made.method.hyper, made.method.setting, None, made.device, pretraining)
