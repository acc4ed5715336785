"""Running a group: its data, teacher and preparations; leases; which members resume where; then the training itself."""

import contextlib
import gc
import threading
from dataclasses import replace

import torch

from bench.errors import DONE, TROUBLE, StoreError, UsageError
from bench.plan.groups import Group
from bench.plan.identity import digest
from bench.plan.members import Member
from bench.plan.protocols import Protocol
from bench.store import redo, teachers
from bench.store.lease import acquire_all
from bench.store.runs import is_done
from bench.text import say
from bench.train import checkpoint, environment, reasons
from bench.train.checkpoint import START, Position
from bench.train.context import Context
from bench.train.engine import is_lost, is_short_of_memory
from bench.train.execution import Execution
from bench.train.loop import Training
from bench.train.run_folder import RunFolder
from bench.train.stop import Stop, Stopped
from models.randomness import keyed


class GroupJob(Context):
    """What the runs of a group share on this device, and the runs."""

    def __init__(self, group: Group, execution: Execution, stop: Stop) -> None:
        super().__init__(group.protocol, group.precision, execution, group.teacher, check=stop.check)
        self.group, self.stop = group, stop
        self.commit = environment.commit()  # now: the checkout may move on while the job runs
        self.members = self.resolved(group)


def run_group(group: Group, execution: Execution, teacher_protocol: Protocol | None = None) -> int:
    """Train what is not yet done of a group: returns an exit code. Raises UsageError for a teacher that is bad or missing, and for one that does
    not fit what trains its own under `teacher_protocol` (None: any does)."""
    stop = Stop(execution.stop_after_seconds)
    if threading.current_thread() is threading.main_thread():
        stop.install()
    try:
        job = GroupJob(group, execution, stop)
        if any(m.run.teacher and not done(job, m) for m in job.members):
            if teacher_protocol is not None:  # it may have come since the launch looked
                teachers.check(job.teacher_file, teacher_protocol)
            job.teacher()  # a bad teacher stops the job before a run folder is touched
        held, skipped_live = _claim(job)
    except Stopped:
        return stop.code
    try:
        code = _train_parts(job, held)
    finally:
        for folder in held:
            folder.lease.release()
    return max(code, TROUBLE if skipped_live and code == DONE else DONE)


def done(job: GroupJob, member: Member) -> bool:
    """Whether nothing is left to do for a member."""
    folder = _folder(job, member)
    if redo.pending(job.results, folder.id) and is_done(folder.path):
        return redo.settle(job.results, folder.id)  # it was finished, and cut off before it took its place
    return bool(member.skipped) or folder.settled()


def _folder(job: GroupJob, member: Member) -> RunFolder:
    """Where a member is trained: beside its old results where it is to be trained again."""
    again = redo.pending(job.results, member.run.id)
    return RunFolder(redo.root(job.results) if again else job.results, member, job.group.title, job.group.variant(member.row))


def _claim(job: GroupJob) -> tuple[list[RunFolder], int]:
    """The folders of the runs that are to be trained, under our lease, and how many are not ours to train."""
    wanted = [_folder(job, member) for member in job.members if not done(job, member)]
    held: list[RunFolder] = []
    elsewhere = 0
    try:
        for folder in wanted:
            folder.path.mkdir(parents=True, exist_ok=True)
        sound = [folder for folder in wanted if _is_sound(folder)]
        elsewhere = len(wanted) - len(sound)
        for folder, ours in zip(sound, acquire_all([folder.lease for folder in sound], check=job.stop.check), strict=True):
            if ours:
                held.append(folder)
            else:
                print(f"{folder.id} is already running elsewhere; left to it", flush=True)
                elsewhere += 1
        for folder in list(held):
            reason = _opened(folder)
            if reason is not None:
                folder.lease.release()
                held.remove(folder)
                if reason:
                    say(f"{reason}; this run is left alone, --redo starts it over")
                    elsewhere += 1
    except BaseException as error:
        for folder in held:
            folder.lease.release()
        if isinstance(error, OSError):
            raise UsageError(f"cannot write below {job.results}: {error.strerror}; free some space or choose another --results folder") from None
        raise
    return held, elsewhere


def _is_sound(folder: RunFolder) -> bool:
    """Whether its lease can be read at all; one that cannot stops its own run only."""
    try:
        folder.lease.held()
    except StoreError as error:
        say(f"{error}; {folder.id} is left alone")
        return False
    return True


def _opened(folder: RunFolder) -> str | None:
    """Open a folder whose lease is ours: None; or why it is left: "" where it was done meanwhile."""
    if folder.settled():  # finished by another writer between the look and the lease
        return ""
    try:
        folder.open()
    except StoreError as error:
        return str(error)
    return None


