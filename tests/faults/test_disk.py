"""Faults 6 and 23: a full disk, a folder that cannot be written, a path with spaces and unicode. On real small file systems of their own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.errors import DONE, TROUBLE, UsageError
from bench.store.rows import read_rows
from bench.store.runs import scan
from bench.train import checkpoint, engine, group_job
from tests.faults import lives


def mount(folder: Path, options: str) -> None:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip() or done.returncode}")


@pytest.fixture
def small(tmp_path, teacher_folder):
    """A results folder on a file system of 6 MB, with a teacher in it."""
    if os.getuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root and mount")
    folder = tmp_path / "small"
    mount(folder, "size=6m")
    shutil.copytree(teacher_folder / "teachers", folder / "teachers")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> None:
    """A file that takes what is free, but for `leave` bytes."""
    free = os.statvfs(folder)
    size = max(0, free.f_bavail * free.f_frsize - leave)
    with open(folder / "ballast", "wb", buffering=0) as file:
        while size > 0:
            size -= file.write(b"\0" * min(size, 1 << 16))


def fills_after(folder: Path, steps: int, leave: int) -> int:
    """A life in which the disk fills up after so many steps."""

    taken = 0
    step = engine.Eager.step

    def counted(runner, start, stop):
        nonlocal taken
        taken += 1
        if taken == steps:
            fill(folder, leave)
        return step(runner, start, stop)

    engine.Eager.step = counted
    return group_job.run_group(lives.group(), lives.execution(folder))


@pytest.mark.parametrize("leave", [0, 200_000], ids=["to the last byte", "no room for a checkpoint"])
def test_a_full_disk_fails_the_run_and_spoils_nothing(small, tmp_path, unbroken, leave, capfd):
    assert lives.live(lambda: fills_after(small, lives.STEPS + 2, leave)) == TROUBLE
    assert {m: s for m, (s, _) in lives.statuses(small).items()} == {"student": "failed", "kd": "failed"}
    assert all(reason.startswith("No space left on device") for _, reason in lives.statuses(small).values())
    said = capfd.readouterr()
    assert "failed: No space left on device" in said.out and "Traceback" not in said.err
    for view in (v for v in scan(small)[0] if v.seed != 0):
        restored = checkpoint.restore(small, view.id)[1]
        assert restored.state is not None and restored.position >= checkpoint.Position(2, 0) and not restored.notes
        rows = read_rows(view.folder / "epochs.jsonl", view.id)
        assert len(rows.rows) == 1 and not rows.torn
        assert not list(view.folder.glob(".*.tmp")) and not (view.folder / "lease.json").exists()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(small / "teachers", elsewhere / "teachers")
    assert lives.train(elsewhere) == DONE  # other runs go on
    (small / "ballast").unlink()
    assert lives.train(small) == DONE
    assert lives.outcome(small) == unbroken
    assert all("attempt 2: resumed at epoch 2" in p.read_text() for p in small.glob("runs/*s1*/log.txt"))


def test_a_disk_full_from_the_start_is_one_line(small):
    fill(small)
    with pytest.raises(UsageError, match=r"cannot write below .*: No space left on device; free some space"):
        group_job.run_group(lives.group(), lives.execution(small))
    assert not list(small.glob("runs/*/config.json"))


def test_a_read_only_folder_is_one_line(small):
    assert lives.train(small, lives.group("student")) == DONE
    before = sorted(p for p in small.rglob("*"))
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    with pytest.raises(UsageError, match=r"cannot write below .*: Read-only file system"):
        group_job.run_group(lives.group("kd"), lives.execution(small))
    assert lives.train(small, lives.group("student")) == DONE  # what is done needs no writing
    assert sorted(p for p in small.rglob("*")) == before


def test_spaces_and_unicode_in_the_path(teacher_folder, tmp_path, unbroken):
    folder = tmp_path / "rés ults\n'\"$HOME 実験 \U0001f393"
    shutil.copytree(teacher_folder / "teachers", folder / "teachers")
    assert lives.live(lambda: lives.dies_after(folder, 3)) == 99
    assert lives.train(folder) == DONE and lives.outcome(folder) == unbroken
