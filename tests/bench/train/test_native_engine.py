"""The native engine: every method's eager numbers but for rounding, and the trainer's promises bit for bit."""

import functools

import pytest
import torch

from bench.errors import UsageError
from bench.train import engine
from bench.train.engine import Eager, Native
from methods import registry
from models import native
from tests.bench import groups
from tests.bench.groups import BATCH, CPU, everything, unequal

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=f"no compiled operator here: {native.reason()}")
LAST = 4 * BATCH
"""Where the remainder begins."""


@pytest.fixture(autouse=True)
def deterministic():
    with groups.deterministic():
        yield


def trained(kind, names, epochs, precision="tf32"):
    """The engine and its learners after these epochs."""
    learners = [groups.learner(name, precision=precision) for name in names]
    runner = groups.engine(kind, learners, precision=precision)
    groups.run(runner, epochs)
    return runner, learners


@functools.cache
def after_one_step(kind, start, stop, precision):
    """All numbers of every method's learner. Kept: the eager step is asked for by several, and its bits are the same each time."""
    learners = [groups.learner(name, precision=precision) for name in registry.names()]
    runner = groups.engine(kind, learners, precision=precision)
    groups.begin(runner, 1)
    assert runner.step(start, stop) == []
    assert {runner.ran(one) for one in learners} == {kind.name}
    return [everything(one) for one in learners]


@pytest.mark.parametrize(("start", "stop"), [(0, BATCH), groups.bounds()[-1]], ids=["batch", "remainder"])
@pytest.mark.parametrize(("precision", "loss"), [("tf32", 1e-3), ("bf16", 2e-2)])
def test_every_methods_step_is_the_eager_one(start, stop, precision, loss):
    """Summed losses, and all weights and statistics after the step; in bf16 about as far from the fp32 step as the eager one."""
    cases = ((Native, precision), (Eager, precision), (Eager, "tf32"))
    found, plain, truth = (after_one_step(kind, start, stop, how) for kind, how in cases)
    for name, ours, theirs, true in zip(registry.names(), found, plain, truth, strict=True):
        assert any(not torch.equal(ours[key], theirs[key]) for key in ours if "running_mean" in key), name  # the operator did run
        for key in (key for key, value in true.items() if value.is_floating_point()):
            if key.startswith("sums."):
                assert ours[key].item() == pytest.approx(theirs[key].item(), rel=loss, abs=1e-5), (name, key)
                continue
            error, rounding, size = ((a - b).double().norm() for a, b in ((ours[key], true[key]), (theirs[key], true[key]), (true[key], 0)))
            # 5e-4: a bias in front of a normalisation has no gradient but what rounding leaves of a large sum.
            assert error <= 3 * rounding + 2e-3 * size + 5e-4, (name, key)


def test_alone_as_in_the_group():
    names = registry.names()
    _, together = trained(Native, names, range(1, 4))
    for name in ("student", "fitnet", "iep"):
        _, alone = trained(Native, [name], range(1, 4))
        assert not unequal(everything(alone[0]), everything(together[names.index(name)])), name


def test_a_resumed_run_is_the_unbroken_one():
    names = ["student", "fitnet", "cc", "skd"]
    _, whole = trained(Native, names, range(1, 5))
    _, first = trained(Native, names, range(1, 3))
    second = [groups.learner(name) for name in names]
    for old, new in zip(first, second, strict=True):
        new.load({k: {n: v.clone() for n, v in part.items()} for k, part in old.state().items()})
    groups.run(groups.engine(Native, second), range(3, 5))
    for name, one, other in zip(names, whole, second, strict=True):
        assert not unequal(everything(one), everything(other)), name


def test_it_is_on_within_its_own_steps_only():
    runner, _ = trained(Native, ["student"], range(1, 2))
    assert not native._on and engine.choose("auto", CPU) is Native and engine.choose("native", CPU) is Native
    seen = []
    runner.learners[0].step = lambda *arguments: seen.append(native._on)
    runner.step(0, BATCH)
    assert seen == [True] and not native._on


def test_where_it_cannot_be_had(monkeypatch, capsys):
    monkeypatch.setattr(native, "reason", lambda: "no C++ compiler here")
    assert engine.choose("auto", CPU) is Eager
    assert capsys.readouterr().out == "engine eager: no C++ compiler here\n"
    with pytest.raises(UsageError, match="engine native cannot be had: no C.. compiler here; use --engine eager"):
        engine.choose("native", CPU)
    with pytest.raises(UsageError, match="is for a CPU"):
        engine.choose("native", torch.device("cuda", 0))
