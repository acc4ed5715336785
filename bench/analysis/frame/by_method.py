"""Students set side by side by method and paired by seed. No torch here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.analysis.frame.subjects import Subject
from bench.errors import UsageError
from bench.plan.identity import canonical
from bench.store.runs import read_run

BASELINE = "student"
"""The method whose networks the others are compared with: plain cross-entropy."""
LEVEL = 0.95


def grouped(students: Sequence[Subject]) -> dict[str, dict[int, Subject]]:
    """Method -> seed -> student, the baseline first, then by name.

    Raises UsageError for students of different architectures, and where the runs of one method differ in more than the seed.
    """
    found: dict[str, dict[int, Subject]] = {}
    first: dict[str, tuple[str, str]] = {}
    protocols: dict[str, str] = {}
    for one in sorted(students, key=lambda s: (s.method != BASELINE, s.method, s.seed, s.label)):
        identity = dict(read_run(one.file.parent).identity)
        identity.pop("seed", None)
        protocols.setdefault(canonical(identity["protocol"]), one.label)
        if len(protocols) > 1:
            raise UsageError(f"{' and '.join(protocols.values())} were trained under different protocols: name runs of one")
        kind, label = first.setdefault(one.method, (canonical(identity), one.label))
        if canonical(identity) != kind:
            raise UsageError(f"{label} and {one.label} are of one method with different settings: name the runs of one of them")
        if other := found.setdefault(one.method, {}).get(one.seed):
            raise UsageError(f"{other.label} and {one.label} are the same method and seed: name one of them")
        found[one.method][one.seed] = one
    if len(kinds := {s.architecture for s in students}) > 1:
        raise UsageError(f"these students are of {' and '.join(sorted(kinds))}: name the runs of one")
    return found


def paired(ours: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, Any] | None:
    """Ours minus baseline over the seeds that both have: mean, half width of the 95 % t-interval (None below three seeds), n. None: no seed."""
    differences = np.array([ours[s] - baseline[s] for s in sorted(ours.keys() & baseline.keys())])
    if not len(differences):
        return None
    half = half_width(differences) if len(differences) > 2 else None
    return {"mean": float(differences.mean()), "half": None if half is None else float(half), "n": len(differences)}


def half_width(differences: np.ndarray) -> np.ndarray:
    """Half the width of the 95 % t-interval of the mean over the first axis: (n, ...) -> (...); n > 1."""
    from scipy.special import stdtrit

    n = len(differences)
    return stdtrit(n - 1, 0.5 + LEVEL / 2) * differences.std(0, ddof=1) / np.sqrt(n)


def shown(difference: Mapping[str, Any] | None, digits: int = 2) -> str:
    """"+0.61 ± 0.32", "+0.61 (2 seeds)"; empty where there is none."""
    if difference is None:
        return ""
    text = f"{difference['mean']:+.{digits}f}"
    seeds = f"({difference['n']} seed{'s' * (difference['n'] != 1)})"
    return f"{text} {seeds}" if difference["half"] is None else f"{text} ± {difference['half']:.{digits}f}"
