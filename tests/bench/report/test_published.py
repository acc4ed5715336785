"""The files of published numbers: complete, each number once, and a best epoch's held against our best epochs alone."""

import csv
import io
import json
import re
from collections import Counter

import pytest
from scipy import stats

from bench.errors import StoreError
from bench.report import blocks, compare, explain, page, published, render, sentences, table
from bench.report.published import HERE, Published
from bench.store.files import Problem
from tests.bench.synthetic import CRD, add_run, run_of

FILES = sorted(HERE.glob("*.json"))
W162, W401, R20 = ("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1"), ("resnet56", "resnet20")
R110, R32, X4, VGG = ("resnet110", "resnet20"), ("resnet110", "resnet32"), ("resnet32x4", "resnet8x4"), ("vgg13", "vgg8")
VMV2, RMV2, RVGG = ("vgg13", "mobilenetv2"), ("resnet50", "mobilenetv2"), ("resnet50", "vgg8")
SHU1, SHU2, WSHU1 = ("resnet32x4", "shufflev1"), ("resnet32x4", "shufflev2"), ("wrn_40_2", "shufflev1")

COUNTS = {  # cells by file; where two numbers: of the source's tables, and what stands beside them
    "crd-kd": 13,
    "crd-table1": 15 * 7 - 1,  # no FSP on WRN-40-1
    "crd-table2": 12 * 6 + 2 * 6,  # with teachers and students
    "dist": 6,
    "distillers": 4 * 13,
    "dkl": 21,
    "ickd": 2 * 7,
    "iep": 151,
    "itrd": 2 * 13 + 1,  # ReviewKD on vgg13/vgg8 as it copies it
    "kdpp": 4 * 6 + 4,  # and its runs of DIST and DKD, and a cell of KD
    "lskd": 107 + 1 + 5,  # AT's slip, and five weights of plain KD
    "lskd-logs-best": 3 * 7 + 6,
    "lskd-logs-last": 3 * 7 + 6,
    "mdistiller": 5 + 3 + 6,
    "notes": 7 + 7,
    "reruns": 10,
    "sdd": 38 + 3 + 6 + 6 + 2,  # other prints of one cell, slips of its Table 2, WCoRD, two cells of ResNet50/vgg8
    "skd": 6,
    "streamlined-kd": 2 * 4,
    "torchdistill": 9 + 10 + 9,
    "wkd": 6,
    "wttm": 6 * 13,
}


def entries() -> list[tuple[str, dict]]:
    """(file, entry with what its file says of all) of every file."""
    return [(path.stem, {**data, **entry}) for path in FILES for data in [json.loads(path.read_text())] for entry in data["entries"]]


def test_every_cell_of_every_source_is_there():
    assert Counter(name for name, _ in entries()) == COUNTS


def test_no_source_prints_a_cell_twice():
    keys = ("source", "table", "dataset", "sample_rate", "teacher", "student", "method", "variant")
    twice = [cell for cell, n in Counter(tuple(entry.get(key) for key in keys) for _, entry in entries()).items() if n > 1]
    assert twice == []


def test_every_number_says_where_it_is_from():
    for _, entry in entries():
        assert entry["source"] and 0 < entry["top1"] < 100 and (entry["sd"] is None or 0 < entry["sd"] < 1)
        assert entry["n"] is None or entry["n"] >= 1
    assert not any(re.search(r"\.\./|file:|(^|[\s\"])/\w", path.read_text()) for path in FILES)  # no path of a machine


