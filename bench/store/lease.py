"""One writer per run: a lease file that outlives neither its process nor its host's reboot.

On the same host the holder's process decides; across hosts a counter that stands still does. Clocks are never compared.
"""

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

import filelock

NAME = "lease.json"
STILL_SECONDS = 90.0
"""How long another host's counter must stand still before its lease is taken (owners beat at least every 20 s)."""


class LeaseLost(RuntimeError):
    """The lease is no longer ours: another writer took it; nothing more may be published."""


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "unknown"


def _started(pid: int) -> str | None:
    """The start time of a process in the kernel's ticks: a re-used pid has another one. None: no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        fields = stat.rsplit(")", 1)[1].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    try:  # no /proc: the best that POSIX gives
        os.kill(pid, 0)
        return "unknown"
    except OSError:
        return None


class Lease:
    """Holds `folder`/lease.json. Use `acquire`; call `beat` while working, `check` before publishing, `release` at the end."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.token = secrets.token_hex(8)
        self._counter = 0
        self._beaten = time.monotonic()

    def _content(self) -> bytes:
        pid = os.getpid()
        holder = {"host": socket.gethostname(), "boot": _boot_id(), "pid": pid, "started": _started(pid), "token": self.token}
        return json.dumps({**holder, "counter": self._counter}).encode()

    def acquire(self, still_seconds: float = STILL_SECONDS, check: Callable[[], None] = lambda: None) -> bool:
        """Take the lease; False where a live writer holds it. May wait `still_seconds` for another host's counter to move."""
        draft = self._draft()
        try:
            for _ in range(3):
                try:
                    os.link(draft, self.path)  # a finished file under its name at once: the lease is never seen empty
                    return True
                except FileExistsError:
                    seen = self._read()
                if seen is None:
                    continue
                if self._alive(seen, still_seconds, check):
                    return False
                # The lock keeps two who judged the same stale lease apart; the kernel drops it with its holder.
                with filelock.FileLock(self.path.with_name(f".{NAME}.lock")):
                    if self._read() == seen:
                        os.replace(draft, self.path)
                        return True
            return False
        finally:
            draft.unlink(missing_ok=True)

    def _draft(self) -> Path:
        draft = self.path.with_name(f".{NAME}.{self.token}")
        draft.write_bytes(self._content())
        return draft

    def _read(self) -> dict | None:
        """The lease that stands there; None: none; empty: one that cannot be read, which nobody holds."""
        try:
            content = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    def _alive(self, seen: dict, still_seconds: float, check: Callable[[], None]) -> bool:
        if not seen:
            return False
        if seen.get("host") == socket.gethostname():
            if seen.get("boot") != _boot_id() or not isinstance(seen.get("pid"), int):
                return False
            started = _started(seen["pid"])
            return started is not None and started == seen.get("started")
        until = time.monotonic() + still_seconds
        while time.monotonic() < until:
            check()
            time.sleep(min(1.0, max(0.01, until - time.monotonic())))
            now = self._read()
            if now is None:
                return False
            if (now.get("token"), now.get("counter")) != (seen.get("token"), seen.get("counter")):
                return True
        return False

    def held(self) -> bool:
        """Whether somebody holds it, as far as can be told at once: another host's holder is taken at its word."""
        seen = self._read()
        return bool(seen) and (seen.get("host") != socket.gethostname() or self._alive(seen, 0.0, lambda: None))

    def beat(self, every_seconds: float = 20.0) -> None:
        """Move the counter, at most once in `every_seconds`. Raises LeaseLost."""
        if time.monotonic() - self._beaten < every_seconds:
            return
        self.check()
        self._counter += 1
        os.replace(self._draft(), self.path)
        self._beaten = time.monotonic()

    def check(self) -> None:
        """Raises LeaseLost where the lease is not ours any more."""
        seen = self._read()
        if seen is None or seen.get("token") != self.token:
            raise LeaseLost(f"{self.path}: the lease was taken by another writer")

    def release(self) -> None:
        """Give the lease back, if it is still ours."""
        seen = self._read()
        if seen is not None and seen.get("token") == self.token:
            self.path.unlink(missing_ok=True)
