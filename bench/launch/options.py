"""The options of `run`."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from bench.errors import UsageError, unknown
from bench.options import Appended, Texts, TrainingOptions
from bench.plan import names, protocols
from bench.plan.identity import PRECISIONS
from bench.plan.profiles import DEFAULT_PROFILE, get_profile
from bench.plan.selection import parse_pair, parse_seeds, parse_set, words

LEAST_MINUTES = 5
"""Of a Slurm job: in less it would start, stop and be queued again without a step."""


@dataclass(frozen=True)
class Run(TrainingOptions):
    """Train what is missing of a profile (teachers first), measure costs, write the report. Done runs are never run again."""

    profile: str | None = None
    """A declared plan: see `profiles`; default: paper."""
    methods: Texts = ()
    """Rows instead of the profile's; a name with + before it joins them, as in +iep_bb; with settings after colons it is a row of its own
    beside its method's, as in kd:temperature=2."""
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
    teacher: Appended = ()
    """A trained teacher to import first: ARCHITECTURE=FILE, or a file that `export` wrote; may be given several times."""
    redo: bool = False
    """Train the selected runs again; the old results stay until the new record takes their place."""
    groups_per_gpu: int = 1
    """Groups that share a GPU; without effect on Slurm, where each job asks for one of its own."""
    checkpoint_seconds: float = 60.0
    """What a killed run may lose, in seconds."""
    keep_epochs: Texts = ()
    """Keep the student's weights after these epochs (0: before the first), as in 0,5,10-15, for analyses of how it learned."""
    costs: bool = True
    """Measure the cost of each (pair, method) that has none, after training."""
    dry_run: bool = False
    """Print the plan and what it will cost, and do nothing."""
    yes: bool = False
    """Submit to Slurm, or start what takes days, without asking."""
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

    def check(self) -> None:
        """Raises UsageError for a name that nothing declares and a number out of its range."""
        self.check_time_budget()
        self.check_device()
        for name in ("groups_per_gpu", "threads", "time", "cpus"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: at least 1")
        if self.time < LEAST_MINUTES:
            raise UsageError(f"--time {self.time}: at least {LEAST_MINUTES} minutes; a job stops up to three before its end, to be queued again")
        if not 0 <= self.checkpoint_seconds < float("inf"):
            raise UsageError(f"--checkpoint-seconds {self.checkpoint_seconds}: at least 0, which is after every step")
        get_profile(self.profile or DEFAULT_PROFILE)
        for name in ("methods", "pairs", "seeds"):
            if getattr(self, name) and not words(getattr(self, name)):
                raise UsageError(f"--{name} names nothing; leave it out for the profile's own")
        if self.protocol is not None:
            protocols.get(self.protocol)
        if self.precision is not None and self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, list(PRECISIONS))
        parse_seeds(self.seeds)
        parse_seeds(self.keep_epochs, "--keep-epochs")
        names.check_rows(words(self.methods))
        names.check_methods(parse_set(text)[0] for text in self.overrides)
        for text in words(self.pairs):
            parse_pair(text, names.networks())
        for text in self.teacher:
            names.parse_teacher(text)
