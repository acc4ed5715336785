"""The slot pool over submitit's real local executor, with jobs that train nothing."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest

from bench.errors import INTERRUPTED, STOPPED_IN_TIME, UsageError
from bench.launch import local
from bench.launch.local import Pool
from bench.launch.options import Run
from bench.launch.slurm import parameters
from bench.launch.tasks import Job, Slot, Task, fresh_folder
from bench.train.execution import Execution
from bench.train.stop import SIGNALS, Stop
from tests.bench import fakes

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path):
    odd = tmp_path / "results with spaces é"
    odd.mkdir()
    return odd


def task(folder: Path, name: str, seconds: float = 0.2, function=fakes.work, after: tuple[str, ...] = ()) -> Task:
    arguments = {"name": name} | ({"seconds": seconds} if function is fakes.work else {})
    return Task(name, function, arguments, Execution(results=str(folder)), lambda: (folder / f"{name}.done").exists(), after)


def pool(folder: Path, slots: list[Slot]) -> Pool:
    return Pool(slots, fresh_folder(folder), folder / "locks")


def launcher(folder: Path, *arguments: str, hangup=signal.SIG_DFL) -> subprocess.Popen:
    """A launch of its own. `hangup`: what SIGHUP does there at first; a process inherits that, and tests may run under nohup."""
    code = "import sys; from tests.bench.fakes import launch_work; sys.exit(launch_work(*sys.argv[1:]))"
    before = signal.signal(signal.SIGHUP, hangup)
    try:
        return subprocess.Popen([sys.executable, "-c", code, str(folder), *arguments], cwd=ROOT, start_new_session=True)
    finally:
        signal.signal(signal.SIGHUP, before)


def started(folder: Path, count: int) -> list[int]:
    """Wait until so many jobs have begun; their pids."""
    for _ in range(6000):  # it may take long where much else runs
        pids = [pid for kind, _, pid, _ in fakes.events(folder) if kind == "start"]
        if len(pids) >= count:
            return pids
        time.sleep(0.05)
    raise AssertionError("the jobs did not start")


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids: list[int]) -> bool:
    for _ in range(2400):
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def session(leader: int) -> list[int]:
    """Live processes of a session other than its leader: what a launcher left behind."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = path.read_text().rsplit(")", 1)[1].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(sid) == leader and state not in "ZX" and int(path.parent.name) != leader:
            found.append(int(path.parent.name))
    return found


def test_slots_are_refilled_and_never_oversubscribed(folder):
    names = [f"t{i}" for i in range(5)]
    outcome = pool(folder, [Slot(None, 1)] * 2).run([task(folder, name, function=fakes.beside) for name in names])
    assert sorted(outcome.succeeded) == names and not outcome.unfinished and outcome.code == 0
    seen = sorted((at, 1 if kind == "start" else -1) for kind, _, _, at in fakes.events(folder))
    load = [sum(step for _, step in seen[: i + 1]) for i in range(len(seen))]
    assert max(load) == 2  # both slots were used at once, never a third


def test_a_job_sees_its_slot_only(folder):
    before = os.environ.get("OMP_NUM_THREADS")
    pool(folder, [Slot("3", 5)]).run([task(folder, "number")])
    pool(folder, [Slot("GPU-abc", 2)]).run([task(folder, "uuid")])
    pool(folder, [Slot(None, 1)]).run([task(folder, "cpu")])
    texts = {name: (folder / f"{name}.done").read_text() for name in ("number", "uuid", "cpu")}
    assert texts == {"number": "5,3", "uuid": "2,GPU-abc", "cpu": "1,"}
    assert os.environ.get("OMP_NUM_THREADS") == before  # the launcher's own environment is as it was


@pytest.mark.parametrize(("there", "given"), [(6, 6), (4, 4), (1, 2)], ids=["all", "slots share cores", "as asked for"])
def test_a_job_that_all_wait_for_has_the_cores_of_every_slot(folder, monkeypatch, there, given):
    monkeypatch.setattr(local, "cores", lambda: there)
    first = dataclasses.replace(task(folder, "first"), whole=True)
    then = [dataclasses.replace(task(folder, name), after=("first",)) for name in ("a", "b")]
    pool(folder, [Slot(None, 2)] * 3).run([first, *then])
    texts = [(folder / f"{name}.done").read_text() for name in ("first", "a", "b")]
    assert texts == [f"{given},", "2,", "2,"]
    pool(folder, [Slot("3", 5)] * 2).run([dataclasses.replace(task(folder, "gpu"), whole=True)])
    assert (folder / "gpu.done").read_text() == "5,3"  # a GPU's slot is its own


