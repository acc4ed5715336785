"""What the nightly prints. No torch here."""

import math
from typing import Any

from bench.nightly.verdict import DRIFTED, VANISHED, Finding, Verdict, chance
from bench.text import clean


def amount(value: float, unit: str, scale: str) -> str:
    """A worsening in words: points, or percent where the scale is logarithmic."""
    if scale == "log" and value > math.log(1e6):
        return "more than a million times"
    if scale == "log":
        return f"{100 * math.expm1(value):.1f} %"
    return f"{value:.3g}" + (f" {unit}" if unit else "")


def _span(low: float, high: float, unit: str, scale: str) -> str:
    ends = amount(low, unit, scale), amount(high, unit, scale)
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _where(metric: dict[str, Any]) -> str:
    return ", ".join(part for part in (metric["method"], metric["pair"], metric["metric"]) if part)


def _commits(finding: Finding) -> str:
    good = f" (last good {finding.good})" if finding.good else ""
    return f"since commit {finding.commit or 'unknown'}, night {finding.night}{good}"


def finding_line(finding: Finding, metrics: int) -> str:
    """One regression on one line: method, pair, metric, size, since which commit, how sure."""
    name = _where(finding.metric)
    tail = f"; changed with it: {'; '.join(finding.changed)}" if finding.changed else ""
    if finding.kind == VANISHED:
        return f"{name}: no longer measured {_commits(finding)}" + (f"; {finding.reason}" if finding.reason else "") + tail
    unit, scale = finding.metric["unit"], finding.metric["scale"]
    size, low, high = (amount(v, unit, scale) for v in (finding.size, finding.size - finding.half, finding.size + finding.half))
    how = "drifted" if finding.kind == DRIFTED else "is"
    again = ", worse than was reported before" if finding.worse_again else ""
    nights = chance(finding.score, metrics)
    sure = "more than a million" if nights > 1e6 else f"about {nights:,.0f}"
    return (
        f"{name}: {how} {size} worse than the baseline (95 % interval {low} to {high}){again}, {_commits(finding)}; "
        f"chance alone would show this once in {sure} nights (z = {finding.score:.1f}){tail}"
    )


def _suspicion(finding: Finding) -> str:
    size = amount(finding.size, finding.metric["unit"], finding.metric["scale"])
    return f"{_where(finding.metric)}: {size} worse than the baseline tonight (z = {finding.score:.1f}); a second such night may ring"


def verdict_lines(verdict: Verdict, baseline: dict[str, Any], machine: str) -> list[str]:
    """The whole verdict, most urgent first."""
    lines = [f"regression: {finding_line(f, verdict.metrics)}" for f in verdict.new]
    lines += [f"still open (night {f.reported}): {finding_line(f, verdict.metrics)}" for f in verdict.open]
    lines += [f"suspicious, not confirmed: {_suspicion(f)}" for f in verdict.suspicious]
    lines += [f"resolved: {_where(f.metric)} (was reported in night {f.reported})" for f in verdict.resolved]
    lines += [f"new metric, compared from tonight on: {key}" for key in verdict.appeared]
    if verdict.better:
        lines.append(f"better than the baseline: {', '.join(verdict.better)}; --accept REASON makes that the measure")
    lines += [f"gap: {count} night{'s' * (count > 1)} missing between {before[:10]} and {after[:10]}" for before, after, count in verdict.gaps[-3:]]
    where = f"baseline: night {baseline['night']}, commit {baseline['commit'] or 'unknown'} ({baseline['reason']})"
    lines.append(f"night {verdict.night} on {machine}: {verdict.unchanged} of {verdict.deterministic} accuracies bit-equal to the baseline; {where}")
    for name, (unit, scale, low, high, slow, slowest) in verdict.smallest.items():
        if math.isnan(low):
            lines.append(f"smallest change seen, {name}: more nights are needed to say")
            continue
        spans = [_span(*pair, unit, scale) for pair in ((low, high), (slow, slowest))]
        lines.append(f"smallest change seen in 95 of 100 cases, {name}: step {spans[0]} (within two nights), slow drift {spans[1]} (by method)")
    if verdict.new:
        lines.append(f'if this is meant: python -m bench nightly --accept "REASON" --machine {machine} moves the baseline to tonight')
    elif not verdict.open:
        lines.append("no regression")
    return [clean(line, 1000) for line in lines]
