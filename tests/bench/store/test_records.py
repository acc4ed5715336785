"""Typed records: what is declared is what is written, what comes from a newer version is read as far as it is known, and no more."""

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from bench.errors import StoreError
from bench.plan.identity import Run
from bench.plan.protocols import PROTOCOLS
from bench.report import published
from bench.store import costs, records
from bench.store.files import read, read_json, typed, write_json
from bench.store.records import Config, Cost, Device, PlanRecord, Record, Row, Teacher, Versions
from bench.store.runs import is_done, read_run, scan, write_record
from tests.bench.synthetic import SHORT, add_cost, add_plan, add_run, run_of

EVIDENCE = Path(__file__).resolve().parents[3] / "results" / "evidence"
R20 = ("resnet56", "resnet20")
KEPT = {Config: "runs/*/config.json", Record: "runs/*/record.json", Cost: "costs/*/*-*.json"}
KEPT |= {PlanRecord: "plan.json", Teacher: "teachers/*/teacher.json"}
GPU_ONLY = {"driver"}
NEWER = {
    Config: {"changed"},
    Record: {"pretraining", "inference"},
    Cost: {"image_size", "train_images", "momentum", "nesterov", "dropout", "relative", "noisy"},
}
"""Written since the sets were kept: tests/bench/train (test_training, test_contract) and tests/bench/measure/test_probes.py hold that they are."""


def kept(pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(EVIDENCE.glob(f"*/{pattern}"))]


@pytest.mark.parametrize("kind", KEPT, ids=lambda kind: kind.__name__)
def test_no_field_is_read_that_nobody_writes(kind):
    found = kept(KEPT[kind])
    assert found and {f.encode_name for f in structs.fields(kind)} - NEWER.get(kind, set()) <= set().union(*found)
    for value in found:
        typed("", value, kind)


def test_no_field_within_a_record_is_read_that_nobody_writes():
    found = kept("runs/*/record.json")
    for kind, key in ((Device, "device"), (Versions, "versions"), (records.UsedTeacher, "teacher")):
        assert {f.name for f in structs.fields(kind)} - GPU_ONLY <= set().union(*(r[key] or {} for r in found))
    rows = [json.loads(line) for path in EVIDENCE.glob("*/runs/*/epochs.jsonl") for line in path.read_text().splitlines()]
    assert rows and {f.name for f in structs.fields(Row)} == set().union(*rows) - {"crc"}
    identities = [c["identity"] for c in kept("runs/*/config.json")]
    assert {f.name for f in structs.fields(records.Identity)} == set().union(*identities) - {"format"}


def test_what_a_newer_version_adds_is_left_out(tmp_path):
    write_json(tmp_path / "a.json", {**kept("teachers/*/teacher.json")[0], "newer": [1, {"x": None}]})
    assert read(tmp_path / "a.json", Teacher) == typed("", kept("teachers/*/teacher.json")[0], Teacher)


def test_a_protocol_with_a_setting_that_is_not_known_is_no_declared_one(tmp_path):
    run = run_of("kd", *R20, 1, PROTOCOLS["crd"])
    assert published.is_comparable(read_run(add_run(tmp_path, run, 70.0)).protocol)

    class Newer(Run):
        def identity(self) -> dict[str, Any]:
            return (whole := super().identity()) | {"protocol": whole["protocol"] | {"cutout": 8}}

    view = read_run(add_run(tmp_path, Newer(**vars(run)), 71.0))
    assert "does not know: cutout" in view.protocol.trial and not published.is_comparable(view.protocol)
    assert len({v.table for v in scan(tmp_path)[0]}) == 2  # and never in one table with the other


CHANGES = [
    ("record.json", "test_top1", "70", "Expected `float`, got `str` - at `$.test_top1`"),
    ("record.json", "teacher", ["a"], "at `$.teacher`"),
    ("record.json", "versions", {}, "missing required field `python` - at `$.versions`"),
    ("record.json", "device", None, "at `$.device`"),
    ("config.json", "identity", {"student": ["resnet20"]}, "not the configuration of a run"),
    ("config.json", "identity", [], "not the configuration of a run"),
    ("status.json", "status", ["done"], "not the status of a run"),
]


