"""The live table of a launch, read from the runs' status.json only. No torch here."""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from bench.errors import StoreError
from bench.store import redo
from bench.store.records import Status
from bench.store.runs import read_status
from bench.text import clean, duration

LINE_SECONDS = 30.0
"""Without a terminal: at most one line in this time, and only where something changed."""
TABLE_SECONDS = 1.0
ENOUGH = 0.02
"""The share of the work that must have been done here before the time left is told."""
HEADER = ("run", "epoch", "step", "loss", "top-1", "left")
NARROW = ((), ("loss",), ("loss", "step"))
"""What is left out where the terminal has no room for all of it."""


def statuses(results: Path, since: float = 0.0, known: Mapping[Path, int] | None = None) -> list[Status]:
    """The status.json of every run changed since `since` (seconds since the epoch, by file time), by run id; unreadable ones are left out.

    `known`: the `stamps` of an earlier look; what has another one now, or none then, changed since, whatever became of the clock.
    """
    found = []
    for path, stamp in stamps(results).items():
        if stamp >= since * 1e9 or (known is not None and known.get(path) != stamp):
            with contextlib.suppress(OSError, StoreError):
                found.append(read_status(path.parent))
    return [s for s in found if s]


def stamps(results: Path) -> dict[Path, int]:
    """The file times (ns) of every status.json, by path."""
    found = {}
    for path in sorted([*(results / "runs").glob("*/status.json"), *redo.root(results).glob("runs/*/status.json")]):
        with contextlib.suppress(OSError):
            found[path] = path.stat().st_mtime_ns
    return found


