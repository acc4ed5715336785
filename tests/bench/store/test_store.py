"""The store: files whole or not at all, rows that name their faults, records that hold what they say."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict

from bench.errors import StoreError, UsageError
from bench.store.files import crc, mend_torn_tail, read_json, write_json
from bench.store.lease import Lease
from bench.store.rows import append_row, read_rows
from bench.store.runs import check_config, read_record, read_run, read_status, scan, write_config, write_record, write_status
from tests.bench import synthetic

ROOT = Path(__file__).resolve().parents[3]


def row(epoch: int, attempt: int = 1, top1: float = 50.0, run: str = "r") -> dict:
    one = {"run": run, "attempt": attempt, "epoch": epoch, "lr": 0.05, "loss": 1.5, "losses": {"ce": 1.5}, "train_top1": 60.0}
    return {**one, "test_top1": top1, "test_top5": 90.0, "test_loss": 1.2, "seconds": 3.5}


def write_rows(path: Path, *rows: dict) -> Path:
    for one in rows:
        append_row(path, one)
    return path


def test_json_comes_back(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, "é"]})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, "é"]}
    assert os.listdir(tmp_path) == ["a.json"]
    assert read_json(tmp_path / "none.json") is None


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"new": 2})
    monkeypatch.undo()
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.json"
    code = """
import sys, pathlib
from bench.store.files import write_json
i = 0
while True:
    i += 1
    write_json(pathlib.Path(sys.argv[1]), {"i": [i] * 5000}, durable=False)
