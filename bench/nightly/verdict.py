"""What a history means tonight: every night since the baseline is taken through the alarm again, so no other state is kept.

A regression is new on the night that confirms it (exit code 1) and on a later night only where it got worse, or where that night was killed
before it could say so; until the baseline is moved or it goes away it is listed as still open. No torch here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from scipy.special import stdtrit

from bench.nightly import alarm
from bench.nightly.noise import Noise, of_seeds
from bench.nightly.rows import Row

PRIOR_RATIO, RATIO_FREEDOM = 0.03, 4.0
"""Night-to-night noise of a cost (3 %) before any cost has nights to learn it from, and its degrees of freedom."""
SEED_FREEDOM = 8.0
"""How many degrees of freedom the spread over the first night's seeds, pooled over methods, is worth."""
WORSE, DRIFTED, VANISHED = "step", "drift", "vanished"


@dataclass(frozen=True)
class Finding:
    """One regression of one metric. `size`, `half`: worsening since the baseline and half its 95 % interval, in the metric's units (log units
    where its scale is "log"); `score`: normal z; `night`, `commit`: the first bad night; `good`: the commit of the last good one."""

    kind: str
    key: str
    metric: dict[str, Any]
    night: int
    reported: int
    commit: str | None
    good: str | None
    size: float = math.nan
    half: float = math.nan
    score: float = math.nan
    worse_again: bool = False
    reason: str = ""
    changed: tuple[str, ...] = ()


@dataclass
class Verdict:
    """Tonight. `new` rings; `suspicious` would with a second such night; `unchanged` of the `deterministic` metrics are bit-equal to the
    baseline. `smallest`: per metric name (unit, scale, smallest step of the best and of the worst method, the same for drift); NaN while it
    is not known."""

    night: int
    metrics: int
    deterministic: int = 0
    unchanged: int = 0
    new: list[Finding] = field(default_factory=list)
    open: list[Finding] = field(default_factory=list)
    resolved: list[Finding] = field(default_factory=list)
    suspicious: list[Finding] = field(default_factory=list)
    better: list[str] = field(default_factory=list)
    appeared: list[str] = field(default_factory=list)
    gaps: list[tuple[str, str, int]] = field(default_factory=list)
    smallest: dict[str, tuple[str, str, float, float, float, float]] = field(default_factory=dict)
    all_findings: list[Finding] = field(default_factory=list)

    @property
    def code(self) -> int:
        """Exit code: 1 where something is new."""
        return 1 if self.new else 0


def since(rows: Sequence[Row], baseline: dict[str, Any]) -> list[Row]:
    """The rows that count: the baseline's and the later ones of the same plan."""
    first = baseline["row"]
    return [first, *(row for row in rows if row["night"] > first["night"] and row["plan"] == first["plan"])]


def before(rows: Sequence[Row], baseline: dict[str, Any]) -> list[Row]:
    """The earlier rows of the baseline's plan: their noise counts still, their level does not."""
    first = baseline["row"]
    return [row for row in rows if row["night"] < first["night"] and row["plan"] == first["plan"]]


def judge(rows: Sequence[Row], baseline: dict[str, Any], every_hours: float = 24.0, told: float = math.inf) -> Verdict:
    """The verdict on the last of `rows` (oldest first, all of one machine class) against the baseline.

    `told`: the last night whose verdict anybody saw; what later ones found and is still open is new tonight.
    """
    nights = since(rows, baseline)
    keys = list(dict.fromkeys(key for row in nights for key in row["metrics"]))
    replay = _Replay(nights, keys)
    if earlier := before(rows, baseline):
        replay.learn_from([*earlier, nights[0]])
    verdict = Verdict(nights[-1]["night"], len(keys))
    for index in range(1, len(nights)):
        if nights[index - 1]["night"] <= told:
            verdict.new, verdict.resolved = [], []
        replay.take(index, verdict)
    still = [*replay.findings.values(), *replay.vanished.values()]
    verdict.new = [finding for finding in verdict.new if any(finding is one for one in still)]
    verdict.open = [finding for finding in still if not any(finding is one for one in verdict.new)]
    tonight = nights[-1]["metrics"]
    verdict.deterministic = sum(bool(metric.get("bits")) for metric in tonight.values())
    verdict.unchanged = sum(_same_bits(tonight[k], nights[0]["metrics"].get(k)) for k in tonight)
    verdict.appeared = [k for k in tonight if len(nights) > 1 and replay.first[k] == len(nights) - 1]
    verdict.suspicious = replay.suspicious(len(nights) - 1)
    verdict.better = [k for j, k in enumerate(keys) if k in tonight and replay.state.better[j]]
    verdict.gaps = gaps(nights, every_hours)
    verdict.smallest = _smallest(replay, tonight)
    return verdict


