"""The students of unlike pairs in training: their learning rate, and the native engine's step beside the eager one."""

import pytest
import torch

from bench.plan import protocols
from bench.train.engine import Eager, Native
from models import native
from tests.bench import groups
from tests.bench.groups import BATCH

STUDENTS = ("mobilenetv2", "shufflev1", "shufflev2")


@pytest.mark.parametrize(("student", "rate"), [("resnet8", 0.05), *((name, 0.01) for name in STUDENTS)])
def test_the_learning_rate_is_the_networks(student, rate):
    one = groups.learner("student", student=student, protocol=protocols.get("crd"))
    assert one.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    one.begin_epoch(151)
    assert one.optimizer.param_groups[0]["lr"] == pytest.approx(rate / 10)


@pytest.mark.skipif(native.reason() is not None, reason=f"no compiled operator here: {native.reason()}")
@pytest.mark.parametrize("student", STUDENTS)
def test_a_native_step_is_the_eager_one(student):
    """Channels that the operator does not take go through torch's own: the numbers are the same but for rounding."""
    states, losses = [], []
    with groups.deterministic():
        for kind in (Native, Eager):
            one = groups.learner("kd", student=student)
            runner = groups.engine(kind, [one])
            groups.begin(runner, 1)
            assert runner.step(0, BATCH) == []
            states.append({key: value.clone() for key, value in one.student.state_dict().items()})
            losses.append(sum(value.item() for key, value in one.sums.items() if key.startswith("loss/")))
    ours, theirs = states
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert any(not torch.equal(ours[key], theirs[key]) for key in ours if "running_mean" in key)  # the operator did run
    for key, value in theirs.items():
        if value.is_floating_point():
            assert (ours[key] - value).norm() <= 5e-3 * value.norm() + 5e-4, key
