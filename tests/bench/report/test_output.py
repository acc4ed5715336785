"""What the report prints and writes: every format, names from outside, the command line."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.__main__ import main
from bench.errors import INTERRUPTED
from bench.report import analysis_section, blocks, compare, page, render, table
from bench.report.blocks import Block, Line
from bench.report.explain import explain
from tests.bench.synthetic import CRD, PAIRS, add_plan, add_run, fill, run_of

ROOT = Path(__file__).resolve().parents[3]
R20 = ("resnet56", "resnet20")
NAMES = st.text(max_size=20)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A full table of six pairs and three seeds."""
    return fill(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def small(tmp_path):
    return fill(tmp_path / "results", PAIRS[:2], ("student", "kd"), (1, 2))


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "bench.report", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "160"})


def test_the_six_pairs_fit_into_160_columns_and_wrap_at_120(whole):
    sets = table.build(whole)
    wide, narrow = render.text(sets, 160), render.text(sets, 120)
    assert max(map(len, wide.splitlines())) <= 160 and max(map(len, narrow.splitlines())) <= 120
    assert wide.count("\nKD ") == 2 and narrow.count("\nKD ") == 3  # accuracy (in two panels when narrow) and costs


def test_a_report_that_cannot_be_written_is_printed_and_names_no_file(small):
    (small / "report").touch()
    got = run(small)
    assert got.returncode == 2 and "cannot write the report" in got.stderr and got.stderr.count("\n") == 1
    assert "KD " in got.stdout and "report.txt" not in got.stdout and "index.html" not in got.stdout


def test_columns_are_aligned(whole):
    lines = render.text(table.build(whole), 160).splitlines()
    kd = next(line for line in lines if line.startswith("KD "))
    student = next(line for line in lines if line.startswith("Student "))
    assert [m.start() for m in re.finditer("±", kd)][:6] == [m.start() for m in re.finditer("±", student)][:6]


def test_one_run_prints_n_and_no_deviation(tmp_path):
    add_run(tmp_path, run_of("kd", *R20, 1), 70.0)
    printed = render.text(table.build(tmp_path))
    assert "70.00 (n=1)" in printed and "70.00 ±" not in printed


def test_missing_cells_and_trials_are_visible(tmp_path):
    add_plan(tmp_path, PAIRS[:2], ("student", "kd"), (1, 2))
    add_run(tmp_path, run_of("kd", *PAIRS[0], 1), 70.0)
    for make in (render.text, render.markdown, render.latex):
        printed = make(table.build(tmp_path))
        assert "2 missing" in printed and "1 missing" in printed and "TRIAL, not the protocol: 3 of 240 epochs" in printed


def test_a_trial_has_no_published_number_and_the_protocol_has(tmp_path):
    add_run(tmp_path, run_of("kd", *R20, 1), 70.0)
    assert "70.66" not in render.text(table.build(tmp_path))
    add_run(tmp_path, run_of("kd", *R20, 1, CRD), 70.0)
    add_run(tmp_path, run_of("iep", *R20, 1, CRD), 70.0)
    printed = render.text(table.build(tmp_path))
    assert "70.66 ±0.24" in printed and "none published" in printed and "ICLR 2020, Table 1" in printed


def test_csv_has_a_line_for_each_cell(whole):
    rows = list(csv.DictReader(io.StringIO(render.csv_text(table.build(whole)))))
    assert len(rows) == 9 * 6
    kd = next(r for r in rows if r["method"] == "kd" and r["student"] == "vgg8")
    found = table.build(whole)[0].tables[0]
    cell = next(r for r in found.rows if r.method == "kd").cells[-1]
    assert float(kd["mean"]) == pytest.approx(cell.summary.mean, abs=1e-4) and kd["n"] == "3" and kd["trial"] == "3 of 240 epochs"
    versus = compare.against(found, "student")
    assert float(kd["p_holm"]) == pytest.approx(versus.cells[1, 5].holm, rel=1e-4) and kd["kd_difference"] == ""
    at = next(r for r in rows if r["method"] == "at" and r["student"] == "vgg8")
    cells = {r.method: r.cells[-1] for r in found.rows}
    assert float(at["kd_difference"]) == pytest.approx(cells["at"].summary.mean - cells["kd"].summary.mean, abs=1e-4) and at["kd_p_holm"]
    assert float(kd["relative_speed"]) == pytest.approx(1 / 1.2, rel=1e-5) and kd["published"] == ""


