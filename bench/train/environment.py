"""The device a run trains on, how torch is set up for it, and the facts of both that enter every record."""

import contextlib
import hashlib
import os
import platform
import resource
import subprocess
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.errors import UsageError, check_known
from bench.plan.identity import PRECISIONS

PACKAGES = ("bench", "methods", "models")
"""The suite's code."""


def select(device: str) -> torch.device:
    """The device asked for. Raises UsageError where it is not there: nothing falls back to another one."""
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            hidden = f" (CUDA_VISIBLE_DEVICES={visible!r})" if visible is not None else ""
            raise UsageError(f"device {device!r} was asked for, but {count} CUDA devices are visible{hidden}; choose --device cpu or free a GPU")
        return torch.device("cuda", chosen.index or 0)
    if chosen.type != "cpu":
        raise UsageError(f"device {device!r} is not supported; use auto, cpu, cuda or cuda:N")
    return chosen


def configure(precision: str, threads: int | None = None, deterministic: bool = False) -> None:
    """Set torch up for a precision, thread count and determinism. Raises UsageError for an unknown precision and fewer threads than one."""
    check_known("precision", precision, PRECISIONS)
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: at least 1")
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cuda.matmul.allow_tf32 = False  # PyTorch's default: only convolutions use TF32
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic, warn_only=False)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid of that mode, and a pass over every new tensor
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def arithmetic(precision: str, device: torch.device) -> str:
    """The arithmetic of what runs outside autocast, as preparations do: "tf32" where convolutions use it, else "fp32"."""
    return "tf32" if device.type == "cuda" and precision != "fp32" else "fp32"


def precision_scope(precision: str, device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 for `bf16`, nothing otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def device_facts(device: torch.device) -> dict[str, Any]:
    """Type, name and size of a device: JSON values for records and captions."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "type": "cuda",
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "driver": _driver(),
        }
    return {"type": "cpu", "name": _cpu_name(), "cores": os.cpu_count()}


@cache
def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def _driver() -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0].strip()
    return None


@cache
def versions() -> dict[str, Any]:
    """Versions that can change numbers."""
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "platform": platform.platform(),
    }


def reset_high_water() -> int:
    """Set the process's high-water mark back to its present size where the kernel can, and return the baseline in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the mark so far is then the baseline
    return high_water()


def high_water() -> int:
    """The process's largest resident size so far, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def clocks() -> tuple[float, float]:
    """The seconds of the clock, and the CPU seconds of this process, all threads: differences tell what was spent."""
    return time.monotonic(), time.process_time()


def conditions(device: torch.device, code: str | None, engine: str, deterministic: bool) -> dict[str, str]:
    """What the last bits of a run depend on besides its identity: a run that is resumed under others may end with other ones.

    `code`: the suite's commit.
    """
    said = {"device": device_facts(device)["name"], "commit": code, "engine": engine, "deterministic": "yes" if deterministic else "no"}
    said |= {name: versions()[name] for name in ("torch", "cuda", "cudnn")}
    if device.type == "cpu":
        said["threads"] = torch.get_num_threads()
    return {name: str(value) for name, value in said.items() if value is not None}


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The conditions that differ, one text each: "threads 2 -> 1"."""
    names = sorted(before.keys() | now.keys())
    return [f"{name} {before.get(name, 'none')} -> {now.get(name, 'none')}" for name in names if before.get(name) != now.get(name)]


@cache
def commit() -> str:
    """The commit of this suite's code, see `commit_of`."""
    return commit_of(Path(__file__).resolve().parents[2])


def commit_of(root: Path) -> str:
    """The git commit of a checkout, with "+" and a hash of the changes where its tracked code was changed since; of what is no checkout "files-"
    and a hash of its modules."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=20, check=True).stdout

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if git("ls-files", "--", *PACKAGES):  # else the checkout is another project's, around this one
            head = git("rev-parse", "--short=12", "HEAD").decode().strip()
            changed = git("diff", "--no-ext-diff", "--no-color", "HEAD", "--", *PACKAGES)
            # A new method's file is in its runs' own records, and is no change to the others.
            for name in sorted(git("ls-files", "-z", "--others", "--exclude-standard", "--", "bench", "models").split(b"\0")):
                path = root / os.fsdecode(name)
                if path.suffix == ".py" and path.is_file():  # an editor's lock is a link to nothing
                    changed += name + path.read_bytes()
            return head + (f"+{hashlib.sha256(changed).hexdigest()[:8]}" if changed else "")
    total = hashlib.sha256()
    for file in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py") if path.is_file()):
        total.update(f"{file.relative_to(root).as_posix()}|".encode() + file.read_bytes())
    return f"files-{total.hexdigest()[:12]}"
