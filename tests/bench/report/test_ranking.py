"""What can be missing of a table, and over which seeds its best and second best are found."""

from bench.report import blocks, compare, paste, sentences
from bench.report.table import ranked_seeds
from tests.bench.report.test_table import R20, add, only, row
from tests.bench.synthetic import add_plan


def test_the_best_is_found_among_cells_of_the_same_seeds(tmp_path):
    for seed, top1 in ((1, 69.0), (2, 69.2), (3, 69.1), (4, 71.0)):
        add(tmp_path, "student", seed, top1)
    for seed in (1, 2, 3):
        for method, top1 in (("at", 70.0), ("rkd", 69.5), ("sp", 69.4)):
            add(tmp_path, method, seed, top1)
    add(tmp_path, "kd", 4, 70.9)  # above AT's mean, and below the student of its only seed
    add_plan(tmp_path, [R20], ("student", "at", "rkd", "sp"), (1, 2, 3))
    t = only(tmp_path)
    assert [r.method for r in t.rows if r.cells[0].best] == ["at"]
    assert [t.rows[i].method for i in blocks.second_best(t, 0)] == ["rkd"] and t.rows[compare.leaders(t)[0].runner_up].method == "rkd"
    add_plan(tmp_path, [R20], ("student", "kd"), (4,))
    t = only(tmp_path)
    assert [r.method for r in t.rows if r.cells[0].best] == ["at"]  # nobody asked the others for seed 4
    assert t.seeds == [1, 2, 3, 4] and "4 seeds (1, 2, 3, 4)" in blocks.conditions(t)  # planned or met


def test_only_what_is_planned_is_missing(tmp_path):
    """A fourth seed is launched for two methods of one pair: nobody asked the rest for it."""
    other = ("resnet110", "resnet32")
    for method, top1 in (("student", 69.0), ("kd", 70.2), ("skd", 72.2)):
        for pair in (R20, other):
            for seed in (1, 2, 3):
                add(tmp_path, method, seed, top1 + seed / 10, pair=pair)
    add(tmp_path, "student", 4, 69.1)
    add(tmp_path, "kd", 4, 70.1)
    add_plan(tmp_path, [R20], ("student", "kd"), (4,))
    t = only(tmp_path)
    assert not any(cell.others for r in t.rows for cell in r.cells)
    assert sentences.standing_line(t) == "All 20 entries (method, pair, seed) are done."
    assert [[r.method for r in t.rows if r.cells[j].best] for j in (0, 1)] == [["skd"], ["skd"]]  # over seeds 1 to 3, which all have
    line = sentences.leader_line(t, 0, compare.leaders(t))
    assert "SKD 72.40 ± 0.10 (n = 3), 2.00 ahead of KD over the 3 seeds that most methods have. With differences that are all alike" in line
    assert "second underlined, over seeds 1, 2, 3." in paste.caption(t, 4, False)
    add_plan(tmp_path, [R20], ("student", "kd", "skd"), (3, 4))
    assert row(only(tmp_path), "skd").cells[0].others == {4: "missing"} and not row(only(tmp_path), "skd").cells[1].others


def test_a_sweep_of_one_seed_ranks_nothing_where_others_have_three(tmp_path):
    for method, tops in (("student", (69.0, 69.1, 68.9)), ("kd", (70.0, 70.8, 70.6)), ("at", (70.9, 70.1, 70.1))):
        for seed, top1 in enumerate(tops, 1):
            add(tmp_path, method, seed, top1)
    for weight in range(2, 9):
        add(tmp_path, "kd", 1, 71.0 + weight, hyper={"weight": weight}, changed={"weight": weight})
    t = only(tmp_path)
    assert [(r.method, r.variant) for r in t.rows if r.cells[0].best] == [("kd", "")]
    assert [t.rows[i].method for i in blocks.second_best(t, 0)] == ["at"]
    assert "second underlined, over seeds 1, 2, 3." in paste.caption(t, 3, False)
    t.rows = [r for r in t.rows if not r.variant]
    assert "second underlined. " in paste.caption(t, 3, False) + " "  # all have the same seeds


def test_one_row_of_one_seed_takes_no_claim_from_the_others(tmp_path):
    """A trial of a new method, or of a method that a later launch left out of its plan."""
    for seed in (1, 2, 3):
        for method, top1 in (("student", 69.0), ("kd", 70.0)):
            add(tmp_path, method, seed, top1 + seed / 10)
    add(tmp_path, "at", 1, 75.0)
    add_plan(tmp_path, [R20], ("student", "kd"), (1, 2, 3))
    t = only(tmp_path)
    assert ranked_seeds(t.rows, 0) == [1, 2, 3] and [r.method for r in t.rows if r.cells[0].best] == ["kd"]


