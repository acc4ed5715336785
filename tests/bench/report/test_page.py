"""The page, without a browser: what is in it, what cannot get into it, and folders that are odd."""

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec import structs

from bench.__main__ import main
from bench.plan.protocols import PROTOCOLS
from bench.report import compare, epochs, page, paste, sentences, table
from bench.store.files import read_json, write_json
from bench.store.rows import append_row, curve, read_rows
from bench.store.runs import read_run
from tests.bench.synthetic import CRD, PAIRS, SHORT, add_cost, add_plan, add_run, fill, run_of

ROOT = Path(__file__).resolve().parents[3]
R20 = ("resnet56", "resnet20")
VOID = {"meta", "link", "input", "br"}


class Reader(html.parser.HTMLParser):
    """Elements must close in order; keeps texts, elements with their attributes, and the JSON island."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.island = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            if self.seen[-1][1].get("type") == "application/json":
                self.island += data
        elif self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def read(results: Path) -> Reader:
    sets = table.build(results)
    compare.warn_of_contradictions(sets)
    return Reader(page.html(sets))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A full table of two pairs and three seeds."""
    return fill(tmp_path_factory.mktemp("whole"), PAIRS[:2], ("student", "kd", "at", "sp"))


def test_the_numbers_of_the_table_are_on_the_page(whole):
    found = read(whole)
    data = json.loads(found.island)
    (own,) = table.build(whole)
    assert len(data["cells"]) == 4 * 2
    for i, row in enumerate(own.tables[0].rows):
        for j, cell in enumerate(row.cells):
            assert f"{cell.summary.mean:.2f}" in found.text
            behind = data["cells"][f"s0t1-{i}-{j}"]
            assert [run[1] for run in behind["r"]] == [f"{cell.values[s]:.2f}" for s in (1, 2, 3)]
            assert [run[5] for run in behind["r"]] == [f"runs/{cell.runs[s].id}/record.json" for s in (1, 2, 3)]
            assert all((whole / run[5]).is_file() for run in behind["r"])


def test_every_cell_opens_its_own_evidence(whole, tmp_path):
    """With two sets and costs: each button's key is in the data, and none is there twice."""
    shutil.copytree(whole, tmp_path / "results")
    shutil.copytree(whole, tmp_path / "results" / "evidence" / "kept")
    found = read(tmp_path / "results")
    keys = [attrs["data-cell"] for tag, attrs in found.seen if "data-cell" in attrs]
    assert sorted(keys) == sorted(json.loads(found.island)["cells"]) and len(set(keys)) == len(keys) == 2 * 4 * 2


def test_the_head_of_the_means_over_pairs_says_to_what_they_are(whole):
    heads = [attrs for tag, attrs in read(whole).seen if tag == "span" and "data-v" in attrs and "data-sort" not in attrs]
    assert [(attrs["data-v"], "hidden" in attrs) for attrs in heads] == [("mean", False), ("student", True), ("kd", True)]
    assert "Δ Student Δ Student Δ KD" in read(whole).text


def test_it_needs_nothing_else(whole):
    text = page.html(table.build(whole))
    assert not re.search(r"(?:src|href|action|data)=[\"']?(?!#|data:,)[a-z/.]|@import|url\(|https?://|fetch\(|XMLHttp", text)
    assert "default-src 'none'" in text and "<!doctype html>" in text


def test_it_is_the_same_each_time(whole):
    assert page.html(table.build(whole)) == page.html(table.build(whole))


def test_the_answer_comes_first(whole):
    text = read(whole).text
    order = [text.index(said) for said in ("Mean ± std", "Take this table", "In short", "Over 2 pairs, KD is furthest above Student", "Holm over 3")]
    order += [text.index("How to read it"), text.index("Best on WRN-40-2"), text.index("Images a second"), text.index("Conditions")]
    assert order == sorted(order)
    (own,) = table.build(whole)
    said = sentences.in_short(own.tables[0], compare.against(own.tables[0], "student"))
    assert len(said) == 3 and all(line in text for line in said)


def test_two_seeds_support_no_claim(tmp_path):
    text = read(fill(tmp_path, PAIRS[:1], ("student", "kd", "at"), (1, 2))).text
    assert "Fewer than 3 seeds support no claim" in text
    assert not re.search("Best on|cannot be told|furthest above|Holm over", text)


def test_what_can_be_taken_is_what_is_written(whole, tmp_path):
    sets = table.build(whole)
    data = json.loads(read(whole).island)
    made = paste.files(sets[0], published=True)
    assert data["files"]["s0t1"] == {name: text for name, text in made.items() if "standalone" not in name}
    assert data["base"] == ".." and json.loads(Reader(page.html(sets, base="../a<b")).island)["base"] == "../a<b"


