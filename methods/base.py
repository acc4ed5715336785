"""The contract between a distillation method and the trainer.

A method declares as data what it needs (which outputs of teacher and student, trainable modules, a preparation stage, its own
backward, pairs it cannot do) and returns a dict of losses. The trainer names no method.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from models.outputs import Outputs, Shapes


@dataclass(frozen=True)
class Needs:
    """Which outputs of a network a method reads in each training step."""

    logits: bool = False
    embedding: bool = False
    maps: tuple[str, ...] = ()  # kinds, see models.outputs.KINDS

    def __bool__(self) -> bool:
        return self.logits or self.embedding or bool(self.maps)

    def __or__(self, other: "Needs") -> "Needs":
        kinds = tuple(sorted({*self.maps, *other.maps}))
        return Needs(self.logits or other.logits, self.embedding or other.embedding, kinds)


NOTHING = Needs()


@dataclass(frozen=True)
class Setting:
    """Where a method is used: the two networks' shapes, the number of classes and training images."""

    student: Shapes
    teacher: Shapes | None  # None where the method needs no teacher at all
    classes: int = 100
    images: int = 50_000

    @property
    def pair(self) -> str:
        return f"{self.teacher.name if self.teacher else '-'}/{self.student.name}"


@dataclass(frozen=True)
class Batch:
    """What a step knows of its images besides the networks' outputs."""

    labels: Tensor  # (B,) int64, on the device
    index: Tensor  # (B,) int64, positions in the training set, on the device


class PreparationData(Protocol):
    """The training images as a preparation stage sees them (implemented by the trainer's side)."""

    device: torch.device
    count: int  # training images
    classes: int

    def batches(self, batch_size: int, *, epoch: int = 0, augment: bool = False, shuffle: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images (B, 3, H, W) fp32 and labels (B,), one pass; order and augmentation keyed by `epoch`; last batch kept."""

    def generator(self, purpose: str, epoch: int = 0) -> torch.Generator:
        """A CPU generator keyed by the preparation's own fixed seed and the purpose."""

    def log(self, message: str) -> None:
        """One line of progress."""


@dataclass(frozen=True)
class Prepared:
    """What a preparation leaves behind: tensors (CPU) and facts (JSON values: figures, layer names, counts)."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preparation:
    """A stage before training that depends on the teacher and its own settings only, so one result serves many students.

    The trainer's side builds it once under a lease, stores it with the teacher's hash, the data's hash, `name`, `version` and
    `settings`, refuses it on any mismatch, and records what it cost.
    """

    name: str  # file-name safe, e.g. "skd-embedding"
    version: int
    settings: Mapping[str, Any]  # JSON values: everything that shapes the result besides teacher and data
    build: Callable[[nn.Module, PreparationData], Prepared]  # teacher: frozen, eval mode, on data.device


@dataclass(frozen=True)
class NoHyper:
    """A method without hyper-parameters."""


class MethodError(ValueError):
    """A method cannot be used as asked; the message is one line that says why and what to do."""


class Method(nn.Module):
    """One way to distil. Trainable auxiliary modules are ordinary sub-modules (they join the student's SGD group); what must not
    train has `requires_grad=False` or is a buffer. Everything that a resumed run needs is in `state_dict()`."""

    name: ClassVar[str]  # set by @register
    title: ClassVar[str] = ""  # row name in tables
    paper: ClassVar[str] = ""  # one line: authors, title, venue, year
    version: ClassVar[int] = 1  # raise it when the numbers of the method change
    Hyper: ClassVar[type] = NoHyper  # frozen dataclass; defaults are the paper's values
    teacher: ClassVar[Needs] = NOTHING  # read of the teacher in each step; NOTHING: no teacher is loaded for the step
    student: ClassVar[Needs] = Needs(logits=True)
    fp32: ClassVar[bool] = False  # True: `losses` runs with autocast off on float32 outputs
    own_backward: ClassVar[bool] = False  # True: the trainer calls `backward` instead of sum(losses).backward()
    capturable: ClassVar[bool] = True  # False: steps read the host or have shapes that depend on data; they are run eagerly

    def __init__(self, hyper: Any, setting: Setting, prepared: Prepared | None = None) -> None:
        super().__init__()
        self.hyper = hyper
        self.setting = setting

    # What it needs, possibly by hyper-parameters.
    @classmethod
    def teacher_needs(cls, hyper: Any) -> Needs:
        return cls.teacher

    @classmethod
    def student_needs(cls, hyper: Any) -> Needs:
        return cls.student

    @classmethod
    def hyper_for(cls, teacher: str | None, student: str) -> Any:
        """The paper's hyper-parameters for a pair of architectures."""
        return cls.Hyper()

    @classmethod
    def unsupported(cls, hyper: Any, setting: Setting) -> str | None:
        """The reason why the method cannot do this pair, or None."""
        return None

    @classmethod
    def preparation(cls, hyper: Any, setting: Setting) -> Preparation | None:
        return None

    @classmethod
    def depends_on_teacher(cls, hyper: Any, setting: Setting) -> bool:
        """Whether the numbers of a run depend on the teacher, in the step or through a preparation."""
        return bool(cls.teacher_needs(hyper)) or cls.preparation(hyper, setting) is not None

    # What it does.
    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Called before each epoch (from 1); `generator` (CPU) is keyed by (seed, method, epoch). Host work belongs here, not in the step.

        A step may be recorded: it sees the tensors it was recorded with, so fill buffers in place and keep no number of an epoch elsewhere.
        """

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Named loss terms, each a scalar already multiplied by its weight, "ce" among them; the training loss is their sum.

        Runs inside a step that may be captured: static shapes, no host read. Batches of 1 and of 16 must give finite losses.
        `teacher` carries no gradient and holds what `teacher_needs` asked for.
        """
        raise NotImplementedError

    def backward(self, losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> None:
        """Only with `own_backward`: write `.grad` of `parameters` (student's and this method's trainable ones), weight decay excluded."""
        raise NotImplementedError
