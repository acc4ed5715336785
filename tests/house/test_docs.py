"""The pages people read: their commands exist, their links lead somewhere, their figures are those of the records, and the README stays short."""

import functools
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch

from bench import statistics
from bench.__main__ import parse, split
from bench.completion import flags
from bench.errors import UsageError
from bench.launch.options import Run
from bench.launch.run import make_plan
from bench.report import render, table
from bench.store.runs import scan
from tests.methods import cases

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README_WORDS = 700
PLACEHOLDER = re.compile(r"(?<![A-Za-z])[A-Z]{2,}(?![a-z])|\.\.\.|\$")
EXAMPLE_CHECKOUT = "/srv/kd-bench"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@functools.cache
def parts(page: Path) -> tuple[str, list[tuple[str, str]], list[str]]:
    """A page's prose (code blocks taken out), its code blocks as (language, text), and its code spans."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.M | re.S)
    prose = re.sub(r"^```\w*\n.*?^```$", "", page.read_text(), flags=re.M | re.S)
    return prose, blocks, re.findall(r"`([^`]+)`", prose)


def simple_commands(line: str) -> list[list[str]]:
    """The words of each simple command of a shell line; what follows two spaces is said of it and no part of it."""
    line = re.split(r"(?<=\S) {2,}", line.strip())[0]
    tokens = shlex.shlex(re.sub(r"\b\d(?=>)", "", line), posix=True, punctuation_chars=True)
    tokens.whitespace_split = True
    found: list[list[str]] = [[]]
    for token in tokens:
        if set(token) <= set("();<>|&"):
            found.append([])
        elif found[-1] or not re.fullmatch(r"[A-Z_]+=.*", token):
            found[-1].append(token)
    return [words for words in found if words]


def bench_words(words: list[str]) -> list[str] | None:
    """What a simple command gives to `python -m bench`; None: it is another command."""
    if re.fullmatch(r"(.*/)?python3?", words[0]) and words[1:2] == ["-m"]:
        module, rest = words[2], words[3:]
        return rest if module == "bench" else ["report", *rest] if module == "bench.report" else None
    if words[0].endswith("run_all.sh"):
        return ["run", *words[1:]]
    return words[1:] if words[0] == "kd-bench" else None


def commands(page: Path) -> list[list[str]]:
    """Every simple command in a page's shell blocks and code spans that names one of the suite's own."""
    _, blocks, spans = parts(page)
    shell = [line for language, text in blocks if language in ("", "bash", "sh") for line in text.replace("\\\n", " ").splitlines()]
    ours = re.compile(r"python3? -m (bench|pytest)|\bkd-bench\b|run_all\.sh|tests/run\.sh")
    return [words for line in (*shell, *spans) if ours.search(line) for words in simple_commands(line)]


def written_methods() -> set[str]:
    """Methods that a reader writes on the way: `new method NAME`."""
    said = [bench_words(words) or [] for page in PAGES for words in commands(page)]
    return {words[2] for words in said if words[:2] == ["new", "method"] and len(words) > 2}


def wrong(given: list[str]) -> str:
    """What is wrong with the words after `python -m bench`; empty: nothing."""
    if not given or given[0] in ("--version", "--help") or PLACEHOLDER.search(given[0]):
        return ""
    try:
        name, rest = split(given)
        unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in flags(name)]
        if unknown:
            return f"{name} knows no {', '.join(unknown)}"
        if "--help" in rest or any(PLACEHOLDER.search(word) for word in rest):
            return ""
        for own in written_methods():
            rest = [f"{'+' * word.startswith('+')}kd" if word.lstrip("+") == own else word for word in rest] if name != "new method" else rest
        options = parse(name, rest)
        if hasattr(options, "check"):
            options.check()
        if isinstance(options, Run):
            make_plan(options)
    except UsageError as error:
        return str(error)
    return ""


def test_the_test_sees_wrong_commands():
    assert "rum" in wrong(["rum"])
    assert "--pair" in wrong(["run", "--pair", "resnet56-resnet20"])
    assert "kdd" in wrong(["run", "--methods", "kdd"])
    assert "temprature" in wrong(["run", "--methods", "kd", "--set", "kd.temprature=2"])
    assert wrong(["run", "--methods", "kd", "--set", "kd.temperature=2"]) == ""
    line = "OMP_NUM_THREADS=1 .venv/bin/python -m bench nightly > nightly.txt 2>&1 || mail -s 'kd-bench nightly' me   every night's"
    assert [bench_words(words) for words in simple_commands(line)][0] == ["nightly"]
    assert bench_words(simple_commands("source <(kd-bench completion bash)")[1]) == ["completion", "bash"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_exists_with_its_options(page):
    said = {shlex.join(words): wrong(given) for words in commands(page) if (given := bench_words(words)) is not None}
    assert not {command: error for command, error in said.items() if error}


def test_the_pages_were_read():
    assert sum(bench_words(words) is not None for page in PAGES for words in commands(page)) > 40
    assert any(words[0].endswith("run_all.sh") for words in commands(PAGES[0]))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_test_commands_name_folders_and_marks_that_exist(page):
    marks = {line.split(":")[0] for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]}
    for words in commands(page):
        if words[0].endswith("tests/run.sh") or words[1:3] == ["-m", "pytest"]:
            rest = words[1:] if words[0].endswith("tests/run.sh") else words[3:]
            for before, word in zip(["", *rest], rest, strict=False):
                if before == "-m":
                    assert set(re.findall(r"\w+", word)) - {"not", "and", "or"} <= marks, word
                elif word.startswith("tests"):
                    assert (ROOT / word.partition("::")[0]).exists(), word


def headings(page: Path) -> set[str]:
    """A page's headings as they are linked to."""
    lines = re.findall(r"^#+ (.*)$", parts(page)[0], flags=re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_and_picture_leads_to_a_file_of_the_repository(page):
    text = parts(page)[0]
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in (t for t in targets if not re.match(r"https?:|mailto:", t)):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), target
        assert file.exists(), target
        assert not anchor or anchor in headings(file), target


