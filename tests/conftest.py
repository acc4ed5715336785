"""Order of the whole suite. Tests that fork training processes come first, because torch refuses to train in a fork of a process whose
autograd has started threads for a device other than the CPU (the meta device of other tests is one); then the files that take long, so
that none of them is still running alone when the rest is done."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test is about the clock
settings.load_profile("suite")
os.environ.pop("SLURM_JOB_ID", None)  # tests may run inside a job, and are none
os.environ["no_proxy"] = "127.0.0.1,localhost"

HERE = Path(__file__).parent
FORKING = (HERE / "bench" / "train" / "test_kill.py", HERE / "bench" / "store" / "test_lease.py", HERE / "faults")


LONG = tuple(
    HERE / file
    for file in (
        "bench/plan/test_other_pairs.py",
        "bench/test_cli.py",
        "bench/train/test_engine.py",
        "bench/plan/test_pairs.py",
        "methods/test_feature_losses.py",
        "models/test_native.py",
        "bench/measure/test_probes.py",
        "bench/train/test_capture_safety.py",
        "bench/launch/test_launch.py",
        "methods/iep/test_real.py",
        "methods/test_conformance.py",
        "bench/train/test_contract.py",
        "bench/train/test_training.py",
        "bench/nightly/test_alarm.py",
        "models/test_parts.py",
        "methods/test_teacher_losses.py",
    )
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    assert all(place.exists() for place in (*FORKING, *LONG)), "a file of the order above is not there"
    items.sort(key=lambda item: (not any(item.path.is_relative_to(place) for place in FORKING), item.path not in LONG))