SPOTS = [  # (row, pair, top-1, deviation, n, epoch, origin) of the number that stands in the tables, read in the sources by hand
    ("vid", R32, 72.61, 0.28, 5, "last", "own"),
    ("fsp", VGG, 70.23, None, 5, "last", "own"),
    ("kd", WSHU1, 74.83, 0.17, 3, "last", "own"),
    ("crd", SHU2, 75.65, 0.10, 3, "last", "own"),
    ("nst", VMV2, 58.16, None, 3, "last", "own"),
    ("student", RVGG, 70.36, None, 3, "last", "own"),
    ("teacher", RMV2, 79.34, None, 3, "last", "own"),
    ("crd+kd", X4, 75.46, None, 5, "last", "own"),
    ("crd+kd", WSHU1, 76.27, None, 3, "last", "own"),
    ("dkd", W162, 76.23, None, 5, "best", "own"),
    ("dkd", R110, 71.06, None, None, "best", "own"),
    ("dkd", SHU1, 76.45, None, 5, "best", "own"),
    ("reviewkd", W401, 75.09, None, None, "best", "copied"),
    ("ofd", R32, 73.23, None, None, "best", "copied"),
    ("simkd", X4, 78.08, None, None, "best", "copied"),
    ("catkd", SHU2, 78.41, None, None, "best", "copied"),
    ("ctkd", R20, 71.19, None, None, "best", "copied"),
    ("kd_ls", X4, 76.28, None, 1, "last", "own"),
    ("kd_ls", RMV2, 69.02, None, 4, "best", "own"),
    ("dist", R20, 71.75, 0.30, 5, "not said", "own"),
    ("dist", W401, 74.43, 0.24, None, "not said", "own"),
    ("ttm", W162, 76.23, 0.15, 5, "not said", "own"),
    ("wttm", R20, 71.92, 0.40, 5, "not said", "own"),
    ("wttm", VMV2, 69.16, None, 3, "not said", "own"),
    ("itrd", X4, 76.69, None, None, "not said", "own"),
    ("ickd", VGG, 73.42, None, None, "not said", "own"),
    ("ickd+kd", R110, 71.91, None, None, "not said", "own"),
    ("ikl", SHU2, 77.16, 0.04, 3, "best", "own"),
    ("rlkd", X4, 76.64, None, 3, "best", "own"),
    ("kd_weight", X4, 74.38, None, None, "best", "own"),
    ("kd_weight6", X4, 74.45, None, None, "best", "own"),
]


@pytest.mark.parametrize(("method", "pair", "top1", "sd", "n", "epoch", "origin"), SPOTS)
def test_what_stands_beside_a_cell(method, pair, top1, sd, n, epoch, origin):
    found = published.load()["crd", "cifar100", 1.0, *pair, method]
    assert (found.top1, found.sd, found.n, found.epoch, found.origin) == (top1, sd, n, epoch, origin)


@pytest.mark.parametrize(
    ("method", "pair", "first", "others"),
    [
        ("itrd", X4, 76.69, {76.19: "WTTM"}),
        ("dist", W401, 74.43, {74.73: "WTTM", 74.42: "KD++"}),
        ("dist", X4, 76.31, {75.79: "KD++"}),
        ("dkd", W162, 76.23, {76.24: "LSKD", 75.15: "Re-runs", 75.505: "Re-runs"}),
        ("at", R110, 70.22, {70.65: "LSKD"}),
        ("kd", RMV2, 67.35, {67.65: "KD++"}),
        ("crd", VMV2, 69.73, {69.11: "SDD"}),
        ("pkt", WSHU1, 73.89, {72.21: "SDD"}),
        ("sd_kd", X4, 76.63, {75.63: "SDD", 75.59: "SDD", 75.31: "SDD"}),
        ("reviewkd", VGG, 74.84, {74.85: "ITRD"}),
        ("teacher", R20, 72.34, {72.41: "Re-runs"}),
        ("kd_ls", VGG, 74.50, {74.36: "LSKD", 74.69: "LSKD logs"}),
        ("sp", R20, 69.67, {}),
    ],
)
def test_where_sources_disagree_both_are_kept(method, pair, first, others):
    """The first of those that print 74.84 is one of the copies; what the others print beside it must all be there."""
    found = published.load()["crd", "cifar100", 1.0, *pair, method]
    if method == "reviewkd":
        assert {found.top1, *(p.top1 for p in found.differing)} == {first, *others}
    else:
        assert found.top1 == first and {p.top1: p.name for p in found.differing} == others


def test_another_protocol_stands_beside_nothing():
    index = published.load()
    assert not {"Streamlined KD", "torchdistill"} & {p.name for first in index.values() for p in (first, *first.others)}
    assert not [key for key in index if key[0] == "crd" and key[5].startswith(("mlkd", "kdpp", "dkdpp", "distpp", "reviewkdpp"))]


