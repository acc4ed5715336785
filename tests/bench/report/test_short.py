"""What `report` prints without options: the own table on a screenful, the rest in files that it names."""

import csv
import io
import re
import shutil

import pytest

from bench.plan.profiles import ALL_PAIRS, ROWS
from bench.plan.protocols import PROTOCOLS
from bench.report import compare, evidence, page, render, sentences, table
from bench.report.short import LINES, short
from bench.store.files import read_json, write_json
from tests.bench.synthetic import CRD, PAIRS, add_cost, add_plan, add_run, fill, run_of

R20 = ("resnet56", "resnet20")


def printed(results, width=100, out=None, name=None):
    sets = table.build(results)
    shown = next((s for s in sets if s.name == name), sets[0])
    return short(sets, shown, width, out)


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_a_screenful_at_any_width(tmp_path, width):
    text = printed(fill(tmp_path, PAIRS, seeds=(1, 2, 3)), width, tmp_path / "report")
    lines = text.splitlines()
    assert len(lines) <= LINES and max(len(line) for line in lines if "/" not in line) <= width  # a path is never broken
    rows = [line.split()[0] for line in lines if line.startswith(("Student", "KD", "SKD"))]
    assert rows == ["Student", "KD", "SKD"][: 3 if width > 60 else len(rows)]
    assert text.count(str(tmp_path / "report")) == 3


def test_many_rows_and_pairs_are_cut_with_a_word(tmp_path):
    add_plan(tmp_path, [(p.teacher, p.student) for p in ALL_PAIRS], ROWS, (1, 2, 3), CRD)
    text = printed(tmp_path, 100, tmp_path / "report")
    assert len(text.splitlines()) == LINES
    assert re.search(r"^\d+ more methods in the files below\.$", text, re.M)
    assert re.search(r"^Not shown for want of room: \d+ pairs; see the files below\.$", text, re.M)


def test_a_mean_over_some_pairs_says_so(tmp_path):
    for seed in (1, 2, 3):
        for student, top1 in (("resnet20", 69.0), ("resnet32", 70.0)):
            add_run(tmp_path, run_of("student", None, student, seed, CRD), top1 + seed / 10)
            add_run(tmp_path, run_of("at", "resnet110", student, seed, CRD), top1 + 1 + seed / 7)
        add_run(tmp_path, run_of("kd", "resnet110", "resnet20", seed, CRD), 72 + seed / 8)
    add_plan(tmp_path, [("resnet110", "resnet20"), ("resnet110", "resnet32")], ("student", "kd", "at"), (1, 2, 3), CRD)
    lines = printed(tmp_path, 160).splitlines()
    assert [line.rstrip().endswith("(1/2)") for line in lines if line.startswith(("KD", "AT"))] == [True, False]
    (own, *_) = table.build(tmp_path)
    said = sentences.pooled_lines(own.tables[0], compare.against(own.tables[0], "student"))
    assert said[0].startswith("Over 2 pairs, AT is furthest above Student")  # KD's mean is higher, and of one pair


def test_one_pair_has_difference_speed_and_memory(tmp_path):
    text = printed(fill(tmp_path, [R20], ("student", "kd", "iep"), (1, 2, 3)))
    found = table.build(tmp_path)[0].tables[0].rows[1]
    (kd,) = (line for line in text.splitlines() if line.startswith("KD"))
    s, d = found.cells[0].summary, found.cells[0].difference
    assert kd.split() == ["KD", f"{s.mean:.2f}", "±", f"{s.sd:.2f}*", f"{d.mean:+.2f}", "±", f"{d.half:.2f}", "0.83×", "1.13×", "–"]
    assert "95 % interval" in text and "(n=" not in text


def test_what_is_the_same_for_all_is_not_printed(tmp_path):
    for seed in (1, 2, 3):
        add_run(tmp_path, run_of("student", None, "resnet20", seed), 69.0 + seed)
        add_run(tmp_path, run_of("kd", *R20, seed), 70.0 + 2 * seed)
    text = printed(tmp_path)
    assert "Δ Student" in text and not re.search("speed|memory|prep", text)
    add_cost(tmp_path, *R20, "student", 1000, 1 << 20)
    add_cost(tmp_path, *R20, "kd", 500, 1 << 20)
    text = printed(tmp_path)
    assert "0.50×" in text and "memory" not in text.replace("speed, memory", "")


