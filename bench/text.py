"""How the suite writes for people: plain tables, durations, and text from other hands made safe to print."""

import sys
import unicodedata
from collections.abc import Mapping, Sequence

LONG = 4000
"""Characters of a caption, a note or a remark."""


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> list[str]:
    """Lines of a plain text table: columns of numbers to the right, words to the left. Cells are made safe to print."""
    columns = []
    for head, *cells in zip(header, *([clean(cell) for cell in row] for row in rows), strict=True):
        width = max(map(len, (head, *cells)))
        numbers = any(cells) and all(cell[0] in "0123456789+-–" for cell in cells if cell)
        columns.append([cell.rjust(width) if numbers else cell.ljust(width) for cell in (head, *cells)])
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def left(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns of words, each to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def duration(seconds: float) -> str:
    """For people: "40 s", "12 min", "3 h 20 min", "12 days 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 60 * 72:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24:,} days {hours % 24} h"


def settings_text(changed: Mapping[str, object]) -> str:
    """What tells a row from the method's own one, from the settings in which it differs: "dimensions=8, mode=paper"."""
    return ", ".join(f"{name}={value}" for name, value in sorted(changed.items()))


def count(number: int, noun: str) -> str:
    """Number and noun that agree: "1 epoch", "2 epochs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def clean(text: object, limit: int = 400) -> str:
    """Text on one line without control, format or unassigned characters (shown as ?), cut at `limit`."""
    whole = str(text)
    shown = whole if len(whole) <= limit else whole[: limit - 1] + "…"
    if shown.isprintable():
        return shown
    return "".join("?" if unicodedata.category(c)[0] == "C" else " " if unicodedata.category(c) in ("Zl", "Zp") else c for c in shown)


def shortened(text: object, limit: int) -> str:
    """A row's name in at most `limit` characters: settings in brackets are cut in the middle, since rows differ in their ends."""
    whole = clean(text, 1000)
    if len(whole) <= limit or not whole.endswith("]"):
        return clean(whole, limit)
    end = limit // 2
    return f"{whole[: limit - 1 - end]}…{whole[-end:]}"


def any_encoding() -> None:
    """From here on, what the terminal's or the log's encoding lacks is shown as ?, in place of an error in the middle of a training."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def say(line: object, limit: int = 1000) -> None:
    """Print one line with whatever a file or a stranger's code put in it."""
    print(clean(line, limit), flush=True)
