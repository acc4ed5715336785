"""Costs beside the tables they belong to: none is lost to another condition, none makes a ratio with another."""

import csv
import dataclasses
import io
from types import SimpleNamespace

import pytest

from bench.plan.protocols import PROTOCOLS
from bench.report import blocks, command, cost_sheets, page, render, sentences, table
from tests.bench.synthetic import CRD, DEVICE, add_cost, add_measured, add_plan, add_run, run_of

R20 = ("resnet20", "resnet8")
SMOKE, WRN = PROTOCOLS["smoke"], ("wrn_40_2", "wrn_16_2")


def relative(results, protocol, pair, method) -> float | None:
    sheets, problems = cost_sheets.load(results)
    assert not problems
    sheet = cost_sheets.choose(sheets, protocol, "tf32", [pair], ["student", method], {}, {DEVICE["name"]})
    found = sheet and sheet.relative(*pair, method)
    return found and found[0]


def test_the_smoke_profile_keeps_its_baseline_when_another_pair_has_the_same_student(tmp_path):
    for protocol, pair, plain, kd in ((SMOKE, R20, 1800.0, 954.0), (CRD, ("resnet56", "resnet8"), 1004.0, 300.0)):
        add_measured(tmp_path, run_of("student", None, pair[1], 1, protocol), plain)
        add_measured(tmp_path, run_of("kd", *pair, 1, protocol), kd)
    assert relative(tmp_path, SMOKE, R20, "kd") == pytest.approx(0.53)
    assert relative(tmp_path, CRD, ("resnet56", "resnet8"), "kd") == pytest.approx(300 / 1004)


def test_the_wrn_column_of_table_1_keeps_its_baseline_after_another_batch(tmp_path):
    for protocol, plain, kd in ((CRD, 1000.0, 500.0), (PROTOCOLS["iep_quarter"], 1200.0, 400.0)):
        add_measured(tmp_path, run_of("student", None, WRN[1], 1, protocol), plain)
        add_measured(tmp_path, run_of("kd", *WRN, 1, protocol), kd)
    assert relative(tmp_path, CRD, WRN, "kd") == 0.5
    assert relative(tmp_path, PROTOCOLS["iep_quarter"], WRN, "kd") == pytest.approx(1 / 3)
    assert relative(tmp_path, PROTOCOLS["iep"], WRN, "kd") is None  # four times the images: nobody measured that


def test_protocols_that_differ_in_their_schedule_alone_share_costs(tmp_path):
    add_measured(tmp_path, run_of("student", None, WRN[1], 1, CRD), 1000.0)
    add_measured(tmp_path, run_of("kd", *WRN, 1, CRD), 500.0)
    assert relative(tmp_path, PROTOCOLS["skd"], WRN, "kd") == 0.5
    unknown = dataclasses.replace(CRD, dataset="none_such")
    assert relative(tmp_path, unknown, WRN, "kd") is None


@pytest.mark.parametrize("change", [{"threads": 2}, {"engine": "static"}])
def test_no_ratio_between_conditions(tmp_path, change):
    add_measured(tmp_path, run_of("student", None, WRN[1], 1, CRD), 1000.0)
    add_measured(tmp_path, run_of("kd", *WRN, 1, CRD), 500.0, **change)
    assert relative(tmp_path, CRD, WRN, "kd") is None and len(cost_sheets.load(tmp_path)[0]) == 2


def test_records_that_do_not_say_their_size_fit_any_and_stand_behind_those_that_do(tmp_path):
    for method, speed in (("student", 1000.0), ("kd", 800.0)):
        add_cost(tmp_path, *WRN, method, speed, 1 << 20)
    assert relative(tmp_path, CRD, WRN, "kd") == relative(tmp_path, PROTOCOLS["skd"], WRN, "kd") == 0.8
    add_measured(tmp_path, run_of("student", None, WRN[1], 1, CRD), 1000.0)
    assert relative(tmp_path, CRD, WRN, "kd") == 0.8  # covers more
    add_measured(tmp_path, run_of("kd", *WRN, 1, CRD), 500.0)
    assert relative(tmp_path, CRD, WRN, "kd") == 0.5


def test_of_two_records_the_one_with_the_rows_settings_counts(tmp_path):
    own, other = {"temperature": 4.0}, {"temperature": 8.0}
    runs = [run_of("student", None, WRN[1], 1, CRD), run_of("kd", *WRN, 1, CRD, hyper=own, method_version=2)]
    for run in runs:
        add_run(tmp_path, run, 70.0)
    add_plan(tmp_path, [WRN], (), (1,), CRD)
    add_measured(tmp_path, runs[0], 1000.0)
    add_measured(tmp_path, dataclasses.replace(runs[1], hyper=other), 900.0, finished="2026")
    add_measured(tmp_path, dataclasses.replace(runs[1], method_version=1), 800.0, finished="2026")

    def speed():
        (t,) = table.build(tmp_path)[0].tables
        return next(r.speed for r in t.rows if r.method == "kd")

    assert speed() is None  # none of these is this row's cost
    add_measured(tmp_path, runs[1], 500.0, finished="2025")
    assert speed() == 0.5
    (sheet,) = cost_sheets.load(tmp_path)[0]
    assert len(sheet.all) == 4 and sheet.get(*WRN, "kd").finished == "2026"  # without rows: the newest


