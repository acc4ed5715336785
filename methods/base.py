"""The contract between a distillation method and the trainer.

A method declares as data what it needs (which outputs of teacher and student, trainable modules, a preparation stage, its own
backward, pairs it cannot do) and returns a dict of losses. The trainer names no method.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from models.outputs import KINDS, Outputs, Shapes


class MethodError(ValueError):
    """A method cannot be used as asked; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class Needs:
    """Which outputs of a network a method reads in each training step. Raises MethodError for maps that are no tuple of known kinds."""

    logits: bool = False
    embedding: bool = False
    maps: tuple[str, ...] = ()  # kinds, see models.outputs.KINDS

    def __post_init__(self) -> None:
        if not isinstance(self.maps, tuple):
            raise MethodError(f'Needs(maps={self.maps!r}): give a tuple of kinds, as in maps=("stage",)')
        for kind in self.maps:
            if kind not in KINDS:
                raise MethodError(f"Needs(maps={self.maps!r}): there is no kind {kind!r}; the kinds are {', '.join(KINDS)}")

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

    def resume(self) -> Mapping[str, Any] | None:
        """What `save` kept before this stage was stopped, tensors on the CPU; None at the start."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep where a long stage stands (tensors, numbers, texts, and mappings and lists of them); it takes the place of the last state."""


@dataclass(frozen=True)
class Prepared:
    """What a preparation leaves behind: tensors (CPU) and facts (JSON values: figures, layer names, counts)."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preparation:
    """A stage before training that depends on the teacher and its own settings only, so one result serves many students.

    The trainer's side builds it once under a lease, stores it with the teacher's hash, the data's hash, `name`, `version`, `settings` and
    the hash of the file that `build` is written in, refuses it on any mismatch, and records what it cost.
    """

    name: str  # file-name safe, e.g. "skd-embedding"
    version: int
    settings: Mapping[str, Any]  # JSON values: everything that shapes the result besides teacher and data
    build: Callable[[nn.Module, PreparationData], Prepared]  # teacher: frozen, eval mode, on data.device


@dataclass(frozen=True)
class Pretraining:
    """A stage before the main one in which the student itself is trained by `Method.pretraining_losses` (AB, FSP).

    Its epochs count -epochs + 1 ... 0, with data and draws of their own. The student's stem and stages and the method's modules are trained
    by an SGD of their own at a constant rate (momentum and weight decay as the protocol's); what stands behind the last stage (a last
    normalisation, the classifier) stays in eval mode, untouched. The main stage starts with a fresh optimiser.
    """

    epochs: int
    rate: float
    teacher_after: Needs | None = None  # what the main stage reads of the teacher, where that is less than this one; None: the same


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of a method with their own learning rate or weight decay."""

    parameters: Sequence[nn.Parameter]
    rate: float = 1.0  # times the learning rate of the epoch
    weight_decay: float | None = None  # None: the protocol's


@dataclass(frozen=True)
class Inference:
    """What a method adds to its student when it is used: parameters and multiply-accumulates for one image."""

    parameters: int = 0
    macs: int = 0


@dataclass(frozen=True)
class NoHyper:
    """A method without hyper-parameters."""


def ranged(default: Any, *, above: float | None = None, at_least: float | None = None, at_most: float | None = None, added: bool = False) -> Any:
    """A hyper-parameter with the values it can take: see `check_hyper`. One that is None says nothing of its range and is not checked.

    `added`: it joined a method after runs of it were kept, and at its default it is no part of a run's identity.
    """
    limits = {"above": above, "at_least": at_least, "at_most": at_most}
    return field(default=default, metadata={"added": added, "range": {name: limit for name, limit in limits.items() if limit is not None}})


_INSIDE = {"above": operator.gt, "at_least": operator.ge, "at_most": operator.le}


def check_hyper(method: str, hyper: Any) -> None:
    """Hold each number of `hyper` against its declared range. Raises MethodError that names method, field, value and range; NaN is in none."""
    for f in dataclasses.fields(hyper):
        value = getattr(hyper, f.name)
        if not isinstance(value, int | float):
            continue
        limits = f.metadata.get("range", {})
        if not math.isfinite(value) or not all(_INSIDE[name](value, limit) for name, limit in limits.items()):
            words = " and ".join(f"{name.replace('_', ' ')} {limit:g}" for name, limit in limits.items())
            raise MethodError(f"{method}.{f.name} is {value}; it must be {words or 'a finite number'}")


def named_hyper(hyper: Any) -> dict[str, Any]:
    """The hyper-parameters that name a run: all of them, but for `added` ones at their default."""
    kept = (f for f in dataclasses.fields(hyper) if not (f.metadata.get("added") and getattr(hyper, f.name) == f.default))
    return {f.name: dataclasses.asdict(hyper)[f.name] for f in kept}