def test_a_lead_is_measured_over_the_seeds_that_are_ranked(tmp_path):
    """SKD has two more seeds, that AT has too and no other: over these it is ahead, and over the ranked ones behind."""
    for seed, (plain, at, skd) in enumerate([(69.0, 70.1, 70.0), (69.1, 70.3, 70.1), (69.0, 70.2, 70.0), (0, 70.2, 73.0), (0, 70.1, 73.2)], 1):
        for method, top1 in (("student", plain), ("rkd", plain - 1), ("at", at), ("skd", skd)):
            if top1 > 0:
                add(tmp_path, method, seed, top1)
    add_plan(tmp_path, [R20], ("student", "rkd", "at", "skd"), (1, 2, 3))
    t = only(tmp_path)
    leader = compare.leaders(t)[0]
    assert (t.rows[leader.row].method, t.rows[leader.runner_up].method) == ("at", "skd") and leader.ahead.difference.n == 3
    line = sentences.leader_line(t, 0, {0: leader})
    assert "0.17 ahead of SKD over the 3 seeds that most methods have (95 %" in line


def test_two_seeds_make_no_lead_likely(tmp_path):
    for seed in (1, 2):
        for k, method in enumerate(("student", "kd", "at")):
            add(tmp_path, method, seed, 69.0 + 2 * k + seed * k / 50)
    t = only(tmp_path)
    line = sentences.leader_line(t, 0, compare.leaders(t))
    assert line.endswith("ahead of KD. With 2 seeds there is no saying how sure that is.")


def test_a_row_of_fewer_seeds_is_the_best_only_over_those(tmp_path):
    """Nothing is planned, so that a variant's single seed is all of it."""
    for seed, top1 in ((1, 62.4), (2, 62.3), (3, 61.6)):
        add(tmp_path, "student", seed, top1)
    for weight, top1 in ((2.0, 61.3), (3.0, 62.2)):
        add(tmp_path, "kd", 1, top1, hyper={"weight": weight}, changed={"weight": weight})
    t = only(tmp_path)
    assert [(r.method, r.variant) for r in t.rows if r.cells[0].best] == [("student", "")]  # 62.4 over seed 1, though its mean is 62.1
    assert [t.rows[i].variant for i in blocks.second_best(t, 0)] == ["weight=3.0"]
    assert "second underlined, over seed 1." in paste.caption(t, 3, False)


def test_two_rows_of_earlier_seeds_do_not_outrank_the_rest(tmp_path):
    for k, method in enumerate(("student", "rkd", "sp", "cc", "skd")):
        for seed in (1, 2):
            add(tmp_path, method, seed, 72.0 + k / 10 + seed / 50)
    for method, top1, seeds in (("kd", 70.3, (1, 2, 3, 4)), ("at", 69.2, (1, 2, 3))):
        for seed in seeds:
            add(tmp_path, method, seed, top1 + seed / 50)
    add_plan(tmp_path, [R20], ("student", "rkd", "sp", "cc", "skd", "kd", "at"), (1, 2))
    t = only(tmp_path)
    assert ranked_seeds(t.rows, 0) == [1, 2] and [r.method for r in t.rows if r.cells[0].best] == ["skd"]


def test_what_a_wider_launch_left_undone_stays_undone(tmp_path):
    """Stopped early, and then one pair alone is launched: the other's cells are no more complete than before."""
    other = ("resnet110", "resnet32")
    for method, top1 in (("student", 69.0), ("kd", 75.0), ("at", 72.0)):
        for seed in (1, 2, 3):
            add(tmp_path, method, seed, top1 + seed / 10)
            if seed == 1 or method == "student":
                add(tmp_path, method, seed, top1 + seed / 10, pair=other)
    for seed in (2, 3):
        add(tmp_path, "at", seed, 72.0 + seed / 10, pair=other)
    add_plan(tmp_path, [R20], ("student", "kd", "at"), (1, 2, 3))
    t = only(tmp_path)
    assert row(t, "kd").cells[1].others == {2: "missing", 3: "missing"} and not row(t, "at").cells[1].others
    assert [r.method for r in t.rows if r.cells[1].best] == ["at"]
