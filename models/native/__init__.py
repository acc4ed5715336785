"""Batch normalisation, the residual sum and ReLU as one operator on the CPU (operator.cpp), compiled once per machine where a C++ compiler is.

Off by default: the networks use torch's operators outside `switched_on()`. Its numbers are theirs but for rounding, and do not depend on
the number of threads.
"""

import contextlib
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOURCE = Path(__file__).with_name("operator.cpp")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=c++20", "-shared", "-fPIC", "-fopenmp")
BUILD_LIMIT = 600  # seconds

_on = False


class NativeError(RuntimeError):
    """The operator cannot be had here; the message is one line that says why."""


@contextlib.contextmanager
def switched_on() -> Iterator[None]:
    """Within it, the networks' training-mode normalisations on the CPU run as one operator. Raises NativeError where it cannot be had."""
    global _on
    if found := reason():
        raise NativeError(found)
    before, _on = _on, True
    try:
        yield
    finally:
        _on = before


def normalised(norm: nn.Module, x: Tensor, add: Tensor | None = None, relu: bool = True) -> Tensor:
    """norm(x), plus `add`, through ReLU: all (B, C, H, W). `norm`: a BatchNorm2d, or the Identity that folding leaves in its place."""
    if _on and norm.training and isinstance(norm, nn.BatchNorm2d):
        norm.num_batches_tracked.add_(1)
        return _operator(norm, x, add, relu)
    out = norm(x)
    if add is not None:
        out = out.add_(add)
    return F.relu(out, inplace=True) if relu else out


def _operator(norm: nn.BatchNorm2d, x: Tensor, add: Tensor | None, relu: bool) -> Tensor:
    n = norm
    return torch.ops.kd_bench.normalise(x, add, n.weight, n.bias, n.running_mean, n.running_var, n.momentum, n.eps, relu)


@functools.cache
def reason() -> str | None:
    """None where the operator is loaded (compiled first where need be: some 20 s, once per machine), else why it cannot be had."""
    try:
        _load()
        _check()
    except NativeError as error:
        return str(error)
    return None


def _load() -> None:
    compiler = shlex.split(os.environ.get("CXX") or "c++")  # it may have words before or behind it, as in "ccache g++ -m64"
    if not compiler or shutil.which(compiler[0]) is None:
        raise NativeError("no C++ compiler for the CPU's operator (c++, or the one that CXX names)")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "kd-bench"
    library = folder / f"native-{_key(compiler)}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(library.with_suffix(".lock"), timeout=BUILD_LIMIT):
            if not library.exists():
                _build(compiler, library)
        torch.ops.load_library(str(library))
    except OSError as error:  # filelock's Timeout is one
        raise NativeError(f"the CPU's operator cannot be kept or loaded: {' '.join(str(error).split())[:200]}; remove {library}") from error


def _key(compiler: list[str]) -> str:
    """A hash of all that the library's code depends on, the processor among it: homes are shared by machines that differ."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    parts = (SOURCE.read_text(), *FLAGS, torch.__version__, *compiler, platform.machine(), flags)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _build(compiler: list[str], library: Path) -> None:
    """Compile into `library`, which is there whole or not at all."""
    print("compiling the CPU's operator (once per machine, about 20 s)", flush=True)
    home = Path(torch.__file__).parent
    include = home / "include"
    for left in library.parent.glob(f"{library.stem}-*"):  # by one that was killed: we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{library.stem}-", dir=library.parent) as folder:
        made = Path(folder) / library.name
        paths = [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}", str(SOURCE), "-o", str(made), f"-L{home / 'lib'}"]
        try:
            done = subprocess.run(
                [*compiler, *FLAGS, *paths, "-ltorch_cpu", "-lc10"], capture_output=True, text=True, timeout=BUILD_LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            raise NativeError(f"{shlex.join(compiler)} took more than {BUILD_LIMIT} s for the CPU's operator") from None
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
            raise NativeError(f"{shlex.join(compiler)} cannot compile the CPU's operator: {errors[0].strip()[:300]}")
        made.replace(library)


def _check() -> None:
    """The loaded operator against torch's own, forward and backward: a compiler that gets it wrong is not believed."""
    source = torch.Generator().manual_seed(0)
    drawn = [torch.randn((3, 16, 4, 4), generator=source).contiguous(memory_format=torch.channels_last) for _ in range(3)]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        maps = [t.to(dtype) for t in drawn]
        found = [_numbers(on, *(maps if on else (t.float() for t in maps))) for on in (True, False)]
        if not all(torch.allclose(ours.float(), theirs, rtol=tolerance, atol=tolerance) for ours, theirs in zip(*found, strict=True)):
            raise NativeError("the CPU's operator, as compiled here, does not give torch's numbers")


def _numbers(on: bool, x: Tensor, add: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """Output, running statistics and gradients of a fresh normalisation, with the operator or with torch's."""
    norm = nn.BatchNorm2d(x.shape[1])
    x, add = x.clone().requires_grad_(), add.clone().requires_grad_()
    out = _operator(norm, x, add, True) if on else F.relu(norm(x) + add)
    return out, norm.running_mean, norm.running_var, *torch.autograd.grad(out, [x, add, *norm.parameters()], dy)
