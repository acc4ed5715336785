"""The live table and its plain lines."""

import io
import os

import pytest

from bench.launch import progress
from bench.launch.progress import Progress, statuses
from bench.store.runs import write_status
from bench.text import table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def status(results, run: str, state: str, **fields) -> None:
    folder = results / "runs" / run
    folder.mkdir(parents=True, exist_ok=True)
    write_status(folder, state, **fields)


def test_plain_lines_are_written_on_change_only(tmp_path):
    out = io.StringIO()
    show = Progress(tmp_path, lambda: (1, 4), out)
    status(tmp_path, "a-kd", "running", epoch=3, epochs=16, loss=1.5, test_top1=12.5, eta_seconds=600)
    status(tmp_path, "b-kd", "failed", reason="x")
    show.update(["a", "b"])
    first = out.getvalue()
    for part in ("1 of 4 runs done", "1 failed", "1 running, epoch 3, top-1 12.5 %;", "jobs: a, b"):
        assert part in first
    show.update(["a", "b"])  # too soon
    show.update(["a", "b"], force=True)  # nothing changed
    assert out.getvalue() == first
    status(tmp_path, "a-kd", "running", epoch=4, epochs=16)
    show.update(["a", "b"], force=True)
    assert out.getvalue().count("\n") == 2 and "\x1b" not in out.getvalue()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_below_the_log_ends_nothing(tmp_path):
    status(tmp_path, "a-kd", "running", epoch=3, epochs=16)
    out = open("/dev/full", "w")
    show = Progress(tmp_path, lambda: (1, 4), out)
    show.update(["a"], force=True)
    show.say("a: done")
    with pytest.raises(OSError):  # the line is still in the buffer
        out.close()


def test_nobody_left_to_read_is_told(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError), open(writing, "w") as out:
        Progress(tmp_path, lambda: (1, 4), out).say("a: done")


def test_a_launch_that_waits_for_another_says_whose_runs_they_are(tmp_path):
    out = io.StringIO()
    status(tmp_path, "a-kd", "running", epoch=3, epochs=16)
    show = Progress(tmp_path, lambda: (0, 4), out)
    show.update([])
    show.update(force=True)  # no launch: whoever follows a results folder
    first, second = out.getvalue().splitlines()
    assert "1 running in another launch, epoch 3" in first and "1 running, epoch 3" in second


def test_runs_of_another_plan_in_the_same_folder_are_told_apart(tmp_path):
    out = io.StringIO()
    for run, epoch, top1 in (("a-s1-kd", 3, 20.0), ("a-s2-kd", 4, 30.0), ("b-s0-teacher", 9, 70.0), ("other-s1-kd", 99, 99.0)):
        status(tmp_path, run, "running", epoch=epoch, epochs=100, test_top1=top1)
    show = Progress(tmp_path, lambda: (0, 2), out, lambda run: {"a": True, "b": False}.get(run[0]))
    show.update(["a"])
    assert "0 of 2 runs done; 3 running, epoch 3-9, top-1 20.0-70.0 %; jobs: a; besides, of other plans: 1 running\n" in out.getvalue()


def test_runs_are_counted_once_in_a_while_though_nothing_changes(tmp_path):
    looks = []
    show = Progress(tmp_path, lambda: (looks.append(1) or 0, 4), io.StringIO())
    for _ in range(50):
        show.update(["a"])
    assert len(looks) == 1


