"""Steps on buffers that stay where they are, recorded once for each batch shape: all that a captured step needs, capture aside."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.data.augment import Augmenter, Draws
from bench.text import say
from bench.train.engine import state
from bench.train.engine.eager import DeviceLost, Eager, Failures, Shared, is_lost, is_short_of_memory, train
from bench.train.learner import Learner

TRIALS = 2
"""Steps before the recording, taken back afterwards: libraries set themselves up in the first, and choose algorithms."""


@dataclass
class Recorded:
    """The step of one batch shape."""

    replay: Callable[[], None]
    shared: Shared | None  # kept for learners that are not part of the recording; valid after a replay


class Static(Eager):
    """Records the step of each batch shape when it first comes and replays it from then on.

    Before the recording, trial steps are made and taken back; the recorded step is then held against an eager one from the same state.
    Where they differ, or recording fails, one line says so and the group goes on in eager steps. Learners whose steps cannot be
    recorded (dropout, methods with `capturable = False`) take theirs eagerly on the recording's batch and teacher outputs. What moves
    in memory, or a learner that leaves, makes a new recording.
    """

    name = "static"

    def __init__(self, data: Augmenter, teacher: nn.Module | None, learners: Sequence[Learner], precision: str) -> None:
        super().__init__(data, teacher, learners, precision)
        self._recordings: dict[int, Recorded] = {}
        self._index: dict[int, Tensor] = {}
        self._where: tuple[int, ...] = ()
        self._looked = False
        self.draws: Draws | None = None

    def ran(self, learner: Learner) -> str:
        return self.name if learner.capturable else Eager.name

    def begin_epoch(self, draws: Draws) -> None:
        """Bring an epoch's draws to the device, into the buffers that recorded steps read."""
        if self.draws is None:
            self.draws = Draws(*(t.to(self.data.device, copy=True) for t in _parts(draws)))
        else:
            for kept, new in zip(_parts(self.draws), _parts(draws), strict=True):
                kept.copy_(new)
        self._looked = False

    def drop(self, learner: Learner) -> None:
        super().drop(learner)
        self._forget()

    def step(self, start: int, stop: int) -> Failures:
        if self.name == Eager.name:  # recording failed
            return super().step(start, stop)
        if not self._looked:  # once an epoch, after the methods' own work for it
            self._look()
        size = stop - start
        if size not in self._index:
            self._index[size] = self.draws.order[start:stop].clone()
        self._index[size].copy_(self.draws.order[start:stop])
        if failed := self.draw(self._index[size], start):  # the caller drops them; the others' step is made plainly
            return failed + train(self.learners_without(failed), self.shared(self._index[size]), start)
        recorded = self._recordings.get(size)
        if recorded is None:
            return self._first(size, start)
        self._replay(recorded)
        return self._rest(recorded, start)

    def recorded_learners(self) -> list[Learner]:
        """Those whose steps are recorded."""
        return [learner for learner in self.learners if learner.capturable]

    def _look(self) -> None:
        execution = state.addresses(self.recorded_learners())
        if execution != self._where:
            self._forget()
        self._where, self._looked = execution, True

    def _first(self, size: int, start: int) -> Failures:
        """The first step of a batch shape: trials, recording, verification; it counts once, whatever happens."""
        learners, index = self.recorded_learners(), self._index[size]
        if not learners:
            return train(self.learners, self.shared(index), start)
        before = state.take(learners)
        if failed := self._trial(index, learners, start):
            state.put_back(learners, before)
            return failed + train(self.learners_without(failed), self.shared(index), start)
        state.put_back(learners, before)
        shared = self.shared(index)
        if failed := train(learners, shared, start):
            return failed + train([one for one in self.learners if not one.capturable], shared, start)
        del shared
        expected = state.take(learners)
        state.put_back(learners, before)
        try:
            recorded = self._record(index, learners, start)
            self._replay(recorded)
            found = state.take(learners)
            reason = self._verdict(learners, before, expected, found)
        except DeviceLost:
            raise
        except Exception as error:  # whatever capture may raise: the eager step is at hand
            if self.divisible and _is_short_of_memory(error):
                raise torch.OutOfMemoryError(str(error)) from error
            if is_lost(error, index.device):
                raise DeviceLost(str(error)) from error
            recorded, reason = None, f"recording failed: {' '.join(str(error).split())[:200]}"
        if reason is None:
            self._recordings[size] = recorded
            # The sums came with the trials.
            self._where = state.addresses(learners)
            return self._rest(recorded, start)
        say(f"engine {self.name}: {reason}; the group goes on in eager steps")
        state.put_back(learners, expected)
        self._forget()
        self.name = Eager.name
        return train([one for one in self.learners if not one.capturable], self.shared(index), start)

    def _verdict(self, learners: Sequence[Learner], *states: Sequence[state.State]) -> str | None:
        for learner, *own in zip(learners, *states, strict=True):
            if text := state.difference(*own, self.precision):
                return f"{learner.run.method}: the recorded step is not the eager one ({text})"
        return None

    def _rest(self, recorded: Recorded, start: int) -> Failures:
        others = [learner for learner in self.learners if not learner.capturable]
        return train(others, recorded.shared, start) if others else []

    # What a kind of recording is made of.
    def _work(self, index: Tensor, learners: Sequence[Learner], start: int) -> tuple[Shared, Failures]:
        """The step that is recorded."""
        shared = self.shared(index)
        return shared, train(learners, shared, start)

    def _trial(self, index: Tensor, learners: Sequence[Learner], start: int) -> Failures:
        for _ in range(TRIALS):
            _, failed = self._work(index, learners, start)
            if failed:
                return failed
        return []

    def _record(self, index: Tensor, learners: Sequence[Learner], start: int) -> Recorded:
        recorded = Recorded(lambda: None, None)

        def call() -> None:
            recorded.shared, failed = self._work(index, learners, start)
            for _, error in failed:
                raise error

        recorded.replay = call
        return recorded

    def _replay(self, recorded: Recorded) -> None:
        recorded.replay()

    def _forget(self) -> None:
        """Drop all recordings."""
        self._recordings.clear()


def _is_short_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, here or behind the error that the end of a broken capture raised."""
    return error is not None and (is_short_of_memory(error) or _is_short_of_memory(error.__context__))


def _parts(draws: Draws) -> tuple[Tensor, ...]:
    return draws.order, draws.dy, draws.dx, draws.flip
