"""Engines: how a group's step is executed. Every engine gives the eager numbers; which one ran is recorded, not part of a run's identity.

`eager`: one operator after another. `graph`: the whole step captured as a CUDA graph, the learners on streams of their own.
`static`: the graph engine's path (fixed buffers, trial steps, verification) with plain calls in place of replays, on any device.
"""

import torch

from bench.engine.eager import DeviceLost, Eager, is_lost
from bench.engine.graph import Graph
from bench.engine.static import Static
from bench.protocol import UsageError, unknown

__all__ = ["NAMES", "DeviceLost", "Eager", "Graph", "Static", "choose", "is_lost"]

_ENGINES = {engine.name: engine for engine in (Eager, Static, Graph)}
NAMES = tuple(_ENGINES)


def choose(name: str, device: torch.device) -> type[Eager]:
    """The engine of that name; `auto` is the fastest that is exact on the device: graph on CUDA, eager elsewhere. Raises UsageError."""
    if name == "auto":
        return Graph if device.type == "cuda" else Eager
    if name not in _ENGINES:
        raise unknown("engine", name, ["auto", *NAMES])
    if name == Graph.name and device.type != "cuda":
        raise UsageError(f"engine graph needs a CUDA device and this one is {device.type}; use --engine auto")
    return _ENGINES[name]
