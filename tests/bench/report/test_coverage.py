"""What covers only some pairs, seeds or rows says so in every form, and nothing is claimed of it that it does not carry."""

import re
from pathlib import Path

import pytest

from bench.report import blocks, compare, page, paste, render, sentences, table
from bench.report.short import LINES, short
from tests.bench.synthetic import CRD, PAIRS, add_cost, add_plan, add_run, fill, run_of

THREE = [("resnet110", "resnet20"), ("resnet110", "resnet32"), ("vgg13", "vgg8")]
SEEDS = (1, 2, 3)


def own(results):
    return table.build(results)[0].tables[0]


def kd_on_one_pair(results):
    """Three pairs; KD is done on the first only, with a cost for that one."""
    for pair in THREE:
        for k, method in enumerate(("student", "at")):
            for seed in SEEDS:
                add_run(results, run_of(method, *pair, seed, CRD), 69.0 + k + seed / (7 + k))
            add_cost(results, *pair, method, 1000 - 300 * k, 1 << 20)
    for seed in SEEDS:
        add_run(results, run_of("kd", *THREE[0], seed, CRD), 72 + seed / 8)
    add_cost(results, *THREE[0], "kd", 900, 2 << 20)
    add_plan(results, THREE, ("student", "kd", "at"), SEEDS, CRD)
    return results


def test_each_comparison_counts_its_own_pairs(tmp_path):
    t = own(kd_on_one_pair(tmp_path))
    to_student, to_kd = (compare.against(t, method) for method in ("student", "kd"))
    assert {t.rows[i].method: c.difference.pairs for i, c in to_student.pooled.items()} == {"kd": 1, "at": 3}
    assert {t.rows[i].method: c.difference.pairs for i, c in to_kd.pooled.items()} == {"student": 1, "at": 1}
    assert sentences.pooled_lines(t, to_kd)[0].startswith("Over 1 of 3 pairs, no method is above KD")
    at = next(i for i, row in enumerate(t.rows) if row.method == "at")
    seen = {view["key"]: view["below"] for view in page._pooled_views(at, t, [to_student, to_kd], False)}
    assert seen == {"mean": [], "student": [], "kd": ["1 of 3 pairs"]}


def test_one_seed_is_not_the_headline_where_others_have_three(tmp_path):
    for seed in SEEDS:
        for k, method in enumerate(("student", "kd")):
            add_run(tmp_path, run_of(method, *THREE[0], seed, CRD), 69.0 + k + seed / (7 + k))
    add_run(tmp_path, run_of("fitnet", *THREE[0], 1, CRD), 79.0)
    t = own(tmp_path)
    versus = compare.against(t, "student")
    assert sentences.pooled_lines(t, versus)[0].startswith("On this pair, KD is furthest above Student: +")
    assert t.rows[page._figures(t, [versus])["best"]].method == "kd"


@pytest.mark.parametrize(("seeds", "few"), [((1, 2), True), (SEEDS, False)])
def test_three_seeds_of_the_student_alone_support_no_claim(tmp_path, seeds, few):
    for seed in SEEDS:
        add_run(tmp_path, run_of("student", *THREE[0], seed, CRD), 69.0 + seed / 7)
    assert not blocks.is_few(own(tmp_path))  # nothing is compared
    for seed in seeds:
        add_run(tmp_path, run_of("kd", *THREE[0], seed, CRD), 70.0 + seed / 8)
    t = own(tmp_path)
    assert blocks.is_few(t) is few and (sentences.in_short(t, compare.against(t, "student"))[-1] == sentences.FEW) is few


def test_without_a_student_the_difference_to_kd_counts_its_pairs(tmp_path):
    for pair in THREE:
        for k, method in enumerate(("kd", "at")):
            for seed in SEEDS:
                add_run(tmp_path, run_of(method, *pair, seed, CRD), 70.0 + k + seed / (7 + k))
    add_cost(tmp_path, *THREE[0], "kd", 900, 1 << 20)
    (results,) = table.build(tmp_path)
    (t,) = results.tables
    assert sentences.pooled_lines(t, compare.against(t, "kd"))[0].startswith("Over 3 pairs, AT is furthest above KD")
    (said,) = sentences.cost_lines(t)
    assert said.startswith("No cost is given as a multiple")
    made = paste.files(results, published=True)
    assert made["table1.md"].count("| Teacher |") == 1 and made["table1.tex"].count("Teacher & 74.50") == 1
    assert "Teacher" in render.text([results], 160) and not any(word in render.text([results], 160) for word in ("Δ Student",))


