"""Instruments of a cost probe: the time of a step and its peak memory."""

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench.train.memory import high_water, reset_high_water


def timed(step: Callable[[], None], steps: int, device: torch.device) -> list[float]:
    """Milliseconds of each step: by events on CUDA, where the host runs ahead, by the clock elsewhere."""
    if device.type == "cuda":
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        torch.cuda.synchronize(device)
        marks[0].record()
        for mark in marks[1:]:
            step()
            mark.record()
        torch.cuda.synchronize(device)
        return [a.elapsed_time(b) for a, b in zip(marks, marks[1:], strict=False)]
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - began))
    return times


class Memory:
    """Peak memory of a step, taken over steps that are not captured, since a captured step's pool does not show its peak. CUDA: what
    torch's allocator held, the data set included (given beside it). CPU: the process's high-water mark above what it used before the
    networks were made."""

    def __init__(self, device: torch.device, images) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            self.base = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            return
        _first_use(images)
        gc.collect()
        _give_back_freed(1 << 20)
        self.base = reset_high_water()

    def restart(self) -> None:
        """Forget the peak of the steps before (CUDA)."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peaks(self) -> dict[str, Any]:
        """After the steps that count."""
        if self.device.type == "cuda":
            return {"peak_memory_bytes": torch.cuda.max_memory_allocated(self.device), "peak_memory_kind": "allocated", "data_bytes": self.base}
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


def _first_use(images) -> None:
    """One tiny step, so that what torch sets up once in a process is in the baseline and not in the method's memory."""
    index = torch.arange(2)
    zeros = torch.zeros(2, dtype=torch.int64)
    x = images.train_batch(index, zeros, zeros, zeros.bool())
    layer = nn.Conv2d(x.shape[1], 2, 3).to(memory_format=torch.channels_last)
    nn.functional.cross_entropy(layer(x).mean((2, 3)), zeros).backward()
    torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, fused=True).step()
