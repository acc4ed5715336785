"""Files from other hands: whatever stands where a record belongs is a named problem, for every command that reads, and takes nothing with it."""

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from bench import doctor
from bench.__main__ import main
from bench.errors import StoreError, UsageError
from bench.launch import status
from bench.plan.identity import digest
from bench.report import render, table
from bench.store import teachers
from bench.store.files import LIMIT, read_bytes, read_json, write_json
from bench.store.lease import NAME, Lease
from bench.store.runs import scan
from bench.store.weights import read_state
from bench.text import say
from bench.train import checkpoint, teacher_commands
from tests.bench.synthetic import add_cost, add_plan, add_run, run_of

R20 = ("resnet56", "resnet20")
KEY = "0123456789abcdef"


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(LIMIT + 1)


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (_pipe, "is no regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
    "loop": (lambda path: path.symlink_to(path), "cannot be read"),
    "huge": (_huge, "more than the"),
    "folder": (lambda path: path.mkdir(), "is no regular file"),
    "kernel": (lambda path: path.symlink_to("/proc/self/mem"), "cannot be read"),
    "deep": (lambda path: path.write_bytes(b'{"a":' * 90_000), "nested too deep"),
    "empty": (lambda path: path.write_bytes(b""), "not JSON"),
}
PLACES = ("runs/*-kd-*/config.json", "runs/*-kd-*/record.json", "runs/*-kd-*/epochs.jsonl", "runs/*-at-*/status.json")
PLACES += ("plan.json", "costs/*/*-kd-*.json", "teachers/*/teacher.json", "published/x.json")


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """A reader that waits for a pipe would wait for ever."""

    def ring(number, frame):
        raise TimeoutError("a reader hangs")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(120)
    yield
    signal.alarm(0)


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "results"
    for root in (place, place / "evidence" / "kept"):
        for method in ("student", "kd"):
            add_run(root, run_of(method, *R20, 1), 70.0)
            add_cost(root, *R20, method, 1000.0, 1 << 20)
    add_run(place, run_of("at", *R20, 1), 60.0, status="running", rows=1)
    add_plan(place, [R20], ("student", "kd", "at"), (1,))
    (place / "teachers" / "cifar100-resnet56").mkdir(parents=True)
    facts = {"format": 1, "architecture": "resnet56", "dataset": "cifar100", "hash": "h", "test_top1": 72.0, "test_top5": 92.0}
    write_json(place / "teachers" / "cifar100-resnet56" / "teacher.json", facts | {"test_top1_data": "d", "trained": True, "source": "imported"})
    (place / "published").mkdir()
    write_json(place / "published" / "x.json", {"entries": []})
    return place


def kept(place: Path) -> str:
    return render.text([s for s in table.build(place) if s.name != table.OWN])


def read_all(place: Path, capsys) -> str:
    """What the commands say of a folder; none of them may raise."""
    assert main(["report", str(place)]) == 0 and main(["report", str(place), "--strict", "--no-write"]) in (0, 1)
    assert status.show(place, True) == 0 and teacher_commands.Teachers(results=place).main() == 0
    for check in (doctor.check_runs, doctor.check_checkpoints, doctor.check_others, doctor.check_evidence, doctor.check_teachers):
        for finding in check(place):
            say(f"doctor: {finding.what}")
    said = capsys.readouterr()
    return said.out + said.err


def test_a_sound_folder_is_read(folder, capsys):
    assert "not to be trusted" not in read_all(folder, capsys)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", PLACES)
def test_whatever_stands_in_the_place_of_a_file_is_named(folder, capsys, pattern, kind):
    make, said = KINDS[kind]
    if pattern.endswith(".jsonl") and kind in ("deep", "empty"):  # rows of which none is whole
        said = "changed after the record was written"
    before = kept(folder)
    (path,) = folder.glob(pattern)
    path.unlink()
    make(path)
    text = read_all(folder, capsys)
    if pattern != "teachers/*/teacher.json":
        assert path.name in report_text(folder) and said in report_text(folder)
    assert path.name in text and said in text
    assert kept(folder) == before or "published" in pattern


def report_text(place: Path) -> str:
    return " ".join((place / "report" / "report.txt").read_text().split())


