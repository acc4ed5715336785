"""`python -m bench COMMAND`: reads the command line, runs the command, turns bad input into one line and exit code 2."""

import atexit
import contextlib
import errno
import gc
import importlib.metadata
import io
import itertools
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module

from bench.commands import COMMANDS, overview
from bench.errors import INTERRUPTED, USAGE, StoreError, UsageError, unknown
from bench.text import any_encoding, clean

PROGRAM = "python -m bench"


def split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command's name (one or two words) and its arguments. Raises UsageError."""
    for count in (2, 1):
        name = " ".join(arguments[:count])
        if len(arguments) >= count and name in COMMANDS:
            return name, list(arguments[count:])
    raise unknown("command", arguments[0], list(COMMANDS))


def _named(place: str):
    """What stands at "module:name". Loading makes no garbage, and collections would walk all that has been loaded."""
    module, _, name = place.partition(":")
    gc.disable()
    try:
        return getattr(import_module(module), name)
    finally:
        gc.enable()


def parse(name: str, arguments: Sequence[str]):
    """The command's options. Raises UsageError in place of tyro's box; SystemExit(0) for --help."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(_named(COMMANDS[name].options), prog=f"{PROGRAM} {name}", args=list(arguments))
    except SystemExit as end:
        if not end.code:
            raise
    raise UsageError(f"{_short(said.getvalue())}; see {PROGRAM} {name} --help") from None


def _short(box: str) -> str:
    """What tyro says in its box, on one line, without the frame and the help. On a terminal without line drawing the title has a rule below it."""
    lines = [line.strip().strip("│").strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    lines = [line for line in lines if line and not line.startswith(("╭", "╰"))]
    if len(lines) > 2 and set(lines[1]) <= {"-"}:
        lines = lines[2:]
    kept = itertools.takewhile(lambda line: not (set(line) <= set("─-") or line.startswith("Got errors")), lines)
    return " ".join(" ".join(kept).split()).rstrip(".") or "the options could not be read"


def _is_bad_input(error: Exception) -> bool:
    """Whether this is a named error about what the user gave; the packages that raise the others are imported only by what needs them."""
    if isinstance(error, UsageError | StoreError):
        return True
    kinds = (("methods.base", "MethodError"), ("models", "NetworkError"))
    return any(isinstance(error, getattr(sys.modules[module], kind)) for module, kind in kinds if module in sys.modules)


def _missing_package(error: Exception) -> str:
    """What to do where this Python lacks a package; empty where the error is another one."""
    name = (isinstance(error, ModuleNotFoundError) and error.name or "").partition(".")[0]
    if not name or name in ("bench", "methods", "models"):
        return ""
    return f"{sys.executable} has no package {name}; source .venv/bin/activate where run_all.sh made .venv, else see docs/install.md"


def _cannot_write(error: Exception) -> str:
    """What to do where the disk is full, over its quota or read-only, or a file may not be touched; empty where the error is another one."""
    full = (errno.ENOSPC, errno.EDQUOT)
    closed = (errno.EROFS, errno.EACCES, errno.EPERM)
    if not isinstance(error, OSError) or error.errno not in (*full, *closed) or (error.errno in closed and not error.filename):
        return ""  # what may not be done to no file is no matter of the folder
    said = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    return f"{said}; free some space or choose another --results folder"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line. Returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    any_encoding()
    atexit.register(gc.freeze)  # the last collection would walk all of torch: up to half a second at the end of a command
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(overview())
            return 0
        if arguments[0] == "--version":
            print(f"kd-bench {importlib.metadata.version('kd-bench')}")
            return 0
        name, rest = split(arguments)
        options = parse(name, rest)
        if hasattr(options, "check"):
            options.check()  # what can be refused without loading torch
        function = COMMANDS[name].function
        return _named(function)(options) if function else options.main()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        said = _missing_package(error) or _cannot_write(error)
        if not (said or _is_bad_input(error)):
            raise
        print(f"error: {clean(' '.join((said or str(error)).split()), 2000)}", file=sys.stderr)
        return USAGE


if __name__ == "__main__":
    sys.exit(main())
