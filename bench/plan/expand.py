"""Profiles, pairs, and the plan they expand to: teachers, groups and cells. No torch here.

A pair or a profile is added as one declared entry below. `expand` is a pure function; the facts it needs of methods and networks are
passed in (`bench.plan.registries` reads them from the registries).
"""
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.errors import UsageError, check_known
from bench.plan import datasets, protocols
from bench.plan.groups import Group
from bench.plan.identity import PRECISIONS
from bench.plan.profiles import ROWS, Pair, Profile
from bench.plan.protocols import Protocol
from bench.plan.rows import method_of, settings_of
from bench.plan.selection import Selection, parse_pair
from bench.text import settings_text

FORMAT = 1
TEACHER_SEED = 0
"""One teacher serves all seeds of its pairs; its own seed is none of theirs."""


@dataclass(frozen=True)
class MethodFacts:
    """What the plan must know of one row on one pair."""

    run: str  # what tells its run from others where data and teacher are the same
    skipped: str | None = None  # the reason why the method cannot do the pair
    uses_teacher: bool = True  # whether its numbers depend on the teacher
    before: int = 0  # epochs of its stage before the main one
    hyper: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # its settings, all of them


@dataclass(frozen=True)
class Registries:
    """The registries, as the plan sees them."""

    methods: Mapping[str, str]  # name -> title
    networks: tuple[str, ...]
    of: Callable[[Group], Mapping[str, MethodFacts]]  # per row of a group
    macs: Callable[[str], int]  # forward multiply-accumulates of a network for one image


@dataclass(frozen=True)
class Cell:
    """One (pair, row, seed) of the table."""

    teacher: str
    student: str
    row: str
    seed: int
    skipped: str | None = None
    uses_teacher: bool = True
    before: int = 0  # epochs of a stage before the main one
    changed: tuple[tuple[str, Any, Any], ...] = ()  # of a variant: (field, the value in the method's own row, the value here)

    @property
    def method(self) -> str:
        return method_of(self.row)

    @property
    def label(self) -> str:
        """What tells its row from the method's own."""
        return settings_text({name: here for name, _, here in self.changed})


@dataclass(frozen=True)
class Plan:
    """What is to be run. `groups` are longest first; a run that no teacher changes stands in one group only."""

    profile: str
    protocol: Protocol
    teacher_protocol: Protocol
    precision: str
    seeds: tuple[int, ...]
    pairs: tuple[Pair, ...]
    rows: tuple[tuple[str, str], ...]  # (method, title)
    cells: tuple[Cell, ...]
    full_groups: tuple[Group, ...]  # one for each pair and seed, with every row
    groups: tuple[Group, ...]
    teachers: tuple[str, ...]  # architectures whose weights some run depends on, largest first
    twins: tuple[tuple[str, str, str], ...] = ()  # (pair, row, other row): the same run there, in the other row only

    def needs_teacher(self, group: Group) -> bool:
        """Whether a run of the group depends on the teacher's weights."""
        return any(c.uses_teacher for c in self._cells(group))

    def before(self, group: Group) -> dict[str, int]:
        """The epochs before the main stage of those rows of the group that have some."""
        return {c.row: c.before for c in self._cells(group) if c.before}

    def _cells(self, group: Group) -> list[Cell]:
        here = (group.teacher, group.student, group.seed)
        return [c for c in self.cells if (c.teacher, c.student, c.seed) == here and c.row in group.methods]


def _rows(profile: Profile, selection: Selection, facts: Registries) -> tuple[str, ...]:
    default = profile.methods
    if default is None:
        default = tuple(sorted(facts.methods, key=lambda m: ROWS.index(m) if m in ROWS else len(ROWS)))
    joined = tuple(m[1:] for m in selection.methods if m.startswith("+"))
    chosen = tuple(m for m in selection.methods if not m.startswith("+")) or default
    rows = tuple(dict.fromkeys(chosen + joined))
    methods = tuple(dict.fromkeys(map(method_of, rows)))
    for name in (*methods, *(method for method, _, _ in selection.hyper)):
        check_known("method", name, facts.methods)
    for method, field, _ in selection.hyper:
        if method not in methods:
            raise UsageError(f"--set {method}.{field}: {method} is not among the rows {', '.join(methods)}; add it with --methods")
        if all(field in settings_of(row) for row in rows if method_of(row) == method):
            raise UsageError(f"--set {method}.{field}: every row of {method} has a {field} of its own; leave one of the two out")
    return rows


def group_macs(group: Group, with_teacher: bool, macs: Callable[[str], int], before: Collection[int] = ()) -> int:
    """Multiply-accumulates to train and test a group: per training image three student forward passes a run (forward and backward) and one
    of the teacher, per test image one of each student, once an epoch. `before`: epochs of the runs that have a stage before the main one, which
    read the teacher's pass together and are not tested in it."""
    p, students = group.protocol, macs(group.student) * len(group.methods)
    teacher = macs(group.teacher) if with_teacher else 0
    main = ((3 * students + teacher) * images(p) + students * tested_images(p)) * p.epochs
    return main + (3 * macs(group.student) * sum(before) + (macs(group.teacher) * max(before) if before else 0)) * images(p)


def images(protocol: Protocol) -> int:
    """Training images an epoch."""
    return round((protocol.train_images or datasets.get(protocol.dataset).train_images) * protocol.sample_rate)


def tested_images(protocol: Protocol) -> int:
    """Test images, all of them seen after each epoch."""
    return protocol.test_images or datasets.get(protocol.dataset).test_images