class _Replay:
    """The alarm over the nights, with what names the commits."""

    def __init__(self, nights: list[Row], keys: list[str]) -> None:
        self.nights, self.keys = nights, keys
        self.first = {key: next(i for i, row in enumerate(nights) if key in row["metrics"]) for key in keys}
        self.metrics = [nights[self.first[key]]["metrics"][key] for key in keys]
        single = np.array([bool(m.get("bits")) for m in self.metrics])
        prior, freedom = zip(*(self._prior(key, m) for key, m in zip(keys, self.metrics, strict=True)), strict=True) if keys else ((), ())
        pooled = np.array([m["scale"] == "log" for m in self.metrics])
        self.state = alarm.State(single, Noise(np.array(prior), np.array(freedom), pooled))
        self.limits = alarm.limits(len(keys), int(single.sum()))
        self.findings: dict[str, Finding] = {}  # the regressions that the alarm has open
        self.vanished: dict[str, Finding] = {}  # apart from them: a metric can be both
        self.measured: dict[str, list[int]] = {key: [self.first[key]] for key in keys}
        self.fresh: dict[str, int] = dict(self.first)  # the last night with new bits
        self.calm: dict[str, int] = dict(self.first)

    def _prior(self, key: str, metric: dict[str, Any]) -> tuple[float, float]:
        """s squared and its degrees of freedom on the metric's first night."""
        alike = [m for m in self.nights[self.first[key]]["metrics"].values() if m["metric"] == metric["metric"]]
        spreads = [np.var(list(m["values"].values()), ddof=1) / len(m["values"]) for m in alike if len(m["values"]) > 1]
        if metric["scale"] == "log" or not spreads:
            return max(PRIOR_RATIO, 2 * metric.get("noise", 0.0)) ** 2, RATIO_FREEDOM
        # All seeds alike to the last digit is no noise to go by: a thousandth of the value then stands in.
        return max(float(np.mean(spreads)), (1e-3 * float(np.mean(list(metric["values"].values())))) ** 2, 1e-12), SEED_FREEDOM

    def learn_from(self, nights: list[Row]) -> None:
        """Start from the noise of earlier nights."""
        keys = list(dict.fromkeys(key for row in nights for key in row["metrics"]))
        earlier, ignored = _Replay(nights, keys), Verdict(0, 0)
        for index in range(1, len(nights)):
            earlier.take(index, ignored)
        where = {key: j for j, key in enumerate(keys)}
        self.state.noise.inherit(earlier.state.noise, np.array([where.get(key, -1) for key in self.keys]))

    def take(self, index: int, verdict: Verdict) -> None:
        row = self.nights[index]
        noise = self.state.noise.estimate()[0]
        parts = [self._difference(key, index, float(s)) for key, s in zip(self.keys, noise, strict=True)]
        night = alarm.Night(*(np.array([p[i] for p in parts]) for i in range(5)))
        suspicious = self.state.suspicious.copy()
        events = alarm.step(self.state, night, self.limits)
        for j, key in enumerate(self.keys):
            if not math.isfinite(night.value[j]):
                self._missing(key, index, verdict)
                continue
            if key in self.vanished:
                verdict.resolved.append(self.vanished.pop(key))
            if events[j] == alarm.BACK:
                verdict.resolved.append(self.findings.pop(key))
            elif events[j] != alarm.NONE:
                self._ring(j, key, index, int(events[j]), bool(suspicious[j]), verdict)
            self.measured[key].append(index)
            if night.fresh[j]:
                self.fresh[key] = index
            if self.state.mean[j] <= self.state.level[j]:
                self.calm[key] = index
        verdict.night = row["night"]

    def suspicious(self, index: int) -> list[Finding]:
        """What is far on that night and has not rung, most suspicious first."""
        state, row = self.state, self.nights[index]
        size = state.last - np.where(state.open, state.kept_level, state.level)
        found = [
            Finding(WORSE, key, self.metrics[j], row["night"], row["night"], row["commit"], None, float(size[j]), score=float(state.last_score[j]))
            for j, key in enumerate(self.keys)
            if index and state.suspicious[j] and self.measured[key][-1] == self.fresh[key] == index
        ]
        return sorted(found, key=lambda finding: -finding.score)

    def _difference(self, key: str, index: int, s: float) -> tuple[float, float, float, bool, bool]:
        """value, spread, freedom, fresh, equal: the fields of alarm.Night. `s`: the noise as known so far."""
        metric = self.nights[index]["metrics"].get(key)
        if metric is None or index <= self.first[key]:
            return math.nan, math.nan, 0.0, False, False
        first, before = (self.nights[i]["metrics"][key] for i in (self.first[key], self.measured[key][-1]))
        common = [seed for seed in metric["values"] if seed in first["values"]]
        if not common or any(metric[name] != first[name] for name in ("scale", "worse", "unit")):
            return math.nan, math.nan, 0.0, False, False
        differences = np.array([_worse(metric, first, seed) for seed in common])
        value = float(differences.mean() if metric["scale"] == "log" else of_seeds(differences, np.array(s)))
        steps = [_worse(metric, before, seed) for seed in common if seed in before["values"]]
        paired = len(steps) > 1 and metric["scale"] == "linear"
        spread = float(np.var(steps, ddof=1)) / 2 / len(steps) if paired else math.nan
        return value, spread, len(steps) - 1.0 if paired else 0.0, not _same_bits(metric, before), _same_bits(metric, first)

    def _missing(self, key: str, index: int, verdict: Verdict) -> None:
        """A metric that nights before had: reported once, whatever else of it is open."""
        row = self.nights[index]
        metric = self.metrics[self.keys.index(key)]
        if index <= self.first[key] or key in self.vanished or metric["part"] not in row["parts"]:
            return
        new = [k for k in row["metrics"] if self.first[k] == index]
        reason = row["failures"].get(metric["method"], "")
        if key in row["metrics"]:
            reason = "measured in other units, or over other seeds"
        if not reason and new:
            reason = f"appeared tonight: {', '.join(new)}; renamed?"
        good = self.nights[self.measured[key][-1]]
        finding = Finding(VANISHED, key, metric, row["night"], row["night"], row["commit"], good["commit"], reason=reason, changed=changes(good, row))
        self._report(finding, verdict)

    def _ring(self, j: int, key: str, index: int, event: int, suspicious: bool, verdict: Verdict) -> None:
        if event == alarm.DRIFT:
            bad = next((i for i in self.measured[key] if i > self.calm[key]), index)
        else:
            bad = self.fresh[key] if suspicious else index
        good = self.nights[max((i for i in self.measured[key] if i < bad), default=0)]
        row, state = self.nights[bad], self.state
        finding = Finding(
            WORSE if event == alarm.STEP else DRIFTED,
            key,
            self.metrics[j],
            row["night"],
            self.nights[index]["night"],
            row["commit"],
            good["commit"],
            size=float(state.size[j]),
            half=float(state.error[j] * stdtrit(state.freedom[j], 0.975)),
            score=float(state.score[j]),
            worse_again=key in self.findings,
            changed=changes(good, row),
        )
        self._report(finding, verdict)

    def _report(self, finding: Finding, verdict: Verdict) -> None:
        verdict.new.append(finding)
        verdict.all_findings.append(finding)
        (self.vanished if finding.kind == VANISHED else self.findings)[finding.key] = finding


