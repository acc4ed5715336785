"""Every registered analysis keeps the contract of frame.base. A new analysis is tested here without anyone adding a test."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.analysis.frame import registry, results
from bench.analysis.frame.base import Drawing, Table
from bench.analysis.frame.context import Context, obtain
from tests.bench.analysis import small

NAMES = registry.names()
every = pytest.mark.parametrize("name", NAMES)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def images():
    return small.dataset()


@pytest.fixture(scope="module")
def place(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("results")
    return folder, small.subjects_of(folder, images)


def made(name, place, images):
    """The result of an analysis with small options, made once for all tests of this module."""
    analysis = registry.get(name)
    folder, subjects = place
    chosen = subjects if analysis.scope == "group" else subjects[:1]
    return analysis, obtain(analysis(small.quick(analysis)), small.context(folder, images, chosen))


def fresh(folder, place, images):
    """The same networks in another results folder, with the preparations that were made."""
    if (place[0] / "preparations").exists():
        shutil.copytree(place[0] / "preparations", folder / "preparations")
    return small.subjects_of(folder, images)


def test_every_file_loads():
    assert registry.broken() == {}
    files = {p.stem for p in (ROOT / "bench" / "analysis").glob("*.py")} - {"__init__"}
    assert files <= {registry.get(name).__module__.rsplit(".", 1)[1] for name in NAMES}, "a file that registers nothing"


@every
def test_what_was_wrong_with_each_earlier_version_is_said(name):
    analysis = registry.get(name)
    assert sorted(analysis.before) == list(range(1, analysis.version))


def test_the_readers_side_loads_no_torch_and_no_plotting():
    code = "import sys; from bench.analysis.frame import registry, results, commands; registry.names()"
    code += "; sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@every
def test_it_says_what_it_is(name):
    analysis = registry.get(name)
    assert analysis.title and analysis.question.endswith("?") and "\n" not in analysis.question
    assert dataclasses.is_dataclass(analysis.Options) and analysis.Options() == analysis.Options()
    json.dumps(analysis(analysis.Options()).identity())


@every
def test_a_result_is_stored_whole_and_not_made_again(name, place, images, monkeypatch):
    analysis, stored = made(name, place, images)
    assert not (results.place(place[0], stored.identity) / "parts").exists()
    assert stored.cost["seconds"] >= 0 and stored.cost["cpu_seconds"] >= 0 and stored.cost["threads"] >= 1
    json.dumps(stored.facts, allow_nan=False)
    assert all(np.isfinite(a).all() for a in stored.arrays.values() if a.dtype.kind == "f")
    monkeypatch.setattr(analysis, "run", lambda self, context: pytest.fail("run again"))
    again = made(name, place, images)[1]
    assert again.facts == stored.facts and again.key == stored.key


@every
def test_the_same_again_gives_the_same_numbers(name, place, images, tmp_path):
    analysis, stored = made(name, place, images)
    subjects = fresh(tmp_path, place, images)
    again = obtain(analysis(small.quick(analysis)), small.context(tmp_path, images, subjects if analysis.scope == "group" else subjects[:1]))
    assert again.key == stored.key
    assert sorted(again.arrays) == sorted(stored.arrays)
    for array in stored.arrays:
        np.testing.assert_allclose(again.arrays[array], stored.arrays[array], rtol=1e-4, atol=1e-5, err_msg=array)


@every
def test_it_is_read_as_tables_and_figures(name, place, images):
    analysis, stored = made(name, place, images)
    tables, drawings = analysis.tables(stored), analysis.draw(stored)
    assert tables and all(isinstance(t, Table) and t.title and t.rows for t in tables)
    for t in tables:
        assert all(len(row) == len(t.header) and all(isinstance(cell, str) for cell in row) for row in t.rows), t.title
    assert drawings and len({d.name for d in drawings}) == len(drawings)
    for d in drawings:
        assert isinstance(d, Drawing) and len(d.text) > 20 and d.caption and not d.caption.endswith(".")
        assert d.figure.get_size_inches()[0] <= 7.0, "wider than a page"
        sizes = [t.get_fontsize() for t in d.figure.findobj(lambda a: hasattr(a, "get_fontsize")) if t.get_text() and t.get_visible()]
        assert min(sizes, default=9) >= 6, "too small to read in print"


class Stop(Exception):
    pass


def stop_at(monkeypatch, number: int) -> list[str]:
    """Let the part of that number (from 1) raise instead of being made; the units that were made."""
    units: list[str] = []
    whole = Context.part

    def part(self, unit, make):
        def counted():
            units.append(unit)
            if len(units) == number:
                raise Stop
            return make()

        return whole(self, unit, counted)

    monkeypatch.setattr(Context, "part", part)
    return units


@every
def test_after_a_stop_what_was_made_is_not_made_again(name, place, images, tmp_path, monkeypatch):
    analysis, stored = made(name, place, images)
    subjects = fresh(tmp_path, place, images)
    context = small.context(tmp_path, images, subjects if analysis.scope == "group" else subjects[:1])
    units = stop_at(monkeypatch, 2)
    try:
        obtain(analysis(small.quick(analysis)), context)
    except Stop:
        first = units[0]
        assert results.scan(tmp_path)[1] == []
        monkeypatch.undo()
        units = stop_at(monkeypatch, 10**9)
        again = obtain(analysis(small.quick(analysis)), context)
        assert first not in units
        assert again.key == stored.key
        for array in stored.arrays:
            np.testing.assert_allclose(again.arrays[array], stored.arrays[array], rtol=1e-4, atol=1e-5, err_msg=array)
    else:
        assert len(units) < 2  # one unit of work, or none worth keeping