def expand(profile: Profile, selection: Selection, facts: Registries) -> Plan:
    """The plan of a profile as changed by a selection. Pure. Raises UsageError for unknown names and bad values."""
    chosen = selection.protocol or profile.protocol
    own = profile.teacher_protocol if chosen == profile.protocol else ""  # another protocol trains its own teachers
    protocol, teacher_protocol = (protocols.get(name) for name in (chosen, own or chosen))
    if selection.epochs is not None:
        teacher_protocol = teacher_protocol.scaled(max(1, round(teacher_protocol.epochs * selection.epochs / protocol.epochs)))
        protocol = protocol.scaled(selection.epochs)
    if selection.sample_rate is not None:
        protocol = protocol.sampled(selection.sample_rate)  # students only: a teacher sees the whole training set
    precision = selection.precision or profile.precision
    check_known("precision", precision, PRECISIONS)
    rows = _rows(profile, selection, facts)
    pairs = tuple(dict.fromkeys(parse_pair(p, facts.networks) for p in selection.pairs)) or profile.pairs
    for network in dict.fromkeys(n for pair in pairs for n in (pair.teacher, pair.student)):
        check_known("network", network, facts.networks)
    seeds = selection.seeds or profile.seeds

    cells: list[Cell] = []
    full_groups: list[Group] = []
    groups: dict[Group, tuple[int, bool]] = {}  # group -> its multiply-accumulates, whether it needs the teacher
    placed: set[str] = set()
    twins: set[tuple[str, str, str]] = set()
    methods = tuple(dict.fromkeys(map(method_of, rows)))
    hyper, variant = (tuple(change for change in some if change[0] in methods) for some in (profile.hyper, profile.variant + selection.hyper))
    for pair in pairs:
        for seed in seeds:
            whole = Group(pair.teacher, pair.student, seed, protocol, precision, rows, hyper + variant)
            found = facts.of(whole)
            same = _twins(found)
            twins |= {(pair.name, row, other) for row, other in same.items()}
            found = {row: f for row, f in found.items() if row not in same}
            whole = dataclasses.replace(whole, methods=tuple(found))
            own = found if rows == methods and not variant else facts.of(dataclasses.replace(whole, methods=methods, hyper=hyper))
            changed = {m: _changed(own[method_of(m)], found[m]) for m in found}
            whole = dataclasses.replace(whole, changed=tuple((m, name, here) for m in found for name, _, here in changed[m]))
            full_groups.append(whole)
            for m in found:
                f = found[m]
                cells.append(Cell(pair.teacher, pair.student, m, seed, f.skipped, f.uses_teacher, f.before, changed[m]))
            members = tuple(m for m in found if found[m].skipped is None and found[m].run not in placed)
            placed |= {found[m].run for m in members if not found[m].uses_teacher}
            if members:
                with_teacher, before = any(found[m].uses_teacher for m in members), [found[m].before for m in members if found[m].before]
                group = narrowed(whole, members)
                groups[group] = group_macs(group, with_teacher, facts.macs, before), with_teacher
    longest = sorted(groups, key=lambda g: -groups[g][0])  # stable: pairs and seeds keep their order among equals
    needed = dict.fromkeys(g.teacher for g in longest if groups[g][1])
    teachers = tuple(sorted(needed, key=lambda name: -facts.macs(name)))
    for row in rows:
        if len(others := [other for _, twin, other in sorted(twins) if twin == row]) == len(pairs):
            raise UsageError(f"--methods {row}: the same runs as {others[0]}; leave one of the two out")
    titles = tuple((m, facts.methods[m]) for m in methods)
    done = tuple(cells), tuple(full_groups), tuple(longest), teachers, tuple(sorted(twins))
    return Plan(profile.name, protocol, teacher_protocol, precision, seeds, pairs, titles, *done)


def narrowed(group: Group, members: Iterable[str]) -> Group:
    """The group with these rows only."""
    chosen = tuple(members)
    methods = {method_of(row) for row in chosen}
    hyper = tuple(change for change in group.hyper if change[0] in methods)
    return dataclasses.replace(group, methods=chosen, hyper=hyper, changed=tuple(change for change in group.changed if change[0] in chosen))


def _twins(found: Mapping[str, MethodFacts]) -> dict[str, str]:
    """Rows that are the same run as one before them, with that one."""
    first: dict[str, str] = {}
    return {row: other for row, facts in found.items() if (other := first.setdefault(facts.run, row)) != row}


def _changed(own: MethodFacts, here: MethodFacts) -> tuple[tuple[str, Any, Any], ...]:
    return tuple((name, own.hyper.get(name), value) for name, value in sorted(here.hyper.items()) if own.hyper.get(name) != value)


def as_json(plan: Plan, runs: Mapping[Cell, str | None]) -> dict[str, Any]:
    """plan.json: what the report must know of the plan. `runs` maps cells to run ids, None where the id is not known yet."""
    return {
        "format": FORMAT,
        "profile": plan.profile,
        "protocol": {**dataclasses.asdict(plan.protocol), "milestones": list(plan.protocol.milestones)},
        "precision": plan.precision,
        "seeds": list(plan.seeds),
        "pairs": [{"teacher": p.teacher, "student": p.student, "title": p.title} for p in plan.pairs],
        "rows": [{"method": method, "title": title} for method, title in plan.rows],
        "cells": [
            {"teacher": c.teacher, "student": c.student, "method": c.method, "seed": c.seed, "run": runs.get(c), "skipped": c.skipped}
            | ({"changed": {name: [own, here] for name, own, here in c.changed}} if c.changed else {})
            for c in plan.cells
        ],
    }