def test_two_seeds_support_no_claim(tmp_path):
    text = printed(fill(tmp_path, [R20], ("student", "kd"), (1, 2)), 160)
    assert "Fewer than 3 seeds support no claim" in text and "interval" not in text and text.count(" ± ") == 3  # the legend has one


def test_only_own_runs_and_the_banner(tmp_path):
    fill(tmp_path, [R20], ("student", "kd"), (1, 2, 3), PROTOCOLS["smoke"].scaled(3))
    add_run(tmp_path / "evidence" / "kept", run_of("kd", *R20, 1), 12.34)
    text = printed(tmp_path, 200, tmp_path / "report")
    assert text.startswith("TRIAL, not the protocol: 3 of") and "Embedded data, says nothing about CIFAR-100." in text
    assert "12.34" not in text and "evidence sets" in text
    assert "12.34" in printed(tmp_path, name="evidence/kept")


def test_what_is_not_done_is_said(tmp_path):
    fill(tmp_path, [R20], ("student", "kd"), (1, 2, 3))
    add_plan(tmp_path, [R20], ("student", "kd", "at"), (1, 2, 3))
    add_run(tmp_path, run_of("at", *R20, 1), 70.0)
    text = printed(tmp_path)
    assert "70.00 (n=1)" in text and "7 of 9 entries (method, pair, seed) are done; 1 cell of the table is incomplete." in text


def test_what_is_skipped_is_not_awaited(tmp_path):
    """A method that cannot do a pair is no work that is left, and takes no line where all else is done."""
    fill(tmp_path, [R20], ("student", "kd", "fsp"), (1, 2, 3))
    plan = read_json(tmp_path / "plan.json")
    for cell in plan["cells"]:
        if cell["method"] == "fsp":
            shutil.rmtree(tmp_path / "runs" / cell["run"])
            cell |= {"run": None, "skipped": "maps of unlike width"}
    write_json(tmp_path / "plan.json", plan)

    def said():
        (own,) = table.build(tmp_path)
        (t,) = own.tables
        written = list(csv.DictReader(io.StringIO(render.csv_text([own]))))
        assert sum(int(line["planned"]) for line in written) == 6
        return sentences.standing_line(t), sentences.in_short(t, compare.against(t, "student")), evidence.column_facts(t)[0], printed(tmp_path)

    line, first, common, text = said()
    assert line == "All 6 entries (method, pair, seed) are done; 3 skipped." and line not in first and "entries" not in text
    assert ("Done", "6 of 6") in common and "3 skipped" in text
    shutil.rmtree(tmp_path / "runs" / run_of("kd", *R20, 3).id)
    line, first, common, text = said()
    assert line == "5 of 6 entries (method, pair, seed) are done; 1 cell of the table is incomplete; 3 skipped." and first[0] == line
    assert ("Done", "5 of 6") in common and "5 of 6 entries" in text


def test_what_a_method_adds_at_use_and_trains_before_is_shown(tmp_path):
    """SimKD goes through a projector and the teacher's classifier; AB trains the student in a stage before. Rows without say nothing."""
    fill(tmp_path, [R20], ("student", "kd"), (1, 2, 3))
    for seed in (1, 2, 3):
        add_run(tmp_path, run_of("simkd", *R20, seed), 70.0, inference={"parameters": 214_016, "macs": 13_631_488})
        add_run(tmp_path, run_of("ab", *R20, seed), 69.0, pretraining={"epochs": 30, "rate": 0.05, "seconds": 600.0 + seed})
    sets = table.build(tmp_path)
    rows = {row.method: row for row in sets[0].tables[0].rows}
    assert rows["simkd"].parameters == 214_016 and rows["ab"].pretraining == 602.0
    assert rows["kd"].parameters is None and rows["kd"].pretraining is None
    whole, printed = render.text(sets, 160), short(sets, sets[0], 160, None)
    assert "+214 k, +13.6 M MAC" in whole and "pre-training s" in whole and "602" in whole
    assert "at use" in printed and "+214 k" in printed and "602 s" in printed
    assert "at use" in page.html(sets) and "pre-training" in page.html(sets)
    alone = table.build(fill(tmp_path / "plain", [R20], ("student", "kd"), (1, 2, 3)))
    assert not any(word in render.text(alone, 160) for word in ("at use", "pre-training"))
