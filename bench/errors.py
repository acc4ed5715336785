"""The errors that mean bad input or a damaged file, and the exit codes of every command."""

import difflib
from collections.abc import Collection

from bench.text import clean

DONE, TROUBLE, USAGE, STOPPED_IN_TIME, INTERRUPTED = 0, 1, 2, 75, 130
"""Exit codes: all done; some run failed or diverged; bad input; stopped at a step in time, resumable; stopped by a signal, resumable."""


class UsageError(Exception):
    """Bad input: one line that says what is wrong and what to do; the command line exits with code 2."""


class StoreError(Exception):
    """A file of the results folder that cannot be trusted: names the file (and line) and what is wrong with it.

    One line that can be printed as it is, whatever the file holds.
    """

    def __init__(self, text: object) -> None:
        super().__init__(clean(text, 2000))


def unknown(what: str, name: str, known: list[str]) -> UsageError:
    """The error for a name that is not declared, with close matches."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(known)}"
    return UsageError(f"unknown {what} {name!r}; {hint}")


def check_known(what: str, name: str, known: Collection[str]) -> None:
    """Raises UsageError for a name that is not among the known ones, with close matches."""
    if name not in known:
        raise unknown(what, name, list(known))
