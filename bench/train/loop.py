"""The training loop of a group: steps, evaluations, rows, checkpoints by time, divergence, final records."""

import contextlib
import dataclasses
import math
import time
import traceback
from typing import TYPE_CHECKING, Any

import torch

from bench.data.augment import draws
from bench.errors import DONE, TROUBLE, StoreError
from bench.store import redo
from bench.store.lease import LeaseLost
from bench.store.weights import state_hash
from bench.text import say
from bench.train import environment, reasons
from bench.train.checkpoint import START, GroupCheckpoint, Position, Restored, load_into
from bench.train.engine import DeviceLost, Failures, is_lost, is_of_device, is_short_of_memory
from bench.train.learner import Learner, evaluate
from bench.train.preparations import Built
from bench.train.run_folder import RunFolder
from bench.train.stop import Stopped

if TYPE_CHECKING:
    from bench.train.group_job import GroupJob

TEST_BATCH = 500


class ActiveRun:
    """A learner in training: its folder and what the loop keeps of it besides its weights."""

    def __init__(self, folder: RunFolder, learner: Learner, built: Built | None, restored: Restored, conditions: dict[str, str]) -> None:
        self.folder, self.learner, self.built, self.conditions = folder, learner, built, conditions
        self.changes: list[str] = []
        member = folder.member
        self.pretraining = member.pretraining()
        self.inference = member.method.inference(member.hyper, member.setting)
        self.best_top1, self.best_epoch, self.seconds, self.pretraining_seconds = -1.0, 0, 0.0, 0.0
        self.tested: dict[str, float] = {}
        self.deterministic = conditions["deterministic"] == "yes"  # so far, of all attempts
        if restored.state is not None:
            load_into(learner, restored.state)
            kept = restored.state["progress"]
            self.best_top1, self.best_epoch, self.seconds, self.tested = kept["best_top1"], kept["best_epoch"], kept["seconds"], kept["tested"]
            self.pretraining_seconds = kept.get("pretraining_seconds", 0.0)
            self.changes = list(kept.get("changes", ()))
            before = {"deterministic": conditions["deterministic"]} | kept.get("conditions", conditions)  # an older version's does not say
            self.deterministic &= kept.get("deterministic", True)
            if new := environment.changes(before, conditions):
                self.changes.append(f"epoch {restored.position.epoch}, step {restored.position.step}: {', '.join(new)}")
                folder.log(f"conditions differ from those before, and the last bits may with them: {', '.join(new)}")

    def state(self) -> dict[str, Any]:
        progress = {"best_top1": self.best_top1, "best_epoch": self.best_epoch, "seconds": self.seconds, "tested": self.tested}
        progress |= {"conditions": self.conditions, "changes": self.changes, "deterministic": self.deterministic}
        if self.pretraining_seconds:
            progress["pretraining_seconds"] = self.pretraining_seconds
        return {**self.learner.state(), "progress": progress}

    @property
    def first(self) -> Position:
        """Where the run begins, with the initial weights."""
        return Position(1 - self.pretraining.epochs, 0) if self.pretraining else START

    def stage(self, epoch: int) -> str | None:
        """Where in a stage before the main one an epoch is, in words."""
        return f"pre-training epoch {epoch + self.pretraining.epochs}/{self.pretraining.epochs}" if epoch < 1 else None


