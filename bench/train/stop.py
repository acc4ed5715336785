"""Stopping cleanly: signals and a time limit set a flag that loops poll at step boundaries."""

import signal
import time
from types import FrameType

from bench.errors import INTERRUPTED, STOPPED_IN_TIME

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Stopped(Exception):
    """Raised where a loop has no state of its own to save (a preparation, an evaluation)."""


class Stop:
    """The flag. `code` is the exit code to return once the state is saved, None while work goes on."""

    preempted = False
    """Whether SIGUSR2 came in this process before its time budget was used up: the job is to go on later."""

    def __init__(self, after_seconds: float | None = None) -> None:
        self._deadline = None if after_seconds is None else time.monotonic() + after_seconds
        self._signal: int | None = None

    def install(self) -> "Stop":
        """Catch the signals (main thread only). A second SIGINT falls through to the default action."""
        for number in SIGNALS:
            signal.signal(number, self._caught)
        return self

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self._signal = number
        if number == signal.SIGUSR2 and not self._used_up():
            Stop.preempted = True

    def _used_up(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    @property
    def code(self) -> int | None:
        if self._signal is not None:
            return STOPPED_IN_TIME if self._signal == signal.SIGUSR2 else INTERRUPTED
        return STOPPED_IN_TIME if self._used_up() else None

    @property
    def reason(self) -> str:
        if self._signal is not None:
            return signal.Signals(self._signal).name
        return "time budget used up"

    def check(self) -> None:
        """Raise Stopped if it is time to stop."""
        if self.code is not None:
            raise Stopped(self.reason)
