"""Faults 3, 4, 5 and 18: signals that land anywhere in a step, an evaluation or a save; preemption through submitit; clocks that jump."""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.errors import DONE, INTERRUPTED, STOPPED_IN_TIME, TROUBLE
from bench.launch.tasks import Job
from bench.store.lease import acquire_all
from bench.store.rows import read_rows
from bench.store.runs import scan
from bench.train import checkpoint, engine, group_job, run_folder
from tests.faults import lives


def kills_itself(number: int) -> None:
    os.kill(os.getpid(), number)


def lands_in(place: str, number: int, folder: Path) -> int:
    """A life that gets the signal inside its third step, its first evaluation, between two files of its third save, or while it prepares."""
    from bench.train import group_job, loop

    calls = {"n": 0}

    def after(count: int, original, late: bool = False):
        def call(*arguments, **named):
            calls["n"] += 1
            if calls["n"] == count and not late:
                kills_itself(number)
            result = original(*arguments, **named)
            if calls["n"] == count and late:
                kills_itself(number)
            return result

        return call

    if place == "step":
        from bench.train.learner import Learner

        Learner._count = after(5, Learner._count)  # the first member of the third step has been updated, the second not
    elif place == "eval":
        loop.evaluate = after(2, loop.evaluate)
    elif place == "save":
        checkpoint.serialise = after(6, checkpoint.serialise, late=True)
    elif place == "row":
        run_folder.append_row = after(1, run_folder.append_row, late=True)
    else:
        group_job.GroupJob.learner = after(2, group_job.GroupJob.learner)
    return group_job.run_group(lives.group(), lives.execution(folder))


@pytest.mark.parametrize("place", ["step", "eval", "save", "row", "preparing"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_tears_nothing_wherever_it_lands(results, unbroken, place, number):
    assert lives.live(lambda: lands_in(place, number, results)) == (INTERRUPTED if number == signal.SIGTERM else STOPPED_IN_TIME)
    found = lives.statuses(results)
    assert set(found.values()) == {("interrupted", number.name)} and set(found) == {"student", "kd"}
    views = [v for v in scan(results)[0] if v.seed != 0]
    positions = {checkpoint.restore(results, v.id)[1].position for v in views}
    assert len(positions) == 1 and (place == "preparing") == (positions == {checkpoint.START})  # together, and saved
    assert not list(results.glob("runs/*/lease.json"))
    assert lives.train(results) == DONE and lives.outcome(results) == unbroken


def slow_group(group, execution, pause: float = 0.3, limit: float | None = None) -> int:
    """run_group with steps that take long enough to be interrupted. `limit`: seconds for training, in place of the execution's for everything."""

    step, taken = engine.Eager.step, []

    def slowly(runner, start, stop):
        if limit is not None and not taken:
            signal.getsignal(signal.SIGTERM).__self__._deadline = time.monotonic() + limit
        taken.append(start)
        time.sleep(pause)
        return step(runner, start, stop)

    engine.Eager.step = slowly
    return group_job.run_group(group, execution)


def test_preemption_through_submitit_goes_on_with_the_same_bits(results, unbroken, monkeypatch):
    """SIGUSR2 to the task itself, as a cluster sends it: submitit starts the same job again, and no limit of time is counted."""
    import submitit

    executor = submitit.LocalExecutor(results / "jobs", max_num_timeout=0)
    executor.update_parameters(timeout_min=60)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    job = executor.submit(Job(slow_group), {"group": lives.group(), "pause": 1.5}, lives.execution(results))
    until = time.monotonic() + 300
    while not list(results.glob("groups/*/manifest.json")) and time.monotonic() < until:
        time.sleep(0.05)
    (lease,) = {p.read_text() for p in results.glob("runs/*-kd-*/lease.json")}
    os.kill(int(lease.split('"pid": ')[1].split(",")[0]), signal.SIGUSR2)
    assert job.result() == DONE
    assert lives.outcome(results) == unbroken
    logs = [p.read_text() for p in results.glob("runs/*s1*/log.txt")]
    assert all("interrupted: SIGUSR2" in text and "attempt 2: resumed at epoch" in text for text in logs)


def lands_in_a_watch(number: int) -> None:
    """The signal, once the main thread sleeps between two looks at leases."""
    main = threading.main_thread().ident
    until = time.monotonic() + 60
    while sys._current_frames()[main].f_code is not acquire_all.__code__ and time.monotonic() < until:
        time.sleep(0.05)
    kills_itself(number)


def watches_a_lease(folder: Path, number: int) -> int:
    """A life that gets the signal while it watches the counters of another host's leases; 1 where the job was not queued again as it should."""
    queued: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, frame: queued.append(number))  # as submitit's handler stands there
    threading.Thread(target=lands_in_a_watch, args=(number,), daemon=True).start()
    code = Job(group_job.run_group)({"group": lives.group()}, lives.execution(folder))
    return code if bool(queued) == (number == signal.SIGUSR2) else TROUBLE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_stop_while_a_lease_is_watched_is_a_stop(results, halfway, number):
    shutil.copytree(halfway, results, dirs_exist_ok=True)
    leases = list(results.glob("runs/*/lease.json"))
    for path in leases:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere"}))
    before = [path.read_bytes() for path in leases]
    assert lives.live(lambda: watches_a_lease(results, number)) == (INTERRUPTED if number == signal.SIGTERM else STOPPED_IN_TIME)
    assert [path.read_bytes() for path in leases] == before


def test_a_time_limit_stops_at_a_step_as_often_as_needed(results, unbroken):
    """A limit shorter than an epoch: each call goes on where the last one stopped."""
    execution = lives.execution(results, stop_after_seconds=600.0)
    codes = [lives.live(lambda: slow_group(lives.group(), execution, limit=0.8)) for _ in range(4)]
    assert all("attempt 2: resumed at epoch" in path.read_text() for path in results.glob("runs/*s1*/log.txt"))
    assert codes[0] == STOPPED_IN_TIME and set(codes) <= {DONE, STOPPED_IN_TIME}
    assert all(reason == "time budget used up" for status, reason in lives.statuses(results).values() if status != "done")
    assert lives.train(results) == DONE and lives.outcome(results) == unbroken


def jumping(folder: Path) -> int:
    """A life whose wall clock jumps, by up to a year to and fro, at every look at it."""
    source, real = random.Random(3), time.time
    time.time = lambda: real() + source.uniform(-3e7, 3e7)
    return group_job.run_group(lives.group(), lives.execution(folder, checkpoint_seconds=1e-3))


def test_a_wall_clock_that_jumps_changes_nothing(results, unbroken):
    assert lives.live(lambda: jumping(results)) == DONE
    assert lives.outcome(results) == unbroken
    for view in scan(results)[0]:
        seconds = [row.seconds for row in read_rows(view.folder / "epochs.jsonl").rows]
        assert seconds == sorted(seconds) and 0 < seconds[0] and seconds[-1] < 600 and view.record.train_seconds < 600


def test_a_stale_lease_is_judged_without_a_clock(results, unbroken, halfway):
    """A killed group's leases, dated in the future by their files, hold nobody up."""
    shutil.rmtree(results)
    shutil.copytree(halfway, results)
    leases = list(results.glob("runs/*/lease.json"))
    assert len(leases) == 2
    for path in leases:
        os.utime(path, (2**33, 2**33))
    assert lives.train(results) == DONE and lives.outcome(results) == unbroken
