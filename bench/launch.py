"""Running tasks through submitit: on this machine over a pool of slots of our own, on Slurm as job arrays.

Locally submitit has no queue: it starts every job at once and gives each GPU 0. So one executor a slot, with fixed devices, and a slot
gets its next task when its job's process has ended. Whether a task succeeded is read from the results folder, never from submitit.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock

from bench.jobs import INTERRUPTED, STOPPED_IN_TIME, Where
from bench.protocol import UsageError

POLL_SECONDS = 0.2
GRACE_SECONDS = 7.0
"""From the first SIGTERM to SIGKILL: with what starts and ends the jobs, an interrupted launch is over within 10 s."""
AFTERLIFE_SECONDS = 3600.0
"""How long a job stopped by Slurm waits for its end: longer than the grace time that clusters give."""
FOREVER_MINUTES = 60 * 24 * 365  # submitit's own default would end a local job after 2 minutes
_TERMINAL = {signal.SIGINT, signal.SIGHUP}


@dataclass(frozen=True)
class Task:
    """One job: `function(**arguments, where=...)`, a module-level function that returns an exit code of bench.jobs."""

    name: str
    function: Callable[..., int]
    arguments: dict[str, Any]
    where: Where
    succeeded: Callable[[], bool]  # read from the results folder
    after: tuple[str, ...] = ()  # tasks of the same launch that must have succeeded
    whole: bool = False  # nothing else can run meanwhile: on a CPU it takes the cores of all slots


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
    code: int = 0  # 0, bench.jobs.STOPPED_IN_TIME or INTERRUPTED


class Job:
    """What submitit pickles and calls: the function, in a process group of its own, ended when the launcher is gone."""

    def __init__(self, function: Callable[..., int], launcher: int | None = None, gpu: str | None = None) -> None:
        self.function, self.launcher, self.gpu = function, launcher, gpu

    def __call__(self, arguments: dict[str, Any], where: Where) -> int:
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: it would act in the middle of a step, so it is called afterwards
        for number in (signal.SIGTERM, *_TERMINAL):
            signal.signal(number, self._nothing_begun)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TERMINAL)
        if self.launcher is not None:
            os.setpgid(0, 0)
            _pid_file(Path(os.environ["SUBMITIT_FOLDER"]), os.environ["SUBMITIT_LOCAL_JOB_ID"]).write_text(str(os.getpid()))
            threading.Thread(target=_end_with, args=(self.launcher, os.getppid()), daemon=True).start()
        if self.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu
        code = self.function(**arguments, where=where)
        if code == INTERRUPTED:
            self._await_slurm()
        if code == STOPPED_IN_TIME and where.stop_after_seconds is None and callable(requeue):
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

    def checkpoint(self, arguments: dict[str, Any], where: Where):
        """Called by submitit to requeue: the same again; the state is in the run folders."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, arguments, where)


def _pid_file(folder: Path, job_id: str) -> Path:
    return folder / f"{job_id}_task.pid"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _end_with(launcher: int, controller: int) -> None:
    """A job whose launcher was killed stops as if it had been asked to: nothing is orphaned."""
    while _alive(launcher) and os.getppid() == controller:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _child_environment(slot: Slot, deterministic: bool) -> Iterator[None]:
    """What a job inherits: its thread count before torch is imported, this checkout, and no signals of the terminal (they are ours)."""
    root = str(Path(__file__).resolve().parent.parent)
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


@dataclass
class _Running:
    task: Task
    job: Any
    claim: filelock.BaseFileLock