Standing = tuple[RunFolder, checkpoint.Restored]


def _train_parts(job: GroupJob, held: list[RunFolder]) -> int:
    """Members that stand at the same position of the same group train together, the others as groups of their own.

    Those that have a stage before the main one are trained through it first; all that stand at START then train as one group.
    """
    roots = dict.fromkeys(folder.results for folder in held)
    if len(roots) > 1:  # some for the first time, others again
        return max(_train_parts(job, [folder for folder in held if folder.results == root]) for root in roots)
    parts: dict[tuple[str, Position], list[Standing]] = {}
    starting: list[Standing] = []
    for folder in held:
        key, restored = _standing(job, folder)
        if restored.position == START:
            starting.append((folder, restored))
        else:
            parts.setdefault((key or "", restored.position), []).append((folder, restored))
    code = DONE
    # The one that is furthest first: what is nearly done is safe soonest.
    for (_, position), members in sorted(parts.items(), key=lambda p: (p[0][1], p[0][0]), reverse=True):
        part, through = _train_part(job, position, members)
        code = max(code, part)
        for folder in through:
            restored = _standing(job, folder)[1]
            if restored.position == START:
                starting.append((folder, restored))
            else:  # its file was damaged meanwhile: what is older takes a way of its own
                code = max(code, _train_parts(job, [folder]))
    if starting:
        starting.sort(key=lambda one: held.index(one[0]))
        code = max(code, _train_part(job, START, starting)[0])
    return code


def _standing(job: GroupJob, folder: RunFolder) -> tuple[str | None, checkpoint.Restored]:
    """The group a run was last saved in and where it stands: its newest sound checkpoint, or its beginning."""
    key, restored = checkpoint.restore(folder.results, folder.id, folder.epochs)
    for note in restored.notes:
        folder.log(note)
        print(f"{folder.id}: {note}", flush=True)
    stage = None
    if restored.state is None:
        with contextlib.suppress(Exception):  # a stranger's method: it is asked again, and fails, where its learner is made
            stage = folder.member.pretraining()
    return key, replace(restored, position=Position(1 - stage.epochs, 0)) if stage else restored


def _train_part(job: GroupJob, position: Position, members: list[Standing]) -> tuple[int, list[RunFolder]]:
    """Train members that stand together; gives the exit code and, from a stage before the main one, those that came through it."""
    if job.stop.code is not None:
        return _interrupted(job, members), []
    saved = checkpoint.GroupCheckpoint(members[0][0].results, digest(sorted(f.id for f, _ in members), 16))
    training = Training(job, saved, position)
    for folder, restored in members:
        try:
            folder.status("running", "preparing", epoch=max(position.epoch, 0), epochs=job.group.protocol.epochs)
            with keyed(job.group.seed, f"ambient/{folder.member.run.method}"):  # whatever still draws from the global generator is at least pinned
                learner, built = job.learner(folder.member, folder.log, pretraining=position < START)
                training.add(folder, learner, built, restored)
        except Stopped:
            return _interrupted(job, [one for one in members if one[0].id not in training.gone]), []  # a failure keeps its reason
        except Exception as error:  # a stranger's method may raise anything
            if is_lost(error, job.device):
                _interrupted(job, [one for one in members if one[0].id not in training.gone], f"device lost: {reasons.reason(error)}")
                return TROUBLE, []
            training.too_large = is_short_of_memory(error) and len(members) > 1
            if training.too_large:
                break
            training.fail(folder, error)
    code = training.run() if not training.too_large else DONE
    if not training.too_large:
        return code, training.through
    code = TROUBLE if training.trouble else DONE
    remaining = [folder for folder, _ in members if folder.id not in training.gone]
    learner = built = training = None  # the device's memory
    return max(code, _train_halves(job, remaining)), []


def _train_halves(job: GroupJob, folders: list[RunFolder]) -> int:
    """Train what does not fit the device's memory together, half by half, each from its newest checkpoint: the numbers are the same."""
    gc.collect()
    if job.device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # torch before 2.13, after a recording that broke off
            torch.cuda.empty_cache()
    said = f"{len(folders)} runs together need more memory than the device has; they are trained in halves, one after the other"
    print(f"{job.group.student}, seed {job.group.seed}: {said}", flush=True)
    for folder in folders:
        folder.log(said)
    middle = (len(folders) + 1) // 2
    return max(_train_parts(job, half) for half in (folders[:middle], folders[middle:]) if half)


def _interrupted(job: GroupJob, members: list[Standing], reason: str = "") -> int | None:
    for folder, _ in members:
        folder.status("interrupted", reason or job.stop.reason)
    return job.stop.code