def _worse(metric: dict[str, Any], other: dict[str, Any], replicate: str) -> float:
    """How much worse than `other` a replicate is, in the metric's scale."""
    now, then = metric["values"][replicate], other["values"][replicate]
    difference = math.log(now / then) if metric["scale"] == "log" else now - then
    return -difference if metric["worse"] == "lower" else difference


def _same_bits(metric: dict[str, Any], other: dict[str, Any] | None) -> bool:
    """Whether both runs ended with the same weights."""
    return bool(metric.get("bits")) and other is not None and metric["bits"] == other.get("bits") and metric["values"] == other["values"]


def changes(good: Row, bad: Row) -> tuple[str, ...]:
    """What else differs between two nights: versions and settings with their values, names of methods whose source changed."""
    facts = [f"{name} {a} -> {b}" for name in sorted(good["facts"] | bad["facts"]) if (a := good["facts"].get(name)) != (b := bad["facts"].get(name))]
    sources = sorted(name for name in good["sources"].keys() & bad["sources"].keys() if good["sources"][name] != bad["sources"][name])
    return (*facts, *([f"source of {', '.join(sources)}"] if sources else []))


def gaps(nights: Sequence[Row], every_hours: float) -> list[tuple[str, str, int]]:
    """(date before, date after, nights missing) wherever more than one and a half intervals lie between two rows."""
    found = []
    for before, row in zip(nights, nights[1:], strict=False):
        hours = (datetime.fromisoformat(row["date"]) - datetime.fromisoformat(before["date"])).total_seconds() / 3600
        if hours > 1.5 * every_hours:
            found.append((before["date"], row["date"], max(1, round(hours / every_hours) - 1)))
    return found


def _smallest(replay: _Replay, tonight: dict[str, Any]) -> dict[str, tuple[str, str, float, float, float, float]]:
    known = replay.state.noise.known()
    steps, drifts = (np.where(known, f(replay.state, replay.limits), np.nan) for f in (alarm.smallest, alarm.budget))
    found: dict[str, tuple[str, str, float, float, float, float]] = {}
    for name in dict.fromkeys(m["metric"] for m in replay.metrics):
        js = [j for j, key in enumerate(replay.keys) if replay.metrics[j]["metric"] == name and key in tonight]
        if js:
            metric = replay.metrics[js[0]]
            found[name] = (metric["unit"], metric["scale"], *(float(f(x[js])) for x in (steps, drifts) for f in (np.min, np.max)))
    return found


def chance(score: float, metrics: int) -> float:
    """Nights of the whole suite in which chance alone gives one such score."""
    tail = math.erfc(score / math.sqrt(2)) / 2 * max(1, metrics)
    return 1 / tail if tail > 0 else math.inf
