"""Faults 16, 17, 21 and 28: no memory, no GPU, plug-ins that break at any point, an evaluation that leaves traces."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import models
from bench.errors import DONE, TROUBLE
from bench.train import group_job, learner
from bench.train.engine import eager
from bench.train.learner import evaluate
from methods import registry
from methods.base import Method
from tests.faults import lives

ROOT = Path(__file__).resolve().parents[2]


class Sound(Method):
    """Cross-entropy; the faults below are its sub-classes."""

    title = paper = "sound"

    def losses(self, student, teacher, batch):
        return {"ce": F.cross_entropy(student.logits, batch.labels)}


class AtBirth(Sound):
    def __init__(self, hyper, setting, prepared=None):
        super().__init__(hyper, setting, prepared)
        raise AttributeError("no such thing")


class AtAnEpoch(Sound):
    def begin_epoch(self, epoch, draws):
        if epoch == 2:
            raise AssertionError("not in this epoch")


class OtherType(Sound):
    def losses(self, student, teacher, batch):
        return 3.0


class NoMemory(Sound):
    def losses(self, student, teacher, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


BREAKS = {
    AtBirth: "AttributeError: no such thing",
    AtAnEpoch: "AssertionError: not in this epoch",
    OtherType: "MethodError: breaks: losses() gives float 3.0; return a dict of named scalar tensors",
    NoMemory: "out of memory",
}


@pytest.mark.parametrize("cls", list(BREAKS), ids=[c.__name__ for c in BREAKS])
def test_a_method_that_breaks_fails_alone(results, unbroken, cls):
    def train() -> int:
        registry.names()
        registry.source_hash = lambda name: "0" * 16
        registry.register("breaks")(cls)
        return group_job.run_group(lives.group("student", "breaks"), lives.execution(results))

    assert lives.live(train) == TROUBLE
    (run,) = lives.outcome(results)
    assert lives.outcome(results)[run] == unbroken[run]
    status, reason = lives.statuses(results)["breaks"]
    said = re.fullmatch(r"(tests/faults/test_device\.py:(\d+): )?(.*)", reason)
    assert status == "failed" and said[3] == BREAKS[cls]
    if cls is not NoMemory:  # the line that raised; of losses that are no losses, the function's
        line = Path(__file__).read_text().splitlines()[int(said[2]) - 1]
        assert "def losses" in line if cls is OtherType else "raise " in line
    assert "Traceback" in next(results.glob("runs/*breaks*/log.txt")).read_text() and not list(results.glob("runs/*/lease.json"))


class LosesTheDevice(Sound):
    said, steps = "CUDA error: uncorrectable ECC error encountered", 0

    def losses(self, student, teacher, batch):
        self.steps += 1
        if self.steps > 3:
            raise RuntimeError(self.said)
        return super().losses(student, teacher, batch)


class LosesItLater(Sound):
    """In what is not a step of the engine's."""

    said = "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"

    def begin_epoch(self, epoch, draws):
        if epoch == 2:
            raise RuntimeError(self.said)


class LosesItAtBirth(Sound):
    said = "CUDA error: unspecified launch failure"

    def __init__(self, hyper, setting, prepared=None):
        super().__init__(hyper, setting, prepared)
        raise RuntimeError(self.said)


@pytest.mark.parametrize("cls", [LosesTheDevice, LosesItLater, LosesItAtBirth])
def test_a_lost_device_is_nobodys_fault(results, unbroken, cls):
    """The job ends, its members are interrupted, and the next launch goes on from the last checkpoint."""

    def train() -> int:
        registry.names()
        registry.source_hash = lambda name: "0" * 16
        registry.register("loses")(cls)
        eager.answers = lambda device: False
        return group_job.run_group(lives.group("student", "loses"), lives.execution(results))

    assert lives.live(train) == TROUBLE
    found = lives.statuses(results)
    assert set(found) == {"student", "loses"} and {status for status, _ in found.values()} == {"interrupted"}
    assert all(reason.startswith("device lost: ") and cls.said in reason for _, reason in found.values())
    assert lives.train(results, lives.group("student")) == DONE
    (run,) = lives.outcome(results)
    assert lives.outcome(results)[run] == unbroken[run]


