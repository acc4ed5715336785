"""Running tasks through submitit: on this machine over a pool of slots of our own, on Slurm as job arrays.

Locally submitit has no queue: it starts every job at once and gives each GPU 0. So one executor a slot, with fixed devices, and a slot
gets its next task when its job's process has ended. Whether a task succeeded is read from the results folder, never from submitit.
"""
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock

from bench.errors import INTERRUPTED, STOPPED_IN_TIME, StoreError
from bench.launch.tasks import NOT_STARTED, Job, Outcome, Slot, Task, child_environment, hangup, own_folder, pid_file
from bench.launch.threads import cores
from bench.store.files import read_bytes, write_bytes
from bench.text import clean

POLL_SECONDS = 0.2
GRACE_SECONDS = 7.0
"""From the first SIGTERM to SIGKILL: with what starts and ends the jobs, an interrupted launch is over within 10 s."""
FOREVER_MINUTES = 60 * 24 * 365  # submitit's own default would end a local job after 2 minutes


@dataclass
class _Running:
    task: Task
    job: Any
    claim: filelock.BaseFileLock
    others: frozenset[str]  # the runs that were another launch's when it began

    def left_to_others(self) -> bool:
        """Whether what it has not done is what another launch does, or had begun before: nothing failed here."""
        missing = self.task.missing()
        return bool(missing) and all(held or run in self.others for run, held in missing.items())


class Pool:
    """Runs tasks over slots of this machine. `watch` is called about five times a second with the names of the running tasks, `say` with what a
    reader should know."""

    def __init__(
        self,
        slots: Sequence[Slot],
        folder: Path,
        locks: Path,
        watch: Callable[[list[str]], None] = lambda names: None,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.slots, self.folder, self.locks, self.watch, self.say = list(slots), folder, locks, watch, say
        self._told: set[str] = set()  # tasks of which it was said that they wait
        self.running: dict[int, _Running] = {}
        self.outcome = Outcome()
        self._caught: int | None = None

    def run(self, tasks: Sequence[Task], until: float | None = None, on_end: Callable[[Task], None] = lambda task: None) -> Outcome:
        """Run the tasks in their order as slots become free, each at most once; `until` (monotonic seconds) ends the launch in time."""
        waiting = list(tasks)
        names = {t.name for t in tasks}
        self.outcome = Outcome()
        previous = {number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM, *hangup())}
        try:
            while True:
                waiting += self._collect(on_end)
                left = waiting or self.running
                self.outcome.code = self._over(until if left else None)  # what is done was done in time
                if self.outcome.code or not left:
                    break
                self._fill(waiting, names, until)
                self.watch([r.task.name for r in self.running.values()])
                time.sleep(POLL_SECONDS)
        finally:
            self._end_all()
            waiting += self._collect(on_end)
            for number, handler in previous.items():
                signal.signal(number, handler)
        for task in waiting:
            self.outcome.unfinished.setdefault(task.name, NOT_STARTED)
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

    def _collect(self, on_end: Callable[[Task], None]) -> list[Task]:
        """Free the slots whose job's process has ended. Gives the tasks that wait again, for runs that another launch does."""
        again = []
        for index, running in list(self.running.items()):
            if not running.job.done():
                continue
            if running.job.state == "INTERRUPTED":
                _kill_task(running.job)  # the controller was killed: its task may live
            del self.running[index]
            running.claim.release()
            if running.task.succeeded():
                self.outcome.succeeded.append(running.task.name)
            elif running.left_to_others():
                again.append(running.task)
                continue
            else:
                self.outcome.unfinished[running.task.name] = _last_words(running.job)
            on_end(running.task)
        return again

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
            missing = task.missing()
            if missing and all(missing.values()):
                continue  # another launch does all of it: look again later
            lock = self.locks / f"{task.lock or task.name}.lock"
            claim = filelock.FileLock(lock)
            try:
                claim.acquire(timeout=0)
            except filelock.Timeout:
                if task.name not in self._told:
                    self._told.add(task.name)
                    self.say(f"{task.name}: waits for {_holder(lock)}, another launch in this results folder")
                continue  # look again later
            except OSError as error:
                self._give_up(task, waiting, error)
                continue
            _sign(lock)
            if task.succeeded():  # meanwhile, by another launcher
                waiting.remove(task)
                claim.release()
                self.outcome.succeeded.append(task.name)
                continue
            others = frozenset(run for run, held in missing.items() if held)
            try:
                self.running[free[0]] = _Running(task, self._submit(free[0], task, until), claim, others)
            except OSError as error:
                claim.release()
                self._give_up(task, waiting, error)
                continue
            waiting.remove(task)
            free.pop(0)

    def _give_up(self, task: Task, waiting: list[Task], error: OSError) -> None:
        """What cannot be started, on a full disk say, takes nothing with it that runs."""
        waiting.remove(task)
        self.outcome.unfinished[task.name] = f"could not be started: {error.strerror or error}"

    def _submit(self, index: int, task: Task, until: float | None):
        import submitit

        slot = self.slots[index]
        if task.whole and slot.gpu is None:
            slot = replace(slot, threads=max(slot.threads, min(cores(), sum(one.threads for one in self.slots))))
        executor = submitit.LocalExecutor(own_folder(own_folder(self.folder) / f"slot-{index}"))
        number = slot.gpu is not None and slot.gpu.isdecimal()
        devices = {"gpus_per_node": 1, "visible_gpus": (int(slot.gpu),)} if number else {}
        executor.update_parameters(timeout_min=FOREVER_MINUTES, **devices)
        execution = replace(task.execution, threads=slot.threads)
        if until is not None:  # it stops by itself a little earlier than we would make it
            execution = replace(execution, stop_after_seconds=max(1.0, until - time.monotonic() - GRACE_SECONDS))
        job = Job(task.function, os.getpid(), None if number else slot.gpu)
        with child_environment(slot, execution.deterministic):
            return executor.submit(job, task.arguments, execution)

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


def _sign(lock: Path) -> None:
    """Leave a word of who holds a lock, beside it: who tries to take a lock may empty its file."""
    with contextlib.suppress(OSError):
        write_bytes(lock.with_suffix(".holder"), f"process {os.getpid()} on {socket.gethostname()}".encode(), durable=False)


def _holder(lock: Path) -> str:
    """Who holds a lock, as far as that is told."""
    with contextlib.suppress(OSError, StoreError):
        return clean(read_bytes(lock.with_suffix(".holder"), 1000).decode(errors="replace"))
    return "another process"


def _kill_task(job: Any) -> None:
    """SIGKILL to the process group of a job's task, if there is one left."""
    with contextlib.suppress(OSError, ValueError):
        os.killpg(int(pid_file(job.paths.folder, job.job_id).read_text()), signal.SIGKILL)


def _last_words(job: Any) -> str:
    """The end of a job's error output and where the rest is."""
    path = job.paths.stderr
    with contextlib.suppress(OSError):
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip() and not line.startswith("submitit ")]
        if lines:
            start = max((i for i, line in enumerate(lines) if line.startswith("Traceback ")), default=None)
            # An error of CUDA's goes on below its first line, with advice.
            named = [] if start is None else [line for line in lines[start + 1 :] if not line.startswith(" ")]
            last = next((line for line in reversed(lines) if line.startswith("cost probe of ")), (named or lines[-1:])[0])
            return f"{last.strip().removeprefix('bench.errors.UsageError: ')[:400]} (log: {path})"
    return f"ended without finishing (log: {path})"
