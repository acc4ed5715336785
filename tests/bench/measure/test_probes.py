import dataclasses
import gc
import itertools
import json
import multiprocessing
import re
import signal
from types import SimpleNamespace

import pytest
import torch
from msgspec import structs
from torch.nn import functional as F

import models
from bench import data
from bench.errors import DONE, UsageError
from bench.measure import meters, probes
from bench.plan import members
from bench.plan.groups import Group
from bench.plan.protocols import Protocol
from bench.store import costs
from bench.store.files import read, read_json
from bench.store.records import Cost
from bench.train import context, environment, teacher_networks
from bench.train.context import Context
from bench.train.execution import Execution
from bench.train.stop import Stopped
from methods import registry
from methods.base import Method, MethodError
from models.network import Network

TEACHER, STUDENT = "resnet14", "resnet8"
TINY = Protocol("tiny", dataset="shapes100", batch=16, train_images=200, test_images=100, trial="for tests")
CPU = torch.device("cpu")


def execution(results, **changes) -> Execution:
    return Execution(str(results), device="cpu", threads=1, **changes)


def one(method="kd", teacher=TEACHER, student=STUDENT, protocol=TINY, precision="tf32", hyper=()) -> Group:
    return Group(teacher, student, meters.SEED, protocol, precision, (method,), hyper)


def measure(results, method, teacher=TEACHER, student=STUDENT, protocol=TINY, hyper=(), steps=2):
    """In this process: quicker than a fresh one, and sees methods that only this process knows."""
    return probes.measure(one(method, teacher, student, protocol, hyper=hyper), execution(results), steps, 0)


@pytest.fixture(autouse=True)
def quick_collections():
    """A probe collects garbage twice. Here it looks through what the test made; all that the tests before left is most of a probe's time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A results folder with the cost of KD in it, written by the command's own path through a fresh process."""
    results = tmp_path_factory.mktemp("results")
    assert probes.run_probe(one(), execution(results), steps=3, warmup=1) == DONE
    return results


@pytest.fixture
def record(probed):
    (path,) = (probed / "costs").rglob("*.json")
    return json.loads(path.read_text())


def test_file_stands_under_device_and_names(probed):
    (path,) = (probed / "costs").rglob("*.json")
    device = costs.slug(environment.device_facts(CPU)["name"])
    assert re.fullmatch(f"costs/{device}/resnet14-resnet8-kd-tf32-[0-9a-f]{{10}}.json", path.relative_to(probed).as_posix())


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
    assert record["hyper"] == {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0} and record["method_version"] == 1
    said = {"dataset": "shapes100", "image_size": 32, "train_images": 200, "momentum": 0.9, "nesterov": False, "dropout": 0.0}
    assert said.items() <= record.items()
    first, third = record["relative_iqr"]
    assert 0 < first <= record["relative"] <= third and record["student_step_ms_median"] > 0 and record["cpu_over_clock"] > 0


def test_every_field_that_is_read_is_written(record, probed):
    assert {f.encode_name for f in structs.fields(Cost)} <= record.keys()
    (path,) = (probed / "costs").rglob("*.json")
    assert read(path, Cost).relative == record["relative"]


def test_memory_is_the_steps_own(record, tmp_path):
    """Eight times the batch takes several times the memory, and neither counts what a process needs anyway (hundreds of MiB)."""
    large = probes.probe(one(protocol=dataclasses.replace(TINY, batch=128)), execution(tmp_path), steps=1, warmup=0)
    small = record["peak_memory_bytes"]
    assert 4 << 20 < small < 64 << 20
    assert 2 * small < large["peak_memory_bytes"] < 12 * small


def test_why_a_probe_failed_is_one_line_and_where_is_in_the_log(monkeypatch, capsys):
    def measure(*request):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(probes, "measure", measure)
    before, sent = signal.getsignal(signal.SIGINT), []
    try:
        probes._child((), SimpleNamespace(send=sent.append))
    finally:
        signal.signal(signal.SIGINT, before)
    assert [str(error) for error in sent] == ["OutOfMemoryError: CUDA out of memory"]
    assert "in measure" in capsys.readouterr().err


