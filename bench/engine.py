"""Engines: how a group's step is executed. Every engine gives the eager numbers; which one ran is recorded, not part of a run's identity."""

from collections.abc import Sequence

import torch
from torch import nn

from bench.data.augment import Augmenter, Draws
from bench.learner import Learner, teacher_forward
from bench.protocol import unknown
from methods.base import NOTHING, Batch

NAMES = ("eager",)


def choose(name: str, device: torch.device) -> type["Eager"]:
    """The engine of that name; `auto` is the fastest that is exact on the device. Raises UsageError."""
    if name in ("auto", "eager"):
        return Eager
    raise unknown("engine", name, ["auto", *NAMES])


class DeviceLost(RuntimeError):
    """The device itself failed: no learner is to blame, the job ends and its members are resumed by the next."""


class Eager:
    """One operator after another; the learners take turns on the batch they share."""

    name = "eager"

    def __init__(self, data: Augmenter, teacher: nn.Module | None, learners: Sequence[Learner], precision: str) -> None:
        self.data, self.teacher, self.precision = data, teacher, precision
        self.learners = list(learners)

    def begin_epoch(self, draws: Draws) -> None:
        """Bring an epoch's draws to the device."""
        self.draws = draws.to(self.data.device)

    def drop(self, learner: Learner) -> None:
        """Leave a learner out from now on."""
        self.learners.remove(learner)

    def step(self, start: int, stop: int) -> list[tuple[Learner, Exception]]:
        """Train every learner on the images at [start, stop) of the epoch's order; gives those that failed, with the error."""
        d = self.draws
        index = d.order[start:stop]
        images = self.data.train_batch(index, d.dy, d.dx, d.flip)
        batch = Batch(self.data.train_labels[index], index)
        needs = NOTHING
        for learner in self.learners:
            needs = needs | learner.teacher_needs
        shared = teacher_forward(self.teacher, images, needs, self.precision) if needs else None
        failed = []
        for learner in self.learners:
            try:
                learner.step(images, shared if learner.teacher_needs else None, batch, start)
            except Exception as error:  # a stranger's method may raise anything: the others go on
                if _lost(error):
                    raise DeviceLost(str(error)) from error
                failed.append((learner, error))
        return failed


def _lost(error: Exception) -> bool:
    """Whether the device is gone, rather than the learner at fault (running out of memory is the learner's)."""
    return not isinstance(error, torch.OutOfMemoryError) and "CUDA error" in str(error)
