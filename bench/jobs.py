"""What a submitted job executes. No torch at import: a launcher pickles these by name."""

from dataclasses import dataclass

from bench.protocol import Protocol

DONE, TROUBLE, USAGE, STOPPED_IN_TIME, INTERRUPTED = 0, 1, 2, 75, 130
"""Exit codes: all done; some run failed or diverged; bad input; stopped at a step in time, resumable; stopped by a signal, resumable."""


@dataclass(frozen=True)
class Group:
    """The runs of one (pair, seed, protocol, precision): the unit of work."""

    teacher: str | None
    student: str
    seed: int
    protocol: Protocol
    precision: str
    methods: tuple[str, ...]
    hyper: tuple[tuple[str, str, object], ...] = ()  # overrides: (method, field, value)
    title: str = ""  # of its runs in place of the methods' titles: "Teacher" keeps a teacher's own training out of the tables

    def overrides(self, method: str) -> dict[str, object]:
        return {field: value for name, field, value in self.hyper if name == method}


@dataclass(frozen=True)
class Where:
    """How and where a job runs: never part of a run's identity."""

    results: str
    data_root: str | None = None
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    threads: int | None = None
    engine: str = "auto"
    deterministic: bool = False
    redo: bool = False
    checkpoint_seconds: float = 60.0
    stop_after_seconds: float | None = None  # stop cleanly at a step after so long, exit code 75
    download: bool = False


def run_teacher(architecture: str, protocol: Protocol, seed: int, precision: str, where: Where) -> int:
    """Train a teacher under the protocol and publish it in the results folder. Returns an exit code."""
    from bench import teachers

    return teachers.train(architecture, protocol, seed, precision, where)


def run_group(group: Group, where: Where) -> int:
    """Train what is not yet done of a group. Returns an exit code. Raises UsageError for bad input, before anything is written."""
    from bench import train

    return train.run_group(group, where)