def test_no_memory_for_the_engine_itself_divides_the_group(results, unbroken):
    """Another job may have taken it since the learners were made."""

    def train() -> int:
        whole, made = eager.Eager.__init__, []

        def short(self, images, teacher, learners, *rest):
            made.append(len(learners))
            if len(learners) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            whole(self, images, teacher, learners, *rest)

        eager.Eager.__init__ = short
        code = group_job.run_group(lives.group(), lives.execution(results))
        assert made == [2, 1, 1]
        return code

    assert lives.live(train) == DONE and lives.outcome(results) == unbroken


def test_no_memory_for_an_engine_of_one_run_fails_that_run_and_the_others_are_tried(results):
    def train() -> int:
        def short(self, *arguments):
            raise torch.OutOfMemoryError("CUDA out of memory")

        eager.Eager.__init__ = short
        return group_job.run_group(lives.group(), lives.execution(results))

    assert lives.live(train) == TROUBLE
    assert lives.statuses(results) == {name: ("failed", "out of memory") for name in ("student", "kd")}


def test_no_memory_in_an_evaluation_fails_that_run_and_is_tried_again(results, unbroken):
    def train() -> int:
        from bench.train import loop

        calls = []

        def short(*arguments, **named):
            calls.append(1)
            if len(calls) == 3:  # of the second epoch, the first member's
                raise torch.OutOfMemoryError("CUDA out of memory")
            return evaluate(*arguments, **named)

        loop.evaluate = short
        return group_job.run_group(lives.group(), lives.execution(results))

    assert lives.live(train) == TROUBLE
    assert sorted(lives.statuses(results).values()) == [("done", ""), ("failed", "out of memory")]
    (failed,) = (run for run in (results / "runs").iterdir() if '"failed"' in (run / "status.json").read_text())
    assert lives.train(results) == DONE and lives.outcome(results) == unbroken
    assert "attempt 2: resumed at epoch" in (failed / "log.txt").read_text()  # the others' checkpoints of meanwhile name it too


def test_a_hidden_gpu_is_no_cpu_run(tmp_path):
    code = "from bench.train import group_job; from tests.faults import lives; from pathlib import Path; import sys;"
    code += "sys.exit(group_job.run_group(lives.group('student', teacher=None), lives.execution(Path(sys.argv[1]), device='cuda')))"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    got = subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert got.returncode and "UsageError: device 'cuda' was asked for, but 0 CUDA devices are visible (CUDA_VISIBLE_DEVICES='')" in got.stderr
    assert not (tmp_path / "r").exists()


def state_of(network: torch.nn.Module) -> str:
    total = hashlib.sha256()
    for name, value in network.state_dict().items():
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8"])
def test_an_evaluation_leaves_no_trace(name, training):
    torch.manual_seed(0)
    network = models.build(name, 100).train(training)
    batches = [(torch.randn(4, 3, 32, 32), torch.randint(100, (4,))) for _ in range(2)]
    network(batches[0][0])  # statistics of its own
    modes = [m.training for m in network.modules()]
    before, generator = state_of(network), torch.get_rng_state()
    first = evaluate(network, batches, "tf32")
    assert state_of(network) == before and torch.equal(torch.get_rng_state(), generator)
    assert [m.training for m in network.modules()] == modes and all(p.grad is None for p in network.parameters())
    assert evaluate(network, batches, "tf32") == first
    network.train()(batches[0][0])
    assert state_of(network) != before  # the hash sees what a leak would do


def test_an_interrupted_evaluation_leaves_the_mode(monkeypatch):
    network = models.build("resnet8", 100).train()

    def stop():
        raise learner_stopped

    learner_stopped = RuntimeError("stop")
    with pytest.raises(RuntimeError, match="stop"):
        learner.evaluate(network, [(torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64))], "tf32", stop)
    assert network.training
