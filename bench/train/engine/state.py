"""A learner's state as tensors that stay in place: taken, put back, and compared between two ways of making the same step."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bench.train.learner import Learner

TOLERANCE = {"fp32": 0.02, "tf32": 0.02, "bf16": 0.1}
"""How far a replayed step may be from the eager one, relative to what the step changes (norms, tensor by tensor). Kernels that add in no
fixed order differ by far less; a step that reads a stale buffer or misses an operator differs by about 1. Deterministic mode: equal bits."""
_FLOOR = 1e-3
"""The same for a tensor that the step hardly changes, relative to what it changes in all tensors of that kind: rounding noise."""

State = dict[tuple[str, str], Tensor]  # (kind, name)


def tensors(learner: Learner) -> State:
    """Everything a step may change: parameters, buffers, momenta and sums, the tensors themselves."""
    found: State = {}
    for part, module in (("student", learner.student), ("method", learner.method)):
        found |= {("parameter", f"{part}.{name}"): p.data for name, p in module.named_parameters()}
        found |= {("buffer", f"{part}.{name}"): b for name, b in module.named_buffers()}
    for i, p in enumerate(learner.parameters):
        if (momentum := learner.optimizer.state[p].get("momentum_buffer")) is not None:
            found["momentum", str(i)] = momentum
    return found | {("sum", name): value for name, value in learner.sums.items()}


def addresses(learners: Sequence[Learner]) -> tuple[int, ...]:
    """Where the state lies in memory: a captured step is valid as long as nothing moves."""
    return tuple(t.data_ptr() for learner in learners for t in tensors(learner).values())


def take(learners: Sequence[Learner]) -> list[State]:
    """A copy of the learners' state."""
    return [{name: t.detach().clone() for name, t in tensors(learner).items()} for learner in learners]


@torch.no_grad()
def put_back(learners: Sequence[Learner], states: Sequence[State]) -> None:
    """Make the learners' state that of `states`, in place; sums that came since start at 0, gradients are forgotten."""
    for learner, state in zip(learners, states, strict=True):
        learner.optimizer.zero_grad(set_to_none=True)
        for name, tensor in tensors(learner).items():
            if name in state:
                tensor.copy_(state[name])
            else:
                tensor.zero_()


def difference(before: State, expected: State, found: State, precision: str) -> str | None:
    """What tells two outcomes of one step apart, in words; None where they agree. Not finite where the other is not either agrees.

    With deterministic algorithms bit by bit, otherwise within TOLERANCE.
    """
    if missing := expected.keys() ^ found.keys():
        return f"{' '.join(sorted(missing)[0])} is on one side only"
    if torch.are_deterministic_algorithms_enabled():
        return next((f"{' '.join(n)} differs" for n, t in expected.items() if not torch.equal(t.nan_to_num(), found[n].nan_to_num())), None)
    changes = {n: _norm(t - before[n] if n in before else t) for n, t in expected.items() if t.is_floating_point()}
    totals = _totals(changes)
    for name, t in expected.items():
        if not t.is_floating_point():
            if not torch.equal(t, found[name]):
                return f"{' '.join(name)} differs"
            continue
        allowed = TOLERANCE[precision] * changes[name] + _FLOOR * totals[name[0]]
        if name == ("sum", "correct"):
            allowed += 1.0  # an image between two classes
        if (far := _norm(found[name] - t)) > allowed:
            return f"{' '.join(name)} is {far:.3g} away, {allowed:.3g} is allowed"
    return None


def _norm(t: Tensor) -> float:
    return torch.linalg.vector_norm(t.double().nan_to_num(0.0, 0.0, 0.0)).item()


def _totals(changes: Mapping[tuple[str, str], float]) -> dict[str, float]:
    kinds: dict[str, list[float]] = {}
    for (kind, _), value in changes.items():
        kinds.setdefault(kind, []).append(value)
    return {kind: math.hypot(*values) for kind, values in kinds.items()}
