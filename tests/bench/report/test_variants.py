"""Ablations, preparations and methods without a teacher in the step, as the report shows them."""

import pytest

from bench.errors import UsageError
from bench.plan.protocols import PROTOCOLS
from bench.report import blocks, explain, published, table, variants
from bench.store import teachers
from bench.store.files import read_json, write_json
from bench.text import shortened
from tests.bench.synthetic import add_cost, add_plan, add_run, run_of

WRN, R20 = ("wrn_40_4", "wrn_16_4"), ("resnet56", "resnet20")
QUARTER = PROTOCOLS["iep_quarter"]
OWN = {"alteration": True, "intermediate": True, "iterations": 2, "pca": "covariance", "phase_batch": 128}
ABLATIONS = {
    "alteration=False": ({"alteration": False}, 61.77),
    "intermediate=False": ({"intermediate": False}, 68.14),
    "pca=batch": ({"pca": "batch"}, 66.58),
    "iterations=1": ({"iterations": 1}, 67.91),
    "iterations=3": ({"iterations": 3}, 68.44),
    "iterations=4": ({"iterations": 4}, 66.63),
}


def plan_of(results, changed: dict, seeds=(1, 2)) -> None:
    """plan.json for student and IEP with these settings changed."""
    add_plan(results, [WRN], ("student", "iep"), seeds, QUARTER)
    plan = read_json(results / "plan.json")
    for cell in plan["cells"]:
        if cell["method"] == "iep":
            cell["run"] = iep(cell["seed"], changed).id
            cell |= {"changed": {name: [OWN[name], value] for name, value in changed.items()}} if changed else {}
    write_json(results / "plan.json", plan)


def iep(seed: int, changed: dict):
    return run_of("iep", *WRN, seed, QUARTER, hyper=OWN | changed)


def rows(results) -> dict:
    (own, *_) = table.build(results)
    return {(r.method, r.variant): r for r in own.tables[0].rows}


@pytest.mark.parametrize("label", ABLATIONS)
def test_an_ablation_has_its_own_row_and_its_own_published_number(tmp_path, label):
    changed, printed = ABLATIONS[label]
    add_run(tmp_path, iep(1, changed), 60.0)
    plan_of(tmp_path, changed)
    found = rows(tmp_path)
    assert set(found) == {("student", ""), ("iep", label)}  # the only run of IEP, and yet not IEP's row
    cell = found["iep", label].cells[0]
    assert cell.values == {1: 60.0} and cell.others == {2: "missing"} and cell.published.top1 == printed
    (own, *_) = table.build(tmp_path)
    lines = blocks.table_block(own.tables[0], "Table 1").lines
    place = next(i for i, line in enumerate(lines) if line.label == f"IEP [{label}]")
    assert any(line.label == "published" and line.cells[0] == f"{printed:.2f}" for line in lines[place : place + 4])


def test_the_own_row_stays_the_own_row_whatever_was_planned_last(tmp_path):
    for changed, top1 in (({}, 68.0), ({"iterations": 3}, 67.0), ({"iterations": 4}, 66.0)):
        add_run(tmp_path, iep(1, changed), top1)
    for last in ({"iterations": 3}, {"iterations": 4}, {}):
        plan_of(tmp_path, last, seeds=(1,))
        found = {key[1]: row.cells[0].values for key, row in rows(tmp_path).items() if key[0] == "iep"}
        assert found == {"": {1: 68.0}, "iterations=3": {1: 67.0}, "iterations=4": {1: 66.0}}, last
    assert rows(tmp_path)["iep", ""].cells[0].published.top1 == 68.57