def test_a_crash_frees_its_slot_and_names_the_log(folder):
    tasks = [task(folder, "a", function=fakes.crash), task(folder, "b", function=fakes.killed), task(folder, "c")]
    outcome = pool(folder, [Slot(None, 1)]).run(tasks)
    assert outcome.succeeded == ["c"] and set(outcome.unfinished) == {"a", "b"} and outcome.code == 0
    assert "RuntimeError: a went wrong" in outcome.unfinished["a"] and "_log.err" in outcome.unfinished["a"]


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ("File x\ntorch.AcceleratorError: CUDA error: busy\nErrors may come later\nCompile with `X`.", "torch.AcceleratorError: CUDA error: busy"),
        ("File x\nbench.errors.UsageError: no teacher", "no teacher"),
        ("File x\nOSError: old\nDuring that:\nTraceback (most recent call last):\n  File x\nLeaseLost: gone", "LeaseLost: gone"),
        ("File x\nValueError: b\ncost probe of kd failed: ValueError: b", "cost probe of kd failed: ValueError: b"),
        ("", "Killed"),
    ],
)
def test_the_reason_is_the_line_that_names_the_error(tmp_path, errors, said):
    (tmp_path / "log").write_text(f"Traceback (most recent call last):\n  {errors}\n" if errors else "Killed\n")
    told = local._last_words(SimpleNamespace(paths=SimpleNamespace(stderr=tmp_path / "log")))
    assert told == f"{said} (log: {tmp_path / 'log'})"


def test_groups_wait_for_their_teacher_and_give_up_with_it(folder):
    tasks = [
        task(folder, "waits", after=("good",)),
        task(folder, "stuck", after=("bad",)),
        task(folder, "good", 0.5),
        task(folder, "bad", function=fakes.crash),
    ]
    outcome = pool(folder, [Slot(None, 1)] * 2).run(tasks)
    assert sorted(outcome.succeeded) == ["good", "waits"]
    assert outcome.unfinished["stuck"] == "needs bad, which did not finish"
    order = [(kind, name) for kind, name, _, _ in fakes.events(folder)]
    assert order.index(("start", "waits")) > order.index(("end", "good")) and ("start", "stuck") not in order


def test_done_by_another_launcher_meanwhile_is_not_run(folder):
    (folder / "there.done").touch()
    outcome = pool(folder, [Slot(None, 1)]).run([task(folder, "there")])
    assert outcome.succeeded == ["there"] and not fakes.events(folder)


def test_who_holds_a_lock_is_told_once_and_others_of_that_name_are_not_kept(folder):
    other = filelock.FileLock(folder / "locks" / "first.lock")
    other.acquire()
    local._sign(folder / "locks" / "first.lock")
    said = []

    def watch(running: list[str]) -> None:
        if (folder / "a.done").exists():
            other.release()

    running = Pool([Slot(None, 1)], fresh_folder(folder), folder / "locks", watch, said.append)
    kept = dataclasses.replace(task(folder, "b"), name="a", lock="first")
    outcome = running.run([kept, dataclasses.replace(task(folder, "a"), lock="second")])
    assert outcome.succeeded == ["a", "a"] and [name for kind, name, *_ in fakes.events(folder) if kind == "start"] == ["a", "b"]
    assert said == [f"a: waits for process {os.getpid()} on {socket.gethostname()}, another launch in this results folder"]


@dataclasses.dataclass
class Shared:
    """Runs of a task by name: done where their file is there, and held by another launch for a while."""

    folder: Path
    names: tuple[str, ...]
    held: dict[str, float]  # until then, by the monotonic clock

    def __call__(self) -> dict[str, bool]:
        return {name: time.monotonic() < self.held.get(name, 0.0) for name in self.names if not (self.folder / f"{name}.done").exists()}

    def task(self, **changes) -> Task:
        return dataclasses.replace(task(self.folder, self.names[0], **changes), missing=self, succeeded=lambda: not self())


