"""Instruments of a cost probe: the time of a step, whether that time can be trusted, and peak memory."""

import contextlib
import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.data.augment import draws
from bench.errors import UsageError
from bench.train.engine import Eager
from bench.train.environment import high_water, reset_high_water

SEED = 1
TURN = {"cpu": 2, "cuda": 10}
"""Steps of one before the other's turn."""
BUSY = 0.8
"""CPU time over the clock below which something else had the core. A step computes all the time, so a quiet machine shows about 1, or more
with several threads; a neighbour on the same core shows 0.5. Several threads hide a neighbour on one of them."""
SPREAD = 0.15
"""Distance of the quartiles over the median above which figures are unsteady. The kept sets of costs show 0.03 to 0.14 where unmarked;
from 0.15 on the median of thirty rounds is uncertain by more than 0.025 of itself (1.25 standard deviations over the root of their number,
1.35 of them between quartiles)."""
clock, cpu_time = time.perf_counter, time.process_time


class Steps:
    """Training steps of a runner over full batches of the epochs' orders, one after the other; the remainder of an epoch is left out, a step
    being one batch."""

    def __init__(self, runner: Eager, count: int, batch: int) -> None:
        if count < batch:
            raise UsageError(f"a probe needs a full batch of {batch} images, the training set has {count}")
        self.runner, self.count, self.batch = runner, count, batch
        self.epoch, self.start = 0, count

    def __call__(self) -> None:
        if self.start + self.batch > self.count:
            self.epoch, self.start = self.epoch + 1, 0
            self.runner.begin_epoch(draws(SEED, self.epoch, self.count))
        start, self.start = self.start, self.start + self.batch
        for _, error in self.runner.step(start, self.start):
            raise error


@dataclass(frozen=True)
class Turns:
    """Times of steps that took turns, in ms: `steps` each one, `rounds` the median of each turn. `busy`: CPU time over the clock; None on CUDA."""

    steps: dict[str, list[float]]
    rounds: dict[str, list[float]]
    busy: float | None

    def ratios(self, of: str, to: str) -> list[float]:
        """Within each round, `of` over `to`."""
        return [a / b for a, b in zip(self.rounds[of], self.rounds[to], strict=True)]

    def noisy(self, values: Sequence[float], what: str) -> str:
        """Why these figures are not to be trusted, or an empty text."""
        first, median, third = quartiles(values)
        reasons = []
        if self.busy is not None and self.busy < BUSY:
            reasons.append(f"CPU time was {self.busy:.2f} of the clock's (something else ran)")
        if third - first > SPREAD * median:
            reasons.append(f"the quartiles of the {what} are {(third - first) / median:.0%} of the median apart")
        return ", and ".join(reasons)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    first, median, third = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return first, median, third


def in_turns(steps: Mapping[str, Callable[[], None]], count: int, device: torch.device) -> Turns:
    """Time `count` steps of each, a few at a time, in an order that is turned round from one round to the next."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    rounds: dict[str, list[float]] = {name: [] for name in steps}
    names, turn = list(steps), TURN[device.type]
    busy = waited = 0.0
    for number, done in enumerate(range(0, count, turn)):
        for name in names if number % 2 else reversed(names):
            spent, began = cpu_time(), clock()
            found = timed(steps[name], min(turn, count - done), device)
            busy, waited = busy + cpu_time() - spent, waited + clock() - began
            times[name] += found
            rounds[name].append(statistics.median(found))
    return Turns(times, rounds, None if device.type == "cuda" else busy / waited)


def timed(step: Callable[[], None], steps: int, device: torch.device) -> list[float]:
    """Milliseconds of each step: by events on CUDA, where the host runs ahead, by the clock elsewhere."""
    if device.type == "cuda":
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        torch.cuda.synchronize(device)
        stream = torch.cuda.current_stream(device)  # an event asked for no stream is the current device's
        marks[0].record(stream)
        for mark in marks[1:]:
            step()
            mark.record(stream)
        torch.cuda.synchronize(device)
        return [a.elapsed_time(b) for a, b in zip(marks, marks[1:], strict=False)]
    times = []
    for _ in range(steps):
        began = clock()
        step()
        times.append(1000 * (clock() - began))
    return times


class Memory:
    """Peak memory of a step, taken over steps that are not captured, since a captured step's pool does not show its peak. CUDA: what
    torch's allocator held, CPU: the process's high-water mark; both above what was used before the networks were made, the data set."""

    def __init__(self, device: torch.device, images) -> None:
        self.device = device
        gc.collect()
        self.data = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        _first_use(images, device)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            self.base = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            return
        _give_back_freed(1 << 20)
        self.base = reset_high_water()

    def restart(self) -> None:
        """Forget the peak of the steps before (CUDA)."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peaks(self) -> dict[str, Any]:
        """After the steps that count."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) - self.base
            return {"peak_memory_bytes": peak, "peak_memory_kind": "allocated above baseline", "data_bytes": self.data}
        peak = max(0, high_water() - self.base)
        _give_back_freed(32 << 20)
        return {"peak_memory_bytes": peak, "peak_memory_kind": "process high-water above baseline"}

    def end(self) -> dict[str, Any]:
        """After all steps: what the allocator reserved, with a captured step's own pool."""
        return {"peak_reserved_bytes": torch.cuda.memory_reserved(self.device)} if self.device.type == "cuda" else {}


def _give_back_freed(threshold: int) -> None:
    """Have glibc map allocations from `threshold` bytes on by themselves and return freed memory at once; nothing with another libc.

    A low threshold makes the high-water mark that of live tensors, where fragments of the heap move it by a tenth from one process to
    the next. 32 MiB is what glibc arrives at by itself in training: steps are timed with that.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        trim, mapped = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(trim, 2 * threshold)
        libc.mallopt(mapped, threshold)
        libc.malloc_trim(0)


def _first_use(images, device: torch.device) -> None:
    """One tiny step, so that what torch sets up once in a process is in the baseline and not in the method's memory: its libraries, and on CUDA
    the work space that cuBLAS keeps for each thread that multiplies matrices, tens of MiB."""
    index = torch.arange(2, device=device)
    zeros = torch.zeros(2, dtype=torch.int64, device=device)
    x = images.train_batch(index, zeros, zeros, zeros.bool())
    layers = nn.Sequential(nn.Conv2d(x.shape[1], 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 8))
    layers = layers.to(device, memory_format=torch.channels_last)
    nn.functional.cross_entropy(layers(x), zeros).backward()
    torch.optim.SGD(layers.parameters(), lr=0.1, momentum=0.9, fused=True).step()
