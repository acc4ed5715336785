"""`analyse` and `analyses`: run an analysis on trained networks of the results folder; list what there is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bench.analysis.frame import registry, results, subjects
from bench.analysis.frame.base import Analysis, Stored, options_of
from bench.errors import UsageError
from bench.options import Appended, DataOption, DeviceOption, ResultsOption, ThreadsOption
from bench.plan import names
from bench.text import LONG, clean, say, table
from bench.train.execution import Execution


@dataclass(frozen=True)
class Analyses(ResultsOption):
    """The registered analyses, what each asks and needs, how many results there are, and files that could not be loaded."""

    def main(self) -> int:
        found, problems = results.scan(self.results)
        for name in registry.names():
            one = registry.get(name)
            count = sum(stored.name == name for stored in found)
            print(f"{name}: {one.question}\n  needs {one.needs.words()}; {count} result{'s' * (count != 1)} in {self.results}")
        for name, error in registry.broken().items():
            say(f"{name}: BROKEN, {error}")
        for where, reason in problems:
            say(f"{where}: cannot be read, {reason}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Analyse(ThreadsOption, DeviceOption, DataOption, ResultsOption):
    """Ask trained networks one question. A finished result is not made again; unfinished work goes on where it stood."""

    name: tyro.conf.Positional[str]
    """An analysis: see `analyses`."""
    networks: tyro.conf.Positional[tuple[str, ...]] = ()
    """A teacher (resnet56), a pair (resnet56-resnet20: its teacher and all finished students), or run ids. None: every teacher at hand."""
    changes: Annotated[Appended, tyro.conf.arg(name="set")] = ()
    """Change an option of the analysis: field=value; may be given several times."""
    protocol: str | None = None
    """The protocol whose images are shown; default: that of the runs named, else crd."""

    def check(self) -> None:
        """Raises UsageError for what can be refused without loading torch: the analysis, its options, the words that name networks."""
        options_of(registry.get(self.name), self.changes)
        if not self.results_there():
            raise UsageError(f"{self.results} is no folder; give the results folder with --results")
        self.words()

    def words(self) -> subjects.Words:
        return subjects.read(self.networks, self.results, names.networks(), self.protocol)

    def main(self) -> int:
        for stored in run(self):
            print("\n".join(lines(registry.get(self.name), stored, self.results)))
        print(f"figures and tables: python -m bench report {self.results} --figures")
        return 0


def run(options: Analyse) -> list[Stored]:
    """The results, stored before or made now. Raises UsageError, StoreError, MethodError or NetworkError."""
    analysis = registry.get(options.name)
    chosen = analysis(options_of(analysis, options.changes))
    from bench.analysis.frame.context import PRECISION, Context, obtain
    from bench.train import context

    words = options.words()
    execution = Execution.of(options)
    machine = context.Context(words.protocol, PRECISION, execution)
    dataset = machine.dataset
    check(analysis, dataset)
    groups = subjects.choose(words, options.results, dataset.name, dataset.hash, analysis.scope, analysis.needs.students)
    return [obtain(chosen, Context(machine, group, lambda text: print(text, flush=True))) for group in groups]


def check(analysis: type[Analysis], dataset) -> None:
    """Raises UsageError where the data lack what the analysis needs."""
    if analysis.needs.masks and dataset.test_masks is None:
        raise UsageError(f"{analysis.name} needs masks of the objects, and {dataset.name} has none; embedded images have: use --protocol smoke")


def lines(analysis: type[Analysis], stored: Stored, root: Path) -> list[str]:
    """A result for the terminal: its tables, what it cost, where it lies. Raises StoreError."""
    out = ["", f"{analysis.title}: {stored.subject} on {stored.identity['data']['name']}"]
    for one in results.tables(analysis, stored):
        out += [one.title, *("  " + line for line in table(one.rows, one.header)), *one.notes, ""]
    cost = stored.cost
    out.append(f"cost: {cost['seconds']:.1f} s, {cost['cpu_seconds']:.1f} CPU s on {cost['device']}, {cost['threads']} threads")
    out.append(f"written: {results.place(root, stored.identity)}")
    return [clean(line, LONG) for line in out]