def test_what_cannot_be_started_takes_nothing_with_it(folder, monkeypatch):
    import submitit

    submit = submitit.LocalExecutor.submit

    def full(executor, job, arguments, execution):
        if arguments["name"] == "a":
            raise OSError(28, "No space left on device")
        return submit(executor, job, arguments, execution)

    monkeypatch.setattr(submitit.LocalExecutor, "submit", full)
    tasks = [task(folder, "a"), task(folder, "b"), task(folder, "c", after=("a",))]
    outcome = pool(folder, [Slot(None, 1)]).run(tasks)
    assert outcome.succeeded == ["b"] and outcome.code == 0
    assert outcome.unfinished == {"a": "could not be started: No space left on device", "c": "needs a, which did not finish"}


def test_what_another_launch_trains_is_waited_for_and_taken_over_where_it_stops(folder):
    shared = Shared(folder, ("a",), {"a": time.monotonic() + 600})

    def other(running: list[str]) -> None:
        if (folder / "b.done").exists():
            shared.held.clear()

    running = pool(folder, [Slot(None, 1)])
    running.watch = other
    outcome = running.run([shared.task(), task(folder, "b")])
    assert outcome.succeeded == ["b", "a"] and not outcome.unfinished and outcome.code == 0
    assert [name for kind, name, *_ in fakes.events(folder) if kind == "start"] == ["b", "a"]  # the slot did not stand idle


@pytest.mark.parametrize("stopped", [True, False])
def test_a_job_that_left_a_run_to_another_launch_looks_for_it_again(folder, stopped):
    """The other launch is stopped in the middle of that run, or brings it to its end."""
    shared = Shared(folder, ("mine", "shared"), {"shared": time.monotonic() + 600})

    def other(running: list[str]) -> None:
        if (folder / "mine.done").exists() and shared.held.pop("shared", None) and not stopped:
            (folder / "shared.done").touch()

    one = dataclasses.replace(shared.task(), function=fakes.one_after_the_other, arguments={"names": shared.names})
    running = pool(folder, [Slot(None, 1)])
    running.watch = other
    outcome = running.run([one])
    assert outcome.succeeded == ["mine"] and not outcome.unfinished
    assert [name for kind, name, *_ in fakes.events(folder) if kind == "start"] == ["mine", "shared"][: 1 + stopped]


def test_a_run_that_failed_here_is_not_waited_for(folder):
    shared = Shared(folder, ("mine", "shared"), {"shared": time.monotonic() + 600})
    outcome = pool(folder, [Slot(None, 1)]).run([shared.task(function=fakes.crash)])
    assert "RuntimeError: mine went wrong" in outcome.unfinished["mine"]


@pytest.mark.slow
def test_four_launchers_run_each_task_once(folder):
    names = [f"t{i}" for i in range(8)]
    launchers = [launcher(folder, ",".join(names), "0.1", "1") for _ in range(4)]
    assert [p.wait(600) for p in launchers] == [0] * 4
    assert sorted(name for kind, name, _, _ in fakes.events(folder) if kind == "start") == names


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_whole_tree_and_jobs_save_first(folder, number):
    process = launcher(folder, "a,b,c", "300", "2")
    pids = started(folder, 2)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to the launcher and to submitit's controllers
    else:
        process.send_signal(number)
    assert process.wait(300) == INTERRUPTED
    assert not any(alive(pid) for pid in pids) and not session(process.pid)
    assert sorted(name for kind, name, _, _ in fakes.events(folder) if kind == "stop130") == ["a", "b"]  # asked, not killed


