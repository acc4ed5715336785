"""What a plan will cost: from measured costs where there are any, else multiply-accumulates over a rate that is stated. No torch here."""

import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.plan.expand import group_macs, images, tested_images
from bench.plan.groups import Group
from bench.plan.rows import method_of
from bench.plan.selection import typed
from bench.store.costs import fits, scan
from bench.store.records import Cost

STATED = {"cuda": 8e12, "cpu": 3e10}
"""Training multiply-accumulates a second where nothing was measured: of one GPU, of one CPU core. Orders of magnitude, no promise."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of one slot's time for all the work, and where the figure comes from."""

    seconds: float
    by_group: tuple[float, ...]
    source: str


def load_costs(results: Path, device: str) -> list[Cost]:
    """The cost records measured on the device of that name; unreadable ones are left out."""
    return [c for c in scan(results)[0] if c.device.name == device]


def cost_of(costs: Sequence[Cost], group: Group, row: str, threads: int | None = None) -> Cost | None:
    """The record of a row's method on a group's pair, measured as the group's protocol has it and with the settings that the group changes (those
    of one row are taken not to change its steps' time); a method that no teacher changes has one for its student, whatever the pair. Of several:
    with as many threads, the newest."""
    method = method_of(row)
    changed = {name: str(value) for name, value in group.overrides(method).items()}

    def serves(c: Cost) -> bool:
        same = c.student == group.student and c.method == method and c.precision == group.precision and c.teacher in (group.teacher, None)
        return same and fits(c, group.protocol) and all(c.hyper is None or _is(c.hyper.get(k), v) for k, v in changed.items())

    return max((c for c in costs if serves(c)), key=lambda c: (c.teacher is not None, c.threads == threads, c.finished), default=None)


def _is(measured: object, asked: str) -> bool:
    """Whether a record's value of a hyper-parameter is the one that stands on the command line: 4.0 is what 4 says."""
    with contextlib.suppress(ValueError):
        return str(measured) == asked or typed(asked, type(measured)) == measured
    return False


def rate(costs: Sequence[Cost], kind: str, threads: int) -> tuple[float, str]:
    """Training multiply-accumulates a second of one slot, and what they rest on. `kind`: cuda or cpu (a slot of `threads` cores)."""
    seen = [(3 * c.student_macs + c.teacher_macs) * c.speed for c in costs]
    if seen:
        return statistics.median(seen), f"{statistics.median(seen) / 1e9:,.0f} GMAC/s, the median of {len(seen)} cost probes of this device"
    stated = STATED[kind] * (threads if kind == "cpu" else 1)
    return stated, f"{stated / 1e9:,.0f} GMAC/s assumed, nothing was measured on this device yet"


def training(
    groups: Sequence[tuple[Group, bool, Mapping[str, int]]], costs: Sequence[Cost], macs: Callable[[str], int], kind: str, threads: int
) -> Estimate:
    """The cost of training groups, each given with whether it needs its teacher and the epochs before the main stage of rows that have some.

    A group whose every method was probed alone takes at most the sum of those: its members share the teacher's pass. A step before the main
    stage is not probed; it reads the teacher, and is as long as the probed one by their multiply-accumulates.
    """
    speed, basis = rate(costs, kind, threads)
    seconds: list[float] = []
    measured = 0
    for group, with_teacher, before in groups:
        probes = [cost_of(costs, group, row, threads) for row in group.methods]
        if probes and all(probes):
            measured += 1
            # An image that is tested takes a third of one that is trained on: its backward pass is twice the forward one.
            seen = (images(group.protocol) + tested_images(group.protocol) / 3) * group.protocol.epochs
            spent = sum(seen / probe.speed for probe in probes)
            for row, probe in ((row, p) for row, p in zip(group.methods, probes, strict=True) if row in before):
                step = 3 * macs(group.student)
                longer = (step + macs(group.teacher)) / (step + (macs(group.teacher) if probe.teacher_macs else 0))
                spent += before[row] * images(group.protocol) * longer / probe.speed
            seconds.append(spent)
        else:
            seconds.append(group_macs(group, with_teacher, macs, before.values()) / speed)
    parts = []
    if measured:
        parts.append(f"{measured} of {len(groups)} groups from cost probes")
    if measured < len(groups):
        parts.append(f"{len(groups) - measured} of {len(groups)} groups from multiply-accumulates at {basis}")
    return Estimate(sum(seconds), tuple(seconds), "; ".join(parts))


def spread(seconds: Sequence[float], slots: int) -> float:
    """The time from start to end when work of these lengths goes, in this order, to whichever slot is free first."""
    loads = [0.0] * max(1, slots)
    for length in seconds:
        loads[loads.index(min(loads))] += length
    return max(loads)
