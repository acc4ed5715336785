"""Students set side by side by method and paired by seed. No torch here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.analysis.frame.subjects import Subject
from bench.errors import UsageError
from bench.plan.identity import canonical
from bench.statistics import CLAIM, Difference, difference, paired, t_quantile
from bench.store.runs import RunView, read_run
from bench.text import count, settings_text

BASELINE = "student"
"""The method whose networks the others are compared with: plain cross-entropy."""


def grouped(students: Sequence[Subject], own: Callable[[RunView], Mapping[str, Any]]) -> dict[str, dict[int, Subject]]:
    """Row -> seed -> student, the baseline first, then by name. A row is a method, with the settings in which it differs from the method's
    `own` ones: "skd", "skd [temperature=0.1]".

    Raises UsageError for students of different architectures, and where the runs of one row differ in more than the seed.
    """
    views = {s.label: read_run(s.file.parent) for s in students}
    names = {label: _row(view, own(view)) for label, view in views.items()}
    found: dict[str, dict[int, Subject]] = {}
    first: dict[str, tuple[dict[str, Any], str]] = {}
    tables: dict[tuple[str, str], str] = {}
    for one in sorted(students, key=lambda s: (s.method != BASELINE, names[s.label], s.seed, s.label)):
        row, identity = names[one.label], dict(views[one.label].identity)
        identity.pop("seed", None)
        tables.setdefault(views[one.label].table, one.label)
        if len(tables) > 1:
            what = "protocols" if len({protocol for protocol, _ in tables}) > 1 else f"precisions ({' and '.join(p for _, p in tables)})"
            raise UsageError(f"{' and '.join(tables.values())} were trained under different {what}: name runs of one")
        kind, label = first.setdefault(row, (identity, one.label))
        if canonical(identity) != canonical(kind):
            what = ", ".join(sorted(name for name in kind.keys() | identity.keys() if canonical(kind.get(name)) != canonical(identity.get(name))))
            raise UsageError(f"{label} and {one.label} are of one method and differ in more than the seed ({what}): name the runs of one of them")
        if other := found.setdefault(row, {}).get(one.seed):
            raise UsageError(f"{other.label} and {one.label} are the same method and seed: name one of them")
        found[row][one.seed] = one
    if len(kinds := {s.architecture for s in students}) > 1:
        raise UsageError(f"these students are of {' and '.join(sorted(kinds))}: name the runs of one")
    return found


def _row(view: RunView, own: Mapping[str, Any]) -> str:
    changed = settings_text({name: value for name, value in view.known.hyper.items() if own.get(name) != value})
    return f"{view.method} [{changed}]" if changed else view.method


def compared(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Ours minus baseline over the seeds that both have. None: no seed."""
    return difference(list(paired(ours, baseline).values()))


def half_width(differences: np.ndarray) -> np.ndarray:
    """Half the width of the 95 % t-interval of the mean over the first axis: (n, ...) -> (...); n > 1."""
    n = len(differences)
    return t_quantile(n - 1) * differences.std(0, ddof=1) / np.sqrt(n)


def mean_and_sd(values: Sequence[float], digits: int) -> str:
    """"0.61 ± 0.32" over seeds (ddof 1); the value alone of one."""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def shown(found: Difference | None, digits: int = 2) -> str:
    """"+0.61 ± 0.32"; below three seeds, and without an interval, "+0.61 (2 seeds)"; empty where there is none."""
    if found is None:
        return ""
    text = f"{found.mean:+.{digits}f}"
    return f"{text} ({count(found.n, 'seed')})" if found.n < CLAIM or found.half is None else f"{text} ± {found.half:.{digits}f}"