def test_the_time_left_follows_from_the_pace_here(tmp_path, monkeypatch):
    clock = iter([0.0, 0.0, 100.0, 200.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out, done = io.StringIO(), iter([2, 2, 3])  # two were done before this launch
    show = Progress(tmp_path, lambda: (next(done), 10), out)
    show.update()
    status(tmp_path, "a-kd", "running", epoch=5, epochs=8)
    show.update()  # half a run in 100 s: 7.5 runs to go
    status(tmp_path, "a-kd", "done")
    show.update()  # one run in 200 s: 7 to go
    assert "25 min left in all" in out.getvalue() and "23 min left in all" in out.getvalue()


def test_work_that_a_run_brings_from_an_earlier_launch_was_not_done_here(tmp_path, monkeypatch):
    clock = iter([0.0, 0.0, 100.0, 200.0, 300.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    status(tmp_path, "a-kd", "interrupted", epoch=18, epochs=24)
    status(tmp_path, "b-kd", "interrupted", epoch=18, epochs=24)  # waits until a-kd is done
    out, done = io.StringIO(), iter([0, 0, 0, 1])
    show = Progress(tmp_path, lambda: (next(done), 2), out)
    show.update()
    status(tmp_path, "a-kd", "running", epoch=17, epochs=24)  # its checkpoint lay an epoch before
    show.update()
    assert "left in all" not in out.getvalue()
    status(tmp_path, "a-kd", "running", epoch=19, epochs=24)  # two epochs in 100 s here: of 30 to go
    show.update()
    assert "25 min left in all" in out.getvalue()
    status(tmp_path, "a-kd", "done")
    status(tmp_path, "b-kd", "running", epoch=18, epochs=24)  # eight epochs in 200 s: seven to go
    show.update()
    assert out.getvalue().splitlines()[-1].startswith("[5 min]") and "about 3 min left in all" in out.getvalue()


def test_a_teacher_in_training_says_nothing_of_the_time_left(tmp_path, monkeypatch):
    clock = iter([0.0, 0.0, 100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    show = Progress(tmp_path, lambda: (0, 10), out, counted=lambda run: not run.startswith("teacher"))
    status(tmp_path, "teacher-run", "running", epoch=1, epochs=8)
    show.update()
    status(tmp_path, "teacher-run", "running", epoch=7, epochs=8)
    show.update()
    assert "1 running, epoch 7" in out.getvalue() and "left in all" not in out.getvalue()


def test_a_terminal_gets_a_table_that_is_drawn_over(tmp_path):
    out = Terminal()
    show = Progress(tmp_path, lambda: (0, 1), out)
    status(tmp_path, "a-kd", "running", epoch=3, epochs=16, step=2, steps=9, loss=1.5, test_top1=12.5, eta_seconds=600)
    show.update()
    for part in ("3/16", "2/9", "12.50 %", "10 min"):
        assert part in out.getvalue()
    drawn = len(out.getvalue())
    show.update(force=True)
    assert "\x1b[1A" in out.getvalue()[drawn:]  # over the last one
    show.say("a line [that] stays")
    show.close()
    assert "a line [that] stays" in out.getvalue()


@pytest.mark.parametrize(
    ("width", "shown", "hidden"),
    [(120, "700/782  112.050  12.50 %", "…"), (80, "700/782  12.50 %", "112.050"), (60, "3/24  12.50 %", "700/782")],
)
def test_a_variant_is_told_by_its_settings_and_no_number_is_cut(tmp_path, monkeypatch, width, shown, hidden):
    monkeypatch.setenv("COLUMNS", str(width))
    out = Terminal()
    show = Progress(tmp_path, lambda: (0, 2), out, labels=lambda: {"resnet56-resnet20-skd-s1-b": "sum_over=images"})
    for run in ("resnet56-resnet20-skd-s1-a", "resnet56-resnet20-skd-s1-b"):
        status(tmp_path, run, "running", epoch=3, epochs=24, step=700, steps=782, loss=112.05, test_top1=12.5, eta_seconds=6000)
    show.update()
    text = out.getvalue()
    assert text.count(shown) == 2 and text.count("1 h 40 min") == 2 and hidden not in text
    assert "resnet56-resnet20-skd-s1-a " in text
    assert ("resnet56-resnet20-skd-s1 [sum_over=images]" if width > 60 else "resnet56-resnet20-skd-s1 [su") in text


def test_old_and_broken_statuses_are_left_out(tmp_path):
    status(tmp_path, "old", "running", epoch=1)
    os.utime(tmp_path / "runs" / "old" / "status.json", (1, 1))
    status(tmp_path, "new", "running", loss=None)
    status(tmp_path, "odd", "running", epoch="three")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "status.json").write_text("{")
    assert [s.run for s in statuses(tmp_path, 100.0)] == ["new"]
    out = Terminal()
    Progress(tmp_path, lambda: (0, 1), out).update()
    assert "-/-" in out.getvalue() and "three" not in out.getvalue()


def test_a_clock_that_is_set_back_hides_no_run(tmp_path, monkeypatch):
    status(tmp_path, "old", "running", epoch=1)
    status(tmp_path, "goes-on", "running", epoch=2)
    os.utime(tmp_path / "runs" / "goes-on" / "status.json", (1e9, 1e9))  # not in the same tick as what it writes next
    real = progress.time.time
    monkeypatch.setattr(progress.time, "time", lambda: real() + 3600)  # as it was when the launch began
    out = io.StringIO()
    show = Progress(tmp_path, lambda: (0, 3), out)
    status(tmp_path, "goes-on", "running", epoch=3)
    status(tmp_path, "new", "running", epoch=1)
    show.update(["a"])
    assert "2 running, epoch 1-3" in out.getvalue()


def test_table_aligns_its_columns():
    assert table([("a", "10", ""), ("bb", "9", "no room")], ("run", "n", "reason")) == ["run   n  reason", "a    10", "bb    9  no room"]
