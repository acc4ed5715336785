"""What is sound to say about a handful of seeds: sample standard deviation (ddof 1), paired differences, t-intervals, comparison with a printed one.

All intervals are two-sided, 95 %, in the unit of their input (percentage points of top-1), and not corrected for the number of comparisons.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

LEVEL = 0.95
TOO_WIDE = 1.0
"""Points: an interval wider than plus or minus this that holds zero says nothing about agreement."""

CLAIM = 3
"""Seeds: with fewer no claim is made."""

ALIKE = 1e-9
"""A standard deviation below it is rounding: the numbers are alike."""

ASSUMED = "assuming a published standard deviation of"
"""How a verdict says that the deviation was not printed but given by whoever asked."""


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (None for n = 1) and n of values of one kind."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A mean difference, the half-width of its interval (None where there is no saying), and how many differences entered.

    `common`: of a mean over pairs, the half-width that allows for seeds common to them; None where there is one pair or no saying.
    `pairs`: how many pairs it is over; `fewest`: the seeds of the one that has the fewest, None: `n`, of one pair.
    """

    mean: float
    half: float | None
    n: int
    df: float | None = None
    common: float | None = None
    pairs: int = 1
    fewest: int | None = None

    @property
    def seeds(self) -> int:
        """Seeds of each pair, at least: what a claim rests on."""
        return self.n if self.fewest is None else self.fewest


@dataclass(frozen=True)
class Verdict:
    """Ours against a published number: `agrees`, `differs` or `cannot tell`, ours minus published, half-width (None if unknown), and why."""

    word: str
    mean: float
    half: float | None
    why: str = ""


@lru_cache(4096)
def t_quantile(df: float, level: float = LEVEL) -> float:
    """The two-sided quantile of Student's t: a share `level` lies within plus or minus it. df > 0, need not be whole."""
    from scipy.special import stdtrit  # imported here: the report starts without it

    return float(stdtrit(df, 0.5 + level / 2))


def summarise(values: Sequence[float]) -> Summary:
    """Mean, sd (ddof 1) and n. Raises ValueError for no values."""
    n = len(values)
    if not n:
        raise ValueError("no values")
    mean = math.fsum(values) / n
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else None
    return Summary(mean, sd, n)


def binomial_error(top1: float, images: int) -> float:
    """The standard error of a top-1 in percent over `images` independent test images, in points: 100 sqrt(p (1 - p) / n)."""
    p = top1 / 100
    return 100 * math.sqrt(p * (1 - p) / images)


def paired(ours: Mapping[int, float], baseline: Mapping[int, float]) -> dict[int, float]:
    """Ours minus baseline for each seed that both have."""
    return {seed: ours[seed] - baseline[seed] for seed in sorted(ours.keys() & baseline.keys())}


def difference(differences: Sequence[float]) -> Difference | None:
    """The mean of paired differences with its t-interval; None for none.

    No interval for one of them, and none where all are alike: accuracies come in steps, so that says nothing of how they vary.
    """
    if not differences:
        return None
    s = summarise(differences)
    if s.sd is None or s.sd < ALIKE:
        return Difference(s.mean, None, s.n)
    return Difference(s.mean, t_quantile(s.n - 1) * s.sd / math.sqrt(s.n), s.n, s.n - 1)