@pytest.mark.parametrize("own_row", [True, False])
def test_rows_that_are_planned_together_stand_side_by_side(tmp_path, own_row):
    """Each with the seeds that are planned of it, done or not; runs of another plan beside them."""
    several = [*([{}] if own_row else []), {"iterations": 3}, {"iterations": 4}]
    add_plan(tmp_path, [WRN], ("student",), (1, 2), QUARTER)
    plan = read_json(tmp_path / "plan.json")
    plan["rows"].append({"method": "iep", "title": "IEP"})
    for changed in several:
        for seed in (1, 2):
            cell = {"teacher": WRN[0], "student": WRN[1], "method": "iep", "seed": seed, "run": iep(seed, changed).id, "skipped": None}
            said = {"changed": {name: [OWN[name], value] for name, value in changed.items()}} if changed else {}
            plan["cells"].append(cell | said)
    write_json(tmp_path / "plan.json", plan)
    add_run(tmp_path, iep(1, {"iterations": 3}), 67.0, changed={"iterations": 3})
    add_run(tmp_path, iep(1, {"iterations": 1}), 65.0, changed={"iterations": 1})
    found = {key[1]: row.cells[0] for key, row in rows(tmp_path).items() if key[0] == "iep"}
    assert set(found) == {"iterations=3", "iterations=4", "iterations=1"} | ({""} if own_row else set())
    assert found["iterations=3"].values == {1: 67.0} and found["iterations=3"].others == {2: "missing"}
    assert found["iterations=4"].others == {1: "missing", 2: "missing"} and not found["iterations=4"].values
    assert found["iterations=1"].values == {1: 65.0} and not found["iterations=1"].others
    if own_row:
        assert found[""].others == {1: "missing", 2: "missing"}
        add_run(tmp_path, iep(1, {}), 68.0)
        stranger = run_of("iep", *WRN, 2, QUARTER, hyper=OWN | {"phase_batch": 64})
        add_run(tmp_path, stranger, 69.0)
        cells = {key[1]: row.cells[0].values for key, row in rows(tmp_path).items() if key[0] == "iep"}
        assert cells[""] == {1: 68.0} and cells["phase_batch=64"] == {2: 69.0} and cells["iterations=3"] == {1: 67.0}


def test_rows_of_a_sweep_are_told_apart_and_in_order(tmp_path):
    """In the plan's order, else by value; with names that differ however short; explained by the name that a launch gives them."""
    for iterations in (10, 3, 1):
        add_run(tmp_path, iep(1, {"iterations": iterations}), 60.0 + iterations, changed={"iterations": iterations})
    add_run(tmp_path, iep(1, {}), 68.0)
    add_plan(tmp_path, [WRN], ("student", "iep"), (1,), QUARTER)
    found = [label for method, label in rows(tmp_path) if method == "iep"]
    assert found == ["", "iterations=1", "iterations=3", "iterations=10"]
    results = table.build(tmp_path)
    names = [blocks.row_title(row) for row in results[0].tables[0].rows]
    for limit in (12, 16, 24):
        assert len({shortened(name, limit) for name in names}) == len(names) and max(len(shortened(name, limit)) for name in names) <= limit
    pair = "wrn_40_4/wrn_16_4"
    said = explain.explain(results, "iep:iterations=3", pair)
    assert said.startswith("IEP [iterations=3] on") and said == explain.explain(results, "iep:iterations=3.0", pair)
    with pytest.raises(UsageError, match="--explain method"):
        explain.explain(results, "iep:iterations=30", pair)


def test_a_run_in_the_place_of_a_planned_row_is_left_out_beside_a_planned_variant(tmp_path):
    """What stands for the own row is judged by that row's runs, not by a variant's."""
    test_rows_that_are_planned_together_stand_side_by_side(tmp_path, False)
    plan = read_json(tmp_path / "plan.json")
    own = {"teacher": WRN[0], "student": WRN[1], "method": "iep", "seed": 1, "run": iep(1, {}).id, "skipped": None}
    write_json(tmp_path / "plan.json", plan | {"cells": [*plan["cells"], own]})
    add_run(tmp_path, run_of("iep", *WRN, 1, QUARTER, hyper=OWN | {"phase_batch": 64}), 69.0)
    (results, *_) = table.build(tmp_path)
    assert [p.reason for p in results.tables[0].excluded] == [variants.ANOTHER]
    assert {r.variant: r.cells[0].values for r in results.tables[0].rows if r.method == "iep"}[""] == {}


@pytest.mark.parametrize("own_seeds", [(), (1,)])
def test_a_variant_stays_one_when_the_plan_is_overwritten(tmp_path, own_seeds):
    """Three seeds of a variant are no own row, not even beside one seed of the method's own settings."""
    for seed in (1, 2, 3):
        add_run(tmp_path, iep(seed, {"iterations": 3}), 67.0, changed={"iterations": 3})
    for seed in own_seeds:
        add_run(tmp_path, iep(seed, {}), 68.0)
    add_plan(tmp_path, [WRN], ("student",), (1, 2, 3), QUARTER)
    found = rows(tmp_path)
    assert found["iep", "iterations=3"].cells[0].values == {1: 67.0, 2: 67.0, 3: 67.0}
    assert (("iep", "") in found) == bool(own_seeds)


