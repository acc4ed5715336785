"""`python -m bench.report RESULTS`: print Table 1 and write it as text, Markdown, LaTeX, CSV and one HTML page.

No torch; matplotlib for --figures only.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from bench.errors import StoreError, UsageError
from bench.report import compare, epochs, page, render, table
from bench.report.explain import explain
from bench.store.files import write_bytes

PARTS = ("runs", "costs", "evidence", "nightly", "plan.json")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m bench.report", description="Table 1, costs and published numbers from a results folder.")
    p.add_argument("results", nargs="?", default="results", type=Path, help="the results folder (default: results)")
    p.add_argument("--format", choices=sorted(render.FORMATS), default="text", help="what is printed; all formats are written")
    p.add_argument("--out", type=Path, help="where the files go (default: RESULTS/report)")
    p.add_argument("--no-write", action="store_true", help="print only")
    p.add_argument("--figures", action="store_true", help="draw the figures too (PNG and PDF)")
    p.add_argument("--epochs", action="store_true", help="write all epochs of all runs too, as one tidy epochs.csv")
    p.add_argument("--assume-sd", type=_points, metavar="X", help="judge against published numbers that print no deviation as if it were X points")
    p.add_argument("--strict", action="store_true", help="exit with 1 where anything is left out or warned of")
    p.add_argument("--baseline", default="student", metavar="METHOD", help="the row that differences are taken to (default: student)")
    p.add_argument("--explain", nargs=2, metavar=("METHOD", "PAIR"), help="how one cell came about, e.g. --explain kd resnet56/resnet20")
    return p


def _points(text: str) -> float:
    value = float(text)
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{text} is no deviation in points")
    return value


def main(arguments: list[str] | None = None) -> int:
    """0; 1 with --strict where something is left out or warned of; 2 for bad input, with one line on stderr."""
    options = parser().parse_args(arguments)
    try:
        return report(options)
    except (UsageError, StoreError) as error:
        print(f"error: {render.clean(error, 1000)}", file=sys.stderr)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"error: {render.clean(error, 1000)}", file=sys.stderr)
    return 2


def report(options: argparse.Namespace) -> int:
    """Print, then write. Raises UsageError, StoreError, OSError."""
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
    width = max(60, shutil.get_terminal_size((160, 24)).columns)
    show(render.text(sets, width) if options.format == "text" else render.FORMATS[options.format][1](sets))
    if not options.no_write:
        out = options.out or results / "report"
        try:
            out.mkdir(parents=True, exist_ok=True)
            for file, make in render.FORMATS.values():
                write_bytes(out / file, make(sets).encode())
            write_bytes(out / "index.html", page.html(sets).encode())
            if options.epochs:
                epochs.save_csv(sets, out / "epochs.csv")
            if options.figures:
                from bench.report import figures

                figures.write(sets, out / "figures")
        except OSError as error:
            raise UsageError(f"{out}: cannot write the report ({error.strerror or error}); give --out DIR, or --no-write") from error
        more = (", epochs.csv" if options.epochs else "") + (", figures/" if options.figures else "")
        print(f"written: {out}/index.html, report.txt, .md, .tex, .csv{more}", file=sys.stderr)
    faults = sum(s.faults for s in sets)
    if options.strict and faults:
        print(f"strict: {faults} warning{'s' * (faults != 1)} or exclusion{'s' * (faults != 1)}, see the end of each set", file=sys.stderr)
        return 1
    return 0


def show(text: str) -> None:
    """Print to a terminal of any encoding."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
