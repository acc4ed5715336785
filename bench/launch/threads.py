"""How many CPU threads a job may use: the cores that are really ours, shared among the jobs that run at once. No torch here.

Two OpenMP threads that wait for one core cost several times the work of one, so a job never gets more than its share.
"""

import math
import os
from pathlib import Path

_CGROUPS = (("/sys/fs/cgroup/cpu.max",), ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"))


def cores() -> int:
    """Cores that this process may use: its affinity mask (a Slurm task's allotment), and a container's quota where there is one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return allowed if quota is None else max(1, min(allowed, math.floor(quota)))


def _quota() -> float | None:
    """Cores' worth of time that the container may use; None without a limit."""
    for files in _CGROUPS:
        try:
            words = " ".join(Path(file).read_text() for file in files).split()
            limit, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):  # no such file, or "max"
            continue
        if limit > 0 and period > 0:
            return limit / period
    return None