@pytest.mark.parametrize(("file", "key", "value", "said"), CHANGES)
def test_another_type_is_a_named_problem(tmp_path, file, key, value, said):
    folder = add_run(tmp_path, run_of("kd", *R20, 1), 70.0, status="running" if file == "status.json" else "done")
    write_json(folder / file, read_json(folder / file) | {key: value})
    views, (problem,) = scan(tmp_path)
    assert not views and file in problem.reason and said in problem.reason


@pytest.mark.parametrize(("epochs", "rate"), [(0, 1.0), (10**12, 1.0), (3, 0.0), (3, 1.5)])
def test_a_protocol_that_cannot_be_is_refused(tmp_path, epochs, rate):
    add_plan(tmp_path, [R20], ("kd",), (1,))
    plan = read_json(tmp_path / "plan.json")
    write_json(tmp_path / "plan.json", plan | {"protocol": plan["protocol"] | {"epochs": epochs, "sample_rate": rate}})
    with pytest.raises(StoreError, match="of the protocol is no"):
        read(tmp_path / "plan.json", PlanRecord)


def test_a_plan_of_more_cells_than_can_be_is_refused(tmp_path):
    """Small lists whose product is not."""
    add_plan(tmp_path, [R20], ("kd",), (1,))
    plan = read_json(tmp_path / "plan.json")
    write_json(tmp_path / "plan.json", plan | {name: plan[name] * 101 for name in ("pairs", "rows", "seeds")})
    with pytest.raises(StoreError, match="1,030,301 cells, more than the 1,000,000"):
        read(tmp_path / "plan.json", PlanRecord)
    write_json(tmp_path / "plan.json", plan | {name: plan[name] * 100 for name in ("pairs", "rows", "seeds")})
    assert len(read(tmp_path / "plan.json", PlanRecord).seeds) == 100


def test_records_that_contradict_their_rows_are_refused(tmp_path):
    """Everything fits but the numbers: the sums are right, and so is the checksum."""
    folder = add_run(tmp_path, run_of("kd", *R20, 1), 21.0)
    whole = read_json(folder / "record.json")
    for change in ({"test_top1": 99.0}, {"best_top1": 99.0}, {"test_top1": 99.0, "best_top1": 99.0}):
        write_json(folder / "record.json", whole | change)
        assert "the rows say 21.00 after epoch 3, best 21.00, the record" in scan(tmp_path)[1][0].reason
        write_json(folder / "record.json", whole | change | {"attempts": 2})  # the rows are parsed one by one
        assert "the rows say 21.00 after epoch 3, best 21.00, the record" in scan(tmp_path)[1][0].reason


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"status": "done"}'])
def test_a_damaged_record_is_not_done_and_is_replaced(tmp_path, content):
    folder = add_run(tmp_path, run_of("kd", *R20, 1), 70.0)
    record = read_json(folder / "record.json")
    assert is_done(folder)
    (folder / "record.json").write_bytes(content)
    assert not is_done(folder) and scan(tmp_path)[1]
    assert write_record(folder, record).test_top1 == 70.0 and is_done(folder)
    with pytest.raises(StoreError, match="already written"):
        write_record(folder, record)
    assert not is_done(tmp_path / "runs" / "no\0run")


def test_a_record_without_a_field_is_not_written(tmp_path):
    folder = add_run(tmp_path, run_of("kd", *R20, 1, SHORT), 70.0)
    record = read_json(folder / "record.json")
    (folder / "record.json").unlink()
    del record["engine"]
    with pytest.raises(StoreError, match="missing required field `engine`"):
        write_record(folder, record)
    assert not (folder / "record.json").exists()


def test_costs_of_another_form_are_named(tmp_path):
    for method, change in {"kd": {"threads": {}}, "at": {"student_macs": []}, "sp": {"batch": 0}, "student": {}}.items():
        add_cost(tmp_path, *R20, method, 1000.0, 1 << 20, **change)
    path = add_cost(tmp_path, *R20, "cc", 1000.0, 1 << 20)
    path.write_text(path.read_text().replace("1000.0", "1e309"))
    found, problems = costs.scan(tmp_path)
    assert [c.method for c in found] == ["student"] and len(problems) == 4
    assert all("not a cost record" in p.reason or "Number out of range" in p.reason for p in problems)
