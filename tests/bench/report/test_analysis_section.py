"""Results of analyses from other hands, with valid checksums: each is a named problem, and the report shows the others."""

import hashlib
import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.__main__ import main
from bench.analysis.frame import commands, registry, results
from bench.analysis.frame.base import Analysis, Drawing, Result, Table
from bench.errors import StoreError
from bench.report import analysis_section, page
from bench.report.table import OWN, ResultSet
from bench.store.files import read_json, write_json

NETWORK = {"label": "resnet8", "test_top1": 70.0}
COST = {"seconds": 1.0, "cpu_seconds": 1.0, "device": "x", "threads": 1}


def identity(**changes) -> dict:
    return {"name": "tried", "version": 1, "options": {}, "networks": [NETWORK], "data": {"name": "shapes100"}} | changes


@pytest.fixture(autouse=True)
def tried(monkeypatch):
    """An analysis that shows a fact and draws an array."""

    class Tried(Analysis):
        name, title, question = "tried", "Tried", "What is it?"

        @classmethod
        def tables(cls, stored):
            fact = stored.facts["x"]
            return [Table(f"A table of {fact}", ("what", *[fact] * stored.facts.get("heads", 1)), [("fact", fact)], (f"a note on {fact}", fact))]

        @classmethod
        def draw(cls, stored):
            from matplotlib.figure import Figure

            figure = Figure()
            figure.add_subplot().plot(stored.arrays["x"])
            return [Drawing("one", "caption", "text", figure)]

    monkeypatch.setattr(registry, "_analyses", {"tried": Tried})
    monkeypatch.setattr(registry, "_discovered", True)


@pytest.fixture
def place(tmp_path) -> Path:
    """A results folder with a sound result."""
    add(tmp_path, 12.5)
    (tmp_path / "runs").mkdir()
    return tmp_path


def add(root: Path, fact: object, **changes) -> Path:
    named = identity(**changes)
    folder = results.place(root, named)
    results.write(folder, named, Result({"x": fact}, {"x": np.arange(3.0)}), COST)
    return folder


def replaced(folder: Path, arrays: bytes | None = None, **changes) -> None:
    """Other content under right sums."""
    if arrays is not None:
        (folder / "arrays.npz").write_bytes(arrays)
        changes["arrays_sha256"] = hashlib.sha256(arrays).hexdigest()
    write_json(folder / "result.json", read_json(folder / "result.json") | changes)


def report(place: Path, capsys, *more: str) -> str:
    """What the report prints and writes, where nothing is raised and the sound result is shown."""
    assert main(["report", str(place), "--full", *more]) == 0
    said = capsys.readouterr()
    texts = [said.out + said.err, *((place / "report" / name).read_text() for name in ("analyses.txt", "index.html"))]
    assert all("12.5" in text for text in texts)
    assert not any(c == "\x1b" or "\ud800" <= c <= "\udfff" for text in texts for c in text)
    return " ".join(" ".join(texts).split())


def npy(shape: str = "(3,)") -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(24)


def npz(name: str = "x.npy", content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


OTHERS = {
    "facts": ({"facts": {}}, None, ": tried cannot show it (KeyError: 'x', test_analysis_section.py line "),
    "heads": ({"facts": {"x": 1, "heads": 2}}, None, ": tried cannot show it (ValueError: zip() argument 2 is shorter"),
    "cost": ({"cost": {}}, None, "not a result of an analysis (Object missing required field `seconds`"),
    "threads": ({"cost": COST | {"threads": "two"}}, None, "not a result of an analysis (Expected `int`, got `str`"),
    "an array": ({}, npy(), "cannot be read as arrays (BadZipFile)"),
    "an array without end": ({}, npz(content=npy("(100000000000000,)")), "cannot be read as arrays (MemoryError)"),
    "no array": ({}, npz("x", b"x"), "holds something else than arrays"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_result_of_another_form_is_a_named_problem(place, capsys, kind):
    changes, arrays, said = OTHERS[kind]
    folder = add(place, 1, options={"other": 1})
    replaced(folder, arrays, **changes)
    text = report(place, capsys)
    assert f"left out: {folder.name}: " in text and said in text and "run the analysis again" in text


@pytest.mark.parametrize(
    "changes",
    [{"networks": []}, {"networks": [{"label": 5, "test_top1": 1}]}, {"networks": [{"label": "a"}]}, {"data": {}}, {"options": 5}, {"version": "1"}],
)
def test_an_identity_of_another_form_is_a_named_problem(place, capsys, changes):
    folder = add(place, 1, options={"other": 1})
    replaced(folder, identity=identity(**changes))
    assert f"left out: {folder.name}: {folder / 'result.json'}: not a result of an analysis (" in report(place, capsys)


def test_arrays_that_are_larger_than_their_file_are_not_unpacked(place, capsys, monkeypatch):
    folder = add(place, 1, options={"other": 1})
    replaced(folder, npz(content=bytes(1 << 20)))
    assert (folder / "arrays.npz").stat().st_size < 10_000
    monkeypatch.setattr(results, "LIMIT", 1 << 19)
    assert "arrays of 1,048,576 bytes, more than the 524,288 that are read" in report(place, capsys)


def test_names_that_no_terminal_should_see(place, capsys):
    os.mkdir(os.fsencode(place / "analysis") + b"/caf\xe9\x1b[31m")
    (place / "analysis" / "caf\udce9\x1b[31m" / "result.json").write_text("{}")
    add(place, "\x1b[31mred", networks=[{"label": "res\x1b[31m8", "test_top1": 1.0}], options={"o\x1b[31m": "v\x1b[31m"})
    add(place, 1, name="unknown\x1b[31m")
    text = report(place, capsys)
    assert "left out: caf??[31m: " in text and "note on ?[31mred" in text and "res?[31m8 on shapes100" in text and "o?[31m = v?[31m" in text
    assert "no analysis 'unknown\\x1b[31m' is registered" in text


def test_the_commands_of_analyses_name_it_too(place, capsys):
    replaced(add(place, 1, options={"other": 1}), npy())
    """What an analysis makes of it for the terminal, too."""
    assert main(["analyses", "--results", str(place)]) == 0
    assert "cannot be read as arrays" in capsys.readouterr().out
    stored = results.read(add(place, "\x1b[31m", options={"other": 2}))
    printed = "".join(commands.lines(registry.get("tried"), stored, place))
    assert "?[31m" in printed and "\x1b" not in printed
    with pytest.raises(StoreError, match="tried cannot show it"):
        commands.lines(registry.get("tried"), replace(stored, facts={}), place)


def test_a_result_that_cannot_be_drawn_is_said_and_shown_without(place, capsys):
    folder = add(place, 5, options={"other": 1})
    replaced(folder, npz("y.npy", npy()))
    drawn = analysis_section.draw([ResultSet(OWN, place, [], [], [])], place / "report")
    assert [name.removeprefix(f"{OWN}/") for name in drawn] == [results.place(place, identity()).name]
    assert capsys.readouterr().err == f"{folder.name}: not drawn (KeyError: 'x')\n"
    section = str(analysis_section.section([ResultSet(OWN, place, [], [], [])], page._environment(), drawn))
    assert section.count("<h4>") == 2 and section.count("<figure>") == 1
