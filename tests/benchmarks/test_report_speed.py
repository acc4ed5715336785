"""How long the report takes: start, and ten thousand records. Prints what it measures; the bounds are three times what is promised."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.store.runs import scan
from tests.bench import synthetic
from tests.benchmarks.many import copies

ROOT = Path(__file__).resolve().parents[2]
RECORDS, EPOCHS = 10_000, 20
MEASURE = """
import re, sys, time
start = time.perf_counter()
from pathlib import Path
from bench.report import render, table
text = render.text(table.build(Path(sys.argv[1])))
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]  # ru_maxrss would count the parent too
print(time.perf_counter() - start, int(peak) / 1024)
"""


@pytest.mark.slow
def test_ten_thousand_records(tmp_path, benchmark):
    copies(tmp_path, RECORDS, EPOCHS)
    views, problems = scan(tmp_path)
    assert len(views) == RECORDS and not problems
    del views

    def read() -> tuple[float, float]:
        out = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        seconds, mebibytes = map(float, out.split())
        return seconds, mebibytes

    seconds, mebibytes = benchmark.pedantic(read, rounds=2)
    print(f"\n{RECORDS} records: {seconds:.2f} s, {mebibytes:.0f} MiB")
    benchmark.extra_info.update(seconds=seconds, mebibytes=mebibytes)
    assert seconds < 15 and mebibytes < 1500


def test_start(tmp_path, benchmark):
    synthetic.add_run(tmp_path, synthetic.run_of("kd", "resnet56", "resnet20", 1), 70.0)
    command = [sys.executable, "-m", "bench.report", str(tmp_path), "--no-write"]
    done = benchmark.pedantic(lambda: subprocess.run(command, cwd=ROOT, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}), rounds=3)
    assert done.returncode == 0, done.stderr
    print(f"\nstart: {benchmark.stats.stats.median:.2f} s")
    assert benchmark.stats.stats.median < 4.5
