"""Engines: how a group's step is executed. Every engine gives the eager numbers; which one ran is recorded, not part of a run's identity.

`eager`: one operator of torch after another. `native`: the same on a CPU with one compiled operator for normalisation and what stands
behind it, equal but for rounding. `graph`: the whole step captured as a CUDA graph, the learners on streams of their own.
`static`: the graph engine's path (fixed buffers, trial steps, verification) with plain calls in place of replays, on any device.
"""

import torch

from bench.errors import UsageError, check_known
from bench.train.engine.eager import DeviceLost, Eager, Failures, Native, is_lost, is_of_device, is_short_of_memory
from bench.train.engine.graph import Graph
from bench.train.engine.static import Static
from models import native

__all__ = ["NAMES", "DeviceLost", "Eager", "Failures", "Graph", "Native", "Static", "choose", "is_lost", "is_of_device", "is_short_of_memory"]

_ENGINES = {engine.name: engine for engine in (Eager, Native, Static, Graph)}
NAMES = tuple(_ENGINES)


def choose(name: str, device: torch.device) -> type[Eager]:
    """The engine of that name; `auto` is the fastest that is exact on the device. Raises UsageError for one that cannot be had here.

    `auto` is graph on CUDA; elsewhere native where its operator can be compiled, else eager, with one line that says why.
    """
    if name == "auto":
        if device.type == "cuda":
            return Graph
        if why := native.reason():
            print(f"engine eager: {why}", flush=True)
        return Eager if why else Native
    check_known("engine", name, ["auto", *NAMES])
    if name == Graph.name and device.type != "cuda":
        raise UsageError(f"engine graph needs a CUDA device and this one is {device.type}; use --engine auto")
    if name == Native.name:
        if device.type != "cpu":
            raise UsageError(f"engine native is for a CPU and this device is {device.type}; use --engine auto")
        if why := native.reason():
            raise UsageError(f"engine native cannot be had: {why}; use --engine eager")
    return _ENGINES[name]