@pytest.mark.parametrize(("seeds", "clear"), [((1, 2), False), ((1, 2, 3), True)])
def test_two_seeds_of_six_pairs_make_no_claim(tmp_path, seeds, clear):
    fill(tmp_path, PAIRS, ("student", "kd"), seeds, CRD)
    t = own(tmp_path)
    (found,) = compare.against(t, "student").pooled.values()
    assert found.holm < 0.05 and found.difference.n == 6 * len(seeds) and found.difference.seeds == len(seeds)
    assert found.clear is clear and ("†+" in render.text(table.build(tmp_path), 200)) is clear


def test_costs_of_some_pairs_say_so_and_are_not_ranked_with_those_of_all(tmp_path):
    results = table.build(kd_on_one_pair(tmp_path))
    t = results[0].tables[0]
    assert next(row for row in t.rows if row.method == "kd").speed == pytest.approx(0.9)
    assert "0.90× (1/3)" in render.text(results, 200) and "0.90× (1/3)" in short(results, results[0], 160, None)
    (shown,) = re.findall(r"0\.90×</span>.{0,80}?1 of 3 pairs", page.html(results), re.S)
    assert "0.70×" not in shown
    said = " ".join(sentences.cost_lines(t))
    assert said.startswith("Training one step costs 1.43× the plain student's time with AT.") and "KD" not in said


def test_a_stage_before_the_main_one_leaves_the_total_out(tmp_path):
    pair = THREE[0]
    for k, method in enumerate(("student", "ab")):
        for seed in SEEDS:
            stage = {"pretraining": {"epochs": 30, "rate": 0.05, "seconds": 600.0}} if k else {}
            add_run(tmp_path, run_of(method, *pair, seed, CRD), 69.0 + k, **stage)
        add_cost(tmp_path, *pair, method, 1000, 1 << 20)
    t = own(tmp_path)
    block = blocks.cost_block(t.sheet, "Costs", t)
    totals = [line.cells for line in block.lines if line.label == "total"]
    assert totals == [["3.33 h"], [blocks.NONE]] and "None for a method that pre-trains its student" in block.notes[1]


def test_a_preparations_share_is_among_those_that_it_serves(tmp_path):
    """FT's depends on the student too: pairs of one teacher share one where its key is the same."""
    pairs = [("resnet50", "mobilenetv2"), ("resnet50", "vgg8"), ("resnet50", "resnet20")]
    for pair, key in zip(pairs, ("one", "other", "one"), strict=True):
        for seed in SEEDS:
            add_run(tmp_path, run_of("student", *pair, seed, CRD), 70.0 + seed)
            add_run(tmp_path, run_of("ft", *pair, seed, CRD), 71.0 + seed, preparation={"name": "ft", "key": key, "seconds": 9.0, "facts": {}})
    t = own(tmp_path)
    assert [blocks.served(pair, "ft", t) for pair in pairs] == [6, 3, 6]


def test_costs_of_several_commits_are_named(tmp_path):
    for commit, method in (("a" * 12, "student"), ("b" * 12, "kd")):
        add_run(tmp_path, run_of(method, *PAIRS[0], 1, CRD), 70.0)
        add_cost(tmp_path, *PAIRS[0], method, 900, 1 << 20, commit=commit)
    t = own(tmp_path)
    assert f"commits {'a' * 12} and {'b' * 12}" in blocks.cost_block(t.sheet, "Costs", t).caption


@pytest.mark.parametrize("width", [60, 80, 120])
def test_rows_come_before_warnings(tmp_path, width):
    """Every method has its line; what falls out is named."""
    fill(tmp_path, PAIRS[:1], seeds=SEEDS, protocol=CRD)
    for method in ("kd", "at", "sp", "rkd", "cc", "iep"):
        add_cost(tmp_path, *PAIRS[0], method, 900, 1 << 20, noisy="CPU time was 0.50 of the clock's (something else ran)")
    results = table.build(tmp_path)
    text = short(results, results[0], width, Path("report"))
    rows = [line.split()[0] for line in text.splitlines() if re.match(r"[A-Z][A-Za-z]* +\d\d\.\d\d", line)]
    assert rows == ["Teacher", "Student", "KD", "FitNet", "AT", "RKD", "SP", "CC", "IEP", "SKD"] and len(text.splitlines()) <= LINES
    assert re.search(r"warning: |Warnings and exclusions: \d+; --full prints all", text)
    narrow = short(results, results[0], 50, Path("report"))
    assert re.search(r"^Not shown for want of room: memory, prep\.;", narrow, re.M) and "speed" in narrow