@pytest.mark.parametrize("last", ["kd", "at", None])
def test_what_was_a_change_once_and_is_a_default_now_is_one_row(tmp_path, last):
    """Seed 1 was launched with --set kd.temperature=2; for the others a later version of the suite had 2 as KD's own."""
    for seed in (1, 2, 3):
        add_run(tmp_path, run_of("kd", *R20, seed, hyper={"temperature": 2.0}), 70.0, changed={"temperature": 2.0} if seed == 1 else {})
    if last:
        add_plan(tmp_path, [R20], (last,), (2, 3))
        plan = read_json(tmp_path / "plan.json")
        for cell in plan["cells"]:
            cell["run"] = run_of(last, *R20, cell["seed"], hyper={"temperature": 2.0} if last == "kd" else {}).id
        write_json(tmp_path / "plan.json", plan)
    found = {key: row.cells[0].values for key, row in rows(tmp_path).items() if key[0] == "kd"}
    assert found == {("kd", ""): {1: 70.0, 2: 70.0, 3: 70.0}}


def test_a_plan_that_has_a_variants_settings_as_its_own_shows_it_as_the_own_row(tmp_path):
    add_run(tmp_path, iep(1, {"iterations": 3}), 67.0, changed={"iterations": 3})
    plan_of(tmp_path, {})
    plan = read_json(tmp_path / "plan.json")
    for cell in plan["cells"]:
        if cell["method"] == "iep":
            cell["run"] = iep(cell["seed"], {"iterations": 3}).id
    write_json(tmp_path / "plan.json", plan)
    assert rows(tmp_path)["iep", ""].cells[0].values == {1: 67.0}


@pytest.mark.parametrize("changes", [{"teacher_hash": "old"}, {"method_version": 0}, {"data_hash": "e" * 16}], ids=["teacher", "version", "data"])
@pytest.mark.parametrize("trained", [False, True])
def test_what_is_not_the_planned_run_does_not_stand_in_its_place(tmp_path, changes, trained):
    for seed in (1, 2, 3):
        add_run(tmp_path, run_of("student", *R20, seed), 69.0)
        add_run(tmp_path, run_of("kd", *R20, seed, **changes), 70.0)
    if trained:
        add_run(tmp_path, run_of("kd", *R20, 1), 71.0)
    add_plan(tmp_path, [R20], ("student", "kd"), (1, 2))
    (own, *_) = table.build(tmp_path)
    found = rows(tmp_path)["kd", ""].cells[0]
    assert found.values == ({1: 71.0} if trained else {}) and found.others[2] == "missing" and not own.tables[0].pairs[0].error
    assert len(own.tables[0].excluded) == 3  # the unplanned seed 3 is one of a kind with them


def test_a_replaced_teachers_runs_stay_left_out_when_another_pair_is_planned(tmp_path):
    """The teacher in the folder says which runs count. Where there is none, or no run has it, nothing says so."""
    other = ("vgg13", "vgg8")
    for seed in (1, 2, 3):
        add_run(tmp_path, run_of("kd", *R20, seed, teacher_hash="1" * 16), 70.0)
        add_run(tmp_path, run_of("kd", *R20, seed, teacher_hash="2" * 16), 71.0)
        add_run(tmp_path, run_of("kd", *other, seed), 72.0)
    add_plan(tmp_path, [other], ("kd",), (1, 2, 3))

    def first_pair():
        (own,) = table.build(tmp_path)
        (t,) = own.tables
        column = next(j for j, pair in enumerate(t.pairs) if pair.key == R20)
        return t.rows[0].cells[column].values, {p.reason for p in t.excluded}

    mixed = ({}, {f"mixes 2 teachers ({'1' * 12}, {'2' * 12}); keep the runs of one"})
    assert first_pair() == mixed
    place = teachers.folder(tmp_path, "cifar100", "resnet56")
    place.mkdir(parents=True)
    for present, expected in (
        ("2", ({1: 71.0, 2: 71.0, 3: 71.0}, {f"with the teacher {'1' * 12}; the results folder has {'2' * 12}"})),
        ("3", mixed),
    ):
        teacher = {"format": 1, "architecture": "resnet56", "dataset": "cifar100", "hash": present * 16, "test_top1": 72.0, "test_top5": None}
        write_json(place / "teacher.json", teacher | {"test_top1_data": "d" * 16, "trained": True, "source": "imported"})
        assert first_pair() == expected
    add_run(tmp_path, run_of("kd", *R20, 1, teacher_hash="3" * 16), 0.0, "failed", 0)
    assert first_pair() == mixed  # no number of that teacher's is there
    (place / "teacher.json").write_text("{}")
    assert first_pair() == mixed