def test_a_job_that_will_not_stop_is_killed(folder):
    process = launcher(folder, "a", "0", "1", "stubborn")
    pids = started(folder, 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == INTERRUPTED
    assert gone(pids) and gone(session(process.pid))  # it would sleep for ten minutes


def test_under_nohup_a_launch_outlives_its_terminal(folder):
    process = launcher(folder, "a", "8", "1", hangup=signal.SIG_IGN)
    pids = started(folder, 1)
    process.send_signal(signal.SIGHUP)
    os.kill(pids[0], signal.SIGHUP)
    assert process.wait(300) == 0
    assert [kind for kind, *_ in fakes.events(folder)] == ["start", "end"]


def test_jobs_end_when_their_launcher_is_killed(folder):
    process = launcher(folder, "a", "300", "1")
    pids = started(folder, 1)
    process.kill()
    assert gone(pids)  # nobody has waited for it: its process number still stands
    process.wait(300)
    assert [kind for kind, *_ in fakes.events(folder)] == ["start", "stop130"]


def test_a_job_ends_when_its_controller_is_killed(folder):
    process = launcher(folder, "a,b", "300", "1")
    first = started(folder, 1)[0]
    controller = int(Path(f"/proc/{first}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(controller, signal.SIGKILL)
    started(folder, 2)  # the slot is free again
    assert not alive(first)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == INTERRUPTED


def test_time_budget_ends_with_75_and_the_next_launch_goes_on(folder):
    process = launcher(folder, "a,b", "300", "1", "work", "66")
    assert process.wait(300) == STOPPED_IN_TIME
    assert [kind for kind, *_ in fakes.events(folder)] == ["start", "stop75"]  # by itself, and b was not started for the last seconds
    assert launcher(folder, "b", "0", "1").wait(300) == 0


def test_a_launch_that_did_everything_ended_in_time(folder, monkeypatch):
    """The last job ends within the grace that a launch out of time gives to what it has not started yet."""
    monkeypatch.setattr(local, "GRACE_SECONDS", 60.0)
    outcome = pool(folder, [Slot(None, 1)]).run([task(folder, "a", function=fakes.unhurried)], time.monotonic() + local.GRACE_SECONDS + 5.0)
    assert outcome.succeeded == ["a"] and outcome.code == 0


def test_preemption_starts_the_same_job_again(folder):
    process = launcher(folder, "a", "300", "1")
    first = started(folder, 1)[0]
    os.kill(first, signal.SIGUSR2)
    second = started(folder, 2)[1]
    assert second != first and ("stop75", "a") in [(kind, name) for kind, name, *_ in fakes.events(folder)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == INTERRUPTED and not alive(second)


def test_checkpoint_submits_the_same_arguments():
    execution = Execution(results="r")
    job = Job(fakes.work)
    again = job.checkpoint({"name": "a"}, execution)
    assert again.function is job and again.args == ({"name": "a"}, execution) and not again.kwargs


def preempted(execution: Execution) -> int:
    stop = Stop(execution.stop_after_seconds).install()
    os.kill(os.getpid(), signal.SIGUSR2)
    return stop.code


def late(execution: Execution) -> int:
    return Stop(execution.stop_after_seconds).install().code


@pytest.mark.parametrize(
    ("function", "budget", "again"),
    [(preempted, None, True), (preempted, 600.0, True), (preempted, 0.0, False), (late, 0.0, False)],
    ids=["no budget", "within its budget", "after it", "budget used up"],
)
def test_a_job_is_queued_again_where_a_signal_stopped_it_and_not_its_time_budget(monkeypatch, function, budget, again):
    queued: list[int] = []
    monkeypatch.setattr(Stop, "preempted", False)
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGHUP)}
    signal.signal(signal.SIGUSR2, lambda number, frame: queued.append(number))  # as submitit's handler stands there
    job, execution = Job(function), Execution(results="r", stop_after_seconds=budget)
    try:
        assert job({}, execution) == STOPPED_IN_TIME and bool(queued) == again
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    left = job.checkpoint({}, execution).args[1].stop_after_seconds
    assert left is None if budget is None else left < budget or left == 1.0  # not the whole budget each time


def test_fresh_folder_is_new_each_time_and_says_where_nothing_can_be_written(tmp_path):
    assert fresh_folder(tmp_path) != fresh_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write below"):
        fresh_folder(tmp_path / "file")


def test_slurm_parameters_name_what_was_asked_for():
    asked = Run(partition="p", account="a", qos="q", constraint="c", time=5, setup=("module load x",))
    got = parameters(asked, 1, "n", ["7_0", "7_1"])
    wanted = {"partition": "p", "account": "a", "qos": "q", "constraint": "c", "time": 5, "setup": ["module load x"], "gpus_per_node": 1}
    assert wanted.items() <= got.items() and got["dependency"] == "afterany:7_0:7_1"
    assert got["additional_parameters"] == {"requeue": True}  # a preempted job that does not ask is not queued again everywhere
    assert "gpus_per_node" not in parameters(Run(), 0, "n", []) and "dependency" not in parameters(Run(), 1, "n", [])
