"""Tables to paste: the bare tabular, a document of one page, Markdown, CSV."""

import re
import shutil
import subprocess

import pytest

from bench.__main__ import main
from bench.report import paste, table
from tests.bench.synthetic import CRD, PAIRS, add_run, fill, run_of

R20 = ("resnet56", "resnet20")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Six pairs, nine rows, under the protocol's name (a few epochs would be a trial and have nothing published)."""
    place = tmp_path_factory.mktemp("whole")
    for teacher, student in PAIRS:
        for k, method in enumerate(("student", "kd", "fitnet", "at", "rkd", "sp", "cc", "iep", "skd")):
            for seed in (1, 2, 3):
                run = run_of(method, teacher, student, seed, CRD)
                if not (place / "runs" / run.id).exists():
                    add_run(place, run, 70 + k + seed / 10, title={"cc": "C_C & 50 %"}.get(method, method))
    return place


def rows(tex: str) -> list[str]:
    return [line for line in tex.splitlines() if line.endswith(r" \\")]


def test_the_tabular_has_the_form_of_the_papers(whole):
    made = paste.files(table.build(whole)[0], published=False)
    tex = made["table1.tex"]
    assert sorted(made) == ["table1-standalone.tex", "table1.csv", "table1.md", "table1.tex"]
    bare = [line for line in tex.splitlines() if not line.startswith("%")]
    assert bare[0] == r"\begin{tabular}{lcccccc}" and bare[-1] == r"\end{tabular}" and "table*" not in tex
    assert {line.count(" & ") for line in rows(tex)} == {6}
    assert rows(tex)[0] == r"Teacher & WRN-40-2 & resnet56 & resnet110 & resnet110 & resnet32x4 & vgg13 \\"
    assert r"kd & 71.20{\tiny$\pm$0.10} & " in tex and r"C\_C \& 50 \% & " in tex
    assert r"skd & \textbf{78.20}{\tiny$\pm$0.10}" in tex and r"iep & \underline{77.20}{\tiny$\pm$0.10}" in tex
    groups = [[line.split(" & ")[0] for line in rows(part)] for part in tex.split(r"\midrule")[1:]]
    assert groups == [["Teacher", "student"], ["kd", "fitnet", "at", "rkd", "sp", r"C\_C \& 50 \%"], ["iep", "skd"]]
    assert "published" not in tex and r"% \label{tab:kd-crd-tf32}" in tex and "after the last of 240 epochs (CRD protocol)" in tex


def test_published_rows_on_request(whole):
    tex = paste.files(table.build(whole)[0], published=True)["table1.tex"]
    at = rows(tex).index(next(line for line in rows(tex) if line.startswith("kd & ")))
    assert rows(tex)[at + 1].startswith(r"\quad published & 74.92{\tiny$\pm$0.28} & 70.66{\tiny$\pm$0.24}")
    assert {line.count(" & ") for line in rows(tex)} == {6}


def test_trials_and_embedded_data_have_a_banner_in_every_file(tmp_path):
    fill(tmp_path, [R20], ("student", "kd"), (1, 2))
    made = paste.files(table.build(tmp_path)[0], published=True)
    assert all("3 of 240 epochs" in text for text in made.values())
    assert r"\multicolumn{2}{l}{\textbf{TRIAL, not the protocol: 3 of 240 epochs.}} \\" in made["table1.tex"]


def test_missing_cells_and_few_seeds_are_seen(tmp_path):
    for seed in (1, 2):
        add_run(tmp_path, run_of("student", None, "resnet20", seed), 69.0 + seed)
    add_run(tmp_path, run_of("kd", *R20, 1), 70.0)
    add_run(tmp_path, run_of("at", *R20, 1), 20.0, status="failed", rows=1)
    made = paste.files(table.build(tmp_path)[0], published=False)
    assert r"KD & 70.00{\tiny (n=1)}" in made["table1.tex"] and r"AT & -- \\" in made["table1.tex"]
    assert "| KD | 70.00 (n=1) |" in made["table1.md"] and "| Student | " in made["table1.md"] and "no finished run" in made["table1.md"]


def test_any_set_by_name(tmp_path):
    fill(tmp_path, [R20], ("student", "kd"), (1, 2))
    add_run(tmp_path / "evidence" / "kept", run_of("kd", *R20, 1), 12.34)
    assert main(["report", str(tmp_path), "--set", "kept", "--out", str(tmp_path / "a")]) == 0
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "b")]) == 0
    assert ["12.34" in (tmp_path / n / "tables" / "table1.tex").read_text() for n in "ab"] == [True, False]
    assert [(tmp_path / n / "tables" / "table1.csv").read_text().count("\n") for n in "ab"] == [2, 3]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("published", [False, True])
def test_it_compiles_to_one_page_and_fits_two_columns(whole, tmp_path, published):
    made = paste.files(table.build(whole)[0], published)
    (tmp_path / "table1.tex").write_text(made["table1.tex"])
    (tmp_path / "alone.tex").write_text(made["table1-standalone.tex"])
    use = r"\begin{table*}\small\setlength{\tabcolsep}{4pt}\input{table1.tex}\caption{x}\end{table*}"
    packages = r"\usepackage[margin=2cm]{geometry}\usepackage{booktabs}\usepackage[utf8]{inputenc}"
    (tmp_path / "paper.tex").write_text(rf"\documentclass[twocolumn]{{article}}{packages}\begin{{document}}{use}text\end{{document}}")
    for name in ("alone", "paper"):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
        assert done.returncode == 0, done.stdout[-2000:]
        assert not re.search("Overfull|too large", done.stdout)
        assert name == "paper" or "(1 page" in done.stdout