@pytest.mark.parametrize("skipped", [None, "no such file"])
def test_runs_of_an_older_teacher_do_not_stand_in_for_planned_ones_that_wait_for_theirs(tmp_path, skipped):
    add_run(tmp_path, run_of("kd", *R20, 1), 70.0)
    add_plan(tmp_path, [R20], ("kd",), (1, 2))
    plan = read_json(tmp_path / "plan.json")
    for cell in plan["cells"]:
        cell |= {"run": None, "skipped": skipped}
    write_json(tmp_path / "plan.json", plan)
    (own, *_) = table.build(tmp_path)
    assert [len(own.tables[0].excluded), rows(tmp_path)["kd", ""].cells[0].values] == ([0, {1: 70.0}] if skipped else [1, {}])


def test_one_version_of_a_method_is_shown_on_all_pairs(tmp_path):
    other = ("resnet110", "resnet32")
    for pair, version in ((R20, 1), (other, 2)):
        add_run(tmp_path, run_of("kd", *pair, 1, method_version=version), 70.0)
    (own, *_) = table.build(tmp_path)
    assert [c.values for c in rows(tmp_path)["kd", ""].cells] == [{}, {1: 70.0}]
    assert "version 1 of kd; the table shows version 2" in own.tables[0].excluded[0].reason


def test_two_ablations_without_the_own_row_are_told_apart(tmp_path):
    for changed, top1 in (({"iterations": 3}, 67.0), ({"iterations": 4}, 66.0)):
        add_run(tmp_path, iep(1, changed), top1)
    plan_of(tmp_path, {"iterations": 4}, seeds=(1,))
    found = {key[1]: row.cells[0].values for key, row in rows(tmp_path).items() if key[0] == "iep"}
    assert found == {"iterations=3": {1: 67.0}, "iterations=4": {1: 66.0}}


def test_an_older_version_is_left_out_whatever_its_settings(tmp_path):
    old = run_of("iep", *WRN, 1, QUARTER, hyper=OWN, method_version=0)
    add_run(tmp_path, old, 50.0)
    add_run(tmp_path, iep(1, {"iterations": 3}), 67.0)
    plan_of(tmp_path, {"iterations": 3}, seeds=(1,))
    (own, *_) = table.build(tmp_path)
    assert [(p.where, "version 0" in p.reason) for p in own.tables[0].excluded] == [(old.id, True)]
    assert rows(tmp_path)["iep", "iterations=3"].cells[0].values == {1: 67.0}


IEP_TABLE_1 = {  # full, 1/2, 1/4, 1/10
    "teacher": (77.52,) * 4,
    "student": (76.09, 69.77, 59.28, 40.65),
    "at": (76.98, 71.13, 63.07, 47.66),
    "ft": (77.14, 72.41, 63.70, 48.29),
    "ab": (77.29, 72.28, 66.79, 57.38),
    "rkd": (77.02, 69.57, 53.57, 23.27),
    "mhgd": (77.45, 73.32, 67.27, 54.58),
    "co": (78.21, 74.33, 67.90, 40.80),
    "iep": (78.12, 74.22, 68.57, 55.89),
    "iep_bb": (78.37, 74.53, 69.02, 59.04),
    "iep [pca=batch]": (77.92, 73.66, 66.58, 51.88),
}
SKD_TABLE_1 = {
    ("wrn_40_2", "wrn_16_2"): 73.79,
    ("resnet56", "resnet20"): 70.23,
    ("resnet110", "resnet20"): 70.27,
    ("resnet110", "resnet32"): 71.86,
    ("resnet32x4", "resnet8x4"): 72.91,
    ("vgg13", "vgg8"): 71.09,
}


