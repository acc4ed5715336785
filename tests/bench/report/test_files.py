"""What the report's folder holds after one call and then another: files of one call, and nobody else's are touched."""

import pytest

from bench.__main__ import main
from tests.bench.synthetic import CRD, add_run, fill, run_of

R20 = ("resnet56", "resnet20")


@pytest.fixture
def results(tmp_path):
    """Own runs in one table, and an evidence set of two."""
    place = fill(tmp_path / "results", [R20], ("student", "kd"), (1, 2))
    for protocol, top1 in ((CRD, 71.0), (CRD.scaled(2), 51.0)):
        for seed in (1, 2):
            add_run(place / "evidence" / "kept", run_of("student", None, "resnet20", seed, protocol), top1 + seed / 10)
            add_run(place / "evidence" / "kept", run_of("kd", *R20, seed, protocol), top1 + seed)
    return place


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_tables_of_another_set_do_not_stay_beside_those_of_this_one(results, tmp_path):
    tables = tmp_path / "out" / "tables"
    report = ("report", str(results), "--out", str(tmp_path / "out"))
    assert main((*report, "--set", "kept")) == 0
    assert len(names(tables)) == 8 and "table2-standalone.tex" in names(tables)
    (tables / "table9.tex").write_text("a table of somebody's own")
    (tables / "table2.txt").write_text("notes")
    assert main(report) == 0
    ours = {"table1.tex", "table1.md", "table1.csv", "table1-standalone.tex"}
    assert names(tables) == {*ours, "table9.tex", "table2.txt"}


def test_the_tables_say_of_which_set_they_are(results, tmp_path):
    for name, said in (("kept", "Evidence set kept"), ("own", "Own runs")):
        assert main(("report", str(results), "--set", name, "--out", str(tmp_path / name))) == 0
        for file, line in (("table1.tex", f"% {said}"), ("table1-standalone.tex", f"% {said}"), ("table1.md", f"<!-- {said} -->")):
            assert (tmp_path / name / "tables" / file).read_text().splitlines()[0] == line


def test_figures_that_are_drawn_no_more_go_and_others_stay(results, tmp_path):
    place = tmp_path / "out" / "figures"
    report = ("report", str(results), "--out", str(tmp_path / "out"))
    assert main((*report, "--figures")) == 0
    drawn = names(place)
    gone = {f"{stem}.{end}" for stem in ("evidence-old-table1-curves", "sync-resnet56-0123456789-map") for end in ("png", "pdf")}
    mine = {"my-table1-curves.png", "photo.png", "photo.pdf", "loss-1732780000-run1.png", "loss-1732780000-run1.pdf"}
    for name in gone | mine:
        (place / name).write_text("x")
    assert main(report) == 0 and names(place) == drawn | gone | mine  # none was asked for
    assert main((*report, "--figures")) == 0 and names(place) == drawn | mine


def test_the_text_of_analyses_goes_with_the_last_of_them(results, tmp_path):
    text = tmp_path / "out" / "analyses.txt"
    report = ("report", str(results), "--out", str(tmp_path / "out"))
    (broken := results / "analysis" / "sync-resnet56-0123456789").mkdir(parents=True)
    (broken / "result.json").write_text("{}")
    assert main(report) == 0 and "left out" in text.read_text()
    (broken / "result.json").unlink()
    broken.rmdir()
    assert main(report) == 0 and not text.exists()
    text.write_text("My analyses\n")
    assert main(report) == 0 and text.exists()


def test_names_of_sets_that_look_alike_are_told_apart(results, tmp_path):
    """A set that is called own is not the own runs, and two names may be one file name."""
    for name, top1 in (("own", 10.0), ("gtx-1080", 20.0), ("gtx_1080", 30.0)):
        for seed in (1, 2):
            add_run(results / "evidence" / name, run_of("student", None, "resnet20", seed), top1)
    for wanted, said in (("own", "Own runs"), ("evidence/own", "Evidence set own"), ("gtx_1080", "Evidence set gtx_1080")):
        out = tmp_path / wanted.replace("/", "-")
        drawn = ("--figures",) if wanted == "gtx_1080" else ()  # of all sets, whichever is named
        assert main(("report", str(results), "--set", wanted, "--out", str(out), *drawn)) == 0
        assert (out / "tables" / "table1.tex").read_text().startswith(f"% {said}\n")
    seeds = {name for name in names(out / "figures") if name.endswith("-table1-seeds.png")}
    assert len(seeds) == 5  # own runs, kept, own, and both of gtx