def outside(text: str) -> list[str]:
    """Absolute paths and paths below a home folder; links are looked at by themselves."""
    text = re.sub(r"https?://\S+|\]\([^)]*\)|^#!.*$", "", text, flags=re.M)
    found = re.findall(r"(?<![\w.:/>$}<~-])~?/[A-Za-z][\w.-]*(?:/[\w.-]+)*", text)
    return [path for path in found if not path.startswith((EXAMPLE_CHECKOUT, "/dev/null"))]


def test_the_test_sees_paths_outside():
    assert outside("in `/root/x`, ~/data or /mnt; not mean/std, 1 / n, `docs/use.md`, [x](../y.md), /srv/kd-bench/z") == ["/root/x", "~/data", "/mnt"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_are_of_the_repository_and_exist(page):
    assert not outside(page.read_text())
    written = {f"methods/{name}.py" for name in written_methods()}
    for span in parts(page)[2]:
        if re.fullmatch(r"(bench|methods|models|tests|docs)/[\w./-]+", span) and not PLACEHOLDER.search(span) and span not in written:
            below_tests = page.name == "faults.md" and (ROOT / "tests" / span).exists()
            assert (ROOT / span).exists() or below_tests, span


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_begins_with_what_it_answers(page):
    title, blank, first = page.read_text().splitlines()[:3]
    assert title.startswith("# ") and not blank and re.match(r"[\w`]", first)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= README_WORDS


def cells(line: str) -> list[str]:
    return [re.sub(r"[*†\s]|\(\d+\)", "", cell).replace("−", "-") for cell in line.strip().strip("|").split("|")]


def test_the_table_in_the_readme_is_that_of_its_evidence_set():
    readme = parts(ROOT / "README.md")[0]
    evidence = ROOT / re.search(r"\(((?:results/evidence)/[\w-]+)\)", readme)[1]
    made = [cells(line) for line in render.FORMATS["markdown"][1](table.build(evidence)).splitlines() if line.startswith("| ")]
    shown = [cells(line) for line in readme.split("## How to read it")[1].split("##")[0].splitlines() if line.startswith("| ")]
    rows = [row for row in shown[1:] if row[0]]
    assert {"Student", "KD"} <= {row[0] for row in rows}
    for row in rows:
        assert row in [whole[: len(row)] for whole in made], row


def test_what_is_said_of_fp32_beside_bf16_is_what_the_records_say():
    evidence = ROOT / "results" / "evidence" / "resnet56-resnet20-tenth"
    students = {(v.precision, v.seed): v.record.test_top1 for v in scan(evidence)[0] if v.method == "student"}
    seeds = sorted(seed for precision, seed in students if precision == "tf32")  # which on a CPU is fp32
    apart = [students["tf32", seed] - students["bf16", seed] for seed in seeds]
    found = statistics.difference(apart)
    said = f"{found.mean:.2f} ± {found.half:.2f}"
    assert f"fp32 end {said} above bf16 (95 % interval, n = {found.n})" in (ROOT / "README.md").read_text()
    row = " | ".join(["fp32 − bf16", *(f"{value:+.2f}" for value in apart), f"+{said} (95 %)"])
    assert f"| {row} |" in (evidence / "README.md").read_text()


def test_the_method_in_the_readme_distils(monkeypatch):
    monkeypatch.setattr("methods.registry.register", lambda name: lambda method: method)  # it is no row of the suite
    (code,) = [text for language, text in parts(ROOT / "README.md")[1] if language == "python"]
    here = {"__name__": "readme_example"}
    exec(compile(code, "README.md", "exec"), here)
    student = torch.randn(4, 100, requires_grad=True)
    batch = here["Batch"](labels=torch.arange(4), index=torch.arange(4))
    losses = here["LSR"](here["Hyper"](), cases.setting()).losses(here["Outputs"](student, None), here["Outputs"](torch.randn(4, 100), None), batch)
    sum(losses.values()).backward()
    assert "ce" in losses and student.grad.abs().sum() > 0 and here["LSR"].paper


def test_the_table_of_dependencies_is_that_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {(text, "") for text in project["dependencies"]}
    declared |= {(text, kind) for name, kind in (("test", "tests"), ("tensorboard", "optional")) for text in project["optional-dependencies"][name]}
    wanted = {(re.match(r"[\w-]+", text)[0], kind) for text, kind in declared}
    section = (ROOT / "docs" / "install.md").read_text().split("## Dependencies")[1]
    rows = re.findall(r"^\| ([\w-]+)(?: \((tests|optional)\))? \| (.+) \|$", section, flags=re.M)
    assert all(why.strip() for _, _, why in rows)
    assert {(package, kind) for package, kind, _ in rows if package != "package"} == wanted