def test_the_newest_own_runs_are_open(whole, tmp_path):
    add_run(tmp_path / "evidence" / "old", run_of("kd", *R20, 1), 70.0)
    add_run(tmp_path / "evidence" / "young", run_of("kd", *R20, 2), 70.0, finished="2025-06-01T00:00:00Z")
    opened = [attrs["data-open"] for tag, attrs in read(tmp_path).seen if tag == "nav"]
    assert opened == ["set2"]
    add_run(tmp_path, run_of("kd", *R20, 3), 70.0)
    assert [attrs["data-open"] for tag, attrs in read(tmp_path).seen if tag == "nav"] == ["set0"]


HOSTILE = "</script><script>alert(1)</script><b onclick=x>&\"'\u2028\u202e\x1b[31m"


def test_markup_in_names_stays_text(tmp_path):
    pair = ("<i>t", "s&amp;'\"><img src=x onerror=y>")
    for seed in (1, 2):
        add_run(tmp_path, run_of("student", None, "s", seed), 69.0 + seed)
        add_run(tmp_path, run_of("kd", "t", "s", seed), 70.0 + seed, title=HOSTILE, commit=HOSTILE, device={"type": "cuda", "name": HOSTILE})
    (tmp_path / "runs" / HOSTILE.replace("/", "")).mkdir()
    sets = table.build(tmp_path)
    sets[0].tables[0].pairs[0].teacher, sets[0].tables[0].pairs[0].student = pair
    sets[0].tables[0].warnings.append(HOSTILE)
    found = Reader(page.html(sets))
    names = [tag for tag, _ in found.seen]
    assert names.count("script") == 2 and not {"img", "i"} & set(names)
    assert not any(key.startswith("on") for _, attrs in found.seen for key in attrs)
    assert "alert(1)" in found.text and "\x1b" not in found.text and "\u202e" not in found.text and "\x1b" not in found.island
    assert HOSTILE[:15] in json.loads(found.island)["cells"]["s0t1-1-0"]["t"]


@pytest.mark.parametrize("name", ["config.json", "record.json"])
def test_records_of_a_newer_version_are_left_out_with_the_reason(tmp_path, name):
    for seed in (1, 2):
        add_run(tmp_path, run_of("kd", *R20, seed), 70.0)
    folder = tmp_path / "runs" / run_of("kd", *R20, 1).id
    config = read_json(folder / name)
    write_json(folder / name, {**config, "format": 99})
    found = read(tmp_path)
    assert "format 99, this version reads 1" in found.text and "1 left out" in found.text
    assert json.loads(found.island)["cells"]["s0t1-0-0"]["r"][0][0] == 2


def test_one_run_is_a_page(tmp_path):
    add_run(tmp_path, run_of("kd", *R20, 1), 70.0)
    found = read(tmp_path)
    assert "70.00" in found.text and "n = 1" in found.text
    t = tables(tmp_path)
    assert "fewer than two methods are complete" in sentences.leader_line(t, 0, compare.leaders(t))


def test_a_plan_with_nothing_run_is_a_page(tmp_path):
    add_plan(tmp_path, [R20], ("student", "kd"), (1, 2, 3))
    assert "No run is done yet." in read(tmp_path).text


def test_costs_alone_are_a_page(tmp_path):
    add_cost(tmp_path, *R20, "student", 1000, 1 << 20)
    add_cost(tmp_path, *R20, "kd", 500, 1 << 20)
    assert "500 (0.50×)" in read(tmp_path).text


