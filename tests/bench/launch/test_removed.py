"""A results folder that is removed while its runs are trained is not made anew with an empty report."""

import shutil

import pytest

from bench.errors import UsageError
from bench.launch import run as launch
from bench.launch.options import Run
from bench.launch.tasks import Outcome
from bench.plan.profiles import get_profile


def test_nothing_is_written_anew(tmp_path, monkeypatch):
    results = tmp_path / "results"

    class Removing:
        def __init__(self, *arguments):
            pass

        def run(self, tasks, until, on_end):
            tasks = list(tasks)
            assert tasks and (results / "plan.json").exists()
            shutil.rmtree(results)
            on_end(tasks[0])
            return Outcome()

    monkeypatch.setattr(launch, "Pool", Removing)
    options = Run(profile="smoke", methods=("student",), seeds=("1",), results=results, device="cpu", cluster="local", engine="eager", costs=False)
    assert get_profile("smoke").protocol == "smoke"
    with pytest.raises(UsageError, match="was removed while its runs were trained"):
        launch.run(options)
    assert not results.exists()