class Pool:
    """Runs tasks over slots of this machine. `watch` is called about five times a second with the names of the running tasks."""

    def __init__(self, slots: Sequence[Slot], folder: Path, locks: Path, watch: Callable[[list[str]], None] = lambda names: None) -> None:
        self.slots, self.folder, self.locks, self.watch = list(slots), folder, locks, watch
        self.running: dict[int, _Running] = {}
        self.outcome = Outcome()
        self._caught: int | None = None

    def run(self, tasks: Sequence[Task], until: float | None = None, on_end: Callable[[Task], None] = lambda task: None) -> Outcome:
        """Run the tasks in their order as slots become free, each at most once; `until` (monotonic seconds) ends the launch in time."""
        waiting = list(tasks)
        names = {t.name for t in tasks}
        self.outcome = Outcome()
        previous = {number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            while waiting or self.running:
                self._collect(on_end)
                self.outcome.code = self._over(until)
                if self.outcome.code:
                    break
                self._fill(waiting, names, until)
                self.watch([r.task.name for r in self.running.values()])
                time.sleep(POLL_SECONDS)
        finally:
            self._end_all()
            self._collect(on_end)
            for number, handler in previous.items():
                signal.signal(number, handler)
        for task in waiting:
            self.outcome.unfinished.setdefault(task.name, "not started")
        if self.outcome.unfinished:
            self.outcome.code = self.outcome.code or self._over(until)
        return self.outcome

    def _over(self, until: float | None) -> int:
        """The exit code of a launch that must end now; 0: it goes on."""
        if self._caught is not None:
            return INTERRUPTED
        left = float("inf") if until is None else until - time.monotonic()
        return STOPPED_IN_TIME if left <= (0 if self.running else GRACE_SECONDS) else 0

    def _catch(self, number: int, frame: object) -> None:
        self._caught = number

    def _collect(self, on_end: Callable[[Task], None]) -> None:
        """Free the slots whose job's process has ended."""
        for index, running in list(self.running.items()):
            if not running.job.done():
                continue
            if running.job.state == "INTERRUPTED":
                _kill_task(running.job)  # the controller was killed: its task may live
            del self.running[index]
            running.claim.release()
            if running.task.succeeded():
                self.outcome.succeeded.append(running.task.name)
            else:
                self.outcome.unfinished[running.task.name] = _last_words(running.job)
            on_end(running.task)

    def _fill(self, waiting: list[Task], names: set[str], until: float | None) -> None:
        """Start what can start on free slots."""
        if until is not None and until - time.monotonic() <= GRACE_SECONDS:
            return
        free = [i for i in range(len(self.slots)) if i not in self.running]
        for task in list(waiting):
            if not free:
                return
            needed = [name for name in task.after if name in names]
            failed = [name for name in needed if name in self.outcome.unfinished]
            if failed:
                waiting.remove(task)
                self.outcome.unfinished[task.name] = f"needs {', '.join(failed)}, which did not finish"
                continue
            if any(name not in self.outcome.succeeded for name in needed):
                continue
            claim = filelock.FileLock(self.locks / f"{task.name}.lock")
            try:
                claim.acquire(timeout=0)
            except filelock.Timeout:
                continue  # another launcher runs it: look again later
            waiting.remove(task)
            if task.succeeded():  # meanwhile, by another launcher
                claim.release()
                self.outcome.succeeded.append(task.name)
                continue
            index = free.pop(0)
            self.running[index] = _Running(task, self._submit(index, task, until), claim)

    def _submit(self, index: int, task: Task, until: float | None):
        import submitit

        slot = self.slots[index]
        if task.whole and slot.gpu is None:
            slot = replace(slot, threads=sum(one.threads for one in self.slots))
        executor = submitit.LocalExecutor(self.folder / f"slot-{index}")
        number = slot.gpu is not None and slot.gpu.isdecimal()
        devices = {"gpus_per_node": 1, "visible_gpus": (int(slot.gpu),)} if number else {}
        executor.update_parameters(timeout_min=FOREVER_MINUTES, **devices)
        where = replace(task.where, threads=slot.threads)
        if until is not None:  # it stops by itself a little earlier than we would make it
            where = replace(where, stop_after_seconds=max(1.0, until - time.monotonic() - GRACE_SECONDS))
        job = Job(task.function, os.getpid(), None if number else slot.gpu)
        with _child_environment(slot, where.deterministic):
            return executor.submit(job, task.arguments, where)

    def _end_all(self) -> None:
        """SIGTERM to every job until it has saved its state and ended; SIGKILL to what is left after the grace."""
        start, asked = time.monotonic(), 0.0
        while alive := [r for r in self.running.values() if not r.job.done()]:
            now = time.monotonic()
            if now - start > GRACE_SECONDS:
                for running in alive:
                    _kill_task(running.job)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(running.job.job_id), signal.SIGKILL)
            elif now - asked > 1.0:  # again and again: one that comes while a job starts up is lost
                asked = now
                for running in alive:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(running.job.job_id), signal.SIGTERM)  # the controller forwards it to the task
            time.sleep(0.05)


