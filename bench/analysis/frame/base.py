"""The contract of an analysis: what it needs, its options, `run`, and how its result is read (tables, figures). No torch here."""

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from bench.errors import UsageError, unknown
from bench.plan.selection import typed

SCOPES = ("network", "group")
"""`network`: run once for each named network, one result each. `group`: run once for a teacher and its students together."""


@dataclass(frozen=True)
class Needs:
    """What an analysis is given. What is not there is refused before anything runs."""

    students: bool = False  # at least one finished student (scope "group")
    preparation: str = ""  # the method whose preparation of the network it reads, as skd
    concepts: bool = False  # annotated images: a probe
    masks: bool = False  # which pixels are the object

    def words(self) -> str:
        """For people: "students, masks"."""
        named = [f"preparation of {self.preparation}"] if self.preparation else []
        flags = {"students": self.students, "annotated images": self.concepts, "masks": self.masks}
        return ", ".join(["a network", *named, *(name for name, wanted in flags.items() if wanted)])


@dataclass(frozen=True)
class Result:
    """What `run` gives: facts (JSON values, no NaN) and named arrays."""

    facts: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """A result as it lies in the results folder, with what it was made of and what it cost."""

    key: str  # the folder's name
    name: str
    identity: Mapping[str, Any]  # name, version, options, networks, data
    facts: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    cost: Mapping[str, Any]  # seconds, cpu_seconds, device, threads, versions, commit, finished

    @property
    def options(self) -> Mapping[str, Any]:
        return self.identity["options"]

    @property
    def subject(self) -> str:
        """The networks it is about, for captions: "resnet56", "resnet56 and 4 students"."""
        names = [n["label"] for n in self.identity["networks"]]
        return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


@dataclass(frozen=True)
class Table:
    """A table of a result. Cells are text; `title` says what the numbers are, with units."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Drawing:
    """A figure with its text equivalent."""

    name: str  # file-name safe, unique within a result
    caption: str
    text: str  # what the figure shows, in words and numbers, for who does not see it
    figure: Any  # matplotlib.figure.Figure


@dataclass(frozen=True)
class NoOptions:
    """An analysis without options."""


class Analysis:
    """One question to trained networks. The class is made without torch; `run` may load it."""

    name: ClassVar[str]  # set by @register
    title: ClassVar[str]
    question: ClassVar[str]  # one line
    source: ClassVar[str] = ""  # one line: authors, title, venue, year
    version: ClassVar[int] = 1  # raise it when the numbers change
    before: ClassVar[Mapping[int, str]] = {}  # of earlier versions, what was wrong: told with the results of theirs that were kept
    needs: ClassVar[Needs] = Needs()
    scope: ClassVar[str] = "network"
    Options: ClassVar[type] = NoOptions  # frozen dataclass; defaults are the source's values

    def __init__(self, options: Any) -> None:
        self.options = options

    def identity(self) -> dict[str, Any]:
        """What names a result besides networks and data. Options that are `field(metadata={"speed": True})` change no number and are left out."""
        kept = [f.name for f in dataclasses.fields(self.options) if not f.metadata.get("speed")]
        values = dataclasses.asdict(self.options)
        return {"name": self.name, "version": self.version, "options": {n: list(v) if isinstance(v := values[n], tuple) else v for n in kept}}

    def prepares(self) -> dict[str, dict[str, Any]]:
        """The methods whose preparations it reads, each with the hyper-parameters that it changes: their code and settings name a result too."""
        return {}

    def made_of(self, context: Any) -> dict[str, Any]:
        """What else names a result and is known with the networks and the data only: hashes of further files. JSON values; may raise UsageError."""
        return {}

    def run(self, context: Any) -> Result:
        """The result for `context` (frame.context.Context). May raise UsageError for what cannot be done."""
        raise NotImplementedError

    @classmethod
    def tables(cls, stored: Stored) -> list[Table]:
        """The result in numbers."""
        raise NotImplementedError

    @classmethod
    def draw(cls, stored: Stored) -> list[Drawing]:
        """The result in figures; loads matplotlib."""
        return []


def options_of(analysis: type[Analysis], changes: Sequence[str]) -> Any:
    """The analysis' options with "field=value" texts applied. Raises UsageError for an unknown field or a value it cannot take."""
    hints = typing.get_type_hints(analysis.Options)
    known = [f.name for f in dataclasses.fields(analysis.Options)]
    chosen: dict[str, Any] = {}
    for text in changes:
        name, equals, value = text.removeprefix(f"{analysis.name}.").partition("=")
        if not equals:
            raise UsageError(f"--set {text}: expected field=value; {analysis.name} has {', '.join(known) or 'no options'}")
        if name not in hints:
            raise unknown(f"option of {analysis.name}", name, known) if known else UsageError(f"--set {text}: {analysis.name} has no options")
        try:
            chosen[name] = typed(value, hints[name])
            numbers = [v for v in (chosen[name] if isinstance(chosen[name], tuple) else [chosen[name]]) if isinstance(v, float)]
            if not all(map(math.isfinite, numbers)):
                raise ValueError("expected finite numbers")
        except ValueError as error:
            raise UsageError(f"--set {text}: {error}") from None
    try:
        return analysis.Options(**chosen)
    except ValueError as error:
        raise UsageError(f"--set: {error}") from None
