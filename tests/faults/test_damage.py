"""Faults 7 to 10: a file of every kind that we write, cut at 0, 1, half and -1 bytes or with one bit flipped, is never taken for what it was."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench import data
from bench.data.augment import Augmenter
from bench.errors import DONE, TROUBLE, USAGE, StoreError, UsageError
from bench.report import cost_sheets, table
from bench.store import teachers
from bench.store.lease import Lease, LeaseLost
from bench.store.rows import read_rows
from bench.store.runs import read_record, scan
from bench.train import checkpoint, group_job, preparations, teacher_training
from methods.base import Preparation, Prepared
from tests.bench import synthetic
from tests.faults import lives


def cut(where: str) -> Callable[[bytes], bytes]:
    return {"0": lambda d: b"", "1": lambda d: d[:1], "half": lambda d: d[: len(d) // 2], "-1": lambda d: d[:-1]}[where]


def flip(data: bytes) -> bytes:
    """One bit of one byte, anywhere; the same for the same content length."""
    source = random.Random(len(data))
    changed = bytearray(data)
    changed[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(changed)


DAMAGE = {"0": cut("0"), "1": cut("1"), "half": cut("half"), "-1": cut("-1"), "flip": flip}
damaged = pytest.mark.parametrize("damage", list(DAMAGE))


def spoil(path: Path, damage: str) -> bool:
    """Damage a file in place; see `is_other`."""
    data = path.read_bytes()
    assert (spoiled := DAMAGE[damage](data)) != data
    path.write_bytes(spoiled)
    return is_other(data, damage)


def is_other(data: bytes, damage: str) -> bool:
    """Whether the content as JSON is another one then (without a final newline, or with a flipped space, it is not)."""
    try:
        return json.loads(DAMAGE[damage](data)) != json.loads(data)
    except ValueError:
        return True


# ---- what training reads: a killed group goes on, and ends with the bits of one that was not disturbed, or says why it does not


def goes_on(halfway: Path, tmp_path: Path, name: str, damage: str) -> tuple[Path, Path, int | None]:
    """Damage the student's file of that name in a copy of the killed group and train on. Returns the folder, the file and the exit code."""
    folder = tmp_path / "results"
    shutil.copytree(halfway, folder)
    (victim,) = folder.glob("runs/resnet8-student-s1-*")
    path = folder / name if "/" in name else victim / name
    spoil(path, damage)
    return folder, path, lives.train(folder)


@damaged
def test_checkpoint_falls_back_a_generation(halfway, tmp_path, unbroken, damage):
    (manifest,) = halfway.glob("groups/*/manifest.json")
    run, entry = next((r, e) for r, e in json.loads(manifest.read_text())["members"].items() if "student" in r)
    folder, path, code = goes_on(halfway, tmp_path, entry["file"], damage)
    assert code == DONE and lives.outcome(folder) == unbroken
    log = (folder / "runs" / run / "log.txt").read_text()
    assert entry["file"] in log and "differs from its SHA-256" in log and "attempt 2: resumed at epoch" in log


@damaged
@pytest.mark.parametrize("name", ["manifest.json", "manifest.previous.json"])
def test_manifest_falls_back_and_says_so(halfway, tmp_path, unbroken, name, damage):
    (path,) = halfway.glob(f"groups/*/{name}")
    noticed = name == checkpoint.CURRENT and is_other(path.read_bytes(), damage)  # the older one is not looked at while the newer is sound
    folder, _, code = goes_on(halfway, tmp_path, str(path.relative_to(halfway)), damage)
    assert code == DONE and lives.outcome(folder) == unbroken
    logs = "".join(p.read_text() for p in folder.glob("runs/*/log.txt"))
    assert ("manifest.json of group" in logs and "is damaged" in logs) is noticed
    assert "starting over" not in logs and "attempt 2: resumed at epoch" in logs


def test_both_generations_gone_start_over_and_say_so(halfway, tmp_path, unbroken):
    folder = tmp_path / "results"
    shutil.copytree(halfway, folder)
    for path in folder.glob("runs/*/checkpoint-*.pt"):
        spoil(path, "flip")
    assert lives.train(folder) == DONE and lives.outcome(folder) == unbroken
    assert all("no sound checkpoint; starting over" in p.read_text() for p in folder.glob("runs/*s1*/log.txt"))


