"""One row of the table trained by itself, for its cost: on an untrained teacher, with what is prepared for it cut short. A step's work depends
on neither."""

import multiprocessing

import torch

from bench.data import Dataset, augment
from bench.measure import meters
from bench.plan.groups import Group
from bench.plan.members import Member
from bench.plan.protocols import get
from bench.train.context import Context
from bench.train.execution import Execution
from bench.train.learner import Learner
from bench.train.preparations import TrainingImages
from tests.benchmarks.sides import SEED, images

BATCH, PRECISION = 64, "tf32"
QUICK = {"skd": {"fit_steps": 5}, "ft": {"epochs": 1}} | dict.fromkeys(("iep", "iep_bb"), {"phase_epochs": 1, "phase_steps": 2, "check_batches": 1})


class Few:
    """A preparation's data cut after a few batches."""

    def __init__(self, whole: TrainingImages, batches: int) -> None:
        self.whole, self.limit = whole, batches
        self.device, self.classes, self.count = whole.device, whole.classes, batches * BATCH
        self.generator, self.log, self.resume, self.save = whole.generator, whole.log, whole.resume, whole.save

    def batches(self, size: int, **rest):
        for _, batch in zip(range(self.limit), self.whole.batches(size, **rest), strict=False):
            yield batch


def untrained(dataset: Dataset, teacher: str, engine: str = "eager") -> Context:
    """A teacher of that architecture with initial weights, the data set, an engine, one thread."""
    return Context(get("crd"), PRECISION, Execution("no-results", device="cpu", threads=1, engine=engine), teacher, untrained=True, dataset=dataset)


def few(context: Context, batches: int) -> Few:
    return Few(TrainingImages(context.dataset, context.images).named("benchmark"), batches)


def members(context: Context, student: str, names: tuple[str, ...]) -> list[Member]:
    """The rows, those too that cannot do the pair."""
    changes = tuple((name, field, value) for name in names for field, value in QUICK.get(name, {}).items())
    return context.resolved(Group(context.architecture, student, SEED, get("crd"), PRECISION, names, changes))


def learner(context: Context, member: Member, *, batches: int = 4, before: bool = False) -> Learner:
    """At its first epoch; `before`: of the stage before the main one. `batches`: seen by its preparation."""
    preparation = member.method.preparation(member.hyper, member.setting)
    prepared = preparation.build(context.teacher(), few(context, batches)) if preparation else None
    stage = member.pretraining() if before else None
    made = Learner(member.run, member.method, member.hyper, member.setting, prepared, context.device, stage)
    made.begin_epoch(0 if before else 1)
    return made


class Alone:
    """The whole step of one row, from the gathering of the images to the optimiser, the teacher where it needs one."""

    def __init__(self, context: Context, student: str, name: str) -> None:
        self.learner = learner(context, members(context, student, (name,))[0])
        teacher = context.teacher() if self.learner.teacher_needs else None
        self.engine = context.engine(context.images, teacher, [self.learner], PRECISION)
        self.count, self.position = len(context.dataset.train_labels), 0
        self.engine.begin_epoch(augment.draws(SEED, 1, self.count))

    def step(self) -> None:
        if self.position + BATCH > self.count:
            self.position = 0
        failed = self.engine.step(self.position, self.position + BATCH)
        assert not failed, failed
        self.position += BATCH


def peak_memory(teacher: str, student: str, name: str, count: int) -> int:
    """Bytes that two steps of a row hold at most, as a cost probe measures them, on `count` images; in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (teacher, student, name, count))


def _peak_memory(teacher: str, student: str, name: str, count: int) -> int:
    torch.set_num_threads(1)
    context = untrained(images(count), teacher)
    memory = meters.Memory(context.device, context.images)
    alone = Alone(context, student, name)
    for _ in range(2):
        alone.step()
    return memory.peaks()["peak_memory_bytes"]
