"""A plan as text, before it is launched: what is left of it and how long that will take."""

from dataclasses import dataclass

from bench.launch.ledger import Ledger
from bench.launch.tasks import Slot
from bench.launch.threads import cores
from bench.plan.expand import Plan
from bench.plan.groups import Group
from bench.plan.rows import settings_of
from bench.store.records import Teacher
from bench.text import count, duration


@dataclass(frozen=True)
class Forecast:
    """What is left of a plan here: teachers and groups with their seconds, and the time on all slots."""

    teachers: list[str]
    groups: list[Group]
    by_group: tuple[float, ...]
    seconds: float  # of one slot
    elapsed: float  # on all slots
    source: str
    kind: str  # of device: cpu or cuda


def describe(the_plan: Plan, book: Ledger, slots: list[Slot], device: dict | None, place: str, left: Forecast) -> str:
    """The plan as text: what differs from the protocol, teachers to train, groups with their methods, what is done or skipped, the cost."""
    p = the_plan.protocol
    trial = f" (a trial: {p.trial})" if p.trial else ""
    lines = [f"profile {the_plan.profile}: {p.name} on {p.dataset}, {count(p.epochs, 'epoch')}{trial}, precision {the_plan.precision}"]
    changed = dict.fromkeys((c.method, *change) for c in the_plan.cells for change in c.changed if change[0] not in settings_of(c.row))
    lines += [  # one that joined its method later is not named at its default
        f"  set: {method}.{field} = {here} instead of {'its default' if own is None else own}" for method, field, own, here in changed
    ]
    done, planned = book.counts()
    lines.append(f"{count(planned, 'run')}, {done} done; {count(len(left.groups), 'group')} and {count(len(left.teachers), 'teacher')} to train")
    epochs = the_plan.teacher_protocol.epochs
    lines += [f"  teacher {name}: measured and imported first, from {path}" for name, path in book.given.items() if book.teacher(name) is None]
    lines += [f"  teacher {name}: {count(epochs, 'epoch')} of {the_plan.teacher_protocol.name}" for name in left.teachers]
    lines += [f"  teacher {t.architecture}: {_way(t.record, the_plan.precision)}" for t in book.teachers_there()]
    lines += [
        f"  group {task_name(g)}: {', '.join(g.methods)}, {duration(seconds)}" for g, seconds in zip(left.groups, left.by_group, strict=True)
    ]
    skipped = dict.fromkeys((c.teacher, c.student, c.row, c.skipped) for c in the_plan.cells if c.skipped)
    lines += [f"  skipped {teacher}-{student}, {row}: {reason}" for teacher, student, row, reason in skipped]
    lines += [f"  {row} on {pair}: the same run as {other}, which stands for it" for pair, row, other in the_plan.twins]
    as_own = dict.fromkeys((c.row, f"{c.teacher}-{c.student}", c.method) for c in the_plan.cells if settings_of(c.row) and not c.changed)
    lines += [f"  {row} on {pair}: the settings of {method}'s own row, in which it stands there" for row, pair, method in as_own]
    if not left.seconds:
        return "\n".join([*lines, f"total: nothing left to train ({place})"])
    on_cpu = left.kind == "cpu"
    one = device["name"] if device else {"cpu": "CPU", "cuda": "GPU"}[left.kind]
    one += f" slot of {count(slots[0].threads, 'core')}" if on_cpu else ""
    shared = f" that share {cores()} cores" if on_cpu and device and slots[0].threads * len(slots) > cores() else ""
    several = f", {duration(left.elapsed)} on {len(slots)} slots{shared}" if len(slots) > 1 else ""
    return "\n".join([*lines, f"total: {duration(left.seconds)} of one {one}{several} ({place})", f"  estimated: {left.source}"])


def _way(record: Teacher, precision: str) -> str:
    """Where a teacher at hand is from, how good it is and how it was trained, as far as its record says; in which precision, where that is
    not the plan's."""
    under = f"under {record.protocol}{f' ({record.trial})' if record.trial else ''}" if record.protocol else "elsewhere"
    other = f", trained in {record.precision}" if record.precision not in (None, precision) else ""
    return f"{record.source}, {record.test_top1:.2f} % top-1, {under}{other}"


def task_name(group: Group) -> str:
    """A group's name among the jobs; its numbers' identity is the runs' own."""
    return f"{group.teacher}-{group.student}-s{group.seed}"
