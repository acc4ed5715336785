"""What a benchmark leaves for the nightly: the same names every night, and figures of which higher is worse."""

import contextlib
import json
from types import SimpleNamespace

import pytest

from bench.nightly.command import read_benchmarks
from tests.benchmarks.timing import SLACK, at_most

QUIET = SimpleNamespace(disabled=contextlib.nullcontext)
"""In capsys's place: what is printed here is no figure of this machine."""


def test_the_nightly_reads_the_ratio_that_counts(tmp_path):
    benchmark = SimpleNamespace(extra_info={})
    at_most(QUIET, benchmark, [("group / alone", 0.5, 0.4, 9.0)])
    at_most(QUIET, benchmark, [("product / 16,385 rows", 1.0, 9.0, 0.7)], counts="wall")
    found = {"fullname": "t.py::test_a", "name": "test_a", "stats": {"median": 1.0}, "extra_info": benchmark.extra_info}
    (tmp_path / "b.json").write_text(json.dumps({"benchmarks": [found]}))
    metrics = read_benchmarks(tmp_path / "b.json")
    assert {key: (m["values"]["0"], m["worse"]) for key, m in metrics.items()} == {
        "t.py::test_a/group / alone": (0.4, "higher"),
        "t.py::test_a/product / 16,385 rows": (0.7, "higher"),
    }


@pytest.mark.parametrize("measured", [SLACK + 0.1, float("nan")])
def test_what_counts_is_at_most_slack_times_its_target(measured):
    with pytest.raises(AssertionError, match="ours / theirs"):
        at_most(QUIET, SimpleNamespace(extra_info={}), [("ours / theirs", 1.0, measured, 0.1)])
    with pytest.raises(AssertionError, match="ours / theirs"):
        at_most(QUIET, SimpleNamespace(extra_info={}), [("ours / theirs", 1.0, 0.1, measured)], counts="wall")


def test_a_name_that_holds_a_measurement_is_refused():
    benchmark = SimpleNamespace(extra_info={})
    with pytest.raises(ValueError, match="the same every night"):
        at_most(QUIET, benchmark, [("ours (12.3 us an image) / theirs", 1.0, 0.5, 0.5)])
    assert not benchmark.extra_info
