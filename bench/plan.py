"""Profiles, pairs, and the plan they expand to: teachers, groups and cells. No torch here.

A pair or a profile is added as one declared entry below. `expand` is a pure function; the facts it needs of methods and networks are
passed in (`bench.facts` reads them from the registries).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bench import protocol as protocols
from bench.identity import PRECISIONS
from bench.jobs import Group
from bench.protocol import Protocol, UsageError, unknown

FORMAT = 1
TEACHER_SEED = 0
"""One teacher serves all seeds of its pairs; its own seed is none of theirs."""
CIFAR_IMAGES = 50_000


@dataclass(frozen=True)
class Pair:
    """A teacher and a student architecture."""

    teacher: str
    student: str

    @property
    def name(self) -> str:
        return f"{self.teacher}-{self.student}"

    @property
    def title(self) -> str:
        return f"{self.teacher} -> {self.student}"


PAIRS = (
    Pair("wrn_40_2", "wrn_16_2"),
    Pair("resnet56", "resnet20"),
    Pair("resnet110", "resnet20"),
    Pair("resnet110", "resnet32"),
    Pair("resnet32x4", "resnet8x4"),
    Pair("vgg13", "vgg8"),
)
"""The six pairs of one style that the papers share, in the order of their tables."""


@dataclass(frozen=True)
class Profile:
    """A named plan of runs."""

    name: str
    summary: str
    protocol: str
    pairs: tuple[Pair, ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...] | None = None  # rows in their order; None: every registered method
    teacher_protocol: str = ""  # what a missing teacher is trained under; empty: the profile's own
    precision: str = "tf32"
    hyper: tuple[tuple[str, str, object], ...] = ()  # (method, field, value) that differ from the methods' defaults
    variant: tuple[tuple[str, str, object], ...] = ()  # the same for an ablation: its rows are variants, never the method's own row


_WRN = (Pair("wrn_40_4", "wrn_16_4"),)
_IEP_ROWS = ("student", "at", "rkd", "iep", "iep_bb")
_IEP_BATCH = (("iep", "phase_batch", 128), ("iep_bb", "phase_batch", 128))  # phase I has the protocol's batch
_SEEDS = (1, 2, 3)


def _iep(name: str, summary: str, protocol: str, pairs: tuple[Pair, ...] = _WRN, rows: tuple[str, ...] = _IEP_ROWS, **rest: Any) -> Profile:
    """An experiment of Lee and Song 2021. The paper does not say how its teacher is trained: here under the same protocol, dropout
    included, on all images."""
    return Profile(name, summary, protocol, pairs, _SEEDS, rows, teacher_protocol="iep", hyper=_IEP_BATCH, **rest)


def _ablation(name: str, summary: str, method: str = "iep", **changes: object) -> Profile:
    """A row of IEP's Tables 4 to 6, at 25 % of the images, beside the plain student."""
    variant = tuple((method, field, value) for field, value in changes.items())
    return _iep(name, summary, "iep_quarter", rows=("student", method), variant=variant)


PROFILES = MappingProxyType(
    {
        p.name: p
        for p in (
            Profile(
                "paper",
                "Table 1: the six pairs under the CRD protocol, 240 epochs",
                "crd",
                PAIRS,
                _SEEDS,
                ("student", "kd", "fitnet", "at", "rkd", "sp", "cc", "iep", "skd"),
            ),
            Profile("skd", "the 100-epoch schedule of SKD", "skd", PAIRS, _SEEDS, ("student", "kd", "at", "skd"), teacher_protocol="crd"),
            _iep("iep_full", "IEP's Table 1, all images", "iep"),
            _iep("iep_half", "IEP's Table 1, 50 % of the images", "iep_half"),
            _iep("iep_quarter", "IEP's Table 1, 25 % of the images", "iep_quarter"),
            _iep("iep_tenth", "IEP's Table 1, 10 % of the images", "iep_tenth"),
            _iep(
                "iep_students",
                "IEP's Table 3: students of other widths, 25 % of the images",
                "iep_quarter",
                (Pair("wrn_40_4", "wrn_16_2"), Pair("wrn_40_4", "wrn_16_1")),
            ),
            _ablation("iep_int_only", "IEP's Table 4: K^int alone", alteration=False),
            _ablation("iep_alt_only", "IEP's Table 4: K^alt alone", intermediate=False),
            _ablation("iep_bb_only", "IEP's Table 4: K^BB alone", "iep_bb", intermediate=False, alteration=False),
            _ablation("iep_pca_batch", "IEP's Table 5: the second PCA on each batch alone", pca="batch"),
            *(_ablation(f"iep_iterations_{n}", f"IEP's Table 6: {n} iteration{'s' * (n > 1)} of message passing", iterations=n) for n in (1, 3, 4)),
            Profile(
                "smoke",
                "minutes on two CPU cores, embedded data, every method",
                "smoke",
                (Pair("resnet20", "resnet8"),),
                (1, 2),
                teacher_protocol="smoke_teacher",
                hyper=(("iep", "phase_epochs", 4), ("iep_bb", "phase_epochs", 4)),
            ),
        )
    }
)