@damaged
def test_group_file_starts_over_and_says_so(halfway, tmp_path, unbroken, damage):
    folder, path, code = goes_on(halfway, tmp_path, "group.json", damage)
    assert code == DONE and lives.outcome(folder) == unbroken
    log = (path.parent / "log.txt").read_text()
    assert "group.json is damaged; starting over" in log or (damage == "-1" and "resumed" in log)


@damaged
def test_rows_cut_lose_no_row_for_ever(halfway, tmp_path, unbroken, damage):
    """A cut loses whole rows that the checkpoint has behind it: training starts where the rows end. A flipped bit is named, and nothing is lost."""
    folder, path, code = goes_on(halfway, tmp_path, "epochs.jsonl", damage)
    found = lives.outcome(folder) if damage != "flip" else {v.id: v for v in scan(folder)[0] if v.record}
    if damage == "flip":
        assert code == TROUBLE and len(found) == 1  # the other member went on
        assert (path.parent / "epochs.jsonl").read_bytes() == flip((halfway / path.relative_to(folder)).read_bytes())
        with pytest.raises(StoreError, match=r"epochs.jsonl:1"):
            read_rows(path, path.parent.name)
    else:
        assert code == DONE and found == unbroken
        assert "and only 0 epochs have their row" in (path.parent / "log.txt").read_text()


@damaged
def test_config_is_refused_by_name(halfway, tmp_path, damage, capfd):
    folder, path, code = goes_on(halfway, tmp_path, "config.json", damage)
    finished = {v.method for v in scan(folder)[0] if v.status == "done"}
    if damage == "-1":
        assert code == DONE and finished == {"student", "kd"}
    else:
        assert code == TROUBLE and finished == {"kd"} and f"{path}: " in capfd.readouterr().out


@damaged
def test_status_is_worth_nothing_and_costs_nothing(halfway, tmp_path, unbroken, damage):
    folder, _, code = goes_on(halfway, tmp_path, "status.json", damage)
    assert code == DONE and lives.outcome(folder) == unbroken


@damaged
def test_lease_of_a_dead_process_holds_nobody_up_and_a_live_owner_notices(tmp_path, damage):
    live = Lease(tmp_path)
    assert live.acquire()
    if not spoil(live.path, damage):
        return
    other = Lease(tmp_path)
    taken = other.acquire(still_seconds=0.1)
    assert taken or damage not in ("0", "1", "half")  # of what is not even text nobody can be the owner
    if taken:
        other.check()
        with pytest.raises(LeaseLost):
            live.check()  # before it publishes anything


# ---- teachers and preparations


@damaged
@pytest.mark.parametrize("name", ["teacher.pt", "teacher.json", "verified.json"])
def test_teacher_is_refused_before_a_run_folder_is_touched(results, unbroken, name, damage, capfd):
    path = next(results.glob(f"teachers/*/{name}"))
    changed = spoil(path, damage)

    def train() -> int:
        try:
            return group_job.run_group(lives.group(), lives.execution(results))
        except UsageError as error:
            print(f"error: {error}", flush=True)
            return USAGE

    code = lives.live(train)
    said = capfd.readouterr()
    if name == "verified.json" or (name == "teacher.json" and not changed):
        assert code == DONE and lives.outcome(results) == unbroken  # the measurement is made again
    elif code == DONE:  # a bit that no weight depends on, in the archive's bookkeeping
        assert name == "teacher.pt" and damage == "flip" and lives.outcome(results) == unbroken
    else:
        assert code == USAGE and said.out.startswith("error: ") and str(path.parent) in said.out and not (results / "runs").exists()
    assert "Traceback" not in said.err


@damaged
def test_trained_teacher_is_published_from_whole_weights_only(trained, tmp_path, damage):
    """The student.pt that a teacher's training left: its hash must be the record's."""
    results = tmp_path / "results"
    shutil.copytree(trained, results)
    before = teachers.find(results, "shapes100", "resnet8").hash
    shutil.rmtree(results / "teachers")
    spoil(next(results.glob("runs/*/student.pt")), damage)

    def again() -> int:
        try:
            return teacher_training.train("resnet8", lives.TINY, 0, "tf32", lives.execution(results))
        except UsageError as error:
            assert "student.pt" in str(error)
            return USAGE

    code = lives.live(again)
    found = teachers.find(results, "shapes100", "resnet8")
    assert code == USAGE and found is None or code == DONE and found.hash == before


