"""How long the report takes: its start beside an import of pandas, and thousands of records beside a plain reading of the same files.

Ratios, so that a slow or a busy machine changes neither side; the bounds are `SLACK` times what is promised. The memory is absolute.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from bench.report import page, table
from tests.bench import synthetic
from tests.benchmarks.many import copies
from tests.benchmarks.timing import ONCE, at_most, child, ratio
from tests.browser import demo

PLAIN = """
import json, sys
from pathlib import Path
for folder in Path(sys.argv[1], "runs").iterdir():
    kept = [json.loads((folder / name).read_bytes()) for name in ("config.json", "record.json")]
    rows = [json.loads(line) for line in (folder / "epochs.jsonl").open()]
"""
PEAK = """
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]  # ru_maxrss would count the parent too
Path(sys.argv[2]).write_text(str(int(peak) / 1024))
"""
TEXT = (
    """
import re, sys
from pathlib import Path
from bench.report import render, table
sets = table.build(Path(sys.argv[1]))
text = render.text(sets)
found = sum(len(cell.runs) for t in sets[0].tables for row in t.rows for cell in row.cells)
assert found == int(sys.argv[3]) and not sets[0].faults, (found, sets[0].problems)
"""
    + PEAK
)
WHOLE = (
    """
import csv, re, sys
from pathlib import Path
from bench.__main__ import main
assert main(["report", sys.argv[1], "--strict"]) == 0
with Path(sys.argv[1], "report/report.csv").open(newline="") as file:
    found = sum(int(row["n"]) for row in csv.DictReader(file))
assert found == int(sys.argv[3]), found
"""
    + PEAK
)


@pytest.fixture
def memory_folder():
    """A folder that costs no disk where memory has room for it, gone after the test."""
    roomy = os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 1 << 30
    folder = Path(tempfile.mkdtemp(prefix="kd-report-", dir="/dev/shm" if roomy else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "program", "runs", "epochs", "promised"), [("table", TEXT, 10_000, 20, 3.0), ("all files and page", WHOLE, 3_000, 240, 1.0)]
)
def test_thousands_of_runs(memory_folder, benchmark, capsys, name, program, runs, epochs, promised):
    copies(memory_folder, runs, epochs)
    peak = memory_folder / "peak"
    arguments = ("-c", program, str(memory_folder), str(peak), str(runs))
    ours, plain = [], []

    def first() -> None:
        plain.append(child("-c", PLAIN, str(memory_folder)))

    benchmark.pedantic(lambda: ours.append(child(*arguments)), setup=first, rounds=1 if ONCE else 3, iterations=1)
    mebibytes = float(peak.read_text())
    at_most(capsys, benchmark, [(f"{name} of {runs:,} runs of {epochs} epochs / plain reading", promised, *ratio(ours, plain))])
    with capsys.disabled():
        print(f"{min(o[1] for o in ours):.1f} s, peak {mebibytes:.0f} MiB")
    assert mebibytes < 1500


def test_start(tmp_path, benchmark, capsys):
    synthetic.add_run(tmp_path, synthetic.run_of("kd", "resnet56", "resnet20", 1), 70.0)
    ours, pandas = [], []
    command = ("-m", "bench.report", str(tmp_path), "--no-write")
    benchmark.pedantic(lambda: ours.append(child(*command)), setup=lambda: pandas.append(child("-c", "import pandas")), rounds=3, iterations=1)
    # an import of torch alone costs five
    at_most(capsys, benchmark, [("start and table of one run / an import of pandas", 1.0, *ratio(ours, pandas))])


def test_the_page_of_the_paper_profile_is_small(memory_folder):
    sets = table.build(demo.fill(memory_folder))
    size = len(page.html(sets).encode())
    assert len(sets[0].tables[0].rows) == 9
    print(f"\npage of the paper profile: {size / 1e6:.2f} MB")
    assert size < 5e6
