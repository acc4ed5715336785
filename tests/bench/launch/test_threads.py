"""The cores of a job: affinity, a container's quota, and the share of each of several jobs."""

import os

import pytest

from bench.launch import threads


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretend to have so many cores, and these cgroup files."""

    def pretend(affinity: int, **files: str) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(threads, "_CGROUPS", ((str(tmp_path / "max"),), (str(tmp_path / "quota"), str(tmp_path / "period"))))

    return pretend


@pytest.mark.parametrize(
    "affinity, files, cores",
    [
        (8, {}, 8),
        (8, {"max": "max 100000\n"}, 8),
        (8, {"max": "250000 100000\n"}, 2),
        (8, {"max": "50000 100000\n"}, 1),
        (2, {"max": "800000 100000\n"}, 2),
        (8, {"quota": "400000\n", "period": "100000\n"}, 4),
        (8, {"quota": "-1\n", "period": "100000\n"}, 8),
        (8, {"max": "garbage"}, 8),
    ],
)
def test_cores(machine, affinity, files, cores):
    machine(affinity, **files)
    assert threads.cores() == cores
