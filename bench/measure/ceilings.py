"""What a device can do at most, measured, and what a training step asks of it, counted: the two sides of a roofline."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import models
from bench.measure import meters

PASSES = {"student": 3.0, "teacher": 1.0}
"""Forward passes' worth of arithmetic: backward costs two."""
ACCESSES = {"student": 22.0, "teacher": 9.0}
"""Reads and writes of memory for each value that a convolution puts out, in a training step and a forward pass of unfused layers."""


def measure(device: torch.device, precision: str, quick: bool = False) -> dict[str, float]:
    """Copy bandwidth in bytes a second (read and written) and arithmetic in FLOP a second, the best of several tries.

    Arithmetic: a large matrix product or a 3x3 convolution of 128 channels, whichever is faster; they come from different libraries.
    `tf32` multiplies with TF32 where the device has it, as convolutions do under that name.
    """
    on_gpu = device.type == "cuda"
    tries = 3 if quick else 10
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    g = torch.Generator(device).manual_seed(0)  # zeros and ones switch fewer bits, and a GPU then computes faster than it can in training
    source = torch.randint(256, (2**28 if on_gpu else 2**25,), generator=g, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    size, images = (8192, 1024) if on_gpu else (512, 8) if quick else (1024, 32)
    a, b = (torch.randn(size, size, generator=g, device=device, dtype=dtype) for _ in range(2))
    shapes = ((images, 128, 16, 16), (128, 128, 3, 3))
    maps, kernel = (torch.randn(s, generator=g, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last) for s in shapes)
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [setting.allow_tf32 for setting in settings]
    try:
        for setting in settings:
            setting.allow_tf32 = precision != "fp32"
        copy = _best(lambda: target.copy_(source), device, tries)
        product = 2 * size**3 / _best(lambda: a @ b, device, tries)
        convolution = 2 * maps.numel() * kernel[0].numel() / _best(lambda: F.conv2d(maps, kernel, padding=1), device, tries)
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.allow_tf32 = value
    return {"bytes_per_second": 2 * source.numel() / copy, "flop_per_second": max(product, convolution)}


def _best(action, device: torch.device, tries: int) -> float:
    """The shortest of several times, in seconds, after one that does not count."""
    return min(meters.timed(action, tries + 1, device)[1:]) / 1000


def conv_outputs(name: str) -> int:
    """Values that a network's convolutions put out for one image of 32 x 32 pixels."""
    return models.counted(name, lambda layer, output: output.numel() * isinstance(layer, nn.Conv2d))


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
    return f"measured ceilings: copies {bandwidth / 1e9:.1f} GB/s; arithmetic {', '.join(parts)}"
