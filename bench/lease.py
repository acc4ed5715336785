"""One writer per run: a lease file that outlives neither its process nor its host's reboot.

On the same host the holder's process decides; across hosts a counter that stands still does. Clocks are never compared.
"""

import contextlib
import json
import os
import secrets
import socket
import time
from pathlib import Path

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

    def acquire(self, still_seconds: float = STILL_SECONDS, check=lambda: None) -> bool:
        """Take the lease; False where a live writer holds it. May wait `still_seconds` for another host's counter to move."""
        for _ in range(3):
            try:
                # A link of a finished file: the lease is never seen empty.
                draft = self.path.with_name(f".{NAME}.{self.token}")
                draft.write_bytes(self._content())
                try:
                    os.link(draft, self.path)
                    return True
                finally:
                    draft.unlink(missing_ok=True)
            except FileExistsError:
                seen = self._read()
                if seen is None:
                    continue
                if self._alive(seen, still_seconds, check):
                    return False
                self._remove(seen)
        return False

    def _read(self) -> dict | None:
        try:
            return json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}

    def _alive(self, seen: dict, still_seconds: float, check) -> bool:
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

    def _remove(self, seen: dict) -> None:
        """Move the stale lease aside; only the one who moves exactly what was judged may go on."""
        aside = self.path.with_name(f".{NAME}.stale.{self.token}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, aside)
            moved = json.loads(aside.read_bytes() or b"{}") if aside.stat().st_size else {}
            if moved.get("token") != seen.get("token"):
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)  # it was a live one: put it back
            aside.unlink(missing_ok=True)

    def beat(self, every_seconds: float = 20.0) -> None:
        """Move the counter, at most once in `every_seconds`. Raises LeaseLost."""
        if time.monotonic() - self._beaten < every_seconds:
            return
        self.check()
        self._counter += 1
        draft = self.path.with_name(f".{NAME}.{self.token}")
        draft.write_bytes(self._content())
        os.replace(draft, self.path)
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