def pooled(differences: Mapping[str, Mapping[int, float]], shared: Mapping[str, str]) -> Difference | None:
    """The mean over pairs of the mean paired difference, with an interval for these very pairs that takes unlike students as independent.

    differences: pair -> {seed: difference}; shared: pair -> what names its baseline's network. Pairs that share a baseline share its noise seed
    by seed, so their differences at one seed are one cluster. The variance is the sum over clusters of the squared sum of residuals / (pairs x n),
    each group of clusters with the factor k/(k-1), k its number of seeds; degrees of freedom by Welch and Satterthwaite over the groups.
    No interval where a pair has one seed only, or in each pair all are alike (see `difference`).

    Where a seed moves all pairs alike the interval is too narrow. `common` is not: the mean over pairs within each seed first, then a t-interval
    over seeds. With few seeds it is wide, since its degrees of freedom are seeds - 1 however many pairs there are.
    """
    filled = {pair: by_seed for pair, by_seed in differences.items() if by_seed}
    if not filled:
        return None
    means = {pair: summarise(list(by_seed.values())) for pair, by_seed in filled.items()}
    mean = math.fsum(m.mean for m in means.values()) / len(means)
    count, fewest = sum(m.n for m in means.values()), min(m.n for m in means.values())
    if fewest < 2:
        return Difference(mean, None, count, pairs=len(means), fewest=fewest)
    clusters: dict[str, dict[int, float]] = {}
    for pair, by_seed in filled.items():
        group = clusters.setdefault(shared[pair], {})
        for seed, value in by_seed.items():
            group[seed] = group.get(seed, 0.0) + (value - means[pair].mean) / (len(means) * means[pair].n)
    variances = [(math.fsum(e * e for e in group.values()) * len(group) / (len(group) - 1), len(group) - 1) for group in clusters.values()]
    variance = math.fsum(v for v, _ in variances)
    common = _common(list(filled.values()))
    if variance < ALIKE**2:
        return Difference(mean, None, count, pairs=len(means), fewest=fewest)
    df = variance**2 / math.fsum(v * v / k for v, k in variances)
    return Difference(mean, t_quantile(round(df, 6)) * math.sqrt(variance), count, df, common, len(means), fewest)


def differences(
    rows: Mapping[int, Sequence[Mapping[int, float]]], base: Sequence[Mapping[int, float]], students: Sequence[str]
) -> tuple[dict[tuple[int, int], Difference], dict[int, Difference]]:
    """Rows of cells (seed -> value) minus the row `base`, paired by seed: (row, column) -> that of a cell, and row -> that of all columns.

    Columns of one student share initial weights and data order seed by seed, so a seed of theirs is one cluster (see `pooled`).
    """
    cells: dict[tuple[int, int], Difference] = {}
    over_all: dict[int, Difference] = {}
    for i, row in rows.items():
        by_column = {str(j): paired(values, plain) for j, (values, plain) in enumerate(zip(row, base, strict=True))}
        cells |= {(i, int(j)): found for j, by_seed in by_column.items() if (found := difference(list(by_seed.values())))}
        if found := pooled(by_column, {str(j): student for j, student in enumerate(students)}):
            over_all[i] = found
    return cells, over_all


def _common(pairs: Sequence[Mapping[int, float]]) -> float | None:
    """Half-width of the t-interval over the seeds' means over pairs; None for one pair and where the pairs have not the same seeds."""
    if len(pairs) < 2 or any(by_seed.keys() != pairs[0].keys() for by_seed in pairs):
        return None
    found = difference([math.fsum(by_seed[seed] for by_seed in pairs) / len(pairs) for seed in pairs[0]])
    return found and found.half


def against_published(ours: Summary, mean: float, sd: float | None, n: int | None, known: bool = False) -> Verdict:
    """Welch's interval of ours minus the published mean; it agrees where the interval holds zero and is not wider than TOO_WIDE. `known`: `sd` was
    not estimated from those n, so that n may be 1 and all degrees of freedom are ours."""
    delta = ours.mean - mean
    if sd is None or n is None or n < 2 - known:
        return Verdict("cannot tell", delta, None, "no published standard deviation")
    if ours.sd is None:
        return Verdict("cannot tell", delta, None, "one seed")
    a, b = ours.sd**2 / ours.n, sd**2 / n
    if a + b == 0:
        return Verdict("agrees" if delta == 0 else "differs", delta, 0.0)
    spread = a * a / (ours.n - 1) + (0.0 if known else b * b / (n - 1))
    half = t_quantile(round((a + b) ** 2 / spread, 6) if spread else math.inf) * math.sqrt(a + b)
    if abs(delta) > half:
        return Verdict("differs", delta, half)
    return Verdict("agrees", delta, half) if half <= TOO_WIDE else Verdict("cannot tell", delta, half, f"the interval is wider than {TOO_WIDE:g}")


def geometric_mean(values: Sequence[float]) -> float | None:
    """The geometric mean of positive values; None for none."""
    return math.exp(math.fsum(math.log(v) for v in values) / len(values)) if values else None
