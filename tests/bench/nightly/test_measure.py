"""The plan for real, as small as it gets."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.nightly import measure
from bench.plan.groups import Group
from bench.plan.profiles import Pair
from bench.plan.protocols import Protocol
from bench.train.execution import Execution
from bench.train.group_job import run_group
from bench.train.stop import SIGNALS
from methods import registry
from methods.base import Method

TINY = measure.Plan(
    Protocol("nightly", dataset="shapes100", epochs=1, milestones=(1,), train_images=128, test_images=100, image_size=16),
    Pair("resnet8", "resnet8"),
    seeds=(1, 2),
    rounds=2,
)


def test_two_nights_of_the_same_code_are_bit_equal(tmp_path):
    first, second = (measure.run(TINY, tmp_path / name, "cpu", 1, ("student", "kd", "skd")) for name in "ab")
    assert not first.failures
    names = ("test top-1", "test loss", "step time")
    assert set(first.metrics) == {f"{m}/resnet8-resnet8/{what}" for m in ("student", "kd", "skd") for what in names}
    for key, metric in first.metrics.items():
        if metric["part"] == "accuracy":
            assert set(metric["bits"]) == {"1", "2"}
            assert metric["bits"]["1"] != metric["bits"]["2"]
            assert metric == second.metrics[key]
        else:
            assert 0.05 < metric["values"]["0"] < 50
    assert first.facts == second.facts and first.facts["torch"]
    assert set(first.sources) == {"student", "kd", "skd"}


def test_a_method_that_fails_has_no_metric_and_a_reason(tmp_path):
    class Broken(Method):
        title = "Broken"

        def losses(self, student, teacher, batch):
            raise RuntimeError("on purpose")

    registry.register("broken_for_test")(Broken)
    try:
        group = Group(None, "resnet8", 1, TINY.protocol, "tf32", ("student", "broken_for_test"))
        execution = Execution(str(tmp_path), device="cpu", threads=1, deterministic=True)
        run_group(group, execution)
        plan = measure.Plan(TINY.protocol, Pair("resnet8", "resnet8"), seeds=(1,))
        metrics, failures, _ = measure.accuracy(tmp_path, plan, ("student", "broken_for_test"))
        costs = measure.speed(group, execution, rounds=1)
    finally:
        del registry._methods["broken_for_test"]
    assert {m["method"] for m in metrics.values()} == {"student"}
    assert "on purpose" in failures["broken_for_test"]
    assert "on purpose" in costs["failures"]["broken_for_test"]
    assert {m["method"] for m in costs["metrics"].values()} == {"student"}


def test_the_plan_has_a_hash_of_everything_it_says():
    assert measure.Plan().hash() == measure.Plan().hash()
    changed = [measure.Plan(seeds=(1, 2)), measure.Plan(rounds=1), measure.Plan(TINY.protocol), measure.Plan(pair=TINY.pair)]
    assert len({plan.hash() for plan in [measure.Plan(), *changed]}) == 5


PARENT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from bench.nightly.measure import end_with_parent
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent, (os.getpid(),))
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600).result()
"""


def running(process: int) -> bool:
    """Whether it is there and not dead: a dead one may wait for its new parent to collect it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = Path(__file__).parents[3]
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    worker = int(parent.stdout.readline())
    assert running(worker)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 60
    while (outlived := running(worker)) and time.monotonic() < until:
        time.sleep(0.1)
    if outlived:
        os.kill(worker, signal.SIGKILL)
    assert not outlived, "the worker outlived its parent"


def signalled(folder: Path, seen: list[int]) -> None:
    """Send SIGINT to the only worker once it trains the first seed."""
    until = time.monotonic() + 600
    while not list(folder.glob("runs/*-s1-*/epochs.jsonl")) and time.monotonic() < until:
        time.sleep(0.01)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    seen.append(worker.pid)


def test_a_worker_that_was_stopped_begins_no_other_seed(tmp_path):
    slow = Pair("resnet8", "resnet110")  # far from its end when the signal lands
    plan = dataclasses.replace(TINY, protocol=TINY.protocol.scaled(20), pair=slow)
    seen: list[int] = []
    threading.Thread(target=signalled, args=(tmp_path, seen), daemon=True).start()
    with pytest.raises(measure.NightStopped) as stopped:
        measure.run(plan, tmp_path, "cpu", 1, ("student",))
    assert stopped.value.code == 130 and seen
    assert list(tmp_path.glob("runs/*-s1-*")) and not list(tmp_path.glob("runs/*-s2-*"))


def test_a_second_signal_is_remembered_too(monkeypatch):
    calls = []

    def interrupted(group, execution) -> int:
        calls.append(group)
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "run_group", interrupted)
    monkeypatch.setattr(measure, "_stopped", 0)
    assert [measure.train(group, None) for group in "ab"] == [130, 130] and calls == ["a"]


def test_speed_stops_between_turns(tmp_path, monkeypatch):
    turns = []

    def turn(step, steps, device) -> float:
        turns.append(steps)
        os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    monkeypatch.setattr(measure, "_timed", turn)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        found = measure.speed(Group(None, "resnet8", 1, TINY.protocol, "tf32", ("student",)), Execution(str(tmp_path), device="cpu", threads=1), 2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert found == {"code": 130, "metrics": {}, "failures": {}} and len(turns) == 1


@pytest.mark.parametrize("code", [75, 130])
def test_a_stop_passes_through(code):
    with pytest.raises(measure.NightStopped) as stopped:
        measure._check(code)
    assert stopped.value.code == code