class Method(nn.Module):
    """One way to distil. Trainable auxiliary modules are ordinary sub-modules (they join the student's SGD group); what must not
    train has `requires_grad=False` or is a buffer. Everything that a resumed run needs is in `state_dict()`."""

    name: ClassVar[str]  # set by @register
    title: ClassVar[str] = ""  # row name in tables
    paper: ClassVar[str] = ""  # one line: authors, title, venue, year
    version: ClassVar[int] = 1  # raise it when the numbers of the method change
    Hyper: ClassVar[type] = NoHyper  # frozen dataclass; defaults are the paper's values
    by_pair: ClassVar[Mapping[tuple[str | None, str], Mapping[str, Any]]] = MappingProxyType({})  # (teacher, student) -> fields that differ there
    teacher_outputs: ClassVar[Needs] = NOTHING  # read of the teacher in each step; NOTHING: no teacher is loaded for the step
    student_outputs: ClassVar[Needs] = NOTHING  # of the student; NOTHING: logits, and what is read of the teacher
    fp32: ClassVar[bool] = False  # True: `losses` runs with autocast off on float32 outputs
    own_backward: ClassVar[bool] = False  # True: the trainer calls `backward` instead of sum(losses).backward()
    capturable: ClassVar[bool] = True  # False: steps read the host or have shapes that depend on data; they are run eagerly
    pairs_stages: ClassVar[str] = ""  # the kind of maps whose stages are compared one to one; networks of unlike counts are then refused
    uses_labels: ClassVar[bool] = True  # False: no "ce" among the losses
    unreleased: ClassVar[tuple[str, ...]] = ()  # first parts of state names that are not kept beside a finished student's weights (a memory bank)

    def __init__(self, hyper: Any, setting: Setting, prepared: Prepared | None = None) -> None:
        """Raises MethodError where the method cannot do this pair."""
        super().__init__()
        if reason := self.reason_against(hyper, setting):
            raise MethodError(reason)
        self.hyper = hyper
        self.setting = setting

    # What it needs, possibly by hyper-parameters.
    @classmethod
    def teacher_needs(cls, hyper: Any) -> Needs:
        return cls.teacher_outputs

    @classmethod
    def student_needs(cls, hyper: Any) -> Needs:
        return cls.student_outputs or Needs(logits=True) | cls.teacher_needs(hyper)

    @classmethod
    def hyper_for(cls, teacher: str | None, student: str) -> Any:
        """The paper's hyper-parameters for a pair of architectures."""
        return cls.Hyper(**cls.by_pair.get((teacher, student), {}))

    @classmethod
    def unsupported(cls, hyper: Any, setting: Setting) -> str | None:
        """The reason why the method cannot do this pair, or None. Not asked where there is no teacher and the method reads one."""
        return None

    @classmethod
    def reason_against(cls, hyper: Any, setting: Setting) -> str | None:
        """Why the method cannot be used here, or None: no teacher where it reads one, unlike stages where it pairs them; what `unsupported` says."""
        if setting.teacher is None and cls.teacher_needs(hyper):
            return f"{getattr(cls, 'name', cls.__name__)} needs a teacher: name one"
        if kind := cls.pairs_stages:
            wide, narrow = (len(shapes.maps[kind]) - 1 for shapes in (setting.teacher, setting.student))
            if wide != narrow:
                return f"{cls.name} pairs stages one to one: {setting.teacher.name} and {setting.student.name} have {wide} and {narrow}"
        return cls.unsupported(hyper, setting)

    @classmethod
    def preparation(cls, hyper: Any, setting: Setting) -> Preparation | None:
        return None

    @classmethod
    def depends_on_teacher(cls, hyper: Any, setting: Setting) -> bool:
        """Whether the numbers of a run depend on the teacher, in the step or through a preparation."""
        return bool(cls.teacher_needs(hyper)) or cls.preparation(hyper, setting) is not None

    @classmethod
    def pretraining(cls, hyper: Any, setting: Setting) -> Pretraining | None:
        """A stage before the main one, or None."""
        return None

    @classmethod
    def main_teacher_needs(cls, hyper: Any, setting: Setting) -> Needs:
        """What a step of the main stage reads of the teacher; nothing: its forward pass is not made."""
        stage = cls.pretraining(hyper, setting)
        return cls.teacher_needs(hyper) if stage is None or stage.teacher_after is None else stage.teacher_after

    @classmethod
    def inference(cls, hyper: Any, setting: Setting) -> Inference:
        """What is evaluated besides the student (see `predict`)."""
        return Inference()

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Trainable parameters of this method that do not simply join the student's group."""
        return ()

    # What it does.
    def start(self, labels: Tensor) -> None:
        """Called once on the device before the first step or before a checkpoint is loaded; labels (N,) int64 of the training images.

        What is derived here (an index of classes, say) belongs into buffers with `persistent=False`.
        """

    def begin_step(self, index: Tensor, generator: torch.Generator) -> None:
        """Called before each step, outside of what may be recorded: draws for the step, written in place into buffers that `losses` reads.

        index (B,) int64: the batch's positions in the training set; `generator` is on the device, keyed by (seed, method, epoch, step).
        """

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Called before each epoch (from 1); `generator` (CPU) is keyed by (seed, method, epoch). Host work belongs here, not in the step.

        A step may be recorded: it sees the tensors it was recorded with, so fill buffers in place and keep no number of an epoch elsewhere.
        """

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """Named loss terms, each a scalar already multiplied by its weight, "ce" among them (unless `uses_labels` is False); the training
        loss is their sum.

        Runs inside a step that may be captured: static shapes, no host read. Batches of 1 and of 16 must give finite losses.
        `teacher` carries no gradient and holds what `teacher_needs` asked for.
        """
        raise NotImplementedError

    def pretraining_losses(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """As `losses`, for the stage that `pretraining` declares; no "ce" is asked for."""
        raise NotImplementedError

    def predict(self, student: Outputs) -> Tensor:
        """The logits (B, classes) that are evaluated: the student's own, unless the method goes another way (SimKD: its projector and the
        teacher's classifier). `student` holds what `student_needs` asked for."""
        return student.logits

    def backward(self, losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> None:
        """Only with `own_backward`: write `.grad` of `parameters` (student's and this method's trainable ones), weight decay excluded."""
        raise NotImplementedError
