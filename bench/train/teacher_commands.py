"""The commands about teachers: those at hand, one from a file, one trained here."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import tyro

from bench.errors import unknown
from bench.options import (
    DataOption,
    DeterministicOption,
    DeviceOption,
    DownloadOption,
    EngineOption,
    ResultsOption,
    ThreadsOption,
    TimeBudgetOption,
)
from bench.plan import names, protocols
from bench.plan.expand import TEACHER_SEED
from bench.text import say, table


@dataclass(frozen=True)
class Teachers(ResultsOption):
    """The teachers in a results folder."""


    def main(self) -> int:
        return show_teachers(self.results)


@dataclass(frozen=True, kw_only=True)
class TeachersImport(DeviceOption, DownloadOption, DataOption, ResultsOption):
    """Bring a trained teacher into the results folder; its accuracy is measured on the test set first."""

    file: tyro.conf.Positional[Path]
    """A state dict, bare or under "model", "state_dict" or "net"."""
    architecture: str
    """The network it belongs to: see `pairs`."""
    expected: float | None = None
    """Top-1 in percent that it must reach (within 0.3)."""
    replace: bool = False
    """Take the place of another teacher of that architecture."""
    protocol: str = "crd"
    """The protocol whose data it is for."""

    def check(self) -> None:
        """Raises UsageError for a name that nothing declares."""
        names.check_networks([self.architecture])
        protocols.get(self.protocol)

    def main(self) -> int:
        return import_teacher(self)


@dataclass(frozen=True, kw_only=True)
class TeachersTrain(TimeBudgetOption, DeterministicOption, EngineOption, ThreadsOption, DeviceOption, DownloadOption, DataOption, ResultsOption):
    """Train one teacher in this process; `run` does so by itself for teachers that are missing."""

    architecture: tyro.conf.Positional[str]
    """The network: see `pairs`."""
    protocol: str = "crd"
    """A declared protocol."""
    epochs: int | None = None
    """Scale the schedule: a trial."""
    precision: str = "tf32"
    """tf32, fp32 or bf16."""
    redo: bool = False
    """Train it again though it is there."""

    def check(self) -> None:
        """Raises UsageError for a name that nothing declares."""
        names.check_networks([self.architecture])
        protocols.get(self.protocol)

    def main(self) -> int:
        return train_teacher(self)


def show_teachers(results: Path) -> int:
    """Print the teachers of a results folder."""
    from bench.store import teachers

    found, problems = teachers.available(results)
    records = [t.record for t in found]
    rows = [(r.architecture, r.dataset, r.hash, f"{r.test_top1:.2f} %", r.source, r.trial or "-") for r in records]
    for problem in problems:
        say(f"not to be trusted: {problem.where}: {problem.reason}")
    if not rows:
        print(f"no teachers in {results / 'teachers'}; get one with: python -m bench teachers import FILE --architecture NAME")
        return 0
    print("\n".join(table(rows, ("teacher", "data", "hash", "top-1", "source", "trial"))))
    return 0


def import_teacher(options: TeachersImport) -> int:
    """Measure and import a teacher file. Raises UsageError or NetworkError."""
    import models
    from bench.store.weights import read_state
    from bench.train import teacher_networks
    from bench.train.context import Context
    from bench.train.execution import Execution

    models.shapes(options.architecture)
    read_state(options.file)  # a bad file says so before the data is asked for
    execution = Execution(str(options.results), str(options.data_folder), options.device, download=options.download)
    context = Context(protocols.get(options.protocol), "tf32", execution)
    found = teacher_networks.import_file(
        options.file, options.architecture, options.results, context.dataset, context.images, context.device, options.expected, options.replace
    )
    print(f"{found.folder}: hash {found.hash}, {found.record.test_top1:.2f} % top-1 on {context.dataset.name}")
    return 0


def train_teacher(options: TeachersTrain) -> int:
    """Train a teacher in this process. Returns an exit code. Raises UsageError or NetworkError."""
    import models
    from bench.plan.identity import PRECISIONS
    from bench.train import environment, teacher_training
    from bench.train.execution import Execution

    models.shapes(options.architecture)
    if options.precision not in PRECISIONS:
        raise unknown("precision", options.precision, list(PRECISIONS))
    environment.select(options.device)
    chosen = protocols.get(options.protocol)
    chosen = chosen.scaled(options.epochs) if options.epochs is not None else chosen
    shared = {f.name for f in dataclasses.fields(Execution)} & {f.name for f in dataclasses.fields(TeachersTrain)}
    execution = {name: getattr(options, name) for name in shared} | {"results": str(options.results), "data_root": str(options.data_folder)}
    budget = options.time_budget
    return teacher_training.train(
        options.architecture,
        chosen,
        TEACHER_SEED,
        options.precision,
        Execution(**execution, stop_after_seconds=None if budget is None else 60 * budget),
    )