class Training:
    """Members that stand at one position, trained side by side to the end; those before START to START, where a save leaves them."""

    def __init__(self, job: "GroupJob", saved: GroupCheckpoint, position: Position) -> None:
        self.job, self.saved, self.position = job, saved, position
        self.protocol = job.group.protocol
        self.places: list[ActiveRun] = []
        self.trouble = self.too_large = False
        self.gone: set[str] = set()  # ids of members that failed, diverged or were taken by another writer
        self.through: list[RunFolder] = []  # members that came through the stage before the main one
        self._last = 0 if position < START else self.protocol.epochs
        self._saved_at = self._counted_at = time.monotonic()
        self._steps_timed, self._seconds_timed = 0, 0.0
        self._row_unsaved = False  # a row was written since the last save
        self._saved_as: tuple[Position, tuple[str, ...]] | None = None

    def add(self, folder: RunFolder, learner: Learner, built: Built | None, restored: Restored) -> None:
        """Take a member in. Raises StoreError where its checkpoint does not fit it."""
        learner.start(self.job.images.train_labels)
        execution = self.job.execution
        conditions = environment.conditions(self.job.device, self.job.commit, self.job.engine.name, execution.deterministic)
        folder.drop_snapshots(max(1, self.position.epoch))
        self.places.append(ActiveRun(folder, learner, built, restored, conditions))
        if restored.state is not None:
            folder.log(f"attempt {folder.attempt}: resumed at epoch {self.position.epoch}, step {self.position.step}")
            if self.position > self.places[-1].first and (past := folder.missed(e for e in execution.keep_epochs if e < max(1, self.position.epoch))):
                said = f"weights asked for after epochs that are past are not kept: {', '.join(map(str, past))}"
                folder.log(said)
                print(f"{folder.id}: {said}", flush=True)
        else:
            folder.log(f"attempt {folder.attempt}: started")

    def fail(self, folder: RunFolder, error: Exception) -> None:
        """Record a member that cannot go on; the others do."""
        out_of_memory = is_short_of_memory(error)
        reason = "out of memory" if out_of_memory else reasons.reason(error, folder.member.method)
        peak = {"peak_memory_bytes": torch.cuda.max_memory_allocated(self.job.device)} if out_of_memory and torch.cuda.is_available() else {}
        print(f"{folder.id} failed: {reason}", flush=True)
        self.trouble = True
        self.gone.add(folder.id)
        with contextlib.suppress(LeaseLost, StoreError):
            folder.lease.check()  # a run that another writer took is not ours to judge
            folder.log("".join(traceback.format_exception(error)).rstrip())
            folder.status("failed", reason, **peak)

    def run(self) -> int:
        """Train to the end, or until it is time to stop. Returns an exit code.

        Where the members turn out to need more memory together than the device has, `too_large` is set instead: their newest checkpoints
        are then sound and not older than their newest rows.
        """
        job = self.job
        self._saved_at = self._counted_at = time.monotonic()  # preparations took their time before
        needs_teacher = any(p.learner.teacher_needs for p in self.places)
        try:
            self.engine = job.engine(job.images, job.teacher() if needs_teacher else None, [p.learner for p in self.places], job.group.precision)
            self._keep_first()
            for epoch in range(self.position.epoch, self._last + 1):
                if not self.places:
                    break
                if not self._epoch(epoch, self.position.step if epoch == self.position.epoch else 0):
                    return job.stop.code
                if self.too_large:
                    break
        except Exception as error:
            if is_short_of_memory(error):  # outside of a step
                self.too_large = len(self.places) > 1 and not self._row_unsaved
                for place in () if self.too_large else self.places:
                    self.fail(place.folder, error)
                return TROUBLE if self.trouble else DONE
            if not (isinstance(error, DeviceLost) or is_of_device(error)):  # a device's error may surface at any later read of it
                raise
            lost = isinstance(error, DeviceLost) or is_lost(error, job.device)
            self._interrupted(f"device {'lost' if lost else 'error'}: {reasons.reason(error)}")
            return TROUBLE
        return TROUBLE if self.trouble else DONE

    def _keep_first(self) -> None:
        for place in [one for one in self.places if one.first == self.position]:
            try:
                self._keep(place, 0)
            except LeaseLost as error:
                self._lost(place, error)
            except (OSError, StoreError) as error:
                self._drop(place.learner, error)

    def _epoch(self, epoch: int, first: int) -> bool:
        """One epoch from step `first`; False when stopped (the state is saved)."""
        job = self.job
        count, size = len(job.dataset.train_labels), self.protocol.batch
        steps = math.ceil(count / size)
        self.engine.begin_epoch(draws(job.group.seed, epoch, count))
        for place in list(self.places):
            try:
                place.learner.begin_epoch(epoch)
            except Exception as error:  # a stranger's method may raise anything
                self._drop(place.learner, error)
                continue
            if first == 0:
                place.learner.clear_sums()
        self._count_time()
        for step in range(first, steps):
            if job.stop.code is not None:
                return self._stop(Position(epoch, step))
            failed = self._step(step * size, min(count, (step + 1) * size))
            if self.too_large:
                return True
            for learner, error in failed:
                self._drop(learner, error)
            self._tick(epoch, step + 1, steps)
            if not self.places:
                return True
        self._drop_diverged(epoch)
        return self._test(epoch, steps, count) if epoch > 0 else self._pretrained(epoch, count)

    def _step(self, start: int, stop: int) -> Failures:
        self.engine.divisible = len(self.places) > 1 and not self._row_unsaved
        try:
            failed = self.engine.step(start, stop)
        except RuntimeError as error:
            if not is_short_of_memory(error):
                raise
            # of what the learners share, or of a recording
            failed = [(place.learner, error) for place in self.places]
        self.too_large = self.engine.divisible and any(is_short_of_memory(error) for _, error in failed)
        return failed

    def _pretrained(self, epoch: int, count: int) -> bool:
        """After an epoch before the main stage: no evaluation and no row; the last one leaves each learner at START."""
        self._count_time()
        for place in self.places:
            losses, _ = place.learner.means(count)
            place.folder.log(f"{place.stage(epoch)} loss {math.fsum(losses.values()):.4f}")
        if epoch < self._last:
            self._save_if_due(Position(epoch + 1, 0))
        else:
            for place in self.places:
                place.learner.end_pretraining()
            self._save(START)
            self.through = [place.folder for place in self.places]
        return True

    def _test(self, epoch: int, steps: int, count: int) -> bool:
        """Evaluate every learner and write its row; the last epoch's makes the final record."""
        for place in list(self.places):
            if epoch > int(place.tested.get("epoch", 0)):
                try:
                    batches = self.job.images.test_batches(TEST_BATCH)
                    result = evaluate(place.learner.evaluated, batches, self.job.group.precision, self.job.stop.check)
                except Stopped:
                    return self._stop(Position(epoch, steps))
                except Exception as error:  # no memory for the test batch, say
                    self._drop(place.learner, error)
                    continue
                place.tested = {"epoch": epoch, **result}
            if not math.isfinite(place.tested["loss"]):
                self._diverge(place, f"test loss is not finite in epoch {epoch}")
        self._count_time()
        for place in list(self.places):
            try:
                self._row(place, epoch, count)
                self._keep(place, epoch)
                if epoch == self.protocol.epochs:
                    self._finish(place)
                    self.places.remove(place)  # what fails from here on is not its
            except LeaseLost as error:
                self._lost(place, error)
            except (OSError, StoreError) as error:
                self._drop(place.learner, error)
        if epoch < self.protocol.epochs:
            # Steps of every batch size come within a whole epoch: until then the members can be divided.
            resumed_inside = epoch == self.position.epoch and self.position.step > 0 and len(self.places) > 1
            (self._save if resumed_inside else self._save_if_due)(Position(epoch + 1, 0))
        return True

    def _keep(self, place: ActiveRun, epoch: int) -> None:
        """Before any checkpoint after this epoch, so that a run killed in between comes here again."""
        if epoch in self.job.execution.keep_epochs:
            place.folder.snapshot(epoch, place.learner.student.state_dict())

    def _row(self, place: ActiveRun, epoch: int, count: int) -> None:
        losses, train_top1 = place.learner.means(count)
        top1 = place.tested["top1"]
        if top1 > place.best_top1:
            place.best_top1, place.best_epoch = top1, epoch
        rate = self.protocol.rate(epoch, small=place.learner.small_rate)
        loss = math.fsum(losses.values())
        self._row_unsaved = True
        row = {"epoch": epoch, "lr": rate, "loss": loss, "losses": losses, "train_top1": train_top1}
        place.folder.row({**row, "test_top1": top1, "test_top5": place.tested["top5"], "test_loss": place.tested["loss"], "seconds": place.seconds})
        place.folder.log(f"epoch {epoch}/{self.protocol.epochs} lr {rate:g} loss {loss:.4f} train top-1 {train_top1:.2f} test top-1 {top1:.2f}")
        eta = self._eta(epoch + 1, 0)
        place.folder.status("running", epoch=epoch, epochs=self.protocol.epochs, loss=loss, test_top1=top1, eta_seconds=eta)

    def _finish(self, place: ActiveRun) -> None:
        job, learner = self.job, place.learner
        uses_teacher = learner.run.teacher is not None
        facts = {
            "epochs": self.protocol.epochs,
            "test_top1": place.tested["top1"],
            "test_top5": place.tested["top5"],
            "test_loss": place.tested["loss"],
            "best_top1": place.best_top1,
            "best_epoch": place.best_epoch,
            "attempts": place.folder.attempt,
            "train_seconds": place.seconds,
            "device": environment.device_facts(job.device),
            "versions": environment.versions(),
            "engine": self.engine.ran(learner),
            "threads": torch.get_num_threads(),
            "deterministic": place.deterministic,
            "commit": job.commit,
            "changes": place.changes,
            "weights_sha256": state_hash(learner.student.state_dict()),
            "teacher": job.teacher_file.facts() if uses_teacher else None,
            "preparation": place.built.facts() if place.built else None,
            "pretraining": {**dataclasses.asdict(place.pretraining), "seconds": place.pretraining_seconds} if place.pretraining else None,
            "inference": dataclasses.asdict(place.inference) if learner.evaluated is not learner.student else None,
        }
        place.folder.finish(learner.student.state_dict(), learner.released(), facts)
        if place.folder.results != job.results:
            redo.publish(job.results, place.folder.id, place.folder.lease)
        print(f"{place.folder.id} done: test top-1 {place.tested['top1']:.2f}", flush=True)

    def _tick(self, epoch: int, step: int, steps: int) -> None:
        """After each step: write the statuses, save where it is time."""
        self._steps_timed += 1
        now = time.monotonic()
        for place in list(self.places):
            facts = {"epoch": max(epoch, 0), "epochs": self.protocol.epochs, "step": step, "steps": steps, "eta_seconds": self._eta(epoch, step)}
            place.folder.status("running", place.stage(epoch), force=False, **facts)
        if now - self._saved_at >= self.job.execution.checkpoint_seconds:
            self._drop_diverged(epoch)
            self._save(Position(epoch, step))

    def _save_if_due(self, position: Position) -> None:
        if time.monotonic() - self._saved_at >= self.job.execution.checkpoint_seconds:
            self._save(position)

    def _save(self, position: Position) -> None:
        self._count_time()
        for place in list(self.places):
            self._holds(place)
        ids = tuple(place.folder.id for place in self.places)
        # The same state twice would push the older generation out.
        if ids and (position, ids) != self._saved_as:
            states = {place.folder.id: place.state for place in self.places}
            try:
                self.saved.save(position, states)
                self._saved_as, self._row_unsaved = (position, ids), False
            except OSError as error:  # none of them is safe any more; what stands from before is
                for place in list(self.places):
                    self._drop(place.learner, error)
        self._saved_at = time.monotonic()

    def _stop(self, position: Position) -> bool:
        self._drop_diverged(position.epoch)
        if position != START:
            self._save(position)
        self._interrupted(self.job.stop.reason)
        return False

    def _interrupted(self, reason: str) -> None:
        for place in self.places:
            place.folder.log(f"interrupted: {reason}")
            place.folder.status("interrupted", reason)

    def _drop(self, learner: Learner, error: Exception) -> None:
        if is_lost(error, self.job.device):
            raise DeviceLost(str(error)) from error
        place = next(p for p in self.places if p.learner is learner)
        self._leave(place)
        self.fail(place.folder, error)

    def _drop_diverged(self, epoch: int) -> None:
        for place in list(self.places):
            if not place.learner.finite():
                self._diverge(place, f"loss is not finite in epoch {epoch}")

    def _holds(self, place: ActiveRun) -> bool:
        """Whether the run is still ours to write; one that is not is left."""
        try:
            place.folder.lease.check()
            return True
        except LeaseLost as error:
            self._lost(place, error)
        except StoreError as error:
            self._drop(place.learner, error)
        return False

    def _diverge(self, place: ActiveRun, reason: str) -> None:
        if not self._holds(place):  # another writer's: not ours to judge
            return
        self._leave(place)
        self.trouble = True
        place.folder.log(f"diverged: {reason}")
        place.folder.status("diverged", reason)
        print(f"{place.folder.id} diverged: {reason}", flush=True)

    def _lost(self, place: ActiveRun, error: LeaseLost) -> None:
        self._leave(place)
        self.trouble = True
        say(f"{error}; this writer leaves it")

    def _leave(self, place: ActiveRun) -> None:
        self.places.remove(place)
        self.gone.add(place.folder.id)
        self.engine.drop(place.learner)

    def _count_time(self) -> None:
        """Add the monotonic time since the last call to every learner that trained through it."""
        now = time.monotonic()
        for place in self.places:
            if place.learner.pretraining:
                place.pretraining_seconds += now - self._counted_at
            else:
                place.seconds += now - self._counted_at
        self._seconds_timed += now - self._counted_at
        self._counted_at = now

    def _eta(self, epoch: int, step: int) -> float | None:
        """Seconds to the end at the mean pace so far, evaluations included."""
        elapsed = self._seconds_timed + time.monotonic() - self._counted_at
        if not self._steps_timed:
            return None
        steps = math.ceil(len(self.job.dataset.train_labels) / self.protocol.batch)
        left = (self.protocol.epochs - epoch + 1) * steps - step
        return round(left * elapsed / self._steps_timed, 1)
