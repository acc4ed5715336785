"""Table 1 as data: what enters a cell, what is kept apart, and what is said about the rest."""

import dataclasses
import json
import statistics
from pathlib import Path

import pytest

from bench.errors import StoreError, UsageError
from bench.plan.protocols import PROTOCOLS
from bench.report import blocks, published, table
from bench.report.table import Row, Table
from bench.store.files import write_json
from tests.bench.synthetic import CRD, PAIRS, SHORT, add_cost, add_plan, add_run, fill, run_of

R20 = ("resnet56", "resnet20")


def add(results: Path, method: str, seed: int, top1: float, pair=R20, **rest) -> Path:
    changes = {k: rest.pop(k) for k in ("hyper", "method_version", "teacher_hash", "data_hash", "precision", "protocol") if k in rest}
    return add_run(results, run_of(method, *pair, seed, **changes), top1, **rest)


def only(results: Path, **options) -> Table:
    (own, *_) = table.build(results, **options)
    assert len(own.tables) == 1
    return own.tables[0]


def row(t: Table, method: str, variant: str = "") -> Row:
    return next(r for r in t.rows if (r.method, r.variant) == (method, variant))


def test_mean_deviation_and_paired_difference(tmp_path):
    for seed, (plain, kd) in enumerate([(69.0, 70.5), (69.4, 71.1), (68.9, 70.2)], 1):
        add(tmp_path, "student", seed, plain)
        add(tmp_path, "kd", seed, kd)
    cell = row(only(tmp_path), "kd").cells[0]
    assert cell.summary.mean == pytest.approx(70.6)
    assert cell.summary.sd == pytest.approx(statistics.stdev([70.5, 71.1, 70.2]))
    assert cell.difference.mean == pytest.approx((1.5 + 1.7 + 1.3) / 3) and cell.difference.n == 3
    assert cell.best and not row(only(tmp_path), "student").cells[0].best


def test_another_baseline(tmp_path):
    fill(tmp_path, PAIRS[:2], ("student", "kd", "at"))
    t = only(tmp_path, baseline="kd")
    assert row(t, "kd").pooled is None and row(t, "at").pooled is not None
    with pytest.raises(UsageError, match="did you mean kd"):
        table.build(tmp_path, baseline="kdd")


def test_the_plain_student_serves_every_pair_with_it(tmp_path):
    add(tmp_path, "student", 1, 69.0)
    add(tmp_path, "kd", 1, 70.0)
    add(tmp_path, "kd", 1, 71.0, pair=("resnet110", "resnet20"))
    t = only(tmp_path)
    assert [p.key for p in t.pairs] == [R20, ("resnet110", "resnet20")]
    assert [c.values for c in row(t, "student").cells] == [{1: 69.0}, {1: 69.0}]


def test_students_alone_have_a_column(tmp_path):
    add(tmp_path, "student", 1, 69.0)
    assert [p.title for p in only(tmp_path).pairs] == ["no teacher → resnet20"]


def test_only_done_runs_are_averaged(tmp_path):
    add(tmp_path, "kd", 1, 70.0)
    add(tmp_path, "kd", 2, 10.0, status="diverged", rows=1)
    add(tmp_path, "kd", 3, 20.0, status="running", rows=2)
    cell = row(only(tmp_path), "kd").cells[0]
    assert cell.values == {1: 70.0} and cell.summary.sd is None
    assert cell.others == {2: "diverged", 3: "interrupted"} and not cell.best  # it says running, and nobody holds its lease
    assert cell.note == "1 diverged, 1 interrupted"
    assert blocks.accuracy(cell.summary) == "70.00 (n=1)"
    assert any("loss is not finite" in line for line in blocks.remarks(table.build(tmp_path)[0]))


def test_an_incomplete_cell_is_never_the_best(tmp_path):
    for method, tops in (("student", (69.0, 69.1)), ("kd", (70.0, 70.1)), ("at", (75.0,))):
        for seed, top1 in enumerate(tops, 1):
            add(tmp_path, method, seed, top1)
    assert {r.method: r.cells[0].best for r in only(tmp_path).rows} == {"student": False, "kd": True, "at": False}


def test_planned_cells_are_missing_until_they_run(tmp_path):
    add_plan(tmp_path, [R20], ("kd", "student", "at"), (1, 2))
    add(tmp_path, "kd", 1, 70.0)
    t = only(tmp_path)
    assert [r.method for r in t.rows] == ["kd", "student", "at"]  # the plan's order
    assert row(t, "kd").cells[0].others == {2: "missing"}
    assert row(t, "at").cells[0].others == {1: "missing", 2: "missing"}


