"""The analyses in the report: for each that has results its tables and, where figures are drawn, its figures with their text. No torch here."""

import base64
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from bench.errors import StoreError
from bench.plan.identity import canonical
from bench.report.table import OWN, ResultSet
from bench.text import clean, duration, table

if TYPE_CHECKING:
    from bench.analysis.frame.base import Analysis, Stored, Table

FOLDER = "figures"
HEADING = "Analyses"
WIDTH = 160
"""Characters of a line of notes."""


@dataclass(frozen=True)
class Figure:
    """A figure that was drawn: its place in the report's folder without ending, and the PNG."""

    path: str
    caption: str
    text: str
    png: bytes = field(repr=False)

    @property
    def source(self) -> Markup:
        return Markup("data:image/png;base64," + base64.b64encode(self.png).decode())


MADE_BY = ("prepared", "dissect", "sources")
"""What names a result besides its question: another one of the same question replaces it on the page."""


@dataclass(frozen=True)
class Found:
    """A result, the set it is of, its analysis, and what that makes of it."""

    set: ResultSet
    analysis: "type[Analysis]"
    stored: "Stored"
    tables: "list[Table]"

    @property
    def key(self) -> str:
        return f"{self.set.name}/{self.stored.key}"


def found(sets: list[ResultSet]) -> tuple[list[Found], list[tuple[str, str]]]:
    """The results of all sets by analysis, and what is left out with the reason: files that cannot be trusted or shown, analyses that are not
    registered."""
    with_results = [one for one in sets if (one.folder / "analysis").is_dir()]
    if not with_results:
        return [], []
    from bench.analysis.frame import registry, results  # only where there is a result: arrays take time to load

    kept, problems = [], []
    for one in with_results:
        stored, broken = results.scan(one.folder)
        problems += broken
        for result in stored:
            if result.name not in registry.names():
                problems.append((result.key, f"no analysis {result.name!r} is registered"))
                continue
            try:
                analysis = registry.get(result.name)
                kept.append(Found(one, analysis, result, _with_fault(analysis, result, results.tables(analysis, result))))
            except StoreError as error:
                problems.append((result.key, str(error).removeprefix(f"{result.key}: ")))
    return sorted(_newest(kept), key=lambda f: f.stored.name), problems


def _newest(kept: list[Found]) -> list[Found]:
    """Without results that were made once more since the code they were prepared with, or a result that they read, changed."""
    last: dict[tuple[str, str], Found] = {}
    for one in sorted(kept, key=lambda f: str(f.stored.cost.get("finished"))):
        last[one.set.name, canonical({name: value for name, value in one.stored.identity.items() if name not in MADE_BY})] = one
    return [one for one in kept if any(one is found for found in last.values())]


def draw(sets: list[ResultSet], out: Path) -> dict[str, list[Figure]]:
    """Draw every result into `out`/figures as PNG (300 dpi) and PDF; the figures by "<set>/<key of the result>". One that cannot be drawn is
    said on stderr. Raises OSError."""
    from bench.analysis.frame import drawing  # loads matplotlib

    drawn: dict[str, list[Figure]] = {}
    for one in found(sets)[0]:
        stored = one.stored
        try:
            for made in one.analysis.draw(stored):
                (out / FOLDER).mkdir(parents=True, exist_ok=True)
                name = f"{FOLDER}/{stored.key}-{made.name}"
                png = drawing.save(made.figure, out / name)
                drawn.setdefault(one.key, []).append(Figure(name, made.caption, made.text, png))
        except OSError:
            raise
        except Exception as error:  # as for tables: whatever stands in a result
            print(clean(f"{stored.key}: not drawn ({type(error).__name__}: {error})", 1000), file=sys.stderr)
    return drawn


def _cost(stored: "Stored") -> str:
    cost = stored.cost
    spent = f"{duration(cost['seconds'])} ({duration(cost['cpu_seconds'])} of CPU)"
    return f"It took {spent} on {clean(cost['device'], 80)}, {cost['threads']} thread{'s' * (cost['threads'] != 1)}."


def _options(stored: "Stored") -> str:
    def shown(value: Any) -> str:
        return "(" + ", ".join(map(shown, value)) + ")" if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name} = {shown(value)}" for name, value in stored.options.items() if value not in ([], ""))


def _with_fault(analysis: "type[Analysis]", stored: "Stored", tables: "list[Table]") -> "list[Table]":
    """The tables of a result; of an earlier version's, the first says what was wrong with it."""
    version = stored.identity["version"]
    if tables and (fault := analysis.before.get(version)):
        tables[0] = replace(tables[0], notes=(*tables[0].notes, f"Version {version}, before the present {analysis.version}: {fault}."))
    return tables


def _view(one: Found, figures: list[Figure]) -> dict[str, Any]:
    stored = one.stored
    kept_in = "" if one.set.name == OWN else f", evidence set {one.set.name.removeprefix('evidence/')}"
    networks = [f"{n['label']} ({n['test_top1']:.2f} % top-1)" for n in stored.identity["networks"]]
    return {
        "key": stored.key,
        "title": f"{stored.subject} on {stored.identity['data']['name']}{kept_in}",
        "networks": networks,
        "options": _options(stored),
        "cost": _cost(stored),
        "tables": one.tables,
        "figures": figures,
    }


def section(sets: list[ResultSet], environment: jinja2.Environment, drawn: Mapping[str, list[Figure]]) -> Markup | None:
    """The section of the page; None where there is no result. `drawn`: what `draw` gave, or nothing."""
    kept, problems = found(sets)
    groups = []
    for analysis in dict.fromkeys(one.analysis for one in kept):
        views = [_view(one, drawn.get(one.key, [])) for one in kept if one.analysis is analysis]
        groups.append({"title": analysis.title, "question": analysis.question, "source": analysis.source, "results": views})
    if not groups and not problems:
        return None
    return Markup(environment.get_template("analysis.html.j2").render(groups=groups, problems=problems))


def text(sets: list[ResultSet]) -> str:
    """The tables of all results for the terminal; empty where there is none."""
    kept, problems = found(sets)
    lines: list[str] = []
    for one in kept:
        view = _view(one, [])
        lines += ["", f"{one.analysis.title}: {view['title']}", f"  {one.analysis.question}", f"  options: {view['options']}. {view['cost']}"]
        for found_table in view["tables"]:
            lines += ["", f"  {found_table.title}"]
            lines += [f"  {line}" for line in table(found_table.rows, found_table.header)]
            lines += [f"  {line}" for note in found_table.notes for line in textwrap.wrap(note, WIDTH)]
    lines += [f"left out: {where}: {reason}" for where, reason in problems]
    return "\n".join([HEADING, *(clean(line, 1000) for line in lines), ""]) if lines else ""


def is_text(path: Path) -> bool:
    """Whether a file is one of `text`'s."""
    return path.is_file() and path.read_bytes().startswith(f"{HEADING}\n".encode())
