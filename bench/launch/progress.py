"""The live table of a launch, read from the runs' status.json only. No torch here."""
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from bench.errors import StoreError
from bench.store.runs import read_status
from bench.text import duration, table

LINE_SECONDS = 30.0
"""Without a terminal: at most one line in this time, and only where something changed."""
TABLE_SECONDS = 1.0


def statuses(results: Path, since: float = 0.0) -> list[dict[str, Any]]:
    """The status.json of every run changed since `since` (seconds since the epoch, by file time), by run id; unreadable ones are left out."""
    found = []
    for path in sorted((results / "runs").glob("*/status.json")):
        try:
            if path.stat().st_mtime >= since:
                found.append(read_status(path.parent))
        except (OSError, StoreError):
            continue
    return [s for s in found if s]


def _text(value: Any, form: str, unit: str = "") -> str:
    return form.format(value) + unit if isinstance(value, int | float) and not isinstance(value, bool) else "-"


HEADER = ("run", "epoch", "step", "loss", "top-1", "left")


def line(status: dict[str, Any]) -> tuple[str, ...]:
    """One run's row: run, epoch, step, loss, test top-1, time left."""
    epoch, epochs, step, steps = (status.get(key) for key in ("epoch", "epochs", "step", "steps"))
    eta = status.get("eta_seconds")
    return (
        str(status.get("run", "?")),
        f"{_text(epoch, '{}')}/{_text(epochs, '{}')}",
        f"{_text(step, '{}')}/{_text(steps, '{}')}" if step is not None else "-",
        _text(status.get("loss"), "{:.3f}"),
        _text(status.get("test_top1"), "{:.2f}", " %"),
        duration(eta) if isinstance(eta, int | float) else "-",
    )


class Progress:
    """Shows a launch. `counts` gives (done, planned) runs; `update` is called often and draws when it is time."""

    def __init__(self, results: Path, counts: Callable[[], tuple[int, int]], out: TextIO | None = None) -> None:
        self.results, self.counts = results, counts
        self.out = out or sys.stdout
        self.live = self.out.isatty()
        self._since = time.time() - 5.0  # file times, coarser than the clock on some file systems
        self._started = time.monotonic()
        self._drawn = float("-inf")
        self._height = 0
        self._last = ""

    def update(self, tasks: Sequence[str] = (), force: bool = False) -> None:
        """Redraw the table (terminal) or write a line (elsewhere), unless the last one is too recent or says the same."""
        now = time.monotonic()
        if not force and now - self._drawn < (TABLE_SECONDS if self.live else LINE_SECONDS):
            return
        seen = statuses(self.results, self._since)
        running = [s for s in seen if s["status"] == "running"]
        summary = self._summary(seen, running, tasks)
        if self.live:
            self._draw(running, summary)
        elif summary != self._last:
            self.out.write(f"[{duration(now - self._started)}] {summary}\n")
            self.out.flush()
        else:
            return
        self._drawn, self._last = now, summary

    def say(self, message: str) -> None:
        """A line that stays."""
        if self.live and self._height:
            self.out.write(f"\x1b[{self._height}A\x1b[J")
            self._height = 0
        self.out.write(message + "\n")
        self.out.flush()

    def _summary(self, seen: Sequence[dict[str, Any]], running: Sequence[dict[str, Any]], tasks: Sequence[str]) -> str:
        done, planned = self.counts()
        parts = [f"{done} of {planned} runs done"]
        parts += [f"{n} {status}" for status in ("failed", "diverged") if (n := sum(s["status"] == status for s in seen))]
        if running:
            epochs = sorted({s["epoch"] for s in running if isinstance(s.get("epoch"), int)})
            top1 = sorted(s["test_top1"] for s in running if isinstance(s.get("test_top1"), int | float))
            left = [s["eta_seconds"] for s in running if isinstance(s.get("eta_seconds"), int | float)]
            text = f"{len(running)} running"
            text += f", epoch {epochs[0]}" + (f"-{epochs[-1]}" if len(epochs) > 1 else "") if epochs else ""
            text += f", top-1 {top1[0]:.1f}-{top1[-1]:.1f} %" if top1 else ""
            text += f", {duration(max(left))} left" if left else ""
            parts.append(text)
        if tasks:
            parts.append("jobs: " + ", ".join(tasks[:4]) + (f" and {len(tasks) - 4} more" if len(tasks) > 4 else ""))
        return "; ".join(parts)

    def _draw(self, running: Sequence[dict[str, Any]], summary: str) -> None:
        width, height = shutil.get_terminal_size()
        room = max(3, height - 4)
        lines = table([line(s) for s in running[:room]], HEADER) if running else []
        if len(running) > room:
            lines.append(f"... and {len(running) - room} more")
        lines = [text[: width - 1] for text in (*lines, summary)]
        up = f"\x1b[{self._height}A" if self._height else ""
        self.out.write(up + "\x1b[J" + "".join(text + "\n" for text in lines))
        self.out.flush()
        self._height = len(lines)