def _text(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else form.format(value) + unit


def line(status: Status, label: str = "") -> tuple[str, ...]:
    """One run's row: run, epoch, step, loss, test top-1, time left. `label`: of a variant, shown in place of the number that ends its id."""
    s = status
    run = s.run or "?"
    return (
        clean(f"{run.rpartition('-')[0]} [{label}]" if label else run),
        f"{_text(s.epoch, '{}')}/{_text(s.epochs, '{}')}",
        f"{_text(s.step, '{}')}/{_text(s.steps, '{}')}" if s.step is not None else "-",
        _text(s.loss, "{:.3f}"),
        _text(s.test_top1, "{:.2f}", " %"),
        "-" if s.eta_seconds is None else duration(s.eta_seconds),
    )


def _part(status: Status) -> float:
    """How much of a running run is done, 0 to 1."""
    s = status
    if not (s.epoch and s.epochs and s.epoch <= s.epochs):
        return 0.0
    within = s.step / s.steps if s.step is not None and s.steps and s.step <= s.steps else 0.0
    return (s.epoch - 1 + within) / s.epochs


class Progress:
    """Shows a launch. `counts` gives (done, planned) runs, `counted` whether a run is among them: False for a teacher's, None for one of another
    plan. `labels`: what tells a run of a variant from its method's own, by id. `update` is called often and looks when it is time; `close` ends
    the display."""

    def __init__(
        self,
        results: Path,
        counts: Callable[[], tuple[int, int]],
        out: TextIO | None = None,
        counted: Callable[[str], bool | None] = lambda run: True,
        labels: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.results, self.counts, self.counted, self.labels = results, counts, counted, labels
        self.out = out or sys.stdout
        self.terminal = self.out.isatty()
        self._since = time.time() - 5.0  # file times, coarser than the clock on some file systems
        self._known = stamps(results)
        self._started = time.monotonic()
        self._looked = float("-inf")
        self._display: Any = None  # rich's, on a terminal
        self._last = ""
        self._first: tuple[float, float] | None = None  # when work was first seen to move, and how much was done then
        self._before = {s.run: _part(s) for s in statuses(results) if s.status != "done"}  # what earlier launches left of each run
        self._brought: dict[str | None, float] = {}  # that, of the runs that were taken up here

    def update(self, tasks: Sequence[str] | None = None, force: bool = False) -> None:
        """Redraw the table (terminal) or write a line (elsewhere), unless the last look is too recent or says the same. `tasks`: this launch's
        own that run; None: this is no launch."""
        now = time.monotonic()
        if not force and now - self._looked < (TABLE_SECONDS if self.terminal else LINE_SECONDS):
            return
        self._looked = now
        seen = statuses(self.results, self._since, self._known)
        ours = [s for s in seen if self.counted(s.run or "") is not None]
        running = [s for s in ours if s.status == "running"]
        summary = self._summary(ours, running, tasks, now)
        if others := sum(s.status == "running" for s in seen) - len(running):
            summary += f"; besides, of other plans: {others} running"
        if self.terminal:
            self._draw(running, summary)
        elif summary != self._last:
            self._write(f"[{duration(now - self._started)}] {summary}\n")
        self._last = summary

    def say(self, message: str) -> None:
        """A line that stays."""
        if self._display:
            self._display.console.print(message, markup=False, highlight=False, soft_wrap=True)
        else:
            self._write(message + "\n")

    def _write(self, text: str) -> None:
        """A line that cannot be written, on a full disk say, is no reason to end what runs; nobody left to read it is."""
        try:
            self.out.write(text)
            self.out.flush()
        except BrokenPipeError:
            raise
        except OSError:
            pass

    def close(self) -> None:
        """Leave the last state standing and give the terminal back."""
        if self._display:
            self._display.stop()
            self._display = None

    def _summary(self, seen: Sequence[Status], running: Sequence[Status], tasks: Sequence[str] | None, now: float) -> str:
        done, planned = self.counts()
        parts = [f"{done} of {planned} runs done"]
        parts += [f"{n} {status}" for status in ("failed", "diverged") if (n := sum(s.status == status for s in seen))]
        if running:
            epochs = sorted({s.epoch for s in running if s.epoch is not None})
            top1 = sorted(s.test_top1 for s in running if s.test_top1 is not None)
            text = f"{len(running)} running" + (" in another launch" if tasks is not None and not tasks else "")
            text += f", epoch {epochs[0]}" + (f"-{epochs[-1]}" if len(epochs) > 1 else "") if epochs else ""
            ends = dict.fromkeys(f"{value:.1f}" for value in top1[:1] + top1[-1:])
            text += f", top-1 {'-'.join(ends)} %" if ends else ""
            parts.append(text)
        if (left := self._left(done, [s for s in running if self.counted(s.run or "")], planned, now)) is not None:
            parts.append(f"about {duration(left)} left in all")
        if tasks:
            parts.append("jobs: " + ", ".join(tasks[:4]) + (f" and {len(tasks) - 4} more" if len(tasks) > 4 else ""))
        return "; ".join(parts)

    def _left(self, finished: int, running: Sequence[Status], planned: int, now: float) -> float | None:
        """Seconds until everything is trained, at the pace since work was first seen to move; None: too early to tell.

        A run that goes on from a checkpoint brings work with it that was not done in this time."""
        for s in running:
            self._brought[s.run] = min(self._brought.get(s.run, self._before.get(s.run, 0.0)), _part(s))
        brought = sum(self._brought.values())
        done = finished + sum(map(_part, running))
        if self._first is None or done - brought <= self._first[1]:
            self._first = now, done - brought
            return None
        since, before = self._first
        here = done - brought - before
        if not planned or here < ENOUGH * planned or done >= planned:
            return None
        return (now - since) * (planned - done) / here

    def _draw(self, running: Sequence[Status], summary: str) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text

        if self._display is None:
            self._display = Live(console=Console(file=self.out, force_terminal=True), auto_refresh=False)
            self._display.start()
        table = Table(box=None, pad_edge=False, show_edge=False)
        room = max(3, self._display.console.height - 4)
        labels = self.labels() if running else {}
        columns = list(zip(HEADER, *(line(status, labels.get(status.run or "", "")) for status in running[:room]), strict=True))
        for left_out in NARROW:
            shown = [column for column in columns if column[0] not in left_out]
            if sum(max(map(len, column)) + 2 for column in shown) - 2 <= self._display.console.width:
                break
        for name, *_ in shown:  # where it is still too narrow, the runs' names are cut and no number is
            table.add_column(name, no_wrap=name != "run", justify="left" if name == "run" else "right")
        for run, *numbers in list(zip(*shown, strict=True))[1:]:
            table.add_row(Text(run, no_wrap=True, overflow="ellipsis"), *map(Text, numbers))
        more = [Text(f"... and {len(running) - room} more")] if len(running) > room else []
        self._display.update(Group(*([table] if running else []), *more, Text(summary, no_wrap=True, overflow="ellipsis")), refresh=True)
