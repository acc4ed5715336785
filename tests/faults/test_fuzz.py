"""Fuzz of the record reader: 4,000 random edits of a run's files. The report shows the right numbers or names the file; it never crashes."""

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.report import published, table
from bench.store.runs import scan
from tests.bench import synthetic

EXAMPLES, EDITS = 100, 40
INDEX = published.load(None)
FILES = ("config.json", "epochs.jsonl", "record.json", "status.json")
TOKENS = (b"NaN", b"Infinity", b"-1e999", b"1e999", b"null", b"true", b"{}", b"[]", b'"', b"\\", b"\xff", b"\x00", b"9" * 5000, b"[" * 3000)
TOKENS += (b"\n", b",", b"{", b"}", b"70.0", b"-0", b"1.0", b"\r\n", b"\xef\xbb\xbf", b'"crc"', b"\\ud800")


@pytest.fixture(scope="module")
def folder():
    """Three runs, two of them done, in memory where there is a file system for that."""
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    for method, top1 in (("student", 68.0), ("kd", 70.0)):
        synthetic.add_run(place, synthetic.run_of(method, "resnet56", "resnet20", 1), top1)
    synthetic.add_run(place, synthetic.run_of("kd", "resnet56", "resnet20", 2), 71.0, status="running", rows=2)
    yield place
    shutil.rmtree(place)


def edit(data: bytes, source: random.Random) -> bytes:
    """One random edit: of bytes, of lines, of numbers, or a token that parsers trip over."""
    at = source.randrange(len(data) + 1)
    end = min(len(data), at + source.choice((1, 1, 2, 5, 40)))
    kind = source.randrange(10)
    lines = data.splitlines(keepends=True)
    a, b = source.randrange(len(lines)), source.randrange(len(lines))
    if kind == 0:
        return data[:at] + bytes([source.randrange(256)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + data[end:]
    if kind == 2:
        return data[:at] + source.randbytes(source.randrange(1, 9)) + data[at:]
    if kind == 3:
        return data[:at]
    if kind == 4:
        return data[:at] + source.choice(TOKENS) + data[end:]
    if kind == 5:
        lines[a], lines[b] = lines[b], lines[a]
    elif kind == 6:
        lines.insert(a, lines[b])
    elif kind == 7:
        del lines[a]
    else:  # another number in the place of one
        digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
        if not digits:
            return data + b"1"
        spot = source.choice(digits)
        return data[:spot] + str(source.randrange(10**source.randrange(1, 4))).encode() + data[spot + 1 :]
    return b"".join(lines)


def check(folder: Path, right: dict[str, float], touched: Path) -> None:
    views, problems = scan(folder)
    assert {v.id: v.record.test_top1 for v in views if v.record}.items() <= right.items()
    named = {p.where: p.reason for p in problems}
    assert set(named) <= {touched.parent.name}
    for view in views:
        assert (view.status == "done") == (view.record is not None)
    if named:
        assert touched.name in named[touched.parent.name] or "record.json" in named[touched.parent.name], named
    own = table.build_set(table.OWN, folder, INDEX)
    shown = {run.id: cell.values[seed] for t in own.tables for row in t.rows for cell in row.cells for seed, run in cell.runs.items() if run.record}
    assert shown.items() <= right.items() and len(shown) + len(named) >= len(right)
    for cell in (cell for t in own.tables for row in t.rows for cell in row.cells if cell.summary):
        assert cell.summary.mean in right.values() and cell.summary.n == 1
    assert [p.reason for p in own.problems] == list(named.values())


@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_random_edits_give_the_right_numbers_or_name_the_file(folder, seed):
    source = random.Random(seed)
    runs = sorted(p for p in (folder / "runs").iterdir())
    right = {v.id: v.record.test_top1 for v in scan(folder)[0] if v.record}
    assert len(right) == 2
    for _ in range(EDITS):
        path = source.choice(runs) / source.choice(FILES)
        if not path.exists():
            continue
        data = path.read_bytes()
        spoiled = data
        for _ in range(source.choice((1, 1, 1, 2, 4))):
            spoiled = edit(spoiled, source) or b"x"
        path.write_bytes(spoiled)
        try:
            check(folder, right, path)
        finally:
            path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_foreign_file_is_named(folder, name):
    """What no edit of bytes does: the file is not there, is a folder, or is another run's."""
    right = {v.id: v.record.test_top1 for v in scan(folder)[0] if v.record}
    ours, other = sorted(Path(folder, "runs", run) for run in right)
    data = (ours / name).read_bytes()
    for how in ("gone", "folder", "foreign"):
        (ours / name).unlink()
        if how == "folder":
            (ours / name).mkdir()
        elif how == "foreign":
            shutil.copy(other / name, ours / name)
        check(folder, right, ours / name)
        assert name == "status.json" or len(scan(folder)[1]) == 1
        if how == "folder":
            (ours / name).rmdir()
        (ours / name).write_bytes(data)