def test_the_probes_own_ratio_stands_before_that_of_two_records(tmp_path):
    add_measured(tmp_path, run_of("student", None, WRN[1], 1, CRD), 1000.0)
    add_measured(tmp_path, run_of("kd", *WRN, 1, CRD), 40.0, relative=0.5, student_macs=41, teacher_macs=126)  # measured in a bad hour
    add_measured(tmp_path, run_of("skd", *WRN, 1, CRD), 900.0, relative=0.8, student_macs=41, teacher_macs=0)
    assert relative(tmp_path, CRD, WRN, "kd") == 0.5
    (sheet,) = cost_sheets.load(tmp_path)[0]
    assert sheet.without_teacher(*WRN, "skd")[0] == pytest.approx(0.5 / 0.8)


def test_what_a_method_takes_is_the_plain_students_times_the_ratio(tmp_path):
    """KD's probe met a slow minute, the plain student's own probe did not: images a second, ratio and total say the same of KD."""
    for run, speed, ratio in ((run_of("student", None, WRN[1], 1, CRD), 1000.0, {}), (run_of("kd", *WRN, 1, CRD), 330.0, {"relative": 0.5})):
        add_run(tmp_path, run, 70.0)
        add_measured(tmp_path, run, speed, **ratio)
    add_run(tmp_path, run_of("at", *WRN, 1, CRD), 70.0)
    add_measured(tmp_path, run_of("at", *WRN, 1, CRD), 250.0)  # an older record, without a ratio of its own
    sets = table.build(tmp_path)
    (t,) = sets[0].tables
    block = blocks.cost_block(t.sheet, "Costs", t)
    assert [line.cells for line in block.lines if line.kind == "main"] == [["1,000 (1.00×)"], ["500 (0.50×)"], ["250 (0.25×)"]]
    epochs = 240 * 50_000
    totals = [blocks.total_seconds(t.sheet, WRN, method, t) for method in ("student", "kd", "at")]
    assert totals == [epochs / 1000, epochs / 500, epochs / 250]
    said = {line["method"]: line for line in csv.DictReader(io.StringIO(render.csv_text(sets)))}
    assert [float(said["kd"][key]) for key in ("images_per_second", "relative_speed", "total_seconds")] == [500.0, 0.5, epochs / 500]
    assert page._costs(t)["rows"][1]["cells"][0]["views"][0]["main"] == "500"
    add_measured(tmp_path, run_of("student", None, WRN[1], 1, CRD), 1000.0, noisy=WHY)
    (sheet,) = cost_sheets.load(tmp_path)[0]
    assert sheet.speed(*WRN, "kd") == 330.0  # a noisy figure is no measure for others


WHY = "CPU time was 0.50 of the clock's (something else ran)"


@pytest.mark.parametrize("noisy", ["kd", "student", "kd with its own ratio"])
def test_a_noisy_cost_is_marked_wherever_it_stands(tmp_path, capsys, noisy):
    method = noisy.split()[0]
    own = {"relative": 0.5} if " " in noisy else {}
    for run, speed in ((run_of("student", None, WRN[1], 1, CRD), 1000.0), (run_of("kd", *WRN, 1, CRD), 500.0)):
        add_run(tmp_path, run, 70.0)
        add_measured(tmp_path, run, speed, noisy=WHY if run.method == method else "", **(own if run.method == "kd" else {}))
    (own_runs,) = table.build(tmp_path)
    (t,) = own_runs.tables
    first, *_, costs_ = blocks.set_blocks(own_runs)
    said = {line.label: line.cells for line in first.lines if line.kind == "main"}
    assert "0.50×‡" in said["KD"] and any(note.startswith("‡") for note in first.notes)
    assert next(line for line in costs_.lines if line.label == "KD").cells == ["500 (0.50×)‡"] and any(WHY in note for note in costs_.notes)
    assert any("KD" in line and "do not trust" in line for line in sentences.cost_lines(t))
    html = page.html([own_runs])
    assert "0.50×‡" in html and WHY in html.replace("&#39;", "'")
    assert any(f"the cost of kd on {t.pairs[0].title} is noisy" in warning and WHY in warning for warning in t.warnings)
    options = SimpleNamespace(**{**dataclasses.asdict(command.Report(results=tmp_path)), "strict": True, "write": False})
    assert command.report(options) == 1 and "warning: the cost of kd" in capsys.readouterr().out


def test_a_quiet_baseline_of_the_probes_own_is_not_marked_for_the_other_record(tmp_path):
    add_measured(tmp_path, run_of("student", None, WRN[1], 1, CRD), 1000.0, noisy=WHY)
    add_measured(tmp_path, run_of("kd", *WRN, 1, CRD), 500.0, relative=0.5)
    (sheet,) = cost_sheets.load(tmp_path)[0]
    assert not sheet.noisy(*WRN, "kd") and sheet.noisy(*WRN, "student") == WHY
    (block,) = blocks.set_blocks(table.build(tmp_path)[0])
    assert [line.cells[0].endswith("‡") for line in block.lines if line.kind == "main"] == [True, False]