@damaged
@pytest.mark.parametrize("name", ["prepared.pt", "prepared.json"])
def test_preparation_is_refused_with_its_cure(tmp_path, name, damage):
    dataset = data.load(lives.TINY)
    made = Preparation("faults", 1, {"a": 1}, lambda teacher, images: Prepared({"w": torch.arange(50.0)}, {"n": 1}))

    def obtain():
        images = preparations.TrainingImages(dataset, Augmenter(dataset, torch.device("cpu")))
        return preparations.obtain(tmp_path, made, preparations.Origin(lambda: None, "t", "d", "fp32", images), lambda message: None)

    built = obtain()
    path = tmp_path / "preparations" / built.key / name
    if not spoil(path, damage) and name == "prepared.json":
        assert obtain().facts() == built.facts()
        return
    with pytest.raises(UsageError, match=f"remove {path.parent} and it is built again"):
        obtain()


# ---- what the report reads: the right numbers, or the file by name


@pytest.fixture(scope="module")
def table_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    return synthetic.fill(folder, pairs=[("resnet56", "resnet20")], methods=("student", "kd"), seeds=(1, 2))


@damaged
@pytest.mark.parametrize("name", ["config.json", "epochs.jsonl", "record.json", "status.json"])
def test_a_damaged_run_is_left_out_by_name(table_folder, tmp_path, name, damage):
    folder = tmp_path / "results"
    shutil.copytree(table_folder, folder)
    before = {v.id: v.record for v in scan(folder)[0]}
    victim = sorted(folder.glob("runs/resnet56-*"))[0]
    changed = spoil(victim / name, damage)
    views, problems = scan(folder)
    assert all(before[v.id] == v.record for v in views)
    (own,) = table.build(folder)
    if name == "status.json" or not changed and name == "record.json":
        assert not problems and len(views) == len(before)  # a finished run is its record
    else:
        assert [p.where for p in problems] == [victim.name] and name in problems[0].reason
        assert [p.where for p in own.problems] == [victim.name]


@damaged
def test_a_damaged_plan_is_named(table_folder, tmp_path, damage):
    folder = tmp_path / "results"
    shutil.copytree(table_folder, folder)
    changed = spoil(folder / "plan.json", damage)
    (own,) = table.build(folder)
    assert ["plan.json" in p.reason for p in own.problems] == [True] * changed
    assert [c.summary.mean for row in own.tables[0].rows for c in row.cells] == [
        c.summary.mean for row in table.build(table_folder)[0].tables[0].rows for c in row.cells
    ]


@damaged
def test_a_damaged_cost_sheet_is_left_out_by_name(table_folder, tmp_path, damage):
    folder = tmp_path / "results"
    shutil.copytree(table_folder, folder)
    (path,) = folder.glob("costs/*/resnet56-resnet20-kd-*.json")
    changed = spoil(path, damage)
    sheets, problems = cost_sheets.load(folder)
    assert [path.name in p.reason for p in problems] == [True] * changed
    assert {c.method for c in sheets[0].costs.values()} == ({"student"} if changed else {"student", "kd"})


def test_every_bit_of_a_record_counts(table_folder, tmp_path):
    """All bits of one record.json: either it is refused or it says the same."""
    folder = tmp_path / "runs"
    shutil.copytree(next(iter(table_folder.glob("runs/resnet56-*"))), folder / "r")
    name = json.loads((folder / "r" / "record.json").read_text())["run"]
    (folder / "r").rename(folder / name)
    path, right = folder / name / "record.json", read_record(folder / name)
    data = path.read_bytes()
    refused = 0
    for position in range(len(data)):
        for bit in range(8):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
            try:
                assert read_record(folder / name) == right
            except StoreError:
                refused += 1
    assert refused > 7 * len(data)


def test_two_checkpoints_that_differ_are_told_apart(halfway):
    """Guards the tests above: what they call equal is not equal by accident."""
    states = [checkpoint.restore(halfway, p.parent.name)[1].state["student"] for p in sorted(halfway.glob("runs/*s1*/group.json"))]
    assert len(states) == 2 and any((states[0][k] != states[1][k]).any() for k in states[0])
