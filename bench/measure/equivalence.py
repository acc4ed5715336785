"""`python -m bench equivalence`: may a faster precision stand in for a slower one? Two one-sided tests on paired runs.

Both precisions train the same pair, methods and seeds: same initial student, same batches. The difference of a pair of runs in last-epoch
top-1 is one observation, pooled over methods and seeds. Equivalent: the mean difference lies within the margin by two one-sided t-tests
(Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987), the same as its 90 % interval lying inside. The power is said before
anything is trained. Differences count as independent; a precision's effect that differs between methods is not separated.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.errors import DONE, INTERRUPTED, STOPPED_IN_TIME, TROUBLE, USAGE, UsageError, check_known
from bench.options import DataOption, DeviceOption, EngineOption, ResultsOption, ThreadsOption, TimeBudgetOption
from bench.plan import names, protocols
from bench.plan.groups import Group
from bench.plan.identity import PRECISIONS, canonical
from bench.plan.profiles import Pair
from bench.plan.selection import parse_pair, parse_seeds
from bench.statistics import summarise
from bench.store import teachers
from bench.store.files import write_json
from bench.store.runs import RunView, scan
from bench.text import duration, say
from bench.train import group_job
from bench.train.execution import Execution
from methods import registry

ALPHA = 0.05
FOLDER = "equivalence"


@dataclass(frozen=True)
class Equivalence(TimeBudgetOption, ThreadsOption, EngineOption, DeviceOption, DataOption, ResultsOption):
    """Say whether a faster precision gives the accuracies of a slower one: paired seeds, two one-sided tests. Trains what is missing."""

    candidate: str = "tf32"
    """The precision that may stand in."""
    reference: str = "fp32"
    """The precision that it may stand in for."""
    pair: str = "resnet56-resnet20"
    """Teacher-student."""
    methods: tuple[str, ...] = ("student", "kd")
    """Methods whose differences are pooled."""
    seeds: tuple[str, ...] = ("1-8",)
    """Seeds, as in 1,2 or 1-8."""
    margin: float = 0.3
    """Points of top-1 within which the mean difference must lie."""
    sigma: float = 0.25
    """Standard deviation of a run's top-1 over seeds, assumed for the power."""
    protocol: str = "crd"
    """A declared protocol."""
    epochs: int | None = None
    """Scale the schedule: a trial."""
    train: bool = True
    """False: only read what is done."""

    def main(self) -> int:
        """Print the power, train what is missing, judge, and write the outcome below `results`. Returns an exit code."""
        protocol, pair, seeds = _checked(self)
        methods = tuple(dict.fromkeys(self.methods))
        if methods != self.methods:  # each once, or its seeds would count twice
            return dataclasses.replace(self, methods=methods).main()
        self.check_time_budget()
        if not self.results_there() and not self.train:
            raise UsageError(f"{self.results} is no folder, and --no-train reads what is done there; name the results folder with --results")
        planned = len(seeds) * len(self.methods)
        print(power_text(planned, self), flush=True)
        code = DONE
        if self.train:
            differences(self.results, self, protocol, pair, seeds)  # what could not be compared after the training is refused before it
            code = _train(self, protocol, pair, seeds)
            if code in (STOPPED_IN_TIME, INTERRUPTED, USAGE):
                return code
        pairs, missing = differences(self.results, self, protocol, pair, seeds)
        for text in missing:
            say(f"left out: {text}")
        verdict = judge([entry["difference"] for entry in pairs], self.margin)
        print(verdict_text(verdict, self))
        folder = self.results / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{pair.name}-{self.candidate}-{self.reference}{f'-{protocol.epochs}epochs' if protocol.trial else ''}.json"
        settings = {"margin": self.margin, "alpha": ALPHA, "methods": list(self.methods), "seeds": list(seeds), "protocol": protocol.name}
        names = {"candidate": self.candidate, "reference": self.reference, "teacher": pair.teacher, "student": pair.student}
        outcome = {"planned": planned, "power": _power(planned, self), "missing": missing, "differences": pairs, **dataclasses.asdict(verdict)}
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(path, {"format": 1, "kind": "equivalence", **names, **settings, "trial": protocol.trial, **outcome, "finished": finished})
        print(f"written to {path}")
        return code


