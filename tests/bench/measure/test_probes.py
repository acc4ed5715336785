import dataclasses
import json
import multiprocessing

import pytest
import torch
from torch.nn import functional as F

import models
from bench import data
from bench.errors import DONE, UsageError
from bench.measure import probes
from bench.plan import members
from bench.plan.groups import Group
from bench.plan.protocols import Protocol
from bench.store.files import read_json
from bench.train import environment, teacher_networks
from bench.train.context import Context
from bench.train.execution import Execution
from bench.train.stop import Stopped
from methods import registry
from methods.base import Method, MethodError

TEACHER, STUDENT = "resnet14", "resnet8"
TINY = Protocol("tiny", dataset="shapes100", batch=16, train_images=200, test_images=100, trial="for tests")
CPU = torch.device("cpu")


def execution(results, **changes) -> Execution:
    return Execution(str(results), device="cpu", threads=1, **changes)


def measure(results, method, teacher=TEACHER, student=STUDENT, protocol=TINY, hyper=(), steps=2):
    """In this process: quicker than a fresh one, and sees methods that only this process knows."""
    return probes.measure(probes.Request(Group(teacher, student, probes.SEED, protocol, "tf32", (method,), hyper), execution(results), steps, 0))


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A results folder with the cost of KD in it, written by the command's own path through a fresh process."""
    results = tmp_path_factory.mktemp("results")
    assert probes.run_probe(TEACHER, STUDENT, "kd", "tf32", execution(results), TINY, steps=3, warmup=1) == DONE
    return results


@pytest.fixture
def record(probed):
    (path,) = (probed / "costs").rglob("*.json")
    return json.loads(path.read_text())


def test_file_stands_under_device_and_names(probed):
    (path,) = (probed / "costs").rglob("*.json")
    device = probes.slug(environment.device_facts(CPU)["name"])
    assert path.relative_to(probed).as_posix() == f"costs/{device}/resnet14-resnet8-kd-tf32.json"


def test_record_says_what_was_measured(record):
    assert (record["teacher"], record["student"], record["method"], record["precision"]) == (TEACHER, STUDENT, "kd", "tf32")
    assert (record["steps_timed"], record["warmup_steps"], record["batch"], record["threads"]) == (3, 1, 16, 1)
    assert record["images_per_second"] == pytest.approx(16 * 1000 / record["step_ms_median"])
    first, third = record["step_ms_iqr"]
    assert 0 < first <= record["step_ms_median"] <= third
    assert record["student_macs"] == models.macs(STUDENT)
    assert record["teacher_macs"] == models.macs(TEACHER)
    assert record["teacher_trained"] is False
    assert record["preparation_seconds"] is None
    assert record["device"]["type"] == "cpu"
    assert record["versions"]["torch"] == torch.__version__
    assert record["peak_memory_kind"] == "process high-water above baseline"


def test_memory_is_the_steps_own(record, tmp_path):
    """Four times the batch takes about four times the activations, and neither counts what a process needs anyway (hundreds of MiB)."""
    large = probes.probe(TEACHER, STUDENT, "kd", "tf32", execution(tmp_path), dataclasses.replace(TINY, batch=64), steps=1, warmup=0)
    small = record["peak_memory_bytes"]
    assert 4 << 20 < small < 64 << 20
    assert 2 * small < large["peak_memory_bytes"] < 6 * small


def test_measured_once_unless_redone(probed, monkeypatch):
    calls = []
    monkeypatch.setattr(probes, "probe", lambda *a, **k: calls.append(a) or {"again": True})
    arguments = (TEACHER, STUDENT, "kd", "tf32")
    assert probes.run_probe(*arguments, execution(probed), TINY) == DONE
    assert not calls
    (path,) = (probed / "costs").rglob("*.json")
    kept = path.read_text()
    try:
        assert probes.run_probe(*arguments, execution(probed), dataclasses.replace(TINY, batch=32)) == DONE  # another batch is another cost
        assert probes.run_probe(*arguments, execution(probed, redo=True), TINY) == DONE
        assert len(calls) == 2
        assert read_json(path) == {"again": True}
    finally:
        path.write_text(kept)


def test_student_has_no_teacher_in_its_step(tmp_path):
    record = measure(tmp_path, "student")
    assert record["teacher"] is None
    assert record["teacher_macs"] == 0
    assert record["student_macs"] == models.macs(STUDENT)
    path = probes.record_path(tmp_path, CPU, None, STUDENT, "student", "tf32")
    assert path.name == "resnet8-student-tf32.json"


