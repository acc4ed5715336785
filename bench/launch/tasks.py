"""What a launch runs: tasks, the slots they run in, and the job that a process executes."""

import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.errors import INTERRUPTED, STOPPED_IN_TIME, UsageError
from bench.store.lease import started
from bench.text import any_encoding
from bench.train.execution import Execution
from bench.train.stop import Stop

AFTERLIFE_SECONDS = 3600.0
"""How long a job stopped by Slurm waits for its end: longer than the grace time that clusters give."""
NOT_STARTED = "not started"
_TERMINAL = {signal.SIGINT, signal.SIGHUP}


@dataclass(frozen=True)
class Task:
    """One job: `function(**arguments, execution=...)`, a module-level function that returns an exit code."""

    name: str
    function: Callable[..., int]
    arguments: dict[str, Any]
    execution: Execution
    succeeded: Callable[[], bool]  # read from the results folder
    after: tuple[str, ...] = ()  # tasks of the same launch that must have succeeded
    missing: Callable[[], Mapping[str, bool]] = dict  # the runs it has left to do, and whether another launch does each; read there too
    whole: bool = False  # nothing else can run meanwhile: on a CPU it takes the cores of all slots
    lock: str = ""  # what keeps launches in one results folder from doing it at the same time; empty: its name does


@dataclass(frozen=True)
class Slot:
    """A place for one job at a time: a GPU as CUDA_VISIBLE_DEVICES names it, or None for CPU cores, and its number of threads."""

    gpu: str | None
    threads: int


@dataclass
class Outcome:
    """What became of the tasks, by name, and the exit code of the launch."""

    succeeded: list[str] = field(default_factory=list)
    unfinished: dict[str, str] = field(default_factory=dict)  # name -> what is known of the reason
    code: int = 0  # 0, bench.errors.STOPPED_IN_TIME or INTERRUPTED

    def reasons(self) -> dict[str, str]:
        """Why tasks did not finish, without those whose turn did not come."""
        return {name: text for name, text in self.unfinished.items() if text != NOT_STARTED}


class Job:
    """What submitit pickles and calls: the function, in a process group of its own, ended when the launcher is gone."""

    _began: float | None = None  # in this process, by the monotonic clock

    def __init__(self, function: Callable[..., int], launcher: int | None = None, gpu: str | None = None) -> None:
        self.function, self.launcher, self.gpu = function, launcher, gpu

    def __call__(self, arguments: dict[str, Any], execution: Execution) -> int:
        any_encoding()
        self._began, Stop.preempted = time.monotonic(), False
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: it would act in the middle of a step, so it is called afterwards
        for number in (signal.SIGTERM, signal.SIGINT, *hangup()):
            signal.signal(number, self._nothing_begun)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TERMINAL)
        if self.launcher is not None:
            os.setpgid(0, 0)
            pid_file(Path(os.environ["SUBMITIT_FOLDER"]), os.environ["SUBMITIT_LOCAL_JOB_ID"]).write_text(str(os.getpid()))
            threading.Thread(target=_end_with, args=(self.launcher, os.getppid()), daemon=True).start()
        if self.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu
        code = self.function(**arguments, execution=execution)
        if code == INTERRUPTED:
            self._await_slurm()
        if code == STOPPED_IN_TIME and Stop.preempted and callable(requeue):
            requeue(signal.SIGUSR2, None)  # the time limit is near or we are preempted, and the state is saved: start again later
        return code

    def _nothing_begun(self, number: int, frame: object) -> None:
        self._await_slurm()
        raise SystemExit(INTERRUPTED)

    def _await_slurm(self) -> None:
        """A preempted job that ends within its grace time counts as completed and is never queued again: it waits to be killed.

        A cancelled one is killed too, after KillWait.
        """
        if self.launcher is None and "SLURM_JOB_ID" in os.environ:
            print("stopped with its state saved; waiting for Slurm to end or requeue this job", flush=True)
            time.sleep(AFTERLIFE_SECONDS)

    def checkpoint(self, arguments: dict[str, Any], execution: Execution):
        """Called by submitit to requeue: the same again, with what is left of its time budget; the state is in the run folders."""
        import submitit

        if execution.stop_after_seconds is not None and self._began is not None:
            left = execution.stop_after_seconds - (time.monotonic() - self._began)
            execution = replace(execution, stop_after_seconds=max(1.0, left))
        self._began = None  # it is another process that goes on
        return submitit.helpers.DelayedSubmission(self, arguments, execution)


def pid_file(folder: Path, job_id: str) -> Path:
    return folder / f"{job_id}_task.pid"


def hangup() -> tuple[signal.Signals, ...]:
    """SIGHUP, or nothing where it is ignored: under nohup a launch outlives its terminal."""
    return () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)


def _end_with(launcher: int, controller: int) -> None:
    """A job whose launcher was killed stops as if it had been asked to: nothing is orphaned."""
    began = started(launcher)
    while began is not None and started(launcher) == began and os.getppid() == controller:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def child_environment(slot: Slot, deterministic: bool) -> Iterator[None]:
    """What a job inherits: its thread count before torch is imported, this checkout, and no signals of the terminal (they are ours)."""
    root = str(Path(__file__).resolve().parents[2])
    threads = str(slot.threads)
    changed = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "PYTHONPATH": os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p),
    }
    if deterministic:
        changed["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TERMINAL)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def others_cannot_write() -> Iterator[None]:
    """What is made meanwhile can be written by its owner only, whatever the umask."""
    before = os.umask(0o077)
    os.umask(before | 0o022)
    try:
        yield
    finally:
        os.umask(before)


def own_folder(folder: Path) -> Path:
    """The folder, made if need be with those above it, which others may read as far as the umask says and never write: jobs unpickle what
    lies in it, and who may write above it may put another in its place."""
    made = [place for place in folder.parents if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in (*made, folder):
        place.chmod(place.stat().st_mode & 0o7755)
    return folder


def fresh_folder(results: Path) -> Path:
    """A new folder for the files of one launch, see `own_folder`. Raises UsageError where nothing can be written."""
    try:
        return own_folder(results / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}")
    except OSError as error:
        raise UsageError(f"cannot write below {results}: {error.strerror}; choose another --results folder") from None
