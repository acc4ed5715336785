"""A CUDA graph's likeness on a CPU: operators are recorded with the memory they read and write, and replayed without any Python code.

As in a graph, Python numbers of the recording stay what they were, and whatever the step did outside of tensors happens no more.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.train.engine import Static, state
from bench.train.engine.static import Recorded
from bench.train.learner import Learner


class Tape(TorchDispatchMode):
    """Records every operator that runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, _tensors(result)))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """The same operators on the same memory."""
        for func, args, kwargs, results in self.calls:
            for kept, new in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                if kept.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    kept.copy_(new)


def _tensors(tree: Any) -> list[Tensor]:
    return [tree] if isinstance(tree, Tensor) else [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Taped(Static):
    """The engine that replays tapes."""

    name = "taped"

    def _record(self, index: Tensor, learners: Sequence[Learner], start: int) -> Recorded:
        before = state.take(learners)
        with Tape() as tape:
            shared, failed = self._work(index, learners, start)
        state.put_back(learners, before)  # a graph's capture changes nothing
        for _, error in failed:
            raise error
        return Recorded(tape.replay, shared)
