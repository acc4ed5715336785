"""Jobs for launcher tests: they train nothing, note what they do in the results folder, and stop as real ones do."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from bench.errors import DONE
from bench.train.execution import Execution
from bench.train.stop import Stop


def note(folder: Path, kind: str, name: str) -> None:
    """One event, as one appended line: kind, name, pid, monotonic time (the same clock for all processes of a machine)."""
    with open(folder / "events.txt", "a", encoding="utf-8") as file:
        file.write(f"{kind} {name} {os.getpid()} {time.monotonic()}\n")


def events(folder: Path) -> list[tuple[str, str, int, float]]:
    path = folder / "events.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(kind, name, int(pid), float(at)) for kind, name, pid, at in (line.split() for line in lines)]


def work(name: str, seconds: float, execution: Execution) -> int:
    """Takes a while, then leaves `name`.done; stops early like a real job, noting with which exit code."""
    folder = Path(execution.results)
    stop = Stop(execution.stop_after_seconds).install()
    note(folder, "start", name)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if stop.code is not None:
            note(folder, f"stop{stop.code}", name)
            return stop.code
        time.sleep(0.01)
    leave(folder, name)
    note(folder, "end", name)
    return DONE


def leave(folder: Path, name: str) -> None:
    """That it is done, and what of the machine it was given."""
    (folder / f"{name}.done").write_text(os.environ.get("OMP_NUM_THREADS", "?") + "," + os.environ.get("CUDA_VISIBLE_DEVICES", "?"))


def beside(name: str, execution: Execution) -> int:
    """Ends a little after a second job has started, however long a busy machine takes for that."""
    folder = Path(execution.results)
    note(folder, "start", name)
    until = time.monotonic() + 60
    while sum(kind == "start" for kind, *_ in events(folder)) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.2)  # in which a third could be seen
    leave(folder, name)
    note(folder, "end", name)
    return DONE


def unhurried(name: str, execution: Execution) -> int:
    """Ends in its own time: an evaluation that began just before the job was to stop."""
    time.sleep(6.0)
    (Path(execution.results) / f"{name}.done").touch()
    return DONE


def one_after_the_other(names: Sequence[str], execution: Execution) -> int:
    """Leaves the first `name`.done that is not there yet, one a call."""
    folder = Path(execution.results)
    name = next(name for name in names if not (folder / f"{name}.done").exists())
    return work(name, 0.2, execution)


def crash(name: str, execution: Execution) -> int:
    note(Path(execution.results), "start", name)
    raise RuntimeError(f"{name} went wrong")


def killed(name: str, execution: Execution) -> int:
    note(Path(execution.results), "start", name)
    os.kill(os.getpid(), signal.SIGKILL)
    return DONE


def stubborn(name: str, execution: Execution) -> int:
    """Ignores every polite signal."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    note(Path(execution.results), "start", name)
    time.sleep(600)
    return DONE


def launch_work(folder: str, names: str, seconds: str, slots: str, function: str = "work", budget: str = "") -> int:
    """A whole launcher, for `python -c`: runs `function` for each of the comma-separated names and returns the exit code. One with a budget of
    seconds gives a minute of it to jobs that save: no machine is so slow that theirs does not end by itself."""
    from bench.launch import local
    from bench.launch.local import Pool
    from bench.launch.tasks import Slot, Task, fresh_folder

    if budget:
        local.GRACE_SECONDS = 60.0
    results = Path(folder)
    call = {"work": work, "stubborn": stubborn}[function]
    tasks = [
        Task(
            name,
            call,
            {"name": name} | ({"seconds": float(seconds)} if function == "work" else {}),
            Execution(results=folder),
            lambda name=name: (results / f"{name}.done").exists(),
        )
        for name in names.split(",")
    ]
    pool = Pool([Slot(None, 1)] * int(slots), fresh_folder(results), results / "locks")
    return pool.run(tasks, time.monotonic() + float(budget) if budget else None).code
