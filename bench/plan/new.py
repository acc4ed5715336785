"""`new method`: a file to begin with, which trains and passes every generic test as it is."""

import importlib.util
import keyword
import re
from dataclasses import dataclass
from pathlib import Path

import tyro

from bench.errors import UsageError
from bench.plan import names

TEMPLATE = '''"""{title}: say here what the student is to match, and the formula.

Paper: authors, title, venue, year. Say what differs from the paper's code, if anything does.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from methods.base import Batch, Method, Needs, ranged
from methods.registry import register
from models.outputs import Outputs


def {name}_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Logits (B, classes) of both -> scalar: cross-entropy of the student's softmax to the teacher's, mean over the batch."""
    return F.cross_entropy(student, teacher.softmax(1))


@dataclass(frozen=True)
class Hyper:
    weight: float = ranged(0.5, at_least=0)  # of the loss beside the cross-entropy with the labels


@register("{name}")
class {title}(Method):
    title = "{title}"
    paper = "authors, title, venue, year"
    Hyper = Hyper
    teacher_outputs = Needs(logits=True)  # what it reads of the teacher in each step; nothing: no teacher is loaded

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        return {{
            "ce": F.cross_entropy(student.logits, batch.labels),
            "{name}": self.hyper.weight * {name}_loss(student.logits, teacher.logits),
        }}
'''


@dataclass(frozen=True)
class NewMethod:
    """Write methods/NAME.py: a method that trains and passes the tests as it is, to be changed into yours."""

    name: tyro.conf.Positional[str]
    """Lower case letters, digits and underscores; it is the row's name on the command line."""

    def main(self) -> int:
        path = write(self.name, Path(importlib.util.find_spec("methods").submodule_search_locations[0]))
        print(f"written: {path}")
        print(f"  test it:  tests/run.sh tests/methods -k {self.name}")
        print(f"  train it: python -m bench run --profile smoke --methods +{self.name}")
        return 0


def write(name: str, folder: Path) -> Path:
    """The new file. Raises UsageError for a name that is taken or cannot be one."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UsageError(f"{name!r} cannot name a method: lower case letters, digits and underscores, as in my_method")
    path = folder / f"{name}.py"
    if name in names.methods() or path.exists():
        raise UsageError(f"the method {name} is there already; choose another name, or edit {path}")
    title = name.upper() if len(name) <= 4 else "".join(part.capitalize() for part in name.split("_"))
    try:
        path.write_text(TEMPLATE.format(name=name, title=title))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    return path