@dataclass(frozen=True)
class Verdict:
    """What the differences say, in points."""

    word: str  # equivalent | not shown equivalent | different | cannot tell
    n: int
    mean: float | None
    sd: float | None  # of a difference, ddof 1
    interval: tuple[float, float] | None  # of the mean, 1 - 2 ALPHA
    p: float | None  # the larger of the two one-sided tests'


def judge(differences: Sequence[float], margin: float, alpha: float = ALPHA) -> Verdict:
    """Two one-sided t-tests against plus and minus `margin`. `different`: the whole interval lies outside. Two differences at least."""
    n = len(differences)
    if n < 2:
        return Verdict("cannot tell", n, differences[0] if n else None, None, None, None)
    found = summarise(differences)
    mean, sd = found.mean, found.sd
    if sd == 0.0:  # the same numbers, or shifted by a constant
        inside = abs(mean) < margin
        return Verdict("equivalent" if inside else "different", n, mean, 0.0, (mean, mean), 0.0 if inside else 1.0)
    from scipy.special import stdtr, stdtrit

    error = sd / math.sqrt(n)
    half = float(stdtrit(n - 1, 1 - alpha)) * error
    low, high = mean - half, mean + half
    p = max(float(stdtr(n - 1, -(margin + mean) / error)), float(stdtr(n - 1, -(margin - mean) / error)))
    word = "equivalent" if p < alpha else "different" if low > margin or high < -margin else "not shown equivalent"
    return Verdict(word, n, mean, sd, (low, high), p)


def power(n: int, margin: float, sd: float, true: float = 0.0, alpha: float = ALPHA) -> float:
    """Probability that `judge` says equivalent for n differences of standard deviation `sd` around `true`.

    Exact but for the mean over 4000 equally likely values of the sample variance. Raises ValueError for sd <= 0.
    """
    if sd <= 0:
        raise ValueError("sd must be above 0")
    if n < 2:
        return 0.0
    from scipy.special import chdtri, ndtr, stdtrit

    critical, root = float(stdtrit(n - 1, 1 - alpha)), math.sqrt(n)
    levels = 4000
    total = 0.0
    for i in range(levels):
        spread = critical * math.sqrt(float(chdtri(n - 1, (i + 0.5) / levels)) / (n - 1))
        total += max(0.0, float(ndtr((margin - true) * root / sd - spread) + ndtr((margin + true) * root / sd - spread)) - 1.0)
    return total / levels


def _checked(options: Equivalence) -> tuple[protocols.Protocol, Pair, tuple[int, ...]]:
    for name in (options.candidate, options.reference):
        check_known("precision", name, PRECISIONS)
    if options.candidate == options.reference:
        raise UsageError("candidate and reference are the same precision: name two")
    if not options.margin > 0 or not options.sigma > 0:
        raise UsageError("--margin and --sigma: above 0")
    names.check_methods(options.methods)
    pair = parse_pair(options.pair, names.networks())
    seeds = parse_seeds(options.seeds)
    if len(seeds) * len(options.methods) < 2:
        raise UsageError("an equivalence study needs two paired runs at least: more --seeds or --methods")
    protocol = protocols.get(options.protocol)
    return (protocol if options.epochs is None else protocol.scaled(options.epochs)), pair, seeds