def write(folder, name, *rows, **said):
    data = {"name": name, "source": f"{name}'s paper", "protocols": ["crd"], "dataset": "cifar100", "sample_rate": 1.0, "n": 5, **said}
    data["entries"] = [{"teacher": R20[0], "student": R20[1], "method": "kd", "sd": 0.2, **row} for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data))


def first(folder) -> Published:
    (number,) = published.load(folder).values()
    return number


def test_the_last_epoch_and_the_own_run_come_first(tmp_path):
    write(tmp_path, "a", {"top1": 71.0}, epoch="best")
    assert first(tmp_path).top1 == 71.0 and first(tmp_path).text == "71.00 ±0.20 best"
    write(tmp_path, "b", {"top1": 70.0, "sd": None}, epoch="last", origin="copied")
    assert first(tmp_path).top1 == 70.0 and first(tmp_path).said == "copied"
    write(tmp_path, "c", {"top1": 70.5, "remark": "a slip"}, epoch="last", origin="rerun")
    assert [p.top1 for p in first(tmp_path).differing] == [70.5, 71.0] and first(tmp_path).others[0].said == "a re-run by others: a slip"
    write(tmp_path, "d", {"top1": 70.2}, epoch="last")
    assert first(tmp_path).top1 == 70.2 and first(tmp_path).said == ""


@pytest.mark.parametrize("said", [{"epoch": "first"}, {"origin": "mine"}])
def test_an_unknown_word_is_named(tmp_path, said):
    write(tmp_path, "a", {"top1": 71.0}, **said)
    with pytest.raises(StoreError, match=r"a\.json.*Invalid enum value"):
        published.load(tmp_path)


def add(results, method, seed, last, best):
    """A run whose best epoch is epoch 200."""
    curve = {200: best, CRD.epochs: last}
    add_run(results, run_of(method, *R20, seed, CRD), last, curve=lambda epoch: curve.get(epoch, 50.0), best_top1=best, best_epoch=200)


def made(tmp_path, last=(70.0, 70.2, 70.4), best=(70.5, 70.7, 70.9)):
    for seed, (end, top) in enumerate(zip(last, best, strict=True), 1):
        add(tmp_path, "kd", seed, end, top)
    (own,) = table.build(tmp_path)
    return own


def test_a_best_epoch_is_held_against_our_best_epochs(tmp_path):
    write(tmp_path / "published", "a", {"top1": 70.7}, epoch="best")
    write(tmp_path / "published", "b", {"top1": 70.3, "sd": None}, epoch="best", origin="copied")
    own = made(tmp_path)
    (cell,) = own.tables[0].rows[-1].cells
    assert cell.summary.mean == pytest.approx(70.2) and cell.beside.mean == pytest.approx(70.7)
    assert cell.verdict.word == "agrees" and cell.verdict.mean == pytest.approx(0.0)
    main, judged = blocks.set_blocks(own)[:2]
    lines = {line.label: line.cells[0] for line in main.lines}
    assert lines["KD"] == "70.20 ±0.20 (3)" and lines["published"] == "70.70 ±0.20 best" and lines["our best"] == "70.70 ±0.20 (3)"
    assert judged.lines[0].cells[0].startswith("agrees +0.00 ±") and judged.lines[0].cells[0].endswith(" best")
    assert blocks.BEST in main.notes and blocks.BEST in judged.notes
    assert "Other sources print for KD: resnet56 → resnet20 70.30 best (b, copied) beside 70.70 ±0.20 best." in judged.notes
    told = explain.explain([own], "kd", "resnet56/resnet20")
    assert "That is: best epoch." in told and "Our best epochs, which alone are held against a best epoch: mean of 3: 70.7000" in told
    assert "Another source prints 70.30 best (n = 5): b's paper (best epoch, copied)." in told
    shown = page.html([own])
    assert "70.70 paper (best epoch, ours 70.70)" in shown and "agrees, best epochs" in shown and "Other sources print for KD" in shown
    assert "1 is of a best epoch, held against our best epochs" in shown and "<title>published:" not in shown
    (line,) = csv.DictReader(io.StringIO(render.csv_text([own])))
    assert (line["published_epoch"], line["mean"]) == ("best", "70.2") and float(line["minus_published"]) == pytest.approx(0.0, abs=1e-9)


