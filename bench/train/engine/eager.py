"""The plain engines, and what all engines share: the batch, the teacher's pass, and trouble that stays with the learner that has it."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.data.augment import Augmenter, Draws
from bench.train.learner import Learner, teacher_forward
from methods.base import NOTHING, Batch
from models import folded, native
from models.outputs import Outputs

Failures = list[tuple[Learner, Exception]]


class DeviceLost(RuntimeError):
    """The device itself failed: no learner is to blame, the job ends and its members are resumed by the next."""


class Shared(NamedTuple):
    """What the learners of a step have in common."""

    images: Tensor  # (B, 3, H, W) normalised
    batch: Batch
    teacher: Outputs | None


class Eager:
    """One operator after another; the learners take turns on the batch they share."""

    name = "eager"
    divisible = False
    """Whether the trainer would rather train the learners in halves than slowly: running out of memory is then raised wherever it happens."""

    def __init__(self, data: Augmenter, teacher: nn.Module | None, learners: Sequence[Learner], precision: str) -> None:
        self.data, self.precision = data, precision
        self.teacher = folded(teacher) if teacher is not None else None
        self.learners = list(learners)
        for learner in self.learners:  # those that the trainer did not start before it loaded their state
            learner.start(data.train_labels)

    def ran(self, learner: Learner) -> str:
        """The name of the engine that executed this learner's last steps."""
        return self.name

    def begin_epoch(self, draws: Draws) -> None:
        """Bring an epoch's draws to the device."""
        self.draws = draws.to(self.data.device)

    def drop(self, learner: Learner) -> None:
        """Leave a learner out from now on."""
        self.learners.remove(learner)

    def step(self, start: int, stop: int) -> Failures:
        """Train every learner on the images at [start, stop) of the epoch's order; gives those that failed, with the error.

        Raises DeviceLost.
        """
        index = self.draws.order[start:stop]
        failed = self.draw(index, start)
        return failed + train(self.learners_without(failed), self.shared(index), start)

    def draw(self, index: Tensor, start: int) -> Failures:
        """The draws of those methods that make some for each step, on the device and outside of what may be recorded. Raises DeviceLost."""
        return _each((one for one in self.learners if one.draws_in_steps), lambda learner: learner.begin_step(index, start), index.device)

    def learners_without(self, failed: Failures) -> list[Learner]:
        """The learners but those that failed."""
        failing = {learner for learner, _ in failed}
        return [one for one in self.learners if one not in failing]

    def shared(self, index: Tensor) -> Shared:
        """The augmented batch of dataset positions (B,) int64 on the device, and the teacher's outputs if any learner reads them."""
        d = self.draws
        images = self.data.train_batch(index, d.dy, d.dx, d.flip)
        needs = NOTHING
        for learner in self.learners:
            needs = needs | learner.teacher_needs
        outputs = teacher_forward(self.teacher, images, needs, self.precision) if needs else None
        return Shared(images, Batch(self.data.train_labels[index], index), outputs)


class Native(Eager):
    """Eager steps on a CPU with the networks' normalisation, residual sum and ReLU as one compiled operator (models.native): the eager
    numbers but for rounding."""

    name = "native"

    def step(self, start: int, stop: int) -> Failures:
        with native.switched_on():
            return super().step(start, stop)


def train(learners: Sequence[Learner], shared: Shared, start: int) -> Failures:
    """One step of each learner, one after the other. `start`: where in the epoch the batch begins. Raises DeviceLost."""
    images = shared.images
    return _each(learners, lambda one: one.step(images, shared.teacher if one.teacher_needs else None, shared.batch, start), images.device)


def _each(learners: Iterable[Learner], work: Callable[[Learner], None], device: torch.device) -> Failures:
    """Do a piece of work for each learner; gives those that failed, with the error. Raises DeviceLost."""
    failed = []
    for learner in learners:
        try:
            work(learner)
        except Exception as error:  # a stranger's method may raise anything: the others go on
            if is_lost(error, device):
                raise DeviceLost(str(error)) from error
            failed.append((learner, error))
    return failed


def is_lost(error: Exception, device: torch.device) -> bool:
    """Whether the device is gone, rather than the learner at fault: an error of CUDA's after which nothing can be computed any more. Not while
    a stream captures, when nothing can be tried."""
    return is_of_device(error) and not answers(device)


def is_of_device(error: Exception) -> bool:
    """Whether CUDA or cuDNN says that something went wrong, running out of memory aside."""
    return any(text in str(error) for text in ("CUDA error", "cuDNN error")) and not is_short_of_memory(error)


def answers(device: torch.device) -> bool:
    """Whether the device still computes."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return bool(torch.ones((), device=device).item() == 1)
    except RuntimeError:
        return False


def is_short_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch's, the driver's own, or that of a library that takes its own."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _SHORT_OF_MEMORY)


_SHORT_OF_MEMORY = (
    "CUDA error: out of memory",  # the driver's: a graph's first launch, a kernel's code
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # no room for a handle
    "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",  # cuDNN 9 and later
)
