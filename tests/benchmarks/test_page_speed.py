"""How long the whole report takes over ten thousand runs of 240 epochs (2.4 million rows), and how large the page of the paper profile is.

Bounds are loose; `-s` prints what was measured.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bench.report import page, table
from tests.benchmarks.many import copies
from tests.browser import demo

ROOT = Path(__file__).resolve().parents[2]
RUNS, EPOCHS = 10_000, 240
MEASURE = """
import re, sys, time
start = time.perf_counter()
from pathlib import Path
from bench.__main__ import main
code = main(["report", sys.argv[1]])
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(f"measured {code} {time.perf_counter() - start} {int(peak) / 1024}", file=sys.stderr)
"""


@pytest.fixture
def memory_folder():
    """A folder that costs no disk, gone after the test."""
    folder = Path(tempfile.mkdtemp(prefix="kd-report-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_ten_thousand_runs(memory_folder):
    copies(memory_folder, RUNS, EPOCHS)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(memory_folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, code, seconds, mebibytes = done.stderr.splitlines()[-1].split()
    size = (memory_folder / "report" / "index.html").stat().st_size
    print(f"\n{RUNS} runs, {RUNS * EPOCHS} rows: {float(seconds):.1f} s, {float(mebibytes):.0f} MiB, page of {size / 1e6:.1f} MB")
    assert code == "0" and "excluded" not in done.stdout
    assert float(seconds) < 60 and float(mebibytes) < 1500


def test_the_page_of_the_paper_profile_is_small(memory_folder):
    sets = table.build(demo.fill(memory_folder))
    size = len(page.html(sets).encode())
    assert len(sets[0].tables[0].rows) == 9
    print(f"\npage of the paper profile: {size / 1e6:.2f} MB")
    assert size < 5e6
