"""Running a group: its data, teacher and preparations; leases; which members resume where; then the training itself."""

import threading
from collections.abc import Callable
from pathlib import Path

from torch import nn

from bench import data
from bench.data.augment import Augmenter
from bench.errors import DONE, TROUBLE, StoreError, UsageError
from bench.plan.groups import Group
from bench.plan.members import Member, resolve
from bench.store import teachers
from bench.train import checkpoint, engine, environment, preparations, teacher_networks
from bench.train.checkpoint import START, Position
from bench.train.execution import Execution
from bench.train.learner import Learner
from bench.train.loop import Training
from bench.train.run_folder import RunFolder
from bench.train.stop import Stop, Stopped
from models.randomness import keyed


def runs_of(group: Group, dataset, teacher_hash: str | None) -> list[Member]:
    """The members of a group on a loaded data set."""
    return resolve(group, dataset.hash, len(dataset.classes), dataset.image_size, len(dataset.train_labels), teacher_hash)


class GroupJob:
    """What the runs of a group share on this device. The teacher is loaded when the first one asks for it, once."""

    def __init__(self, group: Group, execution: Execution, stop: Stop) -> None:
        self.group, self.execution, self.stop = group, execution, stop
        self.results = Path(execution.results)
        self.device = environment.select(execution.device)
        environment.configure(group.precision, execution.threads, execution.deterministic)
        self.engine = engine.choose(execution.engine, self.device)
        self.commit = environment.commit()  # now: the checkout may move on while the job runs
        self.dataset = data.load(group.protocol, Path(execution.data_root) if execution.data_root else None, execution.download)
        self.teacher_file = self._find_teacher()
        self.members = runs_of(group, self.dataset, self.teacher_file.hash if self.teacher_file else None)
        self.data = Augmenter(self.dataset, self.device, channels_last=True)
        self._teacher: nn.Module | None = None

    def _find_teacher(self) -> teachers.TeacherFile | None:
        members = runs_of(self.group, self.dataset, None)
        if not any(m.method.depends_on_teacher(m.hyper, m.setting) for m in members if not m.skipped):
            return None
        return teachers.require(self.results, self.dataset.name, self.group.teacher)

    def teacher(self) -> nn.Module:
        """The verified, frozen teacher on the device."""
        if self._teacher is None:
            self._teacher = teacher_networks.load(self.teacher_file, self.dataset, self.data, self.device, self.stop.check)
        return self._teacher

    def learner(self, member: Member, log: Callable[[str], None]) -> tuple[Learner, preparations.Built | None]:
        """A fresh learner, its preparation built or read. Raises MethodError or UsageError."""
        wanted = member.method.preparation(member.hyper, member.setting)
        built = None
        if wanted is not None:
            built = preparations.obtain(
                self.results,
                wanted,
                self.teacher,
                self.teacher_file.hash,
                self.dataset.hash,
                lambda name, say: preparations.TrainingImages(self.dataset, self.data, name, say, self.stop.check),
                self.stop.check,
                log,
            )
        return Learner(member.run, member.method, member.hyper, member.setting, built.prepared if built else None, self.device), built


def run_group(group: Group, execution: Execution) -> int:
    """Train what is not yet done of a group: returns an exit code."""
    stop = Stop(execution.stop_after_seconds)
    if threading.current_thread() is threading.main_thread():
        stop.install()
    try:
        job = GroupJob(group, execution, stop)
        if not (group.teacher is None or job.teacher_file is None or all(done(job, m) for m in job.members)):
            job.teacher()  # a bad teacher stops the job before a run folder is touched
    except Stopped:
        return stop.code
    held, skipped_live = _claim(job)
    try:
        code = _train_parts(job, held)
    finally:
        for folder in held:
            folder.lease.release()
    return max(code, TROUBLE if skipped_live and code == DONE else DONE)


def done(job: GroupJob, member: Member) -> bool:
    """Whether nothing is left to do for a member."""
    return bool(member.skipped) or (not job.execution.redo and RunFolder(job.results, member).settled())


def _claim(job: GroupJob) -> tuple[list[RunFolder], int]:
    """The folders of the runs that are to be trained, under our lease, and how many a live writer holds."""
    held: list[RunFolder] = []
    elsewhere = 0
    try:
        for member in job.members:
            folder = RunFolder(job.results, member, job.group.title)
            if done(job, member):
                continue
            folder.path.mkdir(parents=True, exist_ok=True)
            if not folder.lease.acquire(check=job.stop.check):
                print(f"{folder.id} is already running elsewhere; left to it", flush=True)
                elsewhere += 1
                continue
            held.append(folder)
            if job.execution.redo:
                folder.clear()
            elif folder.settled():  # finished by another writer between the look and the lease
                folder.lease.release()
                held.remove(folder)
                continue
            try:
                folder.open()
            except StoreError as error:
                print(f"{error}; this run is left alone, --redo starts it over", flush=True)
                folder.lease.release()
                held.remove(folder)
                elsewhere += 1
    except OSError as error:
        for folder in held:
            folder.lease.release()
        raise UsageError(f"cannot write below {job.results}: {error.strerror}; free some space or choose another --results folder") from None
    except BaseException:
        for folder in held:
            folder.lease.release()
        raise
    return held, elsewhere


def _train_parts(job: GroupJob, held: list[RunFolder]) -> int:
    """Members that stand at the same position of the same group train together, the others as groups of their own."""
    parts: dict[tuple[str, Position], list[tuple[RunFolder, checkpoint.Restored]]] = {}
    fresh = checkpoint.group_key([f.id for f in held])
    for folder in held:
        key, restored = checkpoint.restore(job.results, folder.id, folder.epochs)
        for note in restored.notes:
            folder.log(note)
            print(f"{folder.id}: {note}", flush=True)
        parts.setdefault((key or fresh, restored.position), []).append((folder, restored))
    code = DONE
    # The one that is furthest first: what is nearly done is safe soonest.
    for (key, position), members in sorted(parts.items(), key=lambda p: (p[0][1], p[0][0]), reverse=True):
        if job.stop.code is not None:
            for folder, _ in members:
                folder.status("interrupted", job.stop.reason)
            return job.stop.code
        code = max(code, _train_part(job, key if position != START else checkpoint.group_key([f.id for f, _ in members]), position, members))
    return code


def _train_part(job: GroupJob, key: str, position: Position, members: list[tuple[RunFolder, checkpoint.Restored]]) -> int:
    training = Training(job, checkpoint.GroupCheckpoint(job.results, key), position)
    failed = False
    for folder, restored in members:
        try:
            folder.status("running", "preparing", epoch=position.epoch, epochs=job.group.protocol.epochs)
            with keyed(job.group.seed, f"ambient/{folder.member.run.method}"):  # whatever still draws from the global generator is at least pinned
                learner, built = job.learner(folder.member, folder.log)
            training.add(folder, learner, built, restored)
        except Stopped:
            for other, _ in members:
                other.status("interrupted", job.stop.reason)
            return job.stop.code
        except Exception as error:  # a stranger's method may raise anything
            failed = True
            training.fail(folder, error)
    code = training.run()
    return code if code not in (DONE,) else (TROUBLE if failed else DONE)
