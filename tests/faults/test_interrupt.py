"""Fault 26: Ctrl-C in run_all.sh ends the whole tree, leaves nothing behind, and the next call goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.store.runs import scan

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--cluster", "local", "--device", "cpu", "--methods", "student", "--seeds", "1", "--threads", "1", "--no-costs", "--sample-rate", "0.1")
SMALL += ("--epochs", "20")


def session(leader: int) -> list[int]:
    """Live processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = path.read_text().rsplit(")", 1)[1].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(sid) == leader and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def run_all(folder: Path, *more: str) -> subprocess.Popen:
    environment = os.environ | {"KD_BENCH_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "run_all.sh"), "--profile", "smoke", "--results", str(folder), *SMALL, *more]
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_ctrl_c_ends_the_tree_and_the_next_call_goes_on(tmp_path):
    folder = tmp_path / "results"
    first = run_all(folder, "--checkpoint-seconds", "0")
    until = time.monotonic() + 200
    while not list(folder.glob("groups/*/manifest.json")) and time.monotonic() < until and first.poll() is None:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does: to everything in the foreground
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 130 and not session(first.pid), said
    (view,) = scan(folder)[0]
    assert view.status == "interrupted", said
    second = run_all(folder)
    said, _ = second.communicate(timeout=280)
    assert second.returncode == 0 and not session(second.pid), said
    (view,) = scan(folder)[0]
    assert view.status == "done" and view.record.attempts == 2
    assert "attempt 2: resumed at epoch" in (view.folder / "log.txt").read_text()