def test_a_plan_with_nothing_run_is_a_table(tmp_path):
    add_plan(tmp_path, [R20], ("student", "kd"), (1, 2, 3))
    assert [c.note for r in only(tmp_path).rows for c in r.cells] == ["3 missing", "3 missing"]


def test_skipped_cells_say_why(tmp_path):
    add_plan(tmp_path, [R20], ("kd",), (1,))
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["cells"][0] |= {"run": None, "skipped": "no map of that kind"}
    write_json(tmp_path / "plan.json", plan)
    cell = row(only(tmp_path), "kd").cells[0]
    assert cell.others == {1: "skipped"} and cell.reasons == {1: "no map of that kind"}


def test_a_broken_plan_is_a_problem(tmp_path):
    add(tmp_path, "kd", 1, 70.0)
    (tmp_path / "plan.json").write_text('{"format": 1, "cells": 3}')
    (own,) = table.build(tmp_path)
    assert own.tables[0].rows and "not a plan" in own.problems[0].reason


def test_a_corrupt_run_is_excluded_and_shown(tmp_path):
    add_plan(tmp_path, [R20], ("kd",), (1, 2))
    add(tmp_path, "kd", 1, 70.0)
    folder = add(tmp_path, "kd", 2, 75.0)
    rows = (folder / "epochs.jsonl").read_text()
    (folder / "epochs.jsonl").write_text(rows.replace('"epoch":2', '"epoch":9'))
    (own,) = table.build(tmp_path)
    assert row(own.tables[0], "kd").cells[0].others == {2: "excluded"}
    assert "epochs.jsonl:2" in own.problems[0].reason and own.faults == 1


def test_two_teachers_in_a_pair_exclude_it(tmp_path):
    add(tmp_path, "kd", 1, 70.0, teacher_hash="first")
    add(tmp_path, "kd", 2, 71.0, teacher_hash="second")
    add(tmp_path, "kd", 1, 72.0, pair=("vgg13", "vgg8"))
    t = only(tmp_path)
    bad, good = row(t, "kd").cells
    assert bad.summary is None and bad.others == {1: "excluded", 2: "excluded"}
    assert good.values == {1: 72.0}
    assert "mixes 2 teachers" in t.excluded[0].reason


def test_two_data_sets_in_a_pair_exclude_it(tmp_path):
    add(tmp_path, "kd", 1, 70.0, data_hash="a" * 16)
    add(tmp_path, "kd", 2, 71.0, data_hash="b" * 16)
    t = only(tmp_path)
    assert row(t, "kd").cells[0].summary is None and "mixes 2 data sets" in t.excluded[0].reason


def test_an_untrained_teacher_never_enters(tmp_path):
    add(tmp_path, "kd", 1, 70.0)
    add(tmp_path, "kd", 2, 71.0, teacher={"architecture": "resnet56", "hash": "x", "test_top1": 1.0, "trained": False})
    t = only(tmp_path)
    assert row(t, "kd").cells[0].values == {1: 70.0} and t.pairs[0].top1 == 74.5
    assert "not trained" in t.excluded[0].reason


def test_other_settings_get_a_row_and_old_versions_none(tmp_path):
    for seed in (1, 2):
        add(tmp_path, "kd", seed, 70.0, hyper={"alpha": 0.9}, method_version=2)
    add(tmp_path, "kd", 1, 60.0, hyper={"alpha": 0.5}, method_version=2)
    add(tmp_path, "kd", 1, 50.0, hyper={"alpha": 0.9}, method_version=1)
    t = only(tmp_path)
    assert row(t, "kd").cells[0].values == {1: 70.0, 2: 70.0}
    assert row(t, "kd", "alpha=0.5").cells[0].values == {1: 60.0}
    assert "version 1 of kd" in t.excluded[0].reason


def test_the_plan_says_which_settings_are_the_row(tmp_path):
    for seed in (1, 2):
        add(tmp_path, "kd", seed, 60.0, hyper={"alpha": 0.5})
    add(tmp_path, "kd", 1, 70.0)
    add_plan(tmp_path, [R20], ("kd",), (1,))
    assert row(only(tmp_path), "kd").cells[0].values == {1: 70.0}


