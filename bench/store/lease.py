"""One writer per run: a lease file that outlives neither its process nor its host's reboot.

Where holder and judge see the same processes, the holder's process decides; elsewhere (other hosts, containers with process numbers of
their own) a counter that stands still does. A thread moves the counters of all leases that a process holds, whatever else it is busy with.
Clocks are never compared.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from bench.errors import StoreError, UsageError
from bench.store.files import parse, read_bytes

NAME = "lease.json"
LOCK = f".{NAME}.lock"
BEAT_SECONDS = 15.0
STILL_SECONDS = 90.0
"""How long a counter must stand still before its lease is taken."""
RELEASE_SECONDS = 10.0
"""How long who gives a lease back waits for somebody who judges it; that takes no time unless his process is stopped."""
VIEW = ("host", "boot", "processes")
"""Where these agree, process numbers mean the same."""


def check_locks(folder: Path) -> None:
    """Raises UsageError where a folder's file system keeps no locks: who waits for one of a process that was killed would wait for ever."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise UsageError(f"{folder} is on a file system without file locks (flock); mount it with them or choose another --results") from None


class LeaseLost(RuntimeError):
    """The lease is no longer ours: another writer took it; nothing more may be published."""


def _view() -> dict[str, str]:
    view = {"host": socket.gethostname(), "boot": "unknown", "processes": "unknown"}
    with contextlib.suppress(OSError):
        view["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        view["processes"] = os.readlink("/proc/self/ns/pid")
    return view


def started(pid: int) -> str | None:
    """The start time of a process in the kernel's ticks: a re-used pid has another one. None: no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # a name may be cut inside a character
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
    """Holds `folder`/lease.json. Use `acquire`; call `check` before publishing, `release` at the end."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.token = secrets.token_hex(8)
        self._counter = 0
        self._guard = threading.Lock()  # a beat must not put back what is being released
        self._watched: tuple[dict | None, float] = None, 0.0  # what `live` saw last, and since when

    def acquire(self, still_seconds: float = STILL_SECONDS, check: Callable[[], None] = lambda: None) -> bool:
        """Take the lease; False where a live writer holds it. May wait `still_seconds` for a counter to move. Raises StoreError."""
        return acquire_all([self], still_seconds, check)[0]

    def held(self) -> bool:
        """Whether somebody holds it, as far as can be told at once: a holder whose process cannot be seen is taken at its word."""
        seen = self._read()
        return bool(seen) and _alive(seen) is not False

    def live(self) -> bool:
        """As `held`, for whoever asks again and again: a holder whose process cannot be seen is dead once its counter stood still for long.
        Raises StoreError."""
        seen = self._read()
        if not seen or (alive := _alive(seen)) is False:
            return False
        if seen != self._watched[0]:
            self._watched = seen, time.monotonic()
        return alive is True or time.monotonic() - self._watched[1] < STILL_SECONDS

    def beat(self) -> None:
        """Move the counter. Raises LeaseLost, StoreError, OSError."""
        with self._guard:
            self.check()  # before the lock: a folder that was given back is left as it is
            with contextlib.suppress(filelock.Timeout), self._lock(0):  # locked: somebody judges it just now
                self.check()
                self._counter += 1
                self._place()

    def check(self) -> None:
        """Raises LeaseLost where the lease is not ours any more, StoreError where it cannot be read."""
        if not self._is_ours():
            raise LeaseLost(f"{self.path}: the lease was taken by another writer")

    def release(self) -> None:
        """Give the lease back, if it is still ours; one that cannot be read any more is not."""
        _HEART.forget(self)
        with self._guard, contextlib.suppress(StoreError), contextlib.ExitStack() as locked:
            if not self._is_ours():
                return
            with contextlib.suppress(OSError):  # no room for the lock: then nobody can judge the lease either
                locked.enter_context(self._lock(RELEASE_SECONDS))
            if self._is_ours():
                self.path.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        seen = self._read()
        return seen is not None and seen.get("token") == self.token

    def moved(self, folder: Path) -> None:
        """The folder was renamed to this one while the lease was held."""
        self.path = folder / NAME

    def _lock(self, timeout: float = -1) -> filelock.FileLock:
        """Keeps apart those who judge the same stale lease; the kernel drops it with its holder. Its file stays: who waits for one that was
        taken away, and who finds none and makes a new one, would both have it."""
        return filelock.FileLock(self.path.with_name(LOCK), timeout=timeout)

    def _draft(self) -> Path:
        pid = os.getpid()
        holder = {**_view(), "pid": pid, "started": started(pid), "token": self.token, "counter": self._counter}
        draft = self.path.with_name(f".{NAME}.{self.token}")
        draft.write_text(json.dumps(holder))
        return draft

    def _place(self) -> None:
        os.replace(self._draft(), self.path)

    def _read(self) -> dict | None:
        """The lease that stands there; None: none; empty: one that cannot be read, which nobody holds. Raises StoreError."""
        try:
            content = read_bytes(self.path)
        except FileNotFoundError:
            return None
        try:
            return parse(self.path, content)
        except StoreError:
            return {}

    def _attempt(self) -> dict | bool:
        """True: taken. False: a live process holds it. A lease: whether its holder lives cannot be seen from here."""
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
                if seen.get("token") == self.token:  # over NFS: the answer was lost, and the question asked again
                    return True
                alive = _alive(seen) if seen else False
                if alive is None:
                    return seen
                if alive:
                    return False
                if self._take(seen):
                    return True
            return False
        finally:
            draft.unlink(missing_ok=True)

    def _take(self, seen: dict) -> bool:
        """Take a dead holder's lease, if it is still that one."""
        with self._lock():
            if self._read() != seen:
                return False
            self._place()
        return True


def _alive(seen: dict) -> bool | None:
    """Whether the holder's process lives; None: it cannot be seen from here."""
    ours = _view()
    if any(seen.get(name, ours[name]) != ours[name] for name in VIEW):
        return None
    began = started(seen["pid"]) if isinstance(seen.get("pid"), int) else None
    return began is not None and began == seen.get("started")


def acquire_all(leases: Sequence[Lease], still_seconds: float = STILL_SECONDS, check: Callable[[], None] = lambda: None) -> list[bool]:
    """Take those that no live writer holds: which ones. Counters of holders that cannot be seen are watched together, once; what is held
    already is beaten meanwhile, since others may be watching it.

    `check` is called while waiting and may raise to stop. Raises StoreError; nothing is held then.
    """
    won: dict[Lease, bool] = {}

    def settle(lease: Lease, ours: bool) -> None:
        won[lease] = ours
        if ours:
            _HEART.keep(lease)

    try:
        watched: dict[Lease, dict] = {}
        for lease in leases:
            answer = lease._attempt()
            settle(lease, answer is True)
            if isinstance(answer, dict):
                watched[lease] = answer
        until = time.monotonic() + still_seconds
        while watched and time.monotonic() < until:
            check()
            time.sleep(min(1.0, max(0.01, until - time.monotonic())))
            for lease, seen in list(watched.items()):
                if lease._read() != seen:
                    settle(lease, lease._attempt() is True)  # moved: alive; released: ours
                    del watched[lease]
        for lease, seen in watched.items():
            settle(lease, lease._take(seen))
    except BaseException:
        for lease in leases:
            lease.release()
        raise
    return [won[lease] for lease in leases]


class _Heart:
    """The thread that beats every lease this process holds. A lease that was lost, or whose disk is full, is left to its `check`."""

    def __init__(self) -> None:
        self._leases: weakref.WeakSet[Lease] = weakref.WeakSet()
        self._pid: int | None = None  # a forked child has no thread and holds nothing
        self._guard = threading.Lock()

    def keep(self, lease: Lease) -> None:
        with self._guard:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._leases = weakref.WeakSet()
                threading.Thread(target=self._run, name="lease", daemon=True).start()
            self._leases.add(lease)

    def forget(self, lease: Lease) -> None:
        with self._guard:
            self._leases.discard(lease)

    def _run(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            with self._guard:
                leases = list(self._leases)
            for lease in leases:
                try:
                    lease.beat()
                except LeaseLost:
                    self.forget(lease)
                except (OSError, StoreError):
                    continue


_HEART = _Heart()


@contextlib.contextmanager
def waited_for(path: Path, check: Callable[[], None], **settings: Any) -> Iterator[None]:
    """Holds the lock of a file, `settings` of which are filelock's; while another has it, `check` is called once a second and may raise."""
    lock = filelock.FileLock(path, **settings)
    while True:
        check()
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=1.0)
            break
    try:
        yield
    finally:
        lock.release()
