"""The commands: frozen dataclasses that tyro turns into options, each with `main() -> exit code`. Imports what a command needs inside it.

A command is added by one entry in COMMANDS; its class may live in any module.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Command:
    """Where a command's class is ("module:Class") and what it does."""

    where: str
    summary: str


COMMANDS = MappingProxyType(
    {
        "run": Command("bench.commands:Run", "train what is missing of a profile, measure costs, write the report"),
        "status": Command("bench.commands:Status", "what is done, running, failed"),
        "teachers": Command("bench.commands:Teachers", "list the teachers at hand"),
        "teachers import": Command("bench.commands:TeachersImport", "bring in a trained teacher from a file"),
        "teachers train": Command("bench.commands:TeachersTrain", "train one teacher"),
        "prepare": Command("bench.prepare:Prepare", "build what a method prepares from a teacher, and print its figures"),
        "doctor": Command("bench.doctor:Doctor", "what is wrong with data, devices, disk, records, and the command that mends it"),
        "speed": Command("bench.speed:Speed", "step times for each engine, precision and pair here, and the hours for the whole table"),
        "equivalence": Command("bench.equivalence:Equivalence", "whether a faster precision may stand in for a slower one"),
        "nightly": Command("bench.nightly.command:Nightly", "a fixed small plan against its history; exits 1 on a regression"),
        "tensorboard": Command("bench.tensorboard:Tensorboard", "write the epochs of runs as TensorBoard event files"),
        "methods": Command("bench.commands:Methods", "list the methods"),
        "pairs": Command("bench.commands:Pairs", "list the declared pairs and the networks"),
        "profiles": Command("bench.commands:Profiles", "list the profiles and protocols"),
    }
)


def overview() -> str:
    """What `python -m bench` alone prints."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name.ljust(width)}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "A benchmark suite for knowledge distillation on CIFAR-100.",
            "",
            "usage: python -m bench COMMAND [OPTIONS]      (python -m bench COMMAND --help lists the options)",
            "       python -m bench.report RESULTS         writes the tables, figures and page",
            "",
            *lines,
            "",
            "first steps:",
            "  python -m bench run --profile smoke                      everything once, in minutes, without a GPU or data",
            "  python -m bench run --profile paper --dry-run            what Table 1 takes on this machine",
            "  python -m bench run --pairs resnet56-resnet20 --seeds 1  one pair, one seed",
        ]
    )


def data_root() -> Path:
    return Path(os.environ.get("KD_BENCH_DATA", "data"))


Texts = tuple[str, ...]
Appended = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class Run:
    """Train what is missing of a profile (teachers first), measure costs, write the report. Done runs are never run again."""

    profile: str = "paper"
    """A declared plan: see `profiles`."""
    methods: Texts = ()
    """Rows instead of the profile's; a name with + before it joins them, as in +iep_bb."""
    pairs: Texts = ()
    """Pairs instead of the profile's, as in resnet56-resnet20."""
    seeds: Texts = ()
    """Seeds instead of the profile's, as in 1,2 or 1-3."""
    epochs: int | None = None
    """Scale the schedule to so many epochs: a trial, not the protocol."""
    sample_rate: float | None = None
    """Class-balanced fraction of the training set: a trial."""
    protocol: str | None = None
    """A declared protocol instead of the profile's."""
    precision: str | None = None
    """tf32, fp32 or bf16."""
    overrides: Annotated[Appended, tyro.conf.arg(name="set")] = ()
    """Change a hyper-parameter: method.field=value; may be given several times."""
    redo: bool = False
    """Forget the results of the selected runs and train them again."""
    results: Path = Path("results")
    """Where results go and are looked for."""
    data_root: Path | None = None
    """Folder that holds cifar-100-python; default: $KD_BENCH_DATA, else ./data."""
    download: bool = False
    """Fetch CIFAR-100 (169 MB) to the data root if it is not there."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto: every visible GPU, else the CPU."""
    threads: int | None = None
    """CPU threads of each job; default: the cores shared evenly."""
    groups_per_gpu: int = 1
    """Groups that share a GPU."""
    engine: str = "auto"
    """How steps are executed: auto, eager, native, static or graph. Every engine gives the same numbers but for rounding."""
    deterministic: bool = False
    """Deterministic algorithms: the same bits after a resume."""
    checkpoint_seconds: float = 60.0
    """What a killed run may lose, in seconds."""
    time_budget: float | None = None
    """Minutes after which everything stops cleanly with exit code 75; the next launch goes on."""
    costs: bool = True
    """Measure the cost of each (pair, method) that has none, after training."""
    dry_run: bool = False
    """Print the plan and what it will cost, and do nothing."""
    yes: bool = False
    """Submit to Slurm without asking."""
    cluster: Literal["auto", "local", "slurm"] = "auto"
    """Where jobs run; auto: Slurm where a controller answers, else this machine."""
    partition: str | None = None
    """Slurm partition."""
    account: str | None = None
    """Slurm account."""
    qos: str | None = None
    """Slurm quality of service."""
    constraint: str | None = None
    """Slurm constraint on nodes."""
    time: int = 24 * 60
    """Slurm time limit of a job, in minutes; a job that meets it saves its state and is queued again."""
    cpus: int = 4
    """Slurm CPUs of a job."""
    setup: Appended = ()
    """A shell line to run before a Slurm job, as in "module load cuda"; may be given several times."""

    def main(self) -> int:
        from bench import campaign

        return campaign.run(self)


@dataclass(frozen=True)
class Status:
    """Counts and a table of the runs in a results folder."""

    results: Path = Path("results")
    """The results folder."""
    all: bool = False
    """List the done runs too."""
    watch: bool = False
    """Show the live table until interrupted."""

    def main(self) -> int:
        from bench import status

        return status.watch(self.results) if self.watch else status.show(self.results, self.all)


@dataclass(frozen=True)
class Methods:
    """The registered methods, and files that could not be loaded."""

    def main(self) -> int:
        from bench import listing

        return listing.show_methods()


@dataclass(frozen=True)
class Pairs:
    """The declared pairs, and the networks of which others can be made."""

    def main(self) -> int:
        from bench import listing

        return listing.show_pairs()


@dataclass(frozen=True)
class Profiles:
    """The declared profiles and protocols."""

    def main(self) -> int:
        from bench import listing

        return listing.show_profiles()


@dataclass(frozen=True)
class Teachers:
    """The teachers in a results folder."""

    results: Path = Path("results")
    """The results folder."""

    def main(self) -> int:
        from bench import listing

        return listing.show_teachers(self.results)


@dataclass(frozen=True)
class TeachersImport:
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
    results: Path = Path("results")
    """The results folder."""
    data_root: Path | None = None
    """Folder that holds cifar-100-python; default: $KD_BENCH_DATA, else ./data."""
    download: bool = False
    """Fetch CIFAR-100 (169 MB) to the data root if it is not there."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def main(self) -> int:
        from bench import listing

        return listing.import_teacher(self)


@dataclass(frozen=True)
class TeachersTrain:
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
    results: Path = Path("results")
    """The results folder."""
    data_root: Path | None = None
    """Folder that holds cifar-100-python; default: $KD_BENCH_DATA, else ./data."""
    download: bool = False
    """Fetch CIFAR-100 (169 MB) to the data root if it is not there."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = None
    """CPU threads."""
    engine: str = "auto"
    """How steps are executed: auto, eager, native, static or graph."""
    deterministic: bool = False
    """Deterministic algorithms."""
    time_budget: float | None = None
    """Minutes after which it stops cleanly with exit code 75."""

    def main(self) -> int:
        from bench import listing

        return listing.train_teacher(self)