def test_protocols_and_precisions_never_share_a_table(tmp_path):
    add(tmp_path, "kd", 1, 70.0)
    add(tmp_path, "kd", 2, 71.0, precision="bf16")
    add(tmp_path, "kd", 3, 72.0, protocol=CRD.scaled(2))
    add(tmp_path, "kd", 4, 73.0, protocol=dataclasses.replace(SHORT, trial=""))
    (own,) = table.build(tmp_path)
    found = {(t.precision, t.protocol.epochs, t.trial): row(t, "kd").cells[0].values for t in own.tables}
    assert found == {
        ("tf32", 3, "3 of 240 epochs"): {1: 70.0},
        ("bf16", 3, "3 of 240 epochs"): {2: 71.0},
        ("tf32", 2, "2 of 240 epochs"): {3: 72.0},
        ("tf32", 3, ""): {4: 73.0},
    }
    assert not own.tables[0].trial  # a trial comes after
    assert blocks.conditions(own.tables[1]).startswith("TRIAL, not the protocol: ")


def test_a_student_of_seed_0_that_is_a_teacher_too_is_a_row(tmp_path):
    """A teacher's own training has seed 0, and is the same run as a plain student's of that seed."""
    for seed in (0, 1, 2):
        run = run_of("student", None, "resnet20", seed)
        add_run(tmp_path, run, 65.0 + seed, title="Teacher" if seed == 0 else "Student")
        add(tmp_path, "kd", seed, 70.0)
    alone = run_of("student", None, "resnet56", 0)
    add_run(tmp_path, alone, 72.0, title="Teacher")
    t = only(tmp_path)
    assert row(t, "student").cells[0].values == {0: 65.0, 1: 66.0, 2: 67.0} and row(t, "student").title == "Student"
    assert [pair.key for pair in t.pairs] == [R20]


def test_evidence_is_kept_apart(tmp_path):
    add(tmp_path, "kd", 1, 70.0)
    add(tmp_path / "evidence" / "h200", "kd", 2, 71.0)
    own, kept = table.build(tmp_path)
    assert row(own.tables[0], "kd").cells[0].values == {1: 70.0}
    assert kept.name == "evidence/h200" and row(kept.tables[0], "kd").cells[0].values == {2: 71.0}


def test_changed_sources_and_commits_are_warned_of(tmp_path):
    add(tmp_path, "kd", 1, 70.0)
    assert only(tmp_path).warnings == []
    add(tmp_path, "kd", 2, 70.0, method_source="b" * 16, commit="def5678")
    commits, source = only(tmp_path).warnings
    assert "abc1234 (1 run)" in commits and "def5678 (1 run)" in commits
    assert "the source of kd changed" in source


def test_an_old_version_has_another_source_and_that_is_no_fault(tmp_path):
    add(tmp_path, "kd", 1, 70.0, method_version=1, method_source="b" * 16)
    add(tmp_path, "kd", 1, 70.0, method_version=2)
    assert only(tmp_path).warnings == []


def test_rows_and_pairs_in_their_order(tmp_path):
    for method in ("zz_mine", "skd", "iep", "kd", "student", "at"):
        add(tmp_path, method, 1, 70.0)
    add(tmp_path, "kd", 1, 70.0, pair=("aaa", "bbb"))
    add(tmp_path, "kd", 1, 70.0, pair=("wrn_40_2", "wrn_16_2"))
    t = only(tmp_path)
    assert [r.method for r in t.rows] == ["student", "kd", "at", "iep", "skd", "zz_mine"]
    assert [p.title for p in t.pairs] == ["WRN-40-2 → WRN-16-2", "resnet56 → resnet20", "aaa → bbb"]


def test_costs_relative_to_the_plain_student(tmp_path):
    for pair, speeds in ((R20, (1000, 500)), (("vgg13", "vgg8"), (400, 50))):
        for method, speed in zip(("student", "kd"), speeds, strict=True):
            add(tmp_path, method, 1, 70.0, pair=pair)
            add_cost(tmp_path, *pair, method, speed, 2 << 20 if method == "kd" else 1 << 20, 90.0 if method == "kd" else None)
    kd = row(only(tmp_path), "kd")
    assert kd.speed == pytest.approx((0.5 * 0.125) ** 0.5) and kd.memory == 2.0 and kd.preparation == 90.0 and kd.cost_pairs == 2
    t = only(tmp_path)
    assert blocks.total_seconds(t.sheet, R20, "kd", t) == pytest.approx(3 * 50_000 / 500 + 90.0)  # one pair and seed: the whole preparation


def test_costs_of_other_conditions_make_no_ratio(tmp_path):
    add(tmp_path, "student", 1, 70.0)
    add(tmp_path, "kd", 1, 70.0)
    add_cost(tmp_path, *R20, "student", 1000, 1 << 20)
    add_cost(tmp_path, *R20, "kd", 900, 1 << 20, device={"type": "cuda", "name": "Other GPU"})
    assert row(only(tmp_path), "kd").speed is None
    for method in ("student", "kd"):  # a ratio, but not of this table's batch
        add_cost(tmp_path, *R20, method, 900, 1 << 20, batch=128)
    assert only(tmp_path).sheet is None and row(only(tmp_path), "kd").speed is None
    (tmp_path / "costs" / "test-gpu" / "bad.json").write_text('{"images_per_second": -1}')
    (own,) = table.build(tmp_path)
    assert "not a cost record" in own.problems[0].reason


