"""Order of the whole suite: tests that fork training processes come first, because torch refuses to train in a fork of a process whose
autograd has started threads for a device other than the CPU (the meta device of other tests is one)."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
FORKING = (HERE / "bench" / "train" / "test_kill.py", HERE / "bench" / "store" / "test_lease.py", HERE / "faults")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(item.path.is_relative_to(place) for place in FORKING))