@given(NAMES)
def test_no_control_character_gets_through(name):
    for escape in (render.clean, render.markdown_escape, render.latex_escape, render.csv_field):
        shown = escape(name)
        assert shown.isprintable() or all(c.isprintable() or c.isspace() for c in shown)
        assert not set(shown) & {"\x1b", "\n", "\r", "\u202e", "\u2028"}


@given(NAMES)
def test_markdown_cells_hold_any_name(name):
    cells = re.split(r"(?<!\\)(?:\\\\)*\|", f"a|{render.markdown_escape(name)}|b")
    assert len(cells) == 3
    assert not re.search(r"<|>|(?<!\\)(?:\\\\)*`", render.markdown_escape(name))


@given(NAMES)
def test_latex_holds_any_name(name):
    shown = render.latex_escape(name)
    known = r"\\(?:textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}|\\[&%$#_{}]|\$\\(?:pm|times|Delta|to|dagger)\$"
    assert not re.search(r"[\\{}$&#^_~%]", re.sub(known, "", shown))


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-1", "@x"])
def test_csv_runs_no_formula(name):
    assert render.csv_field(name) == f"'{name}"
    assert render.csv_field(-1.5) == "-1.5"


def test_hostile_titles_break_no_format(tmp_path):
    add_run(tmp_path, run_of("kd", *R20, 1), 70.0, title="A|B_$%\\ \x1b[31m\nX" + "y" * 100)
    sets = table.build(tmp_path)
    for make in (render.text, render.markdown, render.latex, render.csv_text):
        assert "\x1b" not in make(sets)
    lines = [line for line in render.markdown(sets).splitlines() if line.startswith("|")]
    assert len({len(re.split(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert max(map(len, render.text(sets, 120).splitlines())) <= 120


def test_the_best_of_a_column_is_marked(small):
    best = frozenset({0})
    assert "70.00*" in render.block_text(Block("t", "c", [("a", "b")], [Line("KD", ["70.00"], "main", best)]), 100)
    sets = table.build(small)
    mean = blocks.accuracy(max((r.cells[0].summary for r in sets[0].tables[0].rows), key=lambda s: s.mean))
    assert f"{mean}*" in render.text(sets)
    assert f"**{mean}**" in render.markdown(sets)
    number, rest = mean.split(" ", 1)
    assert rf"\textbf{{{number}}} {{\tiny {render.latex_escape(rest)}}}" in render.latex(sets)


def test_latex_prints_a_minus_sign(tmp_path):
    add_run(tmp_path, run_of("student", *R20, 1), 70.0)
    add_run(tmp_path, run_of("kd", *R20, 1), 68.5)
    assert "$-$1.50" in render.latex(table.build(tmp_path))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(whole, tmp_path):
    (tmp_path / "report.tex").write_text(render.latex(table.build(whole)))
    packages = r"\usepackage[T1]{fontenc}\usepackage[utf8]{inputenc}\usepackage{booktabs}"
    (tmp_path / "page.tex").write_text(rf"\documentclass{{article}}{packages}\begin{{document}}\input{{report.tex}}\end{{document}}")
    made = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"], cwd=tmp_path, capture_output=True, timeout=120)
    assert made.returncode == 0, made.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "page.pdf").stat().st_size > 10_000


def test_latex_is_balanced(whole):
    tex = render.latex(table.build(whole))
    assert tex.count(r"\begin{") == tex.count(r"\end{") and tex.count(r"\toprule") == tex.count(r"\bottomrule") == 2
    bare = re.sub(r"\\[{}]", "", tex)
    assert bare.count("{") == bare.count("}")
    counts = {line.count(" & ") for line in tex.split(r"\midrule")[1].split(r"\bottomrule")[0].splitlines() if "&" in line}
    assert counts == {10}


def test_explain_shows_every_step(small):
    add_run(small, run_of("kd", *R20, 3), 20.0, status="diverged", rows=1)
    text = explain(table.build(small), "kd", "resnet56 -> resnet20")
    cell = next(r for r in table.build(small)[0].tables[0].rows if r.method == "kd").cells[1]
    assert f"Mean of 2 seeds: {cell.summary.mean:.4f}" in text and f"{cell.difference.half:.4f}" in text
    versus = compare.against(table.build(small)[0].tables[0], "student")
    assert f"after Holm over {len(versus.cells)} cells of the table {versus.cells[1, 1].holm:.4g}" in text
    assert "t(1) × sd / √n = 12.706" in text and "seed 3: diverged in epoch 1" in text and run_of("kd", *R20, 1).id in text


@pytest.mark.parametrize("name", ["cc_paper", "CC (paper)", "cc (Paper)"])
def test_explain_takes_what_tables_print(tmp_path, name):
    add_run(tmp_path, run_of("cc", *R20, 1), 71.0, title="CC")
    add_run(tmp_path, run_of("cc_paper", *R20, 1), 70.0, title="CC (paper)")
    add_run(tmp_path, run_of("cc_paper", *R20, 1, hyper={"gamma": 2}), 72.0, title="CC (paper)")
    sets = table.build(tmp_path)
    text = explain(sets, name, "resnet56 → resnet20")
    assert "70.00" in text and "72.00" in text and "71.00" not in text
    (variant,) = (blocks.row_title(r) for r in sets[0].tables[0].rows if r.variant)
    assert variant.startswith("CC (paper) [") and ("72.00" in (one := explain(sets, variant, "resnet56/resnet20"))) and "70.00" not in one


def test_the_page_says_what_explain_says(small):
    sets = table.build(small)
    text = explain(sets, "kd", "resnet56/resnet20")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.html(sets), re.S)[1])
    said = [step for step in data["cells"]["s0t1-1-1"]["s"] if "Against KD" not in step]
    assert len(said) == 4 and all(step in text for step in said)


def test_the_command_writes_every_format(small):
    done = run(small, "--full")
    assert done.returncode == 0, done.stderr
    assert "Table 1 (TRIAL): accuracy" in done.stdout
    assert sorted(os.listdir(small / "report")) == ["index.html", "report.csv", "report.md", "report.tex", "report.txt", "tables"]
    assert sorted(os.listdir(small / "report" / "tables")) == ["table1-standalone.tex", "table1.csv", "table1.md", "table1.tex"]
    assert (small / "report" / "report.txt").read_text() == done.stdout
    assert run(small, "--no-write", "--format", "csv").stdout == (small / "report" / "report.csv").read_text()


def test_a_fresh_clone_shows_the_evidence(tmp_path):
    add_run(tmp_path / "evidence" / "first", run_of("kd", *R20, 1), 70.0)
    done = run(tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 0 and "no own runs in" in done.stdout and "Evidence sets: first" in done.stdout
    assert "Evidence set first. TRIAL" in (shown := run(tmp_path, "--set", "first", "--no-write").stdout) and "70.00" in shown
    assert not (tmp_path / "report").exists() and (tmp_path / "out" / "report.md").exists()


def test_a_set_without_runs_says_so(tmp_path):
    place = tmp_path / "evidence" / "speed" / "costs" / "device"
    place.mkdir(parents=True)
    (place / "speed.json").write_text("{}")
    done = run(tmp_path, "--out", tmp_path / "out", "--full")
    assert done.returncode == 0 and "no runs in this set: its README.md says what it holds" in done.stdout
    assert "Evidence set speed" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/none"], "no such folder"),
        (["{}"], "give a results folder"),
        (["{}/results", "--baseline", "studnet"], "did you mean student"),
        (["{}/results", "--explain", "kdd", "resnet56/resnet20"], "did you mean kd"),
        (["{}/results", "--explain", "kd", "resnet56/resnet21"], "did you mean resnet56/resnet20"),
        (["{}/results", "--out", "{}/file/x"], "cannot write"),
        (["{}/results", "--set", "smok"], "unknown --set 'smok'; known: own"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(small, arguments, message):
    (small.parent / "file").write_text("")
    done = run(*(a.format(small.parent) for a in arguments))
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_strict_fails_on_what_is_left_out(small):
    assert run(small, "--strict", "--no-write").returncode == 0
    add_run(small, run_of("kd", *R20, 3, teacher_hash="another"), 70.0)
    assert run(small, "--no-write").returncode == 0
    done = run(small, "--no-write", "--strict", "--full")
    assert done.returncode == 1 and "strict: 1 warning" in done.stderr and "with the teacher another; the planned runs have" in done.stdout


def test_no_torch_and_no_plotting(small):
    code = "import sys; from bench.__main__ import main; main(['report', sys.argv[1]])"
    code += "; sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code, small], cwd=ROOT, capture_output=True).returncode == 0


def test_an_ascii_terminal_gets_its_table(small):
    done = subprocess.run(
        [sys.executable, "-m", "bench.report", small, "--no-write"], cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0 and b"Student" in done.stdout


def test_a_reader_that_leaves_is_no_error(small):
    done = subprocess.run(f"{sys.executable} -m bench.report {small} --no-write | head -1", shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


def test_an_interrupted_report_leaves_the_last_one(small, monkeypatch):
    assert main(["report", str(small)]) == 0
    before = {p.name: p.read_bytes() for p in (small / "report").rglob("*.*")}
    add_run(small, run_of("kd", *R20, 3), 70.0)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert main(["report", str(small)]) == INTERRUPTED
    assert {p.name: p.read_bytes() for p in (small / "report").rglob("*.*")} == before


def test_figures(small):
    assert main(["report", str(small), "--figures"]) == 0
    names = {p.name for p in (small / "report" / "figures").iterdir()}
    assert names == {f"own-runs-table1-{kind}.{end}" for kind in ("accuracy-cost", "differences", "curves", "seeds") for end in ("png", "pdf")}
    assert all((small / "report" / "figures" / n).read_bytes()[:4] in (b"\x89PNG", b"%PDF") for n in names)


def test_figures_are_a_column_wide_and_cut_nothing(whole):
    from bench.report import figures

    sets = table.build(whole)
    sets[0].name = table.OWN + " of a name that takes more than a line"
    drawn = figures.draw(sets)
    assert len(drawn) == 4 and all(figure.get_size_inches()[0] == 3.3 for figure in drawn.values())
    for figure in drawn.values():
        figure.draw_without_rendering()
        width, height = figure.bbox.size
        for axes in figure.axes:
            low, high = axes.get_ylim()
            for line in axes.lines:  # the middle of a figure's own frame is as far as a mark may go
                values = [float(v) for v in line.get_ydata()]
                assert line.get_transform() != axes.transData or all(low <= v <= high for v in values)
        for label in (*figure.texts, *(text for axes in figure.axes for text in axes.texts)):
            box = label.get_window_extent()
            assert 0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height
    (cost,) = next(figure for name, figure in drawn.items() if name.endswith("accuracy-cost")).axes
    boxes = [label.get_window_extent() for label in cost.texts]
    assert len(boxes) == 9 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def curves(results: Path, epochs: int):
    """The panels of one pair's learning curves, and the first epoch after which the rate drops."""
    from bench.report import figures

    for seed in (1, 2):
        add_run(results, run_of("student", None, "resnet20", seed, CRD.scaled(epochs)), 69.0)
        add_run(results, run_of("kd", *R20, seed, CRD.scaled(epochs)), 70.0)
    (found,) = table.build(results)
    (shown,) = found.tables
    return figures.learning_curves(found, shown).axes, min(shown.protocol.milestones)


def test_curves_of_one_pair_are_shown_after_the_first_drop_too(tmp_path):
    (whole, late), first = curves(tmp_path / "long", 16)
    assert [list(line.get_ydata()) for line in late.lines] == [list(line.get_ydata())[first:] for line in whole.lines]
    assert list(late.lines[0].get_xdata()) == list(range(first + 1, 17)) and late.get_title() == f"after epoch {first}"
    assert len(curves(tmp_path / "short", 3)[0]) == 1  # an epoch is no curve


def test_curves_say_which_rows_have_fewer_seeds(tmp_path):
    from bench.report import figures

    for method, seeds in (("student", (1, 2)), ("kd", (1, 2)), ("at", (2,))):
        for seed in seeds:
            add_run(tmp_path, run_of(method, *(R20 if method != "student" else (None, "resnet20")), seed), 70.0)
    (results,) = table.build(tmp_path)
    (legend,) = figures.learning_curves(results, results.tables[0]).legends
    assert [text.get_text() for text in legend.get_texts()] == ["Student", "KD", "AT (n = 1)"]


@pytest.mark.parametrize(("protocol", "held"), [(CRD, True), (CRD.scaled(3), False)])
def test_the_figure_of_seeds_speaks_of_published_means_where_it_shows_one(tmp_path, protocol, held):
    from bench.report import figures

    add_run(tmp_path, run_of("kd", *R20, 1, protocol), 70.0)
    (results,) = table.build(tmp_path)
    assert ("the published one (diamond)" in figures.every_seed(results, results.tables[0]).get_suptitle()) is held


def test_figures_take_any_name(tmp_path):
    for seed in (1, 2):
        add_run(tmp_path, run_of("student", None, "resnet20", seed), 69.0)
        add_run(tmp_path, run_of("kd", *R20, seed), 70.0, title="$x_{ \\frac \x00")
    from bench.report import figures

    figures.write(table.build(tmp_path), tmp_path / "f")
    assert len(list((tmp_path / "f").iterdir())) == 6


def test_curves_are_read_from_the_rows(tmp_path):
    for seed, top1 in ((1, 70.0), (2, 72.0)):
        add_run(tmp_path, run_of("kd", *R20, seed), top1)
    from bench.report import epochs

    (kd,) = table.build(tmp_path)[0].tables[0].rows
    assert epochs.mean_curve(kd.cells[0]) == pytest.approx([71 - 40 * (2 / 3) ** 2, 71 - 40 / 9, 71], abs=0.011)


def test_what_stands_after_holm_has_a_dagger(tmp_path):
    for seed in (1, 2, 3):
        add_run(tmp_path, run_of("student", None, "resnet20", seed), 69 + seed / 100)
        add_run(tmp_path, run_of("kd", *R20, seed), 72 + seed / 50)
        add_run(tmp_path, run_of("at", *R20, seed), 69 + (seed - 2) / 5)
    sets = table.build(tmp_path)
    lines = blocks.table_block(sets[0].tables[0], "Table 1").lines
    shown = {line.label: line.cells for line in lines if line.kind == "main"}
    assert shown["KD"][1].startswith("†+3.02") and not shown["AT"][1].startswith("†")
    assert [line.cells[0][0] for line in lines if line.label == "Δ Student"] == ["†", "-"]
    assert r"$\dagger$+3.02 {\tiny $\pm$" in render.latex(sets)


def test_a_kept_result_of_an_earlier_version_says_what_was_wrong_with_it():
    from bench.analysis.frame import registry

    kept = {found.stored.key: found for found in analysis_section.found(table.build(ROOT / "results"))[0]}
    versions = {key: found.stored.identity["version"] for key, found in kept.items()}
    old = {key for key, version in versions.items() if version < registry.get(kept[key].stored.name).version}
    assert old and old != set(kept)
    for key, found in kept.items():
        notes = " ".join(note for made in found.tables for note in made.notes)
        assert (f"Version {versions[key]}, before the present" in notes) == (key in old), key
