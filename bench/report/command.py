"""The `report` command: print Table 1 and write it as text, Markdown, LaTeX, CSV, tables to paste and one HTML page.

No torch; matplotlib for --figures only.
"""

import os
import re
import shutil
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bench.errors import UsageError, check_known
from bench.report import analysis_section, compare, epochs, page, paste, render, table
from bench.report.blocks import set_title
from bench.report.explain import explain
from bench.report.short import short
from bench.report.table import OWN, ResultSet
from bench.store.files import write_bytes

PARTS = ("runs", "costs", "evidence", "nightly", "analysis", "plan.json")
FIGURE = r".+-table\d+-(accuracy-cost|differences|curves|seeds)|({analyses})-[\w.-]+-[0-9a-f]{{10}}-.+"
"""The name of a figure of a table, or of the result of one of these analyses."""


@dataclass(frozen=True)
class Report:
    """Table 1 of the own runs on a screenful; everything else as files: text, Markdown, LaTeX, CSV, a page, tables to paste."""

    results: tyro.conf.Positional[Path] = Path("results")
    """The results folder."""
    full: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print everything that the files hold, not only the own table."""
    set_name: Annotated[str, tyro.conf.arg(name="set", metavar="NAME")] = "own"
    """Whose table is printed and written as tables to paste: own, or an evidence set by its folder's name."""
    published: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Put the published rows below ours in the tables to paste."""
    format: Literal["short", "text", "csv", "latex", "markdown"] = "short"
    """short: the table and what to know of it on a screenful; else everything, in this form. All forms are written."""
    out: Path | None = None
    """Where the files go; default: RESULTS/report."""
    write: bool = True
    """Write the files; else print only."""
    figures: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Draw the figures too (PNG and PDF)."""
    epochs: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write all epochs of all runs too, as one tidy epochs.csv."""
    assume_sd: float | None = None
    """Judge against published numbers that print no deviation as if it were so many points."""
    strict: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Exit with 1 where anything of the chosen set is left out or warned of."""
    baseline: str = "student"
    """The row that differences are taken to."""
    explain: tuple[str, ...] = ()
    """METHOD PAIR: how one cell came about, e.g. --explain kd resnet56/resnet20."""

    def check(self) -> None:
        """Raises UsageError for a value out of range."""
        if len(self.explain) not in (0, 2):
            raise UsageError("--explain takes METHOD PAIR, as in --explain kd resnet56/resnet20")
        if self.assume_sd is not None and not 0 < self.assume_sd < 100:
            raise UsageError(f"--assume-sd {self.assume_sd:g} is no deviation in points: above 0 and below 100")

    def main(self) -> int:
        try:
            return report(self)
        except BrokenPipeError:  # the reader (head, less) has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            raise UsageError(render.clean(error, 1000)) from None


def report(options: Report) -> int:
    """Write, then print: the paths of what was written are named only once it is there. Raises UsageError, StoreError, OSError."""
    results: Path = options.results
    if not results.is_dir():
        raise UsageError(f"{results}: no such folder; give the results folder")
    if not any((results / part).exists() for part in PARTS):
        raise UsageError(f"{results}: none of {', '.join(PARTS)} in it; give a results folder")
    sets = table.build(results, options.baseline)
    compare.warn_of_contradictions(sets)
    if options.assume_sd:
        compare.assume_sd(sets, options.assume_sd)
    if options.explain:
        show(explain(sets, *options.explain))
        return 0
    chosen = pick(sets, options.set_name)
    out = options.out or results / "report"
    width = max(60, shutil.get_terminal_size((160, 24)).columns)
    analyses = analysis_section.text(sets)

    def text(place: Path | None) -> str:
        if options.format in ("csv", "latex", "markdown"):
            return render.FORMATS[options.format][1](sets)
        if options.full or options.format == "text":
            return render.text(sets, width) + analyses
        return short(sets, chosen, width, place, bool(analyses))

    if options.write:
        try:
            write(options, sets, chosen, analyses, out)
        except (OSError, UsageError) as error:
            show(text(None))  # what is known is not lost with the files
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{out}: cannot write the report ({error.strerror or error}); give --out DIR, or --no-write") from error
    show(text(out if options.write else None))
    more = [name for name, asked in (("epochs.csv", options.epochs), ("figures/", options.figures)) if asked and options.write]
    if more:
        print(f"written too: {out}/{', '.join(more)}", file=sys.stderr)
    if options.strict and (faults := chosen.faults):
        said = "1 warning or exclusion" if faults == 1 else f"{faults} warnings or exclusions"
        print(f"strict: {said} ({set_title(chosen)}); --full prints them at its end", file=sys.stderr)
        return 1
    return 0


def write(options: Report, sets: list[ResultSet], chosen: ResultSet, analyses: str, out: Path) -> None:
    """Every file of the report below `out`; tables and figures of an earlier call that this one did not write go. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    for file, make in render.FORMATS.values():
        write_bytes(out / file, make(sets).encode())
    (out / "tables").mkdir(exist_ok=True)
    for file, content in paste.files(chosen, options.published).items():
        write_bytes(out / "tables" / file, content.encode())
    remove_others(out / "tables", r"table\d+", ("-standalone.tex", ".tex", ".md", ".csv"), {f"table{n}" for n, _ in enumerate(chosen.tables, 1)})
    if analyses:
        write_bytes(out / "analyses.txt", analyses.encode())
    elif analysis_section.is_text(out / "analyses.txt"):
        (out / "analyses.txt").unlink()
    drawn = analysis_section.draw(sets, out) if options.figures else {}
    write_bytes(out / "index.html", page.html(sets, drawn, os.path.relpath(options.results, out)).encode())
    if options.epochs:
        epochs.save_csv(sets, out / "epochs.csv")
    if options.figures:
        from bench.analysis.frame import registry
        from bench.report import figures

        made = figures.write(sets, out / "figures") | {Path(one.path).name for found in drawn.values() for one in found}
        remove_others(out / "figures", FIGURE.format(analyses="|".join(registry.names())), (".png", ".pdf"), made)


def remove_others(folder: Path, name: str, endings: tuple[str, ...], kept: Collection[str]) -> None:
    """Remove what an earlier call wrote: files whose name without ending fits the pattern `name` and is not among `kept`. Only where all endings
    are there, so that nobody's own table2.tex is taken for one of ours. Raises OSError."""
    there = set(os.listdir(folder))
    stems = {file.removesuffix(endings[0]) for file in there if file.endswith(endings[0])}
    for stem in stems:
        files = {stem + ending for ending in endings}
        if stem not in kept and re.fullmatch(name, stem) and files <= there:
            for file in sorted(files):
                (folder / file).unlink()


def pick(sets: list[ResultSet], wanted: str) -> ResultSet:
    """The set of that name: `own`, or an evidence set (one that is called own: `evidence/own`). Raises UsageError."""
    names = {"own" if s.name == OWN else s.name if s.name == "evidence/own" else s.name.removeprefix("evidence/"): s for s in sets}
    check_known("--set", wanted, names)
    return names[wanted]


def show(text: str) -> None:
    """Print whole texts at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