def _kill_task(job: Any) -> None:
    """SIGKILL to the process group of a job's task, if there is one left."""
    with contextlib.suppress(OSError, ValueError):
        os.killpg(int(_pid_file(job.paths.folder, job.job_id).read_text()), signal.SIGKILL)


def _last_words(job: Any) -> str:
    """The end of a job's error output and where the rest is."""
    path = job.paths.stderr
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip() and not line.startswith("submitit ")]
        if lines:
            return f"{lines[-1][:200]} (log: {path})"
    return f"ended without finishing (log: {path})"


def fresh_folder(results: Path) -> Path:
    """A new folder for the files of one launch. Raises UsageError where nothing can be written."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in range(1000):
        folder = results / "jobs" / f"{stamp}-{os.getpid()}{f'-{suffix}' if suffix else ''}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(f"cannot write below {results}: {error.strerror}; choose another --results folder") from None
    raise UsageError(f"no free folder below {results / 'jobs'}; remove old ones")


@dataclass(frozen=True)
class Slurm:
    """Options of the cluster's jobs."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    minutes: int = 24 * 60
    setup: tuple[str, ...] = ()
    gpus: int = 1  # of each job; 0: CPU only
    cpus: int = 4
    at_once: int = 256

    def parameters(self, name: str, after: Sequence[str]) -> dict[str, Any]:
        """For submitit's SlurmExecutor."""
        wanted = {
            "job_name": name,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "time": self.minutes,
            "setup": list(self.setup) or None,
            "gpus_per_node": self.gpus or None,
            "cpus_per_task": self.cpus,
            "array_parallelism": self.at_once,
            "signal_delay_s": 120,
            "dependency": f"afterany:{':'.join(after)}" if after else None,
        }
        return {key: value for key, value in wanted.items() if value is not None}


def on_slurm() -> bool:
    """Whether jobs would go to a cluster: its commands are there, its controller answers, and this is no job of it."""
    if shutil.which("sbatch") is None or "SLURM_JOB_ID" in os.environ:
        return False
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["sinfo", "-h"], capture_output=True, timeout=20, check=False).returncode == 0
    return False


def submit_slurm(tasks: Sequence[Task], options: Slurm, folder: Path) -> dict[str, str]:
    """Submit tasks, in order, as one array for each set of tasks they wait for. Returns job ids by task name. Raises UsageError.

    Dependencies are `afterany`: a group whose teacher is missing then says so by itself, while an `afterok` would wait for ever.
    """
    import submitit

    ids: dict[str, str] = {}
    try:
        for after in dict.fromkeys(t.after for t in tasks):
            batch = [t for t in tasks if t.after == after]
            executor = submitit.SlurmExecutor(folder, max_num_timeout=1000)  # a long run may need many turns of a short limit
            waits = [ids[name] for name in after if name in ids]
            executor.update_parameters(**options.parameters(f"kd-{batch[0].name.split('-')[0]}" if len(batch) == 1 else "kd-bench", waits))
            with _child_environment(Slot(None, options.cpus), batch[0].where.deterministic), executor.batch():
                jobs = [executor.submit(Job(t.function), t.arguments, replace(t.where, threads=options.cpus)) for t in batch]
            ids |= {t.name: job.job_id for t, job in zip(batch, jobs, strict=True)}
    except (RuntimeError, ValueError, OSError, submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        text = " ".join(str(error).split())[:300]
        raise UsageError(f"Slurm took {len(ids)} of {len(tasks)} jobs and refused the next: {text}") from None
    return ids