@pytest.mark.parametrize("method", registry.names())
def test_every_method_has_a_cost(tmp_path, method):
    setting = members.Setting(models.shapes(STUDENT), models.shapes(TEACHER))
    reason = registry.get(method).unsupported(registry.get(method).hyper_for(TEACHER, STUDENT), setting)
    if reason:
        with pytest.raises(UsageError, match="cannot be probed"):
            measure(tmp_path, method)
        return
    record = measure(tmp_path, method)
    assert record["images_per_second"] > 0
    assert record["preparation_seconds"] is None
    json.dumps(record, allow_nan=False)


def test_stored_preparation_and_teacher_are_used(tmp_path):
    dataset = data.load(TINY)
    measured = {"top1": 50.0, "top5": 80.0}
    state = models.build(TEACHER).state_dict()
    teacher_networks.publish(tmp_path, dataset.name, dataset.hash, TEACHER, state, measured, {"source": "trained", "trained": True})
    hyper = (("skd", "dimensions", 4), ("skd", "fit_steps", 5))
    group = Group(TEACHER, STUDENT, probes.SEED, TINY, "tf32", ("skd",), hyper)
    context = Context(TINY, "tf32", execution(tmp_path), TEACHER, untrained=True, dataset=dataset)
    built = context.prepare(context.resolved(group)[0], lambda message: None)
    record = measure(tmp_path, "skd", hyper=hyper)
    assert record["preparation_seconds"] == pytest.approx(built.seconds)
    assert record["teacher_trained"] is True
    assert measure(tmp_path, "skd")["preparation_seconds"] is None  # prepared with other settings


def test_a_probe_waits_for_its_turn():
    def stop():
        raise Stopped("told to")

    with probes.exclusive(CPU), pytest.raises(Stopped), probes.exclusive(CPU, stop):
        pytest.fail("two probes on one device")
    with probes.exclusive(CPU):
        pass  # given back


def test_stopping_ends_the_fresh_process(tmp_path):
    checks = []

    def stop():
        checks.append(1)
        if len(checks) > 1:
            raise Stopped("told to")

    with pytest.raises(Stopped):
        probes.probe(TEACHER, STUDENT, "kd", "tf32", execution(tmp_path), TINY, steps=10_000, check=stop)
    assert not multiprocessing.active_children()


def test_a_fresh_process_tells_what_is_wrong(tmp_path):
    real = dataclasses.replace(TINY, dataset="cifar100", train_images=None, test_images=None)
    with pytest.raises(UsageError, match="cifar"):
        probes.probe(TEACHER, STUDENT, "kd", "tf32", execution(tmp_path, data_root=str(tmp_path)), real)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"method": "no_such"}, MethodError),
        ({"precision": "fp12"}, UsageError),
        ({"steps": 0}, UsageError),
        ({"teacher": None}, UsageError),
        ({"protocol": dataclasses.replace(TINY, batch=512)}, UsageError),
    ],
)
def test_bad_input_leaves_no_record(tmp_path, changes, error):
    arguments = {"teacher": TEACHER, "student": STUDENT, "method": "kd", "precision": "tf32", "execution": execution(tmp_path), "protocol": TINY}
    with pytest.raises(error):
        probes.run_probe(**{**arguments, **changes})
    assert not list(tmp_path.rglob("*.json"))


def test_losses_that_are_not_finite_give_no_cost(tmp_path, monkeypatch):
    class Broken(Method):
        name = title = "broken"

        def losses(self, student, teacher, batch):
            return {"ce": F.cross_entropy(student.logits, batch.labels) * float("nan")}

    monkeypatch.setattr(registry, "_methods", {**registry._methods, "broken": Broken})
    with pytest.raises(UsageError, match="not finite"):
        measure(tmp_path, "broken")


def test_positions_are_full_batches_of_successive_epochs():
    class Runner:
        epochs = []

        def begin_epoch(self, draws):
            self.epochs.append(draws.order.tolist())

    positions = probes._Positions(40, 16)
    spans = [positions.next(Runner()) for _ in range(5)]
    assert spans == [(0, 16), (16, 32), (0, 16), (16, 32), (0, 16)]
    assert len(Runner.epochs) == 3
    assert Runner.epochs[0] != Runner.epochs[1]