@dataclass(frozen=True)
class Selection:
    """What the command line changes of a profile; None or empty: as the profile says."""

    methods: tuple[str, ...] = ()  # replaces the rows; a name with "+" before it joins them
    pairs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    protocol: str | None = None
    epochs: int | None = None
    sample_rate: float | None = None
    precision: str | None = None
    hyper: tuple[tuple[str, str, object], ...] = ()  # (method, field, value)


@dataclass(frozen=True)
class Fact:
    """What the plan must know of one method on one pair."""

    run: str  # what tells its run from others where data and teacher are the same
    skipped: str | None = None  # the reason why the method cannot do the pair
    uses_teacher: bool = True  # whether its numbers depend on the teacher
    hyper: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # its settings, all of them


@dataclass(frozen=True)
class Facts:
    """The registries, as the plan sees them."""

    methods: Mapping[str, str]  # name -> title
    networks: tuple[str, ...]
    of: Callable[[Group], Mapping[str, Fact]]  # per method of a group
    macs: Callable[[str], int]  # forward multiply-accumulates of a network for one image


@dataclass(frozen=True)
class Cell:
    """One (pair, method, seed) of the table."""

    teacher: str
    student: str
    method: str
    seed: int
    skipped: str | None = None
    uses_teacher: bool = True
    changed: tuple[tuple[str, Any, Any], ...] = ()  # of a variant: (field, the value in the method's own row, the value here)


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
    wholes: tuple[Group, ...]  # one for each pair and seed, with every row
    groups: tuple[Group, ...]
    teachers: tuple[str, ...]  # architectures whose weights some run depends on, largest first

    def needs_teacher(self, group: Group) -> bool:
        """Whether a run of the group depends on the teacher's weights."""
        here = (group.teacher, group.student, group.seed)
        return any(c.uses_teacher for c in self.cells if (c.teacher, c.student, c.seed) == here and c.method in group.methods)


def get_profile(name: str) -> Profile:
    """The declared profile of that name. Raises UsageError."""
    if name not in PROFILES:
        raise unknown("profile", name, list(PROFILES))
    return PROFILES[name]


def parse_seeds(texts: Iterable[str]) -> tuple[int, ...]:
    """Seeds from "1", "1,2" or "1-3", in order, each once. Raises UsageError."""
    seeds: list[int] = []
    for part in (p for text in texts for p in text.split(",") if p):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or part.endswith("-") or int(last or first) < int(first):
            raise UsageError(f"--seeds {part}: expected whole numbers or a range, as in 1,2 or 1-3")
        seeds += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(seeds))


def parse_pair(text: str, networks: Sequence[str]) -> Pair:
    """A pair from "teacher-student" or "teacher/student". Raises UsageError, with close matches."""
    for separator in ("/", "->", "-"):
        teacher, found, student = text.partition(separator)
        if found and teacher.strip() in networks and student.strip() in networks:
            return Pair(teacher.strip(), student.strip())
    known = [p.name for p in PAIRS]
    for separator in ("/", "->", "-"):
        teacher, found, student = (part.strip() for part in text.partition(separator))
        if found and (teacher in networks or student in networks):
            raise unknown("network", student if teacher in networks else teacher, list(networks))
    raise unknown("pair", text, known)


def parse_set(text: str) -> tuple[str, str, str]:
    """One `--set method.field=value`. The value stays text; its type is the field's. Raises UsageError."""
    name, equals, value = text.partition("=")
    method, dot, field = name.partition(".")
    if not (equals and dot and method and field):
        raise UsageError(f"--set {text}: expected method.field=value, as in kd.temperature=2")
    return method, field, value


def words(texts: Iterable[str]) -> tuple[str, ...]:
    """Names separated by spaces or commas, each once."""
    return tuple(dict.fromkeys(word for text in texts for word in text.replace(",", " ").split()))


