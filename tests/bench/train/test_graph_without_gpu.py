"""The graph engine's own code on a CPU, with streams that only take notes and tapes in place of graphs.

What it cannot show is CUDA itself (tests/gpu/test_graph.py): here, that streams fork and join as they must, that a recording changes
nothing, and that batch shapes, learners that leave and failures go through the engine's own path.
"""

import contextlib
import gc
import weakref

import pytest
import torch

from bench.train.engine import DeviceLost, Eager, Graph, eager, is_lost, is_short_of_memory, state
from methods import registry
from tests.bench import groups
from tests.bench.groups import BATCH, everything, unequal
from tests.bench.tape import Tape


class FakeCuda:
    """Streams with an order of events, and graphs that are tapes. `notes`: (what, stream, other stream)."""

    def __init__(self) -> None:
        self.notes: list[tuple] = []
        self.capturing = False
        self.learners: list = []
        self.pools = self.graphs = 0
        fake = self

        class Stream:
            def __init__(self, device=None) -> None:
                self.number = len(fake.streams)
                fake.streams.append(self)

            def wait_stream(self, other) -> None:
                fake.notes.append(("wait", self.number, other.number))

        class CUDAGraph:
            def __init__(self) -> None:
                fake.graphs += 1

            def replay(self) -> None:
                fake.notes.append(("replay", fake.current.number))
                self.tape.replay()

        self.Stream, self.CUDAGraph = Stream, CUDAGraph
        self.streams: list = []
        self.current = Stream()  # the default stream

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph, pool, stream):
        assert pool == self.pools and all(p.grad is None for one in self.learners for p in one.parameters)
        before = state.take(self.learners)
        self.notes.append(("capture", stream.number))
        self.capturing = True
        try:
            with self.stream(stream), Tape() as graph.tape:
                yield
        finally:
            self.capturing = False
            self.notes.append(("captured", stream.number))
            state.put_back(self.learners, before)

    def graph_pool_handle(self) -> int:
        self.pools += 1
        return self.pools


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    for name in ("Stream", "CUDAGraph", "stream", "graph", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: fake.current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: fake.capturing)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    torch.use_deterministic_algorithms(True)
    yield fake
    torch.use_deterministic_algorithms(False)


def graphed(cuda, names):
    cuda.learners = [groups.learner(name) for name in names]
    return groups.engine(Graph, cuda.learners), cuda.learners


def test_graphs_of_both_shapes_give_the_eager_numbers(cuda):
    names = registry.names()
    runner, ours = graphed(cuda, names)
    plain = [groups.learner(name) for name in names]
    groups.run(groups.engine(Eager, plain), [1, 2])
    groups.run(runner, [1, 2])
    assert runner.name == "graph" and cuda.graphs == 2 and cuda.pools == 1
    for one, other in zip(ours, plain, strict=True):
        assert not unequal(everything(one), everything(other)), one.run.method
    assert [n for n in cuda.notes if n[0] == "replay"] == [("replay", 0)] * 10


def test_streams_fork_from_the_capturing_one_and_join_it(cuda):
    runner, ours = graphed(cuda, ["student", "kd", "at"])
    own = [runner._streams[one].number for one in ours]
    main = runner._stream.number
    assert len({0, main, *own}) == 5
    groups.begin(runner, 1)
    runner.step(0, BATCH)
    start, end = cuda.notes.index(("capture", main)), cuda.notes.index(("captured", main))
    assert cuda.notes[start + 1 : end] == [*(("wait", s, main) for s in own), *(("wait", main, s) for s in own)]
    trials = cuda.notes[:start]
    assert trials[0] == ("wait", main, 0) and trials[-1] == ("wait", 0, main)  # after what came before, before what comes next


def test_a_learner_that_leaves_gets_new_graphs_in_a_new_pool(cuda):
    runner, ours = graphed(cuda, ["student", "kd", "fitnet"])
    plain = [groups.learner(one.run.method) for one in ours]
    groups.run(runner, [1])
    runner.drop(ours[1])
    cuda.learners = [ours[0], ours[2]]
    groups.run(runner, [2])
    other = groups.engine(Eager, plain)
    groups.run(other, [1])
    other.drop(plain[1])
    groups.run(other, [2])
    assert cuda.graphs == 4 and cuda.pools == 2 and runner.name == "graph"
    for a, b in zip(ours, plain, strict=True):
        assert not unequal(everything(a), everything(b)), a.run.method