def test_a_link_to_a_regular_file_is_read(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    (tmp_path / "b.json").symlink_to("a.json")
    (tmp_path / "c.json").symlink_to("nowhere")
    assert read_json(tmp_path / "b.json") == {"a": 1} and read_json(tmp_path / "c.json") is None
    with pytest.raises(StoreError, match="cannot be read"):
        read_bytes(tmp_path / "null\0byte")


@pytest.mark.parametrize("content", ['"cells"', '{"format": 1}', "plan", {"pairs": ["a-b"]}, {"rows": ["kd"]}, {"cells": [["kd"]]}, {"cells": None},
                                     {"cells": [{"teacher": [], "student": {}, "method": 1, "seed": "1", "run": 3, "skipped": []}]}])  # fmt: skip
def test_a_plan_of_another_form(folder, capsys, content):
    plan = read_json(folder / "plan.json")
    if isinstance(content, str):
        (folder / "plan.json").write_text(content)
    else:
        write_json(folder / "plan.json", plan | content)
    text = read_all(folder, capsys)
    assert text.count("plan.json: ") >= 3 and "70.00" in text  # report, status, doctor; the runs are shown all the same


@pytest.mark.parametrize("key", ["student", "method", "teacher", "hyper", "protocol", "precision", "seed"])
@pytest.mark.parametrize("value", [["a"], {"a": ["b"]}, "x\x1b[31m\ny", 10**30])
def test_an_identity_with_something_else_for_a_name(folder, capsys, key, value):
    """Under the name that it makes, so that nothing but its type is wrong."""
    (place,) = folder.glob("runs/*-at-*")
    config = read_json(place / "config.json")
    config["identity"][key] = value
    i = config["identity"]
    write_json(place / "config.json", config)
    place.rename(place.with_name(f"{i['teacher']}-{i['student']}-{i['method']}-s{i['seed']}-{digest(i)}"))
    text = read_all(folder, capsys)
    assert "config.json: not the configuration of a run" in text or isinstance(value, str) or (key == "hyper" and isinstance(value, dict))
    assert "\x1b" not in text and "70.00" in text


def test_a_row_without_its_top1(folder, capsys):
    (place,) = folder.glob("runs/*-at-*")
    row = read_json(place / "epochs.jsonl")
    del row["test_top1"]
    write_json(place / "row", row)
    (place / "epochs.jsonl").write_text("".join((place / "row").read_text().split("\n")) + "\n")
    assert "epochs.jsonl:1: not the row of an epoch (Object missing required field `test_top1`)" in read_all(folder, capsys)


def test_folders_of_teachers_that_are_none(folder, capsys):
    for name in ("foo", "a-b-c"):
        (folder / "teachers" / name).mkdir()
    whole = read_json(folder / "teachers" / "cifar100-resnet56" / "teacher.json")
    for name, change in {"foo": {}, "cifar100-vgg8": {}, "x-y": {"dataset": None}}.items():
        (folder / "teachers" / name).mkdir(exist_ok=True)
        write_json(folder / "teachers" / name / "teacher.json", whole | change)
    text = read_all(folder, capsys)
    assert "is the record of a resnet56 for cifar100" in text and "`dataset`" in text.replace("$.dataset", "`dataset`") and "never finished" in text
    found, problems = teachers.available(folder)
    assert [t.architecture for t in found] == ["resnet56"] and len(problems) == 4
    with pytest.raises(UsageError, match=r"cifar100-vgg8.*remove"):
        teachers.find(folder, "cifar100", "vgg8")


@pytest.mark.parametrize("part", ["runs", "costs", "evidence", "teachers", "published"])
@pytest.mark.parametrize("kind", ["file", "loop", "pipe"])
def test_something_else_in_the_place_of_a_folder(folder, capsys, part, kind):
    (folder / part).rename(folder.parent / part)
    if kind == "file":
        (folder / part).write_text("x")
    else:
        KINDS[kind][0](folder / part)
    text = read_all(folder, capsys)
    assert f"{part}: cannot be read" in text or part == "published"


def test_a_manifest_with_a_number_for_a_file(tmp_path):
    member = {"file": 5, "sha256": "x", "bytes": 1}
    whole = {"format": 1, "serial": 1, "epoch": 1, "step": 0, "members": {"r": member}}
    (tmp_path / "groups" / KEY).mkdir(parents=True)
    (tmp_path / "runs" / "r").mkdir(parents=True)
    write_json(tmp_path / "runs" / "r" / "group.json", {"format": 1, "group": KEY})
    for value in (5, {}, None, ["a"]):
        write_json(tmp_path / "groups" / KEY / "manifest.json", whole | {"members": {"r": member | {"file": value}}})
        assert checkpoint.restore(tmp_path, "r")[1].notes[0] == f"manifest.json of group {KEY} is damaged"
        assert any("is damaged" in f.what for f in doctor.check_checkpoints(tmp_path))


class Forbidden:
    def __reduce__(self):
        return os.system, ("true",)


def test_a_checkpoint_with_a_forbidden_pickle(tmp_path):
    """Its sum is right, so only the reading can refuse it; nothing in it is run."""
    import hashlib

    (tmp_path / "groups" / KEY).mkdir(parents=True)
    (tmp_path / "runs" / "r").mkdir(parents=True)
    write_json(tmp_path / "runs" / "r" / "group.json", {"format": 1, "group": KEY})
    torch.save({"format": 1, "run": "r", "x": Forbidden()}, tmp_path / "runs" / "r" / "checkpoint-1.pt")
    for content in ((tmp_path / "runs" / "r" / "checkpoint-1.pt").read_bytes(), pickle.dumps(Forbidden()), b"", b"PK"):
        (tmp_path / "runs" / "r" / "checkpoint-1.pt").write_bytes(content)
        member = {"file": "checkpoint-1.pt", "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        whole = {"format": 1, "serial": 1, "epoch": 1, "step": 0, "members": {"r": member}}
        write_json(tmp_path / "groups" / KEY / "manifest.json", whole)
        assert any("cannot be read as a checkpoint" in f.what for f in doctor.check_checkpoints(tmp_path))


@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "folder", "kernel"])
def test_weights_of_another_kind(tmp_path, kind):
    KINDS[kind][0](tmp_path / "teacher.pt")
    with pytest.raises(UsageError, match=r"teacher.pt cannot be read as weights"):
        read_state(tmp_path / "teacher.pt")


@pytest.mark.parametrize("kind", KINDS)
def test_a_lease_that_is_none_is_named_or_holds_nobody_up(folder, capsys, kind):
    (place,) = folder.glob("runs/*-at-*")
    KINDS[kind][0](place / NAME)
    if kind in ("empty", "deep"):
        lease = Lease(place)
        assert not lease.held() and lease.acquire(still_seconds=0.1)
        lease.release()
    else:
        with pytest.raises(StoreError, match=NAME):
            Lease(place).acquire(still_seconds=0.1)
        text = read_all(folder, capsys)
        assert NAME in text and KINDS[kind][1] in text


def test_nothing_that_is_done_is_lost_by_that(folder):
    assert {v.status for v in scan(folder)[0]} == {"done", "interrupted"}  # nobody holds its lease
