"""One writer per run: live holders are respected, dead ones, rebooted hosts and re-used pids are not; a lost lease is noticed."""

import contextlib
import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.errors import StoreError, UsageError
from bench.store import lease as lease_module
from bench.store.lease import NAME, Lease, LeaseLost, acquire_all, check_locks

FORK = multiprocessing.get_context("fork")


def rewrite(lease: Lease, **changes) -> dict:
    """As somebody else would have written it: this process beats it no more."""
    lease_module._HEART.forget(lease)
    content = json.loads(lease.path.read_text()) | changes
    lease.path.write_text(json.dumps(content))
    return content


def test_a_second_writer_is_refused_and_comes_in_after_release(tmp_path):
    first, second = Lease(tmp_path), Lease(tmp_path)
    assert first.acquire()
    assert not second.acquire()
    first.check()
    first.release()
    assert second.acquire()
    with pytest.raises(LeaseLost):
        first.check()
    first.release()  # not its own any more: stays
    second.check()
    assert [n for n in os.listdir(tmp_path) if n != f".{NAME}.lock"] == [NAME]


def test_a_dead_holder_is_replaced(tmp_path):
    child = FORK.Process(target=lambda: os._exit(0 if Lease(tmp_path).acquire() else 1))
    child.start()
    child.join()
    assert child.exitcode == 0 and (tmp_path / NAME).exists()
    assert Lease(tmp_path).acquire()


@pytest.mark.parametrize("changes", [{"started": "1"}, {"pid": 2**22 + 1}, {"pid": "x"}], ids=["re-used pid", "no such pid", "no pid"])
def test_a_lease_does_not_outlive_its_process(tmp_path, changes):
    old = Lease(tmp_path)
    assert old.acquire()
    rewrite(old, **changes)
    new = Lease(tmp_path)
    assert new.acquire()
    with pytest.raises(LeaseLost):
        old.check()


@pytest.mark.parametrize("place", [{"host": "elsewhere"}, {"boot": "another boot"}, {"processes": "pid:[1]"}], ids=lambda p: next(iter(p)))
def test_a_holder_that_cannot_be_seen_is_judged_by_its_counter_alone(tmp_path, place):
    """Other hosts, other machines or boots under the same host name, containers with process numbers of their own."""
    far = Lease(tmp_path)
    assert far.acquire()
    rewrite(far, **place, counter=5)
    assert Lease(tmp_path).held()
    # A moving counter: alive.
    polls = []

    def moving():
        polls.append(1)
        if len(polls) == 2:
            rewrite(far, counter=6)

    assert not Lease(tmp_path).acquire(still_seconds=60.0, check=moving)
    assert len(polls) >= 2
    # A counter that stands still: taken.
    started = time.monotonic()
    new = Lease(tmp_path)
    assert new.acquire(still_seconds=0.3)
    assert time.monotonic() - started >= 0.3
    with pytest.raises(LeaseLost):
        far.beat()


def test_who_asks_again_and_again_sees_whether_a_counter_moves(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_module, "STILL_SECONDS", 0.3)
    watch, holder = Lease(tmp_path), Lease(tmp_path)
    assert not watch.live()
    assert holder.acquire() and watch.live()
    rewrite(holder, host="elsewhere", counter=1)
    assert watch.live()
    time.sleep(0.4)
    rewrite(holder, host="elsewhere", counter=2)
    assert watch.live()  # it moved
    time.sleep(0.4)
    assert not watch.live() and Lease(tmp_path).held()
    rewrite(holder, host="elsewhere", counter=3)
    assert watch.live()


@pytest.mark.parametrize(("number", "refused"), [(errno.ENOSYS, True), (errno.ENOLCK, True), (errno.EOPNOTSUPP, True), (errno.EAGAIN, False)])
def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, number, refused):
    check_locks(tmp_path)

    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lease_module.fcntl, "flock", flock)
    with pytest.raises(UsageError, match="without file locks") if refused else contextlib.nullcontext():
        check_locks(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_lost_answer_of_a_file_server_does_not_lose_the_lease(tmp_path, monkeypatch):
    """Over NFS a link may be made and asked for again: it is there, and it is ours."""
    link = os.link

    def twice(source, target):
        link(source, target)
        raise FileExistsError(target)

    monkeypatch.setattr(os, "link", twice)
    lease = Lease(tmp_path)
    assert lease.acquire()
    lease.beat()
    lease.release()
    assert not lease.path.exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_a_process_whose_name_is_cut_inside_a_character_can_be_looked_at():
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b'abcdefghijklmn\\xc3', 0, 0, 0); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert b"\xc3" in Path(f"/proc/{process.pid}/stat").read_bytes() and lease_module.started(process.pid).isdigit()
        process.stdin.close()


def test_a_garbled_lease_is_replaced(tmp_path):
    for garbage in (b"", b"{", b"[]", b"\xff\x00"):
        (tmp_path / NAME).write_bytes(garbage)
        lease = Lease(tmp_path)
        assert lease.acquire(still_seconds=0.1)
        lease.check()
        lease.release()


def test_beating_moves_the_counter(tmp_path):
    lease = Lease(tmp_path)
    assert lease.acquire()
    for expected in (1, 2):
        lease.beat()
        assert json.loads(lease.path.read_text())["counter"] == expected


def in_thread(work) -> tuple[threading.Thread, list]:
    """`work` under way, and where its result will stand."""
    results: list = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    return thread, results


