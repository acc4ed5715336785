"""`prepare`: build the preparation of a method from a teacher ahead of any run, and print what it found and what it cost."""

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from bench.errors import UsageError
from bench.options import Appended, DataOption, DeviceOption, ResultsOption, ThreadsOption
from bench.plan import names, protocols
from bench.plan.selection import parse_set
from bench.train.execution import Execution


@dataclass(frozen=True, kw_only=True)
class Prepare(ThreadsOption, DeviceOption, DataOption, ResultsOption):
    """Build (or find) what a method prepares from a teacher, and print its figures. Runs that need the same one then use it."""

    method: tyro.conf.Positional[str]
    """A registered method with a preparation, as skd or iep."""
    teacher: tyro.conf.Positional[str]
    """The teacher's architecture; it must be in the results folder: see `teachers`."""
    protocol: str = "crd"
    """The protocol whose training images it sees."""
    sample_rate: float | None = None
    """Class-balanced fraction of them: another preparation, for comparisons."""
    overrides: Annotated[Appended, tyro.conf.arg(name="set")] = ()
    """Change a hyper-parameter: method.field=value; may be given several times."""
    precision: str = "tf32"
    """tf32, fp32 or bf16."""

    def check(self) -> None:
        """Raises UsageError for a name that nothing declares."""
        names.check_methods([self.method])
        names.check_networks([self.teacher])

    def main(self) -> int:
        for line in figures(run(self)):
            print(line)
        return 0


def run(options: Prepare) -> dict[str, Any]:
    """The preparation's facts, with its key, its recorded seconds and this process's CPU seconds for it. Raises UsageError or NetworkError."""
    from bench.plan.members import hyper_of
    from bench.train import environment, preparations
    from bench.train.context import Context
    from methods import registry

    method = registry.get(options.method)
    changes = [parse_set(text) for text in options.overrides]
    for name, field, _ in changes:
        if name != options.method:
            raise UsageError(f"--set {name}.{field}: the method is {options.method}")
    hyper = hyper_of(method, options.teacher, options.teacher, {field: value for _, field, value in changes})
    chosen = protocols.get(options.protocol)
    chosen = chosen.sampled(options.sample_rate) if options.sample_rate is not None else chosen
    execution = Execution.of(options)
    context = Context(chosen, options.precision, execution, options.teacher)
    wanted = context.preparation_of(method, hyper, options.teacher)
    context.teacher()
    began = environment.clocks()
    built = preparations.obtain(context.results, wanted, context.origin, lambda message: print(message, flush=True))
    wall, cpu = (now - before for now, before in zip(environment.clocks(), began, strict=True))
    spent = {"cpu_seconds": cpu, "wall_seconds": wall}
    return {**built.facts(), **spent, "images": len(context.dataset.train_labels)}


def figures(found: dict[str, Any]) -> list[str]:
    """The facts of a preparation as lines of text: lists of tables a line each, the rest as name: value."""
    lines = [f"{found['key']}: {found['images']} images, recorded {found['seconds']:.1f} s"]
    lines.append(f"  now: {found['wall_seconds']:.1f} s, {found['cpu_seconds']:.1f} CPU s")
    for name, value in found["facts"].items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"  {name}: " + ", ".join(f"{k} {_short(v)}" for k, v in row.items()) for row in value]
        else:
            lines.append(f"  {name}: {_short(value)}")
    return lines


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
