"""Captured steps on a GPU are the eager ones: every method, both batch shapes, alone and in a group, resumed from one engine to another."""

import pytest
import torch

from bench.data import augment
from bench.train import environment
from bench.train.engine import Eager, Graph, Static, state
from methods import registry
from tests.bench import groups
from tests.bench.groups import everything, unequal

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = torch.device("cuda", 0)
EPOCHS = range(1, 11)  # of five steps, the last a remainder; two milestones
every = pytest.mark.parametrize("name", registry.names())
precisions = pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    environment.configure("tf32", deterministic=True)
    yield
    environment.configure("tf32", deterministic=False)


def together(kind, names, precision="tf32"):
    learners = [groups.learner(name, DEVICE, precision) for name in names]
    return groups.engine(kind, learners, DEVICE, precision), learners


def graphed(runner) -> bool:
    return runner.name == "graph" and len(runner._recordings) == 2


@every
def test_captured_equals_eager_step_by_step(name, capsys):
    (plain, theirs), (graph, ours) = together(Eager, [name]), together(Graph, [name])
    for epoch in EPOCHS:
        for runner in (plain, graph):
            groups.begin(runner, epoch)
        for start, stop in groups.bounds():
            assert plain.step(start, stop) == graph.step(start, stop) == []
            assert not unequal(everything(ours[0]), everything(theirs[0])), (epoch, start)
    assert graphed(graph) and capsys.readouterr().out == ""


@precisions
def test_group_equals_single_and_eager(precision, capsys):
    environment.configure(precision, deterministic=True)
    names = [name for name in registry.names() if registry.get(name).capturable]
    graph, ours = together(Graph, names, precision)
    plain, theirs = together(Eager, names, precision)
    for runner in (graph, plain):
        groups.run(runner, EPOCHS)
    assert graphed(graph) and capsys.readouterr().out == ""
    for name, a, b in zip(names, ours, theirs, strict=True):
        assert not unequal(everything(a), everything(b)), name
        alone, (one,) = together(Graph, [name], precision)
        groups.run(alone, EPOCHS)
        assert graphed(alone) and not unequal(everything(one), everything(a)), name


@pytest.mark.parametrize("kinds", [(Eager, Graph), (Graph, Eager), (Graph, Static)])
def test_resume_across_engines(kinds):
    names = registry.names()
    whole, expected = together(Eager, names)
    groups.run(whole, EPOCHS)
    first, learners = together(kinds[0], names)
    groups.run(first, range(1, 6))
    groups.begin(first, 6)
    for start, stop in groups.bounds()[:2]:
        assert first.step(start, stop) == []
    resumed = [groups.learner(name, DEVICE) for name in names]
    for old, new in zip(learners, resumed, strict=True):
        new.load({k: {n: v.cpu().clone() for n, v in part.items()} for k, part in old.state().items()})
    second = groups.engine(kinds[1], resumed, DEVICE)
    second.begin_epoch(augment.draws(1, 6, len(second.data.train_labels)))
    for one in resumed:
        one.begin_epoch(6)
    for start, stop in groups.bounds()[2:]:
        assert second.step(start, stop) == []
    groups.run(second, range(7, 11))
    for name, a, b in zip(names, resumed, expected, strict=True):
        assert not unequal(everything(a), everything(b)), name


def test_a_learner_that_leaves_is_captured_out(capsys):
    names = ["student", "kd", "fitnet", "at"]
    (plain, theirs), (graph, ours) = together(Eager, names), together(Graph, names)
    for runner, learners in ((plain, theirs), (graph, ours)):
        groups.run(runner, [1, 2])
        runner.drop(learners[1])
        groups.run(runner, [3, 4])
    assert graphed(graph) and capsys.readouterr().out == ""
    for a, b in zip(ours, theirs, strict=True):
        assert not unequal(everything(a), everything(b)), a.run.method


@precisions
def test_captured_equals_eager_with_the_fastest_algorithms(precision, capsys):
    """Without deterministic algorithms the first step of each shape is verified by the engine itself, to its stated tolerance."""
    environment.configure(precision, deterministic=False)
    names = registry.names()
    graph, ours = together(Graph, names, precision)
    groups.run(graph, [1, 2])
    assert graphed(graph) and capsys.readouterr().out == ""
    assert all(one.finite() for one in ours)


def test_epoch_makes_no_host_read():
    graph, _ = together(Graph, registry.names())
    groups.run(graph, [1])
    groups.begin(graph, 2)
    graph.step(*groups.bounds()[0])  # looks at what moved
    torch.cuda.set_sync_debug_mode("error")
    try:
        for start, stop in groups.bounds()[1:]:
            assert graph.step(start, stop) == []
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_that_cannot_be_captured_falls_back(capsys, monkeypatch):
    def losses(self, student, teacher, batch):
        found = original(self, student, teacher, batch)
        return {name: value * float(value.detach() > -1) for name, value in found.items()}

    original = registry.get("kd").losses
    monkeypatch.setattr(registry.get("kd"), "losses", losses)
    (plain, theirs), (graph, ours) = together(Eager, ["kd", "student"]), together(Graph, ["kd", "student"])
    for runner in (plain, graph):
        groups.run(runner, [1, 2])
    assert "recording failed" in capsys.readouterr().out and graph.name == "eager"
    for a, b in zip(ours, theirs, strict=True):
        assert not unequal(everything(a), everything(b)), a.run.method


def test_memory_does_not_grow_with_recordings():
    graph, learners = together(Graph, ["student", "kd", "at"])
    seen = []
    for epoch in range(1, 7):
        groups.run(graph, [epoch])
        graph._forget()
        torch.cuda.empty_cache()
        seen.append(torch.cuda.memory_reserved(DEVICE))
    assert seen[-1] <= seen[1] * 1.05
    assert state.addresses(learners)
