"""The commands about teachers: those at hand, one from a file, one trained here."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from bench.errors import check_known
from bench.options import DataOption, DeviceOption, DownloadOption, ResultsOption, TrainingOptions
from bench.plan import names, protocols
from bench.plan.expand import TEACHER_SEED
from bench.text import say, table


@dataclass(frozen=True)
class Teachers(ResultsOption):
    """The teachers in a results folder."""

    def main(self) -> int:
        """Print the teachers of a results folder."""
        from bench.store import teachers

        found, problems = teachers.available(self.results)
        records = [t.record for t in found]
        rows = [(r.architecture, r.dataset, r.hash, f"{r.test_top1:.2f} %", r.source, r.precision or "-", r.trial or "-") for r in records]
        for problem in problems:
            say(f"not to be trusted: {problem.where}: {problem.reason}")
        if not rows:
            print(f"no teachers in {self.results / 'teachers'}; get one with: python -m bench teachers import FILE --architecture NAME")
            return 0
        print("\n".join(table(rows, ("teacher", "data", "hash", "top-1", "source", "precision", "trial"))))
        return 0


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
        """Measure and import a teacher file. Raises UsageError or NetworkError."""
        from bench.store.weights import read_state
        from bench.train import teacher_networks
        from bench.train.context import Context
        from bench.train.execution import Execution

        read_state(self.file)  # a bad file says so before the data is asked for
        execution = Execution.of(self)
        context = Context(protocols.get(self.protocol), "tf32", execution)
        found = teacher_networks.import_file(
            self.file, self.architecture, self.results, context.dataset, context.images, context.device, self.expected, self.replace
        )
        print(f"{found.folder}: hash {found.hash}, {found.record.test_top1:.2f} % top-1 on {context.dataset.name}")
        return 0


@dataclass(frozen=True, kw_only=True)
class TeachersTrain(TrainingOptions):
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
        """Raises UsageError for a name that nothing declares and a time that is none."""
        names.check_networks([self.architecture])
        protocols.get(self.protocol)
        self.check_time_budget()

    def main(self) -> int:
        """Train a teacher in this process. Returns an exit code. Raises UsageError or NetworkError."""
        from bench.plan.identity import PRECISIONS
        from bench.train import environment, teacher_training
        from bench.train.execution import Execution

        check_known("precision", self.precision, PRECISIONS)
        environment.select(self.device)
        chosen = protocols.get(self.protocol)
        chosen = chosen.scaled(self.epochs) if self.epochs is not None else chosen
        execution = Execution.of(self, stop_after_seconds=None if self.time_budget is None else 60 * self.time_budget)
        return teacher_training.train(self.architecture, chosen, TEACHER_SEED, self.precision, execution)