def test_measured_once_unless_redone(probed, monkeypatch):
    calls = []
    monkeypatch.setattr(probes, "probe", lambda *a, **k: calls.append(a) or {"again": True})
    assert probes.run_probe(one(), execution(probed)) == DONE
    assert not calls
    (path,) = (probed / "costs").rglob("*.json")
    kept = path.read_text()
    try:
        assert probes.run_probe(one(protocol=dataclasses.replace(TINY, lr=0.3, name="other")), execution(probed)) == DONE
        assert not calls  # another rate costs the same
        assert probes.run_probe(one(), execution(probed, redo=True)) == DONE
        assert len(calls) == 1
        assert read_json(path) == {"again": True}
    finally:
        path.write_text(kept)


OTHERS = [{"batch": 32}, {"image_size": 24}, {"train_images": 300}, {"sample_rate": 0.5}, {"nesterov": True}, {"momentum": 0.0}, {"dropout": 0.3}]


@pytest.mark.parametrize("change", [*OTHERS, {"dataset": "cifar100"}, "hyper", "threads", "engine", "precision", "version"])
def test_what_changes_the_measurement_has_a_file_of_its_own(probed, monkeypatch, change):
    group, how = Group(TEACHER, STUDENT, meters.SEED, TINY, "tf32", ("kd",)), execution(probed)
    assert probes.is_measured(group, how)
    if isinstance(change, dict):
        group = dataclasses.replace(group, protocol=dataclasses.replace(TINY, **change))
    elif change == "hyper":
        group = dataclasses.replace(group, hyper=(("kd", "temperature", 8.0),))
    elif change == "precision":
        group = dataclasses.replace(group, precision="bf16")
    elif change == "version":
        monkeypatch.setattr(registry.get("kd"), "version", 99)
    else:
        how = dataclasses.replace(how, **{"threads": {"threads": 2}, "engine": {"engine": "static"}}[change])
    assert not probes.is_measured(group, how)


@pytest.mark.parametrize(("share", "repeated"), [(0.5, True), (1.0, False)])
def test_a_probe_beside_a_spinning_process_is_marked(tmp_path, monkeypatch, share, repeated):
    """Clocks that tell of a neighbour who takes half of the core, and of none: the steps are real, their times made up."""
    ticks = itertools.count()
    monkeypatch.setattr(meters, "clock", lambda: float(next(ticks)))
    monkeypatch.setattr(meters, "cpu_time", lambda: share * float(next(ticks)))
    record = measure(tmp_path, "kd", steps=4)
    assert ("something else ran" in record["noisy"]) is repeated is record.get("repeated", False)
    assert record["relative"] == 1.0


@pytest.mark.parametrize("engine", ["eager", "static"])
def test_a_step_holds_one_teacher(tmp_path, monkeypatch, engine):
    """The engine's folded one; the network that it was made from is let go."""
    seen, peaks, timed = [], meters.Memory.peaks, probes._timed

    def teachers() -> int:
        gc.collect()
        student = sum(p.numel() for p in models.build(STUDENT).parameters())
        networks = [o for o in gc.get_objects() if issubclass(type(o), Network)]
        return sum(sum(p.numel() for p in network.parameters()) > 1.5 * student for network in networks)

    monkeypatch.setattr(meters.Memory, "peaks", lambda self: (seen.append(teachers()), peaks(self))[1])
    monkeypatch.setattr(probes, "_timed", lambda *arguments: (seen.append(teachers()), timed(*arguments))[1])
    before = teachers()
    probes.measure(one(), execution(tmp_path, engine=engine), 2, 0)
    assert [count - before for count in seen[:2]] == [1, 1]


def test_student_has_no_teacher_in_its_step(tmp_path):
    record = measure(tmp_path, "student")
    assert record["teacher"] is None
    assert record["teacher_macs"] == 0
    assert record["student_macs"] == models.macs(STUDENT)
    assert "relative" not in record and "student_step_ms_median" not in record


