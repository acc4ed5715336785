"""Rows from other hands, checksums valid: each is a night or a named problem, whatever stands in it."""

import copy
import json
import os
import random

import pytest

from bench.errors import StoreError
from bench.nightly import history, rows
from bench.nightly.text import verdict_lines
from bench.nightly.trend import trend, trends
from bench.nightly.verdict import judge
from bench.report import trend_section
from bench.store.rows import append_row
from tests.bench.nightly.rows import METHODS, baseline, night

DEEP = '{"a":' * 200 + "1" + "}" * 200
NUMBERS = [None, True, 0, -1, 1, 2, 10**9, 10**30, 10**400, 0.0, -0.0, 1e-320, 1e99, 1e300, -1e300]
TEXTS = ["", "x", "0", "lower", "log", "linear", "\x1b[31m\n", "é" * 5000]
DATES = ["2025-03-01", "2025-03-01T03:00:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2025-03-01T03:00:00+00:00"]
NESTS = [[], [[]], ["accuracy", 1], {}, {"": {}}, {"1": 0.0}, {"1": -1.0, "2": 1e99}, {"1": "1"}, {"9": 1.0}, json.loads(DEEP)]
ODD = [*NUMBERS, *TEXTS, *DATES, *NESTS]


@pytest.fixture
def place(tmp_path):
    folder = history.folder(tmp_path, "machine")
    folder.mkdir(parents=True)
    return folder


def spots(value, path=()):
    """The paths to every value of a nest of tables and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from spots(item, (*path, key))


def spoil(row: dict, draw: random.Random) -> dict:
    """The row with one to three values replaced, removed, or put under another name."""
    row = copy.deepcopy(row)
    for _ in range(draw.randint(1, 3)):
        path = draw.choice(list(spots(row)) or [("format",)])
        holder = row
        for key in path[:-1]:
            holder = holder[key]
        what = draw.random()
        if what < 0.2 and isinstance(holder, dict):
            del holder[path[-1]]
        elif what < 0.3 and isinstance(holder, dict):
            holder[draw.choice(["", "\x1b]0;x\x07", "kd/p/test top-1"])] = holder.pop(path[-1])
        else:
            holder[path[-1]] = draw.choice(ODD)
    return row


def read_all(place) -> str:
    """Everything that the nightly and the page make of a history; what was said of it, or the problem."""
    try:
        found, base = history.read(place), history.read_baseline(place)
    except StoreError as error:
        assert str(place) in str(error)
        return str(error)
    base = base or baseline(found[0])
    verdict = judge(found, base)
    trend(found, base)
    return "\n".join(verdict_lines(verdict, base, "machine"))


def test_odd_rows_are_nights_or_named_problems(place):
    draw = random.Random(0)
    told = []
    good = [night(n, methods=METHODS[:2]) for n in range(1, 6)]
    path = place / "history.jsonl"
    for number in range(int(os.environ.get("KD_BENCH_FUZZ", "300"))):
        path.unlink(missing_ok=True)
        odd = draw.randrange(5)
        for index, row in enumerate(good):
            append_row(path, spoil(row, draw) if index == odd else row)
        told.append(read_all(place))
        assert not any(c in told[-1].replace("\n", "") for c in "\x1b\x07\n"), number
        section = trend_section._machine("machine", trends(place.parent.parent)["machine"])
        assert "error" in section
    problems = [text for text in told if "history.jsonl:" in text]
    assert 0.3 * len(told) < len(problems) < 0.95 * len(told)  # both kinds came up


def test_odd_baselines_are_named_problems(place):
    draw = random.Random(1)
    for row in (night(n) for n in range(1, 4)):
        history.append(place, row)
    history.set_baseline(place, night(1), "first")
    good = history.read_baseline(place)
    told = []
    for _ in range(100):
        (place / "baseline.json").write_text(json.dumps(spoil(good, draw)))
        told.append(read_all(place))
    assert sum("--accept" in text and "baseline.json" in text for text in told) > 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row | {"date": "2025-03-01T03:00:00"}, "Expected `datetime` with a timezone component - at `$.date`"),
        (lambda row: row | {"date": "2025-03-01t03:00:00z"}, "not a night (Invalid isoformat string"),
        (lambda row: row | {"night": 0}, "Expected `int` >= 1 - at `$.night`"),
        (lambda row: row | {"night": True}, "got `bool` - at `$.night`"),
        (lambda row: row | {"metrics": {}}, "of length >= 1 - at `$.metrics`"),
        (lambda row: row | {"facts": {"torch": {}}}, "got `object` - at `$.facts[...]`"),
        (lambda row: {k: v for k, v in row.items() if k != "parts"}, "missing required field `parts`"),
        (lambda row: change(row, "values", {}), "metric 'kd/p/step time': not a metric of a night (Expected `object` of length >= 1"),
        (lambda row: change(row, "values", {"0": 0.0}), "logarithmic scale are above 0"),
        (lambda row: change(row, "values", {"0": 1e200}), "Expected `float` <= 1e+100 - at `$.values[...]`"),
        (lambda row: change(row, "scale", []), "got `array` - at `$.scale`"),
    ],
)
def test_what_is_wrong_is_said_with_the_line(place, change, said):
    append_row(place / "history.jsonl", night(1))
    append_row(place / "history.jsonl", change(night(2)))
    with pytest.raises(StoreError) as error:
        history.read(place)
    assert str(error.value).startswith(f"{place / 'history.jsonl'}:2: ") and said in str(error.value)


def change(row: dict, name: str, value) -> dict:
    metric = row["metrics"]["kd/p/step time"] | {name: value}
    return row | {"metrics": row["metrics"] | {"kd/p/step time": metric}}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"night":' + b"[" * 100_000 + b"\n", "nested too deep|not JSON"),
        (b'{"night":1e999,"crc":"x"}\n', "checksum|not JSON"),
        (b'{"a":NaN}\n', "not JSON"),
        (b"\xff\n", "not JSON"),
    ],
)
def test_lines_that_are_no_rows(place, line, said):
    (place / "history.jsonl").write_bytes(line)
    with pytest.raises(StoreError, match=said):
        history.read(place)


@pytest.mark.parametrize("name", ["history.jsonl", "baseline.json"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "loop", "large"])
def test_only_regular_files_of_a_size_are_read(place, name, kind, monkeypatch):
    history.append(place, night(1))
    path = place / name
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.write_bytes(b"x" * 20_000)
        monkeypatch.setattr(history, "LIMIT", 10_000)
    with pytest.raises(StoreError, match=f"{name}"):
        history.read(place)
        history.read_baseline(place)


def test_a_metric_that_cannot_be_kept_is_a_failure_of_its_method():
    metrics = night(1)["metrics"]
    metrics["kd/p/step time"]["values"] = {"0": 0.0}
    metrics["at/p/test top-1"]["values"]["1"] = float("nan")
    good, failures = rows.sift(metrics)
    assert len(good) == 4
    assert "logarithmic" in failures["kd"] and "test top-1" in failures["at"]


def test_a_metric_in_other_units_is_not_compared():
    nights = [night(1), night(2), change(night(3), "scale", "linear")]
    found = judge(nights, baseline(nights[0])).new
    assert [(f.kind, f.key) for f in found] == [("vanished", "kd/p/step time")]
    assert "other units" in found[0].reason