def looked_up(protocol: str, pair: tuple[str, str], method: str, variant: str = "") -> float | None:
    found = published.look_up(published.load(), PROTOCOLS[protocol], *pair, method, variant)
    return found and found.top1


def test_published_numbers_stand_under_the_declared_protocols():
    rates = ("iep", "iep_half", "iep_quarter", "iep_tenth")
    for row, printed in IEP_TABLE_1.items():
        method, _, variant = row.removesuffix("]").partition(" [")
        assert tuple(looked_up(name, WRN, method, variant) for name in rates) == printed
    for student, plain, known in (("wrn_16_2", 56.61, 63.78), ("wrn_16_1", 51.88, 56.09)):
        pair = ("wrn_40_4", student)
        assert (looked_up("iep_quarter", pair, "student"), looked_up("iep_quarter", pair, "iep_bb")) == (plain, known)
        assert looked_up("iep_quarter", pair, "teacher") == 77.52 and looked_up("iep", pair, "iep_bb") is None
    assert looked_up("iep_quarter", WRN, "iep_bb", "alteration=False, intermediate=False") == 67.75
    assert looked_up("iep_quarter", WRN, "iep", "iterations=5") is None
    for pair, printed in SKD_TABLE_1.items():
        assert looked_up("skd", pair, "skd") == looked_up("crd", pair, "skd") == printed


def lines_of(results, pair=R20) -> dict[str, list[list[str]]]:
    (own, *_) = table.build(results)
    block = next(b for b in blocks.set_blocks(own) if b.title.endswith("costs"))
    found, main = {}, ""
    for line in block.lines:
        main = line.label if line.kind == "main" else main
        found[main, "" if line.kind == "main" else line.label] = line.cells
    return found


def test_preparation_is_shared_by_the_students_that_it_really_serves(tmp_path):
    pairs, seeds = [("resnet110", "resnet20"), ("resnet110", "resnet32"), R20], (1, 2, 3)
    for pair in pairs:
        for method in ("student", "kd", "skd"):
            memory = {"preparation_peak_bytes": 512 << 20} if method == "skd" else {}
            add_cost(tmp_path, *pair, method, 2000.0, 1 << 20, 7200.0 if method == "skd" else None, **memory)
    add_plan(tmp_path, pairs, ("student", "kd", "skd"), seeds, PROTOCOLS["crd"])
    plan = read_json(tmp_path / "plan.json")
    for cell in plan["cells"]:
        if (cell["method"], cell["student"], cell["seed"]) == ("skd", "resnet32", 3):
            cell |= {"run": None, "skipped": "one that the method cannot do"}
    write_json(tmp_path / "plan.json", plan)
    lines = lines_of(tmp_path)
    training = 240 * 50_000 / 2000 / 3600
    shared = [f"{training + 2 / served:.2f} h" for served in (5, 5, 3)]  # resnet110: 3 + 2 students; resnet56: 3
    assert lines["SKD", "total"] == shared and lines["SKD", "alone"] == [f"{training + 2:.2f} h"] * 3
    assert lines["SKD", "prep. s"] == ["7,200"] * 3 and lines["SKD", "prep. MiB"] == ["512"] * 3
    assert lines["KD", "total"] == [f"{training:.2f} h"] * 3 and ("KD", "alone") not in lines


def test_a_method_without_a_teacher_in_its_step_stands_beside_kd_and_the_ideal(tmp_path):
    for method, speed, teacher in (("student", 1000.0, 0), ("kd", 500.0, 126), ("skd", 900.0, 0), ("at", 400.0, 126)):
        add_run(tmp_path, run_of(method, *R20, 1), 70.0)
        add_cost(tmp_path, *R20, method, speed, 1 << 20, student_macs=41, teacher_macs=teacher)
    lines = lines_of(tmp_path)
    assert lines["SKD", "of KD's step"] == [f"{500 / 900:.2f}× ({3 * 41 / (3 * 41 + 126):.2f})"]
    assert [key for key in lines if key[1] == "of KD's step"] == [("SKD", "of KD's step")]
    (tmp_path / "costs" / "test-gpu" / "resnet56-resnet20-kd-tf32.json").unlink()
    assert not any(key[1] == "of KD's step" for key in lines_of(tmp_path))  # nothing to compare with