@pytest.mark.parametrize("method", registry.names())
def test_every_method_has_a_cost(tmp_path, method):
    setting = members.Setting(models.shapes(STUDENT), models.shapes(TEACHER))
    reason = registry.get(method).reason_against(registry.get(method).hyper_for(TEACHER, STUDENT), setting)
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
    group = Group(TEACHER, STUDENT, meters.SEED, TINY, "tf32", ("skd",), hyper)
    context = Context(TINY, "tf32", execution(tmp_path), TEACHER, untrained=True, dataset=dataset)
    built = context.prepare(context.resolved(group)[0], lambda message: None)
    record = measure(tmp_path, "skd", hyper=hyper)
    assert record["preparation_seconds"] == pytest.approx(built.seconds)
    assert record["teacher_trained"] is True
    assert measure(tmp_path, "skd")["preparation_seconds"] is None  # prepared with other settings


def test_a_deep_untrained_teacher_has_maps_of_a_common_scale(tmp_path):
    """With initial statistics they grow by orders of magnitude from stage to stage, and FT's paraphraser of them diverges."""
    context = Context(TINY, "tf32", execution(tmp_path), "resnet56", untrained=True)
    images = next(iter(context.images.test_batches(64)))[0]
    with torch.no_grad():
        scales = [maps.square().mean().sqrt().item() for maps in context.teacher()(images, ("stage",)).maps["stage"]]
    assert max(scales) < 10 * min(scales)
    member = context.resolved(one("ft", "resnet56", "resnet20"))[0]
    assert context.timed_learner(member).method.paraphraser is not None


def test_a_probe_waits_for_its_turn():
    looks = []

    def stop():
        looks.append(1)
        if len(looks) > 1:  # the first is before it asks for the lock
            raise Stopped("told to")

    with probes.exclusive(CPU), pytest.raises(Stopped), probes.exclusive(CPU, stop):
        pytest.fail("two probes on one device")
    with probes.exclusive(CPU):
        pass  # given back


def test_stopping_ends_the_fresh_process(tmp_path):
    seen = []

    def stop():
        if multiprocessing.active_children():
            seen.append(1)
            raise Stopped("told to")

    with pytest.raises(Stopped):
        probes.probe(one(), execution(tmp_path), steps=10_000, check=stop)
    assert seen and not multiprocessing.active_children()


def test_a_fresh_process_tells_what_is_wrong(tmp_path):
    real = dataclasses.replace(TINY, dataset="cifar100", train_images=None, test_images=None)
    with pytest.raises(UsageError, match="cifar"):
        probes.probe(one(protocol=real), execution(tmp_path, data_root=str(tmp_path)))


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
def test_bad_input_leaves_no_record(tmp_path, monkeypatch, changes, error):
    monkeypatch.setattr(probes, "_in_fresh_process", lambda request, check: probes.measure(*request))  # what one tells has a test above
    changes = dict(changes)
    steps = changes.pop("steps", None)
    with pytest.raises(error):
        probes.run_probe(one(**changes), execution(tmp_path), steps=steps)
    assert not list(tmp_path.rglob("*.json"))


def test_losses_that_are_not_finite_give_no_cost(tmp_path, monkeypatch):
    class Broken(Method):
        name = title = "broken"

        def losses(self, student, teacher, batch):
            return {"ce": F.cross_entropy(student.logits, batch.labels) * float("nan")}

    monkeypatch.setattr(registry, "_methods", {**registry._methods, "broken": Broken})
    with pytest.raises(UsageError, match="not finite"):
        measure(tmp_path, "broken")


def test_steps_are_full_batches_of_successive_epochs():
    class Runner:
        epochs, spans = [], []

        def begin_epoch(self, draws):
            self.epochs.append(draws.order.tolist())

        def step(self, start, stop):
            self.spans.append((start, stop))
            return []

    steps = meters.Steps(Runner(), 40, 16)
    for _ in range(5):
        steps()
    assert Runner.spans == [(0, 16), (16, 32), (0, 16), (16, 32), (0, 16)]
    assert len(Runner.epochs) == 3
    assert Runner.epochs[0] != Runner.epochs[1]

def test_a_device_without_room_for_the_data_is_one_line(tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 148 MiB")

    monkeypatch.setattr(context, "Augmenter", full)
    with pytest.raises(UsageError, match="has no room for the data set; free its memory"):
        Context(TINY, "tf32", execution(tmp_path))