def test_a_beat_does_not_put_back_what_is_released(tmp_path):
    lease = Lease(tmp_path)
    assert lease.acquire()
    draft, drafting = lease._draft, threading.Event()

    def slow():
        drafting.set()
        time.sleep(0.3)
        return draft()

    lease._draft = slow
    beat, _ = in_thread(lease.beat)
    assert drafting.wait(20)
    lease.release()
    beat.join(20)
    assert not Lease(tmp_path).held() and not (tmp_path / NAME).exists()
    with pytest.raises(LeaseLost):
        lease.beat()


def test_a_release_does_not_take_away_another_writers_lease(tmp_path):
    """A holder that stood still for so long that it was judged to be dead goes on just then, and gives its lease back."""
    late = Lease(tmp_path)
    assert late.acquire()
    rewrite(late, host="elsewhere")
    new, read = Lease(tmp_path), late._read
    takes: list = []

    def reads():
        """The lease is taken right after it was looked at, unless that has to wait."""
        seen = read()
        takes.append(in_thread(lambda: new.acquire(still_seconds=0.1)))
        takes[-1][0].join(0.5)
        return seen

    late._read = reads
    late.release()
    for thread, _ in takes:
        thread.join(20)
    if any(won for _, results in takes for won in results):
        new.check()


def test_a_stale_lease_has_one_taker_whoever_gives_one_back(tmp_path, monkeypatch):
    """Between the acts of a release another writer comes and dies; of two that judge its lease one has it."""
    first, stale, second, third = (Lease(tmp_path) for _ in range(4))
    assert first.acquire()
    placing, go_on = threading.Event(), threading.Event()
    place, unlink, takers = second._place, Path.unlink, []

    def paused():
        placing.set()
        go_on.wait(20)
        place()

    def removed(path, missing_ok=False):
        unlink(path, missing_ok)
        if path == first.path and not takers:
            takers.append(None)
            assert stale.acquire()
            rewrite(stale, started="1")
            takers[0] = in_thread(second.acquire)
            placing.wait(1)  # it may have to wait for the lock

    second._place = paused
    monkeypatch.setattr(Path, "unlink", removed)
    first.release()
    assert placing.wait(20)
    takers.append(in_thread(third.acquire))
    takers[1][0].join(1)
    go_on.set()
    for thread, _ in takers:
        thread.join(20)
    assert sorted(results for _, results in takers) == [[False], [True]]


def test_leases_are_beaten_while_the_holder_does_something_long(tmp_path, monkeypatch):
    """An evaluation or a preparation that takes minutes: another host sees the counters move."""
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease_module, "_HEART", lease_module._Heart())
    leases = [Lease(tmp_path / name) for name in "ab"]
    for lease in leases:
        lease.path.parent.mkdir()
    assert acquire_all(leases) == [True, True]
    until = time.monotonic() + 60
    while time.monotonic() < until and not all(json.loads(lease.path.read_text())["counter"] >= 2 for lease in leases):
        sum(range(100_000))
    assert all(json.loads(lease.path.read_text())["counter"] >= 2 for lease in leases)
    leases[0].release()
    taken = Lease(tmp_path / "b")
    with leases[1]._guard:  # between two beats
        content = json.loads(leases[1].path.read_text()) | {"token": "another"}
        leases[1].path.write_text(json.dumps(content))
    until = time.monotonic() + 60
    while leases[1] in lease_module._HEART._leases and time.monotonic() < until:
        time.sleep(0.01)
    assert leases[1] not in lease_module._HEART._leases
    assert json.loads(taken.path.read_text())["token"] == "another"  # what was lost is not beaten


def test_what_is_held_is_beaten_while_other_leases_are_watched(tmp_path, monkeypatch):
    """Whoever watches it from another host would take it otherwise: he waits no longer than we do."""
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease_module, "_HEART", lease_module._Heart())
    free, far = (Lease(tmp_path / name) for name in "ab")
    for lease in (free, far):
        lease.path.parent.mkdir()
    assert far.acquire()
    rewrite(far, host="elsewhere")

    def beaten():
        until = time.monotonic() + 60
        while free._counter < 2 and time.monotonic() < until:
            time.sleep(0.01)

    assert acquire_all([free, Lease(tmp_path / "b")], still_seconds=0.1, check=beaten) == [True, True]
    assert free._counter >= 2


def test_members_of_a_crashed_node_are_taken_over_together(tmp_path):
    leases = [Lease(tmp_path / str(i)) for i in range(9)]
    for lease in leases:
        lease.path.parent.mkdir()
        assert lease.acquire()
        rewrite(lease, host="elsewhere")
    waits = []
    again = [Lease(lease.path.parent) for lease in leases]
    assert acquire_all(again, still_seconds=1.0, check=lambda: waits.append(1)) == [True] * 9
    assert 1 <= len(waits) < 9  # one wait in one or two parts, not nine


def test_a_lease_that_is_no_file_is_named(tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(StoreError, match="is no regular file"):
        Lease(tmp_path).acquire()


def _compete(folder, barrier, wins):
    lease = Lease(folder)
    barrier.wait()
    if lease.acquire():
        with wins.get_lock():
            wins.value += 1
    barrier.wait()  # the holder lives until all have looked
    os._exit(0)


@pytest.mark.parametrize("stale", [False, True])
def test_of_eight_at_once_one_wins(tmp_path, stale):
    if stale:
        dead = Lease(tmp_path)
        assert dead.acquire()
        rewrite(dead, started="1")
    for _ in range(5):
        barrier, wins = FORK.Barrier(8), FORK.Value("i", 0)
        children = [FORK.Process(target=_compete, args=(tmp_path, barrier, wins)) for _ in range(8)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert wins.value == 1