def test_costs_without_runs_are_shown(tmp_path):
    add_cost(tmp_path, *R20, "student", 1000, 1 << 20)
    add_cost(tmp_path, *R20, "kd", 500, 1 << 20, teacher_trained=False)
    (own,) = table.build(tmp_path)
    (block,) = blocks.set_blocks(own)
    assert block.title == "Probe: costs" and block.lines[2].cells == ["500 (0.50×)"]
    assert any("untrained teacher" in note for note in block.notes)


def test_published_files_hold_what_the_papers_print():
    index = published.load()
    kd = index["crd", "cifar100", 1.0, "resnet56", "resnet20", "kd"]
    assert (kd.top1, kd.sd, kd.n) == (70.66, 0.24, 5)
    skd = index["skd", "cifar100", 1.0, "resnet110", "resnet32", "skd"]
    assert (skd.top1, skd.sd, skd.n) == (71.86, None, 3) and "not certain" in skd.note
    assert index["iep", "cifar100", 0.25, "wrn_40_4", "wrn_16_4", "iep"].top1 == 68.57
    assert all(0 < p.top1 < 100 and p.source for p in index.values())


def test_published_numbers_stand_beside_their_protocol_only():
    index = published.load()

    def found(protocol, method="kd"):
        return published.look_up(index, protocol, *R20, method)

    assert found(CRD).top1 == 70.66
    assert found(CRD.scaled(3)) is None and found(CRD.sampled(0.5)) is None and found(PROTOCOLS["skd"]) is None
    assert found(dataclasses.replace(CRD, name="mine")) is None and found(CRD, "iep") is None
    assert found(PROTOCOLS["skd"], "skd").top1 == 70.23
    iep = ("wrn_40_4", "wrn_16_4", "iep")
    assert published.look_up(index, PROTOCOLS["iep_quarter"], *iep).top1 == 68.57
    assert published.look_up(index, PROTOCOLS["iep"].sampled(0.25), *iep) is None  # a trial, whatever stands for a quarter elsewhere


@pytest.mark.parametrize("protocol", [CRD.sampled(0.25), PROTOCOLS["iep"].sampled(0.5), PROTOCOLS["iep_half"]], ids=lambda p: p.name)
def test_beside_a_trial_stands_no_published_number_and_no_word_of_one(tmp_path, protocol):
    pair = R20 if protocol.name == "crd" else ("wrn_40_4", "wrn_16_4")
    for method in ("student", "at"):
        add_run(tmp_path, run_of(method, *pair, 1, protocol), 70.0)
    t = only(tmp_path)
    block = blocks.table_block(t, "Table 1")
    beside = [line.cells[0] for line in block.lines if line.label == "published"]
    assert any("No published number stands beside a trial" in note for note in block.notes) is bool(t.trial)
    assert beside == ([] if t.trial else ["77.52", "69.77", "71.13"])


@pytest.mark.parametrize(
    "change",
    [{"weight_decay": 1e-4}, {"momentum": 0.8}, {"milestones": (100, 150, 200)}, {"nesterov": True}, {"small_lr": 0.05}, {"decay": 0.2}],
    ids=lambda change: next(iter(change)),
)
def test_no_published_number_stands_beside_another_protocol_under_the_same_name(change):
    assert published.is_comparable(CRD) and not published.is_comparable(dataclasses.replace(CRD, **change))


def test_a_bad_published_file_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"entries": [{}]}')
    with pytest.raises(StoreError, match="x.json"):
        published.load(tmp_path)


def test_verdicts_under_the_whole_protocol(tmp_path):
    for seed, top1 in enumerate((70.5, 70.7, 70.9), 1):
        add(tmp_path, "kd", seed, top1, protocol=CRD)
        add(tmp_path, "sp", seed, top1, protocol=CRD)
        add(tmp_path, "iep", seed, top1, protocol=CRD)
    t = only(tmp_path)
    assert row(t, "kd").cells[0].verdict.word == "agrees"
    assert row(t, "sp").cells[0].verdict.word == "cannot tell"
    assert row(t, "iep").cells[0].verdict is None
    lines = {line.label: line.cells for line in blocks.published_block(t, "Table 1").lines}
    assert lines["KD"][0].startswith("agrees +0.04 ±")