def _rows(profile: Profile, selection: Selection, facts: Facts) -> tuple[str, ...]:
    default = profile.methods if profile.methods is not None else tuple(facts.methods)
    if profile.methods is None and "student" in default:
        default = ("student", *(m for m in default if m != "student"))
    joined = tuple(m[1:] for m in selection.methods if m.startswith("+"))
    chosen = tuple(m for m in selection.methods if not m.startswith("+")) or default
    rows = tuple(dict.fromkeys(chosen + joined))
    for name in (*rows, *(method for method, _, _ in selection.hyper)):
        if name not in facts.methods:
            raise unknown("method", name, sorted(facts.methods))
    for method, field, _ in selection.hyper:
        if method not in rows:
            raise UsageError(f"--set {method}.{field}: {method} is not among the rows {', '.join(rows)}; add it with --methods")
    return rows


def group_macs(group: Group, with_teacher: bool, macs: Callable[[str], int]) -> int:
    """Multiply-accumulates to train a group: per image three student forward passes a run (forward and backward) and one of the teacher."""
    teacher = macs(group.teacher) if with_teacher else 0
    return (3 * macs(group.student) * len(group.methods) + teacher) * images(group.protocol) * group.protocol.epochs


def images(protocol: Protocol) -> int:
    """Training images an epoch."""
    return round((protocol.train_images or CIFAR_IMAGES) * protocol.sample_rate)


def expand(profile: Profile, selection: Selection, facts: Facts) -> Plan:
    """The plan of a profile as changed by a selection. Pure. Raises UsageError for unknown names and bad values."""
    protocol, teacher_protocol = (
        protocols.get(name) for name in (selection.protocol or profile.protocol, selection.protocol or profile.teacher_protocol or profile.protocol)
    )
    if selection.epochs is not None:
        teacher_protocol = teacher_protocol.scaled(max(1, round(teacher_protocol.epochs * selection.epochs / protocol.epochs)))
        protocol = protocol.scaled(selection.epochs)
    if selection.sample_rate is not None:
        protocol = protocol.sampled(selection.sample_rate)  # students only: a teacher sees the whole training set
    precision = selection.precision or profile.precision
    if precision not in PRECISIONS:
        raise unknown("precision", precision, list(PRECISIONS))
    rows = _rows(profile, selection, facts)
    pairs = tuple(dict.fromkeys(parse_pair(p, facts.networks) for p in selection.pairs)) or profile.pairs
    for network in dict.fromkeys(n for pair in pairs for n in (pair.teacher, pair.student)):
        if network not in facts.networks:
            raise unknown("network", network, list(facts.networks))
    seeds = selection.seeds or profile.seeds

    cells: list[Cell] = []
    wholes: list[Group] = []
    groups: dict[Group, bool] = {}  # group -> whether it needs the teacher
    placed: set[str] = set()
    hyper, variant = (tuple(change for change in some if change[0] in rows) for some in (profile.hyper, profile.variant + selection.hyper))
    for pair in pairs:
        for seed in seeds:
            plain = Group(pair.teacher, pair.student, seed, protocol, precision, rows, hyper)
            whole = dataclasses.replace(plain, hyper=hyper + variant)
            wholes.append(whole)
            found = facts.of(whole)
            own = facts.of(plain) if variant else found
            for m in rows:
                cells.append(Cell(pair.teacher, pair.student, m, seed, found[m].skipped, found[m].uses_teacher, _changed(own[m], found[m])))
            members = tuple(m for m in rows if found[m].skipped is None and found[m].run not in placed)
            placed |= {found[m].run for m in members if not found[m].uses_teacher}
            if members:
                groups[narrowed(whole, members)] = any(found[m].uses_teacher for m in members)
    longest = sorted(groups, key=lambda g: -group_macs(g, groups[g], facts.macs))  # stable: pairs and seeds keep their order among equals
    needed = dict.fromkeys(g.teacher for g in longest if groups[g])
    teachers = tuple(sorted(needed, key=lambda name: -facts.macs(name)))
    titles = tuple((m, facts.methods[m]) for m in rows)
    return Plan(profile.name, protocol, teacher_protocol, precision, seeds, pairs, titles, tuple(cells), tuple(wholes), tuple(longest), teachers)


def narrowed(group: Group, members: Iterable[str]) -> Group:
    """The group with these methods only."""
    chosen = tuple(members)
    return dataclasses.replace(group, methods=chosen, hyper=tuple(h for h in group.hyper if h[0] in chosen))


def _changed(own: Fact, here: Fact) -> tuple[tuple[str, Any, Any], ...]:
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