def test_capture_that_fails_ends_in_eager_steps(cuda, monkeypatch, capsys):
    runner, (one, other) = graphed(cuda, ["kd", "student"])
    step = one.step

    def refuses(*arguments):
        if cuda.capturing:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        step(*arguments)

    one.step = refuses
    plain = [groups.learner("kd"), groups.learner("student")]
    groups.run(runner, [1])
    groups.run(groups.engine(Eager, plain), [1])
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "recording failed: kd: CUDA error: operation not permitted" in said
    assert runner.ran(one) == runner.ran(other) == "eager"
    assert not unequal(everything(one), everything(plain[0])) and not unequal(everything(other), everything(plain[1]))


@pytest.mark.parametrize(
    ("error", "short", "lost"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True, False),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
    ],
)
def test_a_library_without_memory_is_no_lost_device(error, short, lost, monkeypatch):
    here = torch.device("cpu")
    assert (is_short_of_memory(error), is_lost(error, here)) == (short, False)  # this one computes on: the learner is at fault
    monkeypatch.setattr(eager, "answers", lambda device: False)
    assert (is_short_of_memory(error), is_lost(error, here)) == (short, lost)


def test_a_device_that_computes_on_is_not_lost(cuda, monkeypatch):
    """One method's bad launch fails that method; the others go on."""
    runner, (one, other) = graphed(cuda, ["kd", "student"])
    groups.begin(runner, 1)

    def refused(*arguments):
        raise RuntimeError("CUDA error: invalid configuration argument")

    monkeypatch.setattr(one, "step", refused)
    ((failed, error),) = runner.step(0, BATCH)
    assert failed is one and "invalid configuration" in str(error)
    runner.drop(one)
    groups.begin(runner, 1)
    assert runner.step(0, BATCH) == [] and runner.ran(other) == "graph"


def test_a_learner_that_leaves_takes_its_memory_along(cuda):
    runner, ours = graphed(cuda, ["student", "kd"])
    groups.run(runner, [1])
    gone = weakref.ref(ours[1])
    runner.drop(ours[1])
    cuda.learners = ours[:1]
    del ours[1:]
    gc.collect()
    assert gone() is None


def test_the_error_that_broke_a_capture_is_told_and_not_that_of_its_end(cuda, monkeypatch, capsys):
    """Whatever the capture's end raises; and the stream that was the current one is it again."""
    runner, learners = graphed(cuda, ["student", "kd", "at"])
    whole = torch.cuda.graph

    @contextlib.contextmanager
    def ends_badly(*arguments, **named):
        try:
            with whole(*arguments, **named):
                yield
        except RuntimeError:
            cuda.current = runner._stream  # as torch leaves it
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture") from None

    def refuses(*arguments):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    step, tried = learners[1].step, []
    monkeypatch.setattr(learners[1], "step", lambda *a: refuses() if cuda.capturing else step(*a))
    monkeypatch.setattr(learners[2], "step", lambda *a, own=learners[2].step: (tried.append(cuda.capturing), own(*a)))
    monkeypatch.setattr(torch.cuda, "graph", ends_badly)
    groups.run(runner, [1])
    said = capsys.readouterr().out
    assert "recording failed: kd: CUDA error: operation not permitted" in said and "previous error" not in said
    assert True not in tried and cuda.current.number == 0  # nothing is captured after it


def test_a_device_that_is_gone_ends_the_group(cuda, monkeypatch):
    runner, (one,) = graphed(cuda, ["kd"])
    groups.begin(runner, 1)

    def gone(*arguments):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(one, "step", gone)
    monkeypatch.setattr(eager, "answers", lambda device: False)
    with pytest.raises(DeviceLost):
        runner.step(0, BATCH)
    monkeypatch.undo()


def test_a_replay_on_a_lost_device_ends_the_group(cuda, monkeypatch):
    runner, _ = graphed(cuda, ["student"])
    groups.begin(runner, 1)
    runner.step(0, BATCH)

    def gone():
        raise RuntimeError("CUDA error: unspecified launch failure")

    runner._recordings[BATCH].replay = gone
    with monkeypatch.context() as patched, pytest.raises(DeviceLost):
        patched.setattr(eager, "answers", lambda device: False)
        runner.step(BATCH, 2 * BATCH)
    with pytest.raises(RuntimeError, match="unspecified launch failure") as raised:
        runner.step(BATCH, 2 * BATCH)
    assert not isinstance(raised.value, DeviceLost)
