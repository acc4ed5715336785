"""Why a run failed, in one line: what the system or the method's code says, and where in the method's file."""

import inspect
import traceback
from pathlib import Path

import methods
from bench.text import clean
from methods.base import Method, MethodError

_ROOT = Path(methods.__file__).resolve().parents[1]
WIDTH = 300


def reason(error: BaseException, method: type[Method] | None = None) -> str:
    """One line without control characters. What the system says (a full disk) stands first; an error out of a method's code names its file
    and line."""
    if isinstance(error, OSError) and error.strerror:
        return clean(f"{error.strerror}: {error.filename}" if error.filename else error.strerror)
    where = method and place(error, method)
    return f"{f'{where}: ' if where else ''}{type(error).__name__}: {clean(' '.join(str(error).split()), WIDTH)}"


def place(error: BaseException, method: type[Method]) -> str | None:
    """File and line of the innermost frame in the method's file (or package): "methods/kd.py:29". None where no frame is in it.

    Losses that break the contract are found after the method returned: for those it is the line of `losses`.
    """
    try:
        file = Path(inspect.getfile(method)).resolve()
    except (TypeError, OSError):  # a class made on the fly
        return None
    inside = file.parent if file.name == "__init__.py" else file
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if (found := Path(frame.filename).resolve()) == inside or inside in found.parents:
            return f"{_shown(found)}:{frame.lineno}"
    if isinstance(error, MethodError) and (code := getattr(method.losses, "__code__", None)):
        return f"{_shown(Path(code.co_filename).resolve())}:{code.co_firstlineno}"
    return None


def _shown(file: Path) -> str:
    return str(file.relative_to(_ROOT) if file.is_relative_to(_ROOT) else file)