def test_an_assumed_deviation_keeps_to_the_epoch(tmp_path):
    write(tmp_path / "published", "a", {"top1": 70.7, "sd": None}, epoch="best")
    own = made(tmp_path)
    compare.assume_sd([own], 0.2)
    assert own.tables[0].rows[-1].cells[0].verdict.mean == pytest.approx(0.0)


@pytest.mark.parametrize("n", [1, 3])
def test_an_assumed_deviation_is_known_whatever_n_was(tmp_path, n):
    """Degrees of freedom are ours alone: (a + b)² / (a² / (n - 1)), with a our squared error and b the assumed one's."""
    write(tmp_path / "published", "a", {"top1": 70.3, "sd": None, "n": n}, epoch="last")
    own = made(tmp_path)
    compare.assume_sd([own], 0.25)
    verdict = own.tables[0].rows[-1].cells[0].verdict
    a, b = 0.2**2 / 3, 0.25**2 / n
    assert verdict.mean == pytest.approx(-0.1)
    assert verdict.half == pytest.approx(stats.t.ppf(0.975, (a + b) ** 2 / (a * a / 2)) * (a + b) ** 0.5, rel=1e-6)
    assert verdict.word == "agrees" and verdict.why == "assuming a published standard deviation of 0.25 (the source prints none)"


def test_a_last_epoch_is_held_against_our_last(tmp_path):
    write(tmp_path / "published", "a", {"top1": 70.2}, epoch="last")
    own = made(tmp_path)
    assert own.tables[0].rows[-1].cells[0].verdict.mean == pytest.approx(0.0)
    text = render.text([own])
    assert "our best" not in text and "Other sources" not in text and blocks.BEST not in text
    assert "<title>published: 70.20</title>" in page.html([own])


def test_what_many_sources_print_is_not_cut(tmp_path):
    write(tmp_path / "published", "a", {"top1": 70.2}, epoch="last")
    for k in range(20):
        write(tmp_path / "published", f"another-source-{k}", {"top1": 71 + k / 10}, epoch="best", origin="copied")
    own = made(tmp_path)
    (note,) = blocks.other_sources(own.tables[0])
    assert len(note) > 800
    remark = "why " * 200 + "is this the end?"
    own.problems.append(Problem("runs/x", remark))
    for make in (render.markdown, render.latex, render.text):
        said = " ".join(make([own]).split())
        assert said.count("beside 70.20") == 1 and "is this the end?" in said


def test_no_best_epoch_of_any_file_is_held_against_a_last(tmp_path):
    index = published.load()
    rows = {key[5] for key, number in index.items() if key[0] == "crd" and key[3:5] == R20 and number.epoch == "best"}
    assert {"dkd", "reviewkd", "ofd", "ctkd", "ikl", "rlkd"} <= rows
    for method in rows:
        add(tmp_path, method, 1, 60.0, 65.0)
    (own,) = table.build(tmp_path)
    for row in own.tables[0].rows:
        if row.method in rows:
            (cell,) = row.cells
            assert cell.verdict.mean == pytest.approx(65.0 - cell.published.top1)


def test_what_chance_alone_would_make_is_said(tmp_path):
    for method, top1 in (("student", 69.0), ("kd", 70.66), ("at", 73.0)):
        for seed in (1, 2, 3):
            add_run(tmp_path, run_of(method, *R20, seed, CRD), top1 + seed / 10)
    found = table.build(tmp_path)[0].tables[0]
    verdicts = [row.cells[0].verdict for row in found.rows]
    halves = sorted(v.half for v in verdicts if v.half is not None)
    assert len(halves) == 2 and verdicts[2].word == "differs"  # none printed a deviation for the student
    agree, differ, least, middle, most = compare.by_chance(found)
    assert (agree, differ) == (pytest.approx(0.95 * 2), pytest.approx(0.05 * 2)) and [least, most] == halves
    text = " ".join(sentences.published_lines(found))
    assert "about 1.9 agree and 0.1 differ" in text and f"smaller than ± {middle:.2f} points (median; {least:.2f} to {most:.2f})" in text