def test_an_empty_folder_is_one_line(tmp_path):
    done = subprocess.run([sys.executable, "-m", "bench.report", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "give a results folder" in done.stderr
    (tmp_path / "runs").mkdir()
    assert "no own runs" in read(tmp_path).text


def test_mixed_devices_are_named_with_their_counts(tmp_path):
    for seed, name in ((1, "A100"), (2, "H200"), (3, "H200")):
        add_run(tmp_path, run_of("kd", *R20, seed), 70.0, device={"type": "cuda", "name": name})
    assert "H200 (2) + A100 (1)" in read(tmp_path).text


def test_mixed_precisions_and_trials_are_tables_of_their_own(tmp_path):
    add_run(tmp_path, run_of("kd", *R20, 1), 70.0)
    add_run(tmp_path, run_of("kd", *R20, 1, precision="bf16"), 71.0)
    add_run(tmp_path, run_of("kd", *R20, 1, dataclasses.replace(SHORT, trial="")), 72.0)
    found = read(tmp_path)
    assert "Table 3" in found.text and found.text.count("Not the protocol:") == 2 and "bf16" in found.text


def test_a_copied_run_is_left_out(tmp_path):
    folder = add_run(tmp_path, run_of("kd", *R20, 1), 70.0)
    shutil.copytree(folder, folder.parent / f"{folder.name}-copy")
    found = read(tmp_path)
    assert "not to this folder" in found.text and "n = 1" in found.text


def test_one_run_with_two_numbers_in_two_sets_is_said(tmp_path):
    run = run_of("kd", *R20, 1)
    add_run(tmp_path, run, 70.0)
    add_run(tmp_path / "evidence" / "kept", run, 71.0)
    found = read(tmp_path)
    assert f"run {run.id} ends at 71.00 here and at 70.00 in own runs" in found.text
    shown = json.loads(found.island)["cells"]
    assert [shown[f"s{k}t1-0-0"]["r"][0][1] for k in (0, 1)] == ["70.00", "71.00"]
    assert shown["s1t1-0-0"]["r"][0][5] == f"evidence/kept/runs/{run.id}/record.json"
    assert (tmp_path / shown["s1t1-0-0"]["r"][0][5]).is_file()


def test_rows_that_contradict_each_other_take_the_run_out(tmp_path):
    add_run(tmp_path, run_of("student", None, "resnet20", 1), 69.0)
    folder = add_run(tmp_path, run_of("kd", *R20, 1), 70.0, status="running", rows=2)
    row = json.loads((folder / "epochs.jsonl").read_text().splitlines()[-1])
    append_row(folder / "epochs.jsonl", {**{k: v for k, v in row.items() if k != "crc"}, "test_top1": 99.0})
    assert "99.0" not in read(tmp_path).text  # a run that is not done enters no number


def tables(results: Path):
    return table.build(results)[0].tables[0]


def test_sentences_say_who_leads_and_how_surely(tmp_path):
    for seed, noise in ((1, 0.0), (2, 0.02), (3, 0.01)):
        add_run(tmp_path, run_of("student", None, "resnet20", seed), 69.0 + noise)
        add_run(tmp_path, run_of("kd", *R20, seed), 71.0 - noise)
        add_run(tmp_path, run_of("at", *R20, seed), 70.0 + noise * seed)
    t = tables(tmp_path)
    line = sentences.leader_line(t, 0, compare.leaders(t))
    assert line.startswith("Best on resnet56 → resnet20: KD 70.99 ± 0.01 (n = 3), 0.97 ahead of AT (95 %") and line.endswith("The lead is clear.")
    pooled = " ".join(sentences.pooled_lines(t, compare.against(t, "student")))
    assert "KD is furthest above Student: +1.98" in pooled and "Clearly above Student: KD and AT (Holm over 2 methods, 5 %)." in pooled
    for seed in (1, 2, 3):  # a variant is corrected for, and no method; where there are only such, they are spoken of
        add_run(tmp_path, run_of("kd", *R20, seed, hyper={"temperature": 2.0}), 72.0 + seed / 100, changed={"temperature": 2.0})
    more = tables(tmp_path)
    pooled = " ".join(sentences.pooled_lines(more, compare.against(more, "student")))
    assert "KD is furthest above Student: +1.98" in pooled and "Clearly above Student: KD and AT (Holm over 3 rows, 5 %)." in pooled
    more.rows = [row for row in more.rows if row.method == "student" or row.variant]
    only = " ".join(sentences.pooled_lines(more, compare.against(more, "student")))
    assert "KD [temperature=2.0] is furthest above Student: +3.01" in only
    below = " ".join(sentences.pooled_lines(t, compare.against(t, "kd")))
    assert "no method is above KD and AT comes nearest: −0.97" in below and "Clearly below KD: Student and AT" in below


def test_sentences_do_not_claim_what_one_seed_cannot_show(tmp_path):
    add_run(tmp_path, run_of("kd", *R20, 1), 71.0)
    add_run(tmp_path, run_of("at", *R20, 1), 70.0)
    t = tables(tmp_path)
    assert "no saying how sure" in sentences.leader_line(t, 0, compare.leaders(t))


def test_an_assumed_deviation_is_stated(tmp_path, capsys):
    for seed, top1 in enumerate((69.5, 69.7, 69.9), 1):
        add_run(tmp_path, run_of("sp", *R20, seed, CRD), top1)
        add_run(tmp_path, run_of("kd", *R20, seed, CRD), top1 + 1)
    sets = table.build(tmp_path)
    before = sets[0].tables[0].rows[0].cells[0].verdict
    compare.assume_sd(sets, 0.25)
    kd, sp = (row.cells[0].verdict for row in sets[0].tables[0].rows)
    assert kd == before and sp.word == "agrees" and "assuming a published standard deviation of 0.25" in sp.why
    assert "assuming a published standard deviation of 0.25" in Reader(page.html(sets)).text
    assert main(["report", str(tmp_path), "--assume-sd", "0.25", "--full"]) == 0
    assert "Judged assuming a published standard deviation of 0.25" in capsys.readouterr().out
    assert main(["report", str(tmp_path), "--assume-sd", "-1"]) == 2


def test_all_epochs_as_one_tidy_file(tmp_path, capsys):
    fill(tmp_path, [R20], ("student", "kd"), (1, 2))
    add_run(tmp_path, run_of("kd", *R20, 3), 20.0, status="diverged", rows=2)
    assert main(["report", str(tmp_path), "--epochs"]) == 0 and "epochs.csv" in capsys.readouterr().err
    lines = (tmp_path / "report" / "epochs.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * 3 + 2 and lines[0].startswith("set,run,protocol,trial,precision,teacher,student,method")
    assert [p.name for p in (tmp_path / "report").iterdir() if p.name.startswith(".")] == []


def test_a_quick_curve_is_the_careful_one(tmp_path):
    folder = add_run(tmp_path, run_of("kd", *R20, 1), 70.0)
    view = read_run(folder)
    assert view.curve == [row.test_top1 for row in read_rows(folder / "epochs.jsonl").rows]
    assert view.curve == curve(folder / "epochs.jsonl", view.id, structs.replace(view.record, attempts=2))  # parsed


@pytest.mark.parametrize("count", [0, 1, 2, 89, 90, 91, 240])
def test_thinned_curves_keep_both_ends(count):
    kept = epochs.thin([float(i) for i in range(count)], 90)
    assert len(kept) <= 91 and all(value == epoch - 1 for epoch, value in kept)
    assert not count or (kept[0][0], kept[-1][0]) == (1, count)


def test_smoke_profile_is_a_page(tmp_path):
    fill(tmp_path, [("resnet20", "resnet8")], ("student", "kd"), (1, 2), PROTOCOLS["smoke"])
    text = read(tmp_path).text
    assert "shapes20" in text and "none was published for this protocol" in text


def night(number: int, speed: float) -> dict:
    metric = {"method": "kd", "pair": "<b>a -> b", "metric": "images a second", "unit": "1/s", "part": "cost", "worse": "lower", "scale": "log"}
    metric |= {"values": {"1": speed, "2": speed * 1.01}, "bits": {}}
    row = {"format": 1, "night": number, "date": f"2025-01-{number:02d}T03:00:00+00:00", "commit": f"{number:040x}", "plan": "p", "parts": ["cost"]}
    return {**row, "facts": {}, "sources": {}, "failures": {}, "metrics": {"kd/cost": metric}}


def test_the_trend_of_nightly_runs_is_on_the_page(tmp_path):
    from bench.nightly import history

    add_run(tmp_path, run_of("kd", *R20, 1), 70.0)
    assert "Nightly runs" not in read(tmp_path).text
    place = history.folder(tmp_path, "some-cpu")
    place.mkdir(parents=True)
    for number in range(1, 9):
        history.append(place, night(number, 1000.0 + number))
    found = read(tmp_path)
    assert "Nightly runs" in found.text and "8 nights, the last on 2025-01-08" in found.text and "kd on <b>a -> b" in found.text
    (place / "history.jsonl").write_text("{}\n" * 3)
    assert "Cannot be read:" in read(tmp_path).text


def test_what_the_alarm_has_open_comes_first(tmp_path):
    from bench.report import trend_section

    quiet = {"key": "a", "method": "at", "pair": "p", "metric": "top-1", "unit": "%", "worse": "lower", "points": [[1, 60.0], [2, 60.5]]}
    quiet["reported"] = []
    rang = {**quiet, "key": "b", "method": "kd", "reported": [{"night": 2, "kind": "step", "since": "abc", "open": True}]}
    nights = [{"night": n, "date": "2025-01-01", "commit": "abc"} for n in (1, 2)]
    found = trend_section._machine("m", {"nights": nights, "series": [quiet, rang], "gaps": [], "baselines": [], "other_plans": 0})
    assert found["open"] == 1 and [line["state"] for line in found["lines"]] == ["step since abc", ""]
    assert "60.5" in found["lines"][0]["last"]
