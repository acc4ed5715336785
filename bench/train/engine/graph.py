"""Whole-step CUDA graphs: gather, augmentation, the shared teacher pass and every learner's forward, backward and update, launched at once.

Each learner has a stream of its own that forks from the capturing one and joins it again, so that small kernels of several students
overlap. What a step leaves behind (weights, buffers, momenta, sums) lies outside the graphs; all else, gradients too, is in a memory
pool that the graphs of both batch shapes share, since they never run at the same time and hand nothing to each other.
"""

import contextlib
import gc
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from bench.data.augment import Augmenter
from bench.train.engine.eager import DeviceLost, Failures, Shared, is_lost
from bench.train.engine.static import Recorded, Static
from bench.train.learner import Learner


class Graph(Static):
    """Captures what Static calls. CUDA only."""

    name = "graph"

    def __init__(self, data: Augmenter, teacher: nn.Module | None, learners: Sequence[Learner], precision: str) -> None:
        super().__init__(data, teacher, learners, precision)
        self.device = data.device
        self._stream = torch.cuda.Stream(self.device)
        self._streams = {learner: torch.cuda.Stream(self.device) for learner in self.learners}
        self._pool = torch.cuda.graph_pool_handle()

    def _work(self, index: Tensor, learners: Sequence[Learner], start: int) -> tuple[Shared, Failures]:
        shared = self.shared(index)
        main = torch.cuda.current_stream(self.device)
        failed = []
        for learner in learners:
            stream = self._streams[learner]
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                try:
                    learner.step(shared.images, shared.teacher if learner.teacher_needs else None, shared.batch, start)
                except Exception as error:  # a stranger's method may raise anything: the others go on
                    if torch.cuda.is_current_stream_capturing():  # nothing more can be captured, and what tries hides the reason
                        raise RuntimeError(f"{learner.run.method}: {error}") from error
                    if is_lost(error, self.device):
                        raise DeviceLost(str(error)) from error
                    failed.append((learner, error))
        # The shared tensors are the main stream's: they are held until every reader has joined it.
        for learner in learners:
            main.wait_stream(self._streams[learner])
        return shared, failed

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """On the engine's own stream, after what the current one has to do and before what it does next."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def _trial(self, index: Tensor, learners: Sequence[Learner], start: int) -> Failures:
        # The streams of the capture, so that libraries have handles and work space for them.
        with self._aside():
            return super()._trial(index, learners, start)

    def _record(self, index: Tensor, learners: Sequence[Learner], start: int) -> Recorded:
        for learner in learners:  # gradients of the step are allocated in the pool, anew in each graph
            learner.optimizer.zero_grad(set_to_none=True)
        gc.collect()  # autograd nodes of steps before would bring their streams into the capture
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        broke = None
        try:
            # A capture that fails leaves its stream the current one.
            with torch.cuda.device(self.device), torch.cuda.stream(current), _own_streams_only():
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    try:
                        shared, _ = self._work(index, learners, start)
                    except Exception as error:
                        broke = error
                        raise
        except Exception as error:
            broke = broke or error  # the end of a broken capture raises an error of its own, which says nothing
        if broke is not None:
            raise broke
        others = len(learners) < len(self.learners)
        return Recorded(graph.replay, shared if others else None)

    def _replay(self, recorded: Recorded) -> None:
        try:
            recorded.replay()
        except RuntimeError as error:
            if is_lost(error, self.device):
                raise DeviceLost(str(error)) from error
            raise

    def drop(self, learner: Learner) -> None:
        learner.optimizer.zero_grad(set_to_none=True)  # its gradients lie in the pool that goes
        super().drop(learner)
        self._streams.pop(learner, None)

    def _forget(self) -> None:
        if not self._recordings:
            return
        torch.cuda.synchronize(self.device)  # no graph goes while it runs
        super()._forget()
        for learner in self.learners:
            learner.optimizer.zero_grad(set_to_none=True)
        # A pool whose graphs are gone cannot be captured into again.
        self._pool = torch.cuda.graph_pool_handle()


@contextlib.contextmanager
def _own_streams_only() -> Iterator[None]:
    """Gradients that autograd would accumulate on the stream of an earlier step are accumulated on the capturing one (torch that can)."""
    switch = getattr(torch.autograd.graph, "set_override_stale_capture_stream", None)
    if switch is None:
        yield
        return
    switch(True)
    try:
        yield
    finally:
        switch(False)