"""
    for delay in (0.0, 0.003, 0.011):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        values = read_json(path)["i"]
        assert len(values) == 5000 and len(set(values)) == 1


@pytest.mark.parametrize("bad", [b"", b"{", b"[1]", b"\xff", b'{"a": NaN}', b'{"a": Infinity}'])
def test_bad_json_names_the_file(tmp_path, bad):
    (tmp_path / "a.json").write_bytes(bad)
    with pytest.raises(StoreError, match="a.json"):
        read_json(tmp_path / "a.json")


def test_numbers_that_are_not_finite_are_never_written(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    with pytest.raises(ValueError):
        append_row(tmp_path / "rows", row(1, top1=float("inf")))
    assert os.listdir(tmp_path) == []


def test_rows_cut_anywhere_lose_the_last_line_only(tmp_path):
    path = write_rows(tmp_path / "rows", row(1), row(2), row(3))
    data = path.read_bytes()
    last = data[:-1].rfind(b"\n") + 1
    for cut in range(last + 1, len(data)):
        path.write_bytes(data[:cut])
        rows = read_rows(path)
        assert [r.epoch for r in rows.rows] == [1, 2] and rows.torn
    assert mend_torn_tail(path) == len(data) - 1 - last
    assert path.read_bytes() == data[:last]
    assert mend_torn_tail(path) == 0 and mend_torn_tail(tmp_path / "none") == 0


def test_appending_after_a_torn_tail_cuts_it(tmp_path):
    path = write_rows(tmp_path / "rows", row(1), row(2))
    path.write_bytes(path.read_bytes()[:-9])
    append_row(path, row(2, attempt=2))
    rows = read_rows(path)
    assert [(r.epoch, r.attempt) for r in rows.rows] == [(1, 1), (2, 2)] and not rows.torn


def test_a_short_write_is_taken_back(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "rows", row(1))
    before, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[: len(data) // 2]))
    with pytest.raises(OSError, match="no space"):
        append_row(path, row(2))
    monkeypatch.undo()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "edit",
    [
        lambda line: line.replace(b"50.0", b"51.0"),
        lambda line: line.replace(b"50.0", b"NaN"),
        lambda line: line[:20],
        lambda line: b"",
    ],
)
def test_a_corrupt_middle_line_is_named(tmp_path, edit):
    path = write_rows(tmp_path / "rows", row(1), row(2), row(3))
    lines = path.read_bytes().split(b"\n")
    lines[1] = edit(lines[1])
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(StoreError, match=r"rows:2: "):
        read_rows(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
def test_no_byte_can_change_a_number_unnoticed(tmp_path, position, value):
    path = tmp_path / "rows"
    path.unlink(missing_ok=True)
    original = read_rows(write_rows(path, row(1), row(2), row(3))).rows
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(data)
    try:
        rows = read_rows(path)
    except StoreError:
        return
    assert rows.rows == original or (rows.torn and rows.rows == original[:-1])


def test_later_attempts_supersede(tmp_path):
    path = write_rows(tmp_path / "rows", row(1), row(2, top1=1.0), row(3, top1=1.0), row(2, attempt=2, top1=2.0))
    rows = read_rows(path)
    assert [(r.epoch, r.test_top1) for r in rows.rows] == [(1, 50.0), (2, 2.0)]  # epoch 3 of the lost attempt does not count
    assert rows.superseded == 2


def test_one_attempt_writes_an_epoch_once(tmp_path):
    path = write_rows(tmp_path / "rows", row(1), row(1))
    assert len(read_rows(path).rows) == 1  # the same numbers: no fault
    append_row(path, row(1, top1=51.0))
    with pytest.raises(StoreError, match=r"rows:3: epoch 1 written twice"):
        read_rows(path)


def test_gaps_and_foreign_rows(tmp_path):
    with pytest.raises(StoreError, match="epoch 2 is missing"):
        read_rows(write_rows(tmp_path / "gap", row(1), row(3)))
    with pytest.raises(StoreError, match="another run"):
        read_rows(write_rows(tmp_path / "foreign", row(1)), run="other")


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    run = synthetic.run_of("kd", "resnet56", "resnet20", 1, hyper={"alpha": 0.9})
    write_config(tmp_path, run.identity(), "a" * 16, "KD")
    before = (tmp_path / "config.json").read_bytes()
    write_config(tmp_path, run.identity(), "a" * 16, "other title")
    assert (tmp_path / "config.json").read_bytes() == before
    with pytest.raises(UsageError, match=r"hyper.alpha is 0.9 there and 0.5 here"):
        check_config(tmp_path, synthetic.run_of("kd", "resnet56", "resnet20", 1, hyper={"alpha": 0.5}).identity())


@pytest.mark.parametrize("file", ["epochs.jsonl", "group.json"])
def test_a_configuration_names_the_source_that_was_trained_with(tmp_path, file):
    run = synthetic.run_of("kd", "resnet56", "resnet20", 1)
    first = write_config(tmp_path, run.identity(), "a" * 16, "KD", {"alpha": 0.5})
    mended = write_config(tmp_path, run.identity(), "b" * 16, "other title")  # the first attempt failed in its first step
    assert mended == first | {"method_source": "b" * 16} == read_json(tmp_path / "config.json")
    (tmp_path / file).touch()
    assert write_config(tmp_path, run.identity(), "c" * 16, "KD") == mended == read_json(tmp_path / "config.json")


def test_statuses_are_a_closed_list(tmp_path):
    with pytest.raises(ValueError, match="finished"):
        write_status(tmp_path, "finished")
    assert read_status(tmp_path) is None
    write_status(tmp_path, "running", epoch=3)
    assert read_status(tmp_path).epoch == 3
    (tmp_path / "status.json").write_text('{"status": "finished"}')
    with pytest.raises(StoreError, match="finished"):
        read_status(tmp_path)


def test_a_run_that_nobody_holds_is_interrupted(tmp_path):
    folder = synthetic.add_run(tmp_path, synthetic.run_of("kd", "resnet56", "resnet20", 1), 70.0, status="running", rows=2)
    view = read_run(folder)
    assert (view.status, view.epoch) == ("interrupted", 2) and "nobody runs it" in view.reason
    lease = Lease(folder)
    assert lease.acquire()
    assert read_run(folder).status == "running"
    lease.release()
    assert read_run(folder).status == "interrupted"


def test_a_status_waits_for_no_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: pytest.fail("status.json was fsynced"))
    write_status(tmp_path, "running")
    assert read_status(tmp_path).status == "running"


@pytest.fixture
def done(tmp_path):
    return synthetic.add_run(tmp_path, synthetic.run_of("kd", "resnet56", "resnet20", 1), 70.0)


def test_the_record_is_written_once_and_read_back(done):
    record = read_record(done)
    assert record.test_top1 == 70.0 and record.run == done.name
    with pytest.raises(StoreError, match="already written"):
        write_record(done, asdict(record))


def test_the_record_must_say_what_the_rows_say(done):
    record = asdict(read_record(done))
    (done / "record.json").unlink()
    with pytest.raises(StoreError, match="the rows say 70.00 after epoch 3, best 70.00, the record 71.00"):
        write_record(done, {**record, "test_top1": 71.0})
    with open(done / "epochs.jsonl", "ab") as file:
        file.write(b'{"run"')
    with pytest.raises(StoreError, match="torn"):
        write_record(done, record)
    assert not (done / "record.json").exists()


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    if path.suffix == ".json" and "NaN" not in new:  # an edit that the checksum does not give away
        write_json(path, json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("epochs.jsonl", '"epoch":2,', '"epoch":7,', r"epochs.jsonl:2: does not match its checksum"),
        ("config.json", '"title": "KD"', '"title": "XX"', "config.json: changed after"),
        ("config.json", '"seed": 1', '"seed": 2', "belongs to a run"),
        ("config.json", '"method": "kd"', '"method": 4', "not the configuration of a run"),
        ("record.json", '"test_top1": 70.0', '"test_top1": NaN', "not JSON"),
        ("record.json", '"test_top1": 70.0', '"test_top1": 170.0', 'not the record of a finished run .Expected `float` <= 100.0 - at `..test_top1`'),
        ("record.json", '"epochs": 3', '"epochs": 2', "the rows say 70.00 after epoch 3, .* the record 70.00 after epoch 2"),
    ],
)
def test_scan_leaves_out_what_was_changed(tmp_path, done, file, old, new, reason):
    synthetic.add_run(tmp_path, synthetic.run_of("kd", "resnet56", "resnet20", 2), 71.0)
    spoil(done / file, old, new)
    views, problems = scan(tmp_path)
    assert [view.seed for view in views] == [2]
    assert [p.where for p in problems] == [done.name]
    assert re.search(reason, problems[0].reason), problems


def test_scan_reads_states(tmp_path, done):
    (done / "record.json").unlink()
    synthetic.add_run(tmp_path, synthetic.run_of("kd", "resnet56", "resnet20", 2), 70.0, status="diverged", rows=2)
    third = synthetic.run_of("kd", "resnet56", "resnet20", 3)
    write_config(tmp_path / "runs" / third.id, third.identity(), "", "")
    views, problems = scan(tmp_path)
    assert {v.seed: v.status for v in views} == {2: "diverged", 3: "planned"}
    assert "says done and has no record" in problems[0].reason
    assert views[0].reason == "loss is not finite" and views[0].epoch == 2


def test_scan_without_runs(tmp_path):
    assert scan(tmp_path) == ([], [])


def test_a_run_that_was_not_begun_is_none(tmp_path):
    """Its writer holds the lease while it waits for the leases of the group's other members, or was stopped then."""
    waiting, stopped, killed = (tmp_path / "runs" / synthetic.run_of("kd", "resnet56", "resnet20", seed).id for seed in (1, 2, 3))
    for folder in (waiting, stopped, killed):
        folder.mkdir(parents=True)
    assert Lease(waiting).acquire()
    (killed / ".config.json.12ab.tmp").write_text("{")
    assert scan(tmp_path) == ([], [])
    (stopped / "epochs.jsonl").touch()
    (tmp_path / "runs" / "a copy").mkdir()
    assert [problem.where for problem in scan(tmp_path)[1]] == ["a copy", stopped.name]


def test_no_torch():
    code = "import sys, bench.store.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_rows_are_one_line_of_json_each(tmp_path):
    path = write_rows(tmp_path / "rows", {**row(1), "note": "two\nlines"})
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["crc"] == crc(json.loads(line))