def _train(options: Equivalence, protocol: protocols.Protocol, pair: Pair, seeds: Sequence[int]) -> int:
    """The groups of both precisions, seed by seed, so that what is done can be compared at any time."""
    until = None if options.time_budget is None else time.monotonic() + 60 * options.time_budget
    code, started, groups = DONE, time.monotonic(), [(seed, p) for seed in seeds for p in (options.reference, options.candidate)]
    for i, (seed, precision) in enumerate(groups):
        left = None if until is None else until - time.monotonic()
        if left is not None and left <= 0:
            return STOPPED_IN_TIME
        group = Group(pair.teacher, pair.student, seed, protocol, precision, tuple(options.methods))
        result = group_job.run_group(group, Execution.of(options, stop_after_seconds=left))
        if result in (STOPPED_IN_TIME, INTERRUPTED, USAGE):
            return result
        code = max(code, TROUBLE if result else DONE)
        print(f"{i + 1} of {len(groups)} groups after {duration(time.monotonic() - started)}", flush=True)
    return code


def differences(
    results: Path, options: Equivalence, protocol: protocols.Protocol, pair: Pair, seeds: Sequence[int]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Finished runs of both precisions that are alike in all else, with candidate minus reference in points; and what is missing, in words.

    Only of the methods' present versions and, where one is at hand, of the present teacher: others are of before. Raises UsageError where runs
    of one cell differ all the same.
    """
    found: dict[str, dict[str, RunView]] = {}
    views, problems = scan(results)
    versions = {name: registry.get(name).version for name in options.methods}
    teacher = teachers.find(results, protocol.dataset, pair.teacher)
    for view in views:
        same = view.student == pair.student and view.protocol == protocol and view.teacher in (None, pair.teacher)
        asked = view.method in options.methods and view.seed in seeds and view.precision in (options.candidate, options.reference)
        present = view.known.method_version == versions.get(view.method) and (teacher is None or view.known.teacher_hash in (None, teacher.hash))
        if same and asked and present and view.record and not view.changed:
            found.setdefault(canonical(view.identity | {"precision": ""}), {})[view.precision] = view
    entries = []
    for both in found.values():
        if len(both) == 2:
            fast, slow = both[options.candidate], both[options.reference]
            values = {"candidate": fast.record.test_top1, "reference": slow.record.test_top1}
            difference = values["candidate"] - values["reference"]
            entries.append({"method": fast.method, "seed": fast.seed, **values, "difference": difference, "runs": [fast.id, slow.id]})
    entries.sort(key=lambda e: (options.methods.index(e["method"]), e["seed"]))
    seen = [(e["method"], e["seed"]) for e in entries]
    if twice := sorted({cell for cell in seen if seen.count(cell) > 1}):
        raise UsageError(f"{twice[0][0]} with seed {twice[0][1]} was trained with two teachers, data sets or settings: use another results folder")
    missing = [f"{m} with seed {s}: not done in both precisions" for m in options.methods for s in seeds if (m, s) not in seen]
    return entries, missing + [f"{problem.where}: {problem.reason}" for problem in problems]


def _power(n: int, options: Equivalence) -> float:
    return power(n, options.margin, math.sqrt(2) * options.sigma)


def power_text(n: int, options: Equivalence) -> str:
    """What the plan can show, before it starts."""
    shifted = power(n, options.margin, math.sqrt(2) * options.sigma, options.margin / 3)
    return (
        f"{options.candidate} against {options.reference}: {n} paired runs, margin {options.margin:g} points. If runs scatter by "
        f"{options.sigma:g} points, equivalence is shown with probability {_power(n, options):.0%} where there is no difference, "
        f"{shifted:.0%} where there is one of {options.margin / 3:.2g}."
    )


def verdict_text(verdict: Verdict, options: Equivalence) -> str:
    """The outcome for people."""
    if verdict.interval is None:
        return f"{options.candidate} against {options.reference}: cannot tell from {verdict.n} paired runs"
    low, high = verdict.interval
    return (
        f"{options.candidate} against {options.reference}: {verdict.word} within {options.margin:g} points: mean difference {verdict.mean:+.3f} "
        f"(90 % interval {low:+.3f} to {high:+.3f}, sd {verdict.sd:.3f}, n {verdict.n}, p {verdict.p:.2g})"
    )
