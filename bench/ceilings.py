"""What a device can do at most, measured, and what a training step asks of it, counted: the two sides of a roofline."""

import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

import models

PASSES = {"student": 3.0, "teacher": 1.0}
"""Forward passes' worth of arithmetic: backward costs two."""
ACCESSES = {"student": 22.0, "teacher": 9.0}
"""Reads and writes of memory for each value that a convolution puts out, in a training step and a forward pass of unfused layers."""


def measure(device: torch.device, precision: str, quick: bool = False) -> dict[str, float]:
    """Copy bandwidth in bytes a second (read and written) and matrix rate in FLOP a second, the best of several tries.

    `tf32` multiplies with TF32 where the device has it, as convolutions do under that name.
    """
    on_gpu = device.type == "cuda"
    source = torch.zeros(2**28 if on_gpu else 2**25, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    size = 8192 if on_gpu else 512 if quick else 1024
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    b = torch.ones_like(a)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    try:
        copy = _best(lambda: target.copy_(source), device, 3 if quick else 10)
        product = _best(lambda: a @ b, device, 3 if quick else 10)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return {"bytes_per_second": 2 * source.numel() / copy, "flop_per_second": 2 * size**3 / product}


def _best(action, device: torch.device, tries: int) -> float:
    """The shortest of several times, in seconds, after one that does not count."""
    action()
    found = math.inf
    for _ in range(tries):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            action()
            end.record()
            torch.cuda.synchronize(device)
            found = min(found, start.elapsed_time(end) / 1000)
        else:
            began = time.perf_counter()
            action()
            found = min(found, time.perf_counter() - began)
    return found


@functools.cache
def conv_outputs(name: str) -> int:
    """Values that a network's convolutions put out for one image of 32 x 32 pixels."""
    total = 0

    def count(layer: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel()

    with torch.device("meta"), torch.no_grad():
        network = models.build(name).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        network(torch.empty(1, 3, 32, 32))
    return total


def work(teacher: str | None, students: Sequence[str], batch: int, precision: str) -> dict[str, float]:
    """FLOP and bytes of a step, estimated from the networks alone: losses, optimiser and augmentation are not counted, nor are caches."""
    networks = [("student", name) for name in students] + ([("teacher", teacher)] if teacher else [])
    size = 2 if precision == "bf16" else 4
    flop = sum(PASSES[part] * 2 * models.macs(name) for part, name in networks)
    moved = sum(ACCESSES[part] * conv_outputs(name) * size for part, name in networks)
    return {"flop": batch * flop, "bytes": batch * moved}


def fraction(row: Mapping[str, Any], ceiling: Mapping[str, float]) -> float:
    """The time that the nearer roof allows over the time measured."""
    least = max(row["flop"] / ceiling["flop_per_second"], row["bytes"] / ceiling["bytes_per_second"])
    return 1000 * least / row["step_ms_median"]


def describe(ceiling: Mapping[str, Mapping[str, float]]) -> str:
    """The ceilings for people."""
    parts = [f"{p} {c['flop_per_second'] / 1e12:.2f} TFLOP/s" for p, c in ceiling.items()]
    bandwidth = max(c["bytes_per_second"] for c in ceiling.values())
    return f"measured ceilings: copies {bandwidth / 1e9:.1f} GB/s; products {', '.join(parts)}"
