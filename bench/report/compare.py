"""Many comparisons at once: every cell and the pooled rows against a baseline row, p-values controlled by Holm, and who leads a column.

Intervals stay two-sided 95 % and uncorrected; what is called clear is what Holm's step-down procedure rejects at 5 % family-wise.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench import statistics
from bench.report.table import ResultSet, Table, differences, main_row, ranked, ranked_seeds
from bench.statistics import ASSUMED, Difference, Verdict

ALPHA = 0.05


@dataclass(frozen=True)
class Compared:
    """A difference with its p-value and the p-value after Holm (both None where there is no interval)."""

    difference: Difference
    p: float | None = None
    holm: float | None = None

    @property
    def clear(self) -> bool:
        """Whether it stands after Holm's correction at 5 %, and on as many seeds as a claim needs."""
        return self.holm is not None and self.holm <= ALPHA and self.difference.seeds >= statistics.CLAIM


@dataclass
class Comparison:
    """All rows against one. `cells`: (row, column) -> difference, one family; `pooled`: row -> difference over all pairs, another family."""

    baseline: str
    title: str
    cells: dict[tuple[int, int], Compared] = field(default_factory=dict)
    pooled: dict[int, Compared] = field(default_factory=dict)

    def furthest(self, among: Collection[int]) -> int:
        """Of these rows the one with the largest pooled difference: of those over most pairs, and with the seeds that a claim needs where any has
        them, since the others' means are of something else."""
        found = {i: self.pooled[i].difference for i in among}
        most = max(d.pairs for d in found.values())
        whole = {i: d for i, d in found.items() if d.pairs == most}
        sure = {i: d for i, d in whole.items() if d.seeds >= statistics.CLAIM} or whole
        return max(sure, key=lambda i: sure[i].mean)


@dataclass(frozen=True)
class Leader:
    """The row with the best mean in a column and the one after it; `ahead`: their paired difference over the seeds that the column is ranked
    over; `clear`: it stands after Holm over columns.

    `rivals`: ranked rows whose uncorrected 95 % interval of the paired difference to the leader holds zero, or that have no interval.
    """

    row: int
    runner_up: int
    ahead: Compared
    rivals: tuple[int, ...]


def p_value(difference: Difference) -> float | None:
    """Two-sided p-value of Student's t against zero, from the half-width; None where there is no interval."""
    if difference.half is None or not difference.df:
        return None
    from scipy.special import stdtr  # imported here: the report starts without it

    error = difference.half / statistics.t_quantile(round(difference.df, 6))
    return float(2 * stdtr(difference.df, -abs(difference.mean) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Holm 1979): the family-wise error stays at `a` where those at most `a` are called, whatever the dependence."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def adjust(family: dict) -> dict:
    """`family`: key -> Difference; the same keys -> Compared, Holm over those that have a p-value."""
    tested = {key: p for key, d in family.items() if (p := p_value(d)) is not None}
    held = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {key: Compared(d, tested.get(key), held.get(key)) for key, d in family.items()}


def against(table: Table, baseline: str) -> Comparison | None:
    """Every other row against `baseline`, paired by seed, per cell and pooled. None where that row is not there or nothing can be paired."""
    base = main_row(table.rows, baseline)
    if base is None:
        return None
    cells, pooled = differences(table.rows, table.pairs, base)
    return Comparison(baseline, base.title, adjust(cells), adjust(pooled)) if cells else None


def leaders(table: Table) -> dict[int, Leader]:
    """Column -> its leader among comparable cells; columns with fewer than two of them have none.

    Winner against runner-up at the plain level is a valid test of "the best is the best" (Hung and Fithian, Rank verification for exponential
    families, 2019), so only the number of columns is corrected for.
    """
    found: dict[int, tuple[int, int, tuple[int, ...]]] = {}
    ahead: dict[int, Difference] = {}
    for j in range(len(table.pairs)):
        means = ranked(table.rows, j)
        order = sorted(means, key=lambda i: -means[i])
        if len(order) < 2:
            continue
        seeds, best = ranked_seeds(table.rows, j), table.rows[order[0]].cells[j].values
        behind = {i: statistics.difference([best[s] - table.rows[i].cells[j].values[s] for s in seeds]) for i in order[1:]}
        ahead[j] = behind[order[1]]
        found[j] = (order[0], order[1], tuple(i for i, d in behind.items() if d.half is None or d.mean <= d.half))
    compared = adjust(ahead)
    return {j: Leader(best, after, compared[j], rivals) for j, (best, after, rivals) in found.items()}


def assume_sd(sets: list[ResultSet], sd: float) -> None:
    """Judge cells whose published number has no deviation as if it were known to be `sd` points, and say so in the verdict. Other verdicts stay."""
    for table in (t for s in sets for t in s.tables):
        for cell in (c for row in table.rows for c in row.cells):
            if cell.verdict and cell.published.sd is None and cell.published.n:
                verdict = statistics.against_published(cell.beside, cell.published.top1, sd, cell.published.n, known=True)
                why = f"{ASSUMED} {sd:g} (the source prints none)"
                cell.verdict = Verdict(verdict.word, verdict.mean, verdict.half, f"{verdict.why}; {why}" if verdict.why else why)


def by_chance(table: Table) -> tuple[float, float, float, float, float] | None:
    """Of the judged cells how many would agree and how many differ if nothing truly differed, and the least, median and largest half-width of
    their intervals: a difference smaller than that is not seen. None where no cell has an interval."""
    halves = sorted(v.half for row in table.rows for c in row.cells if (v := c.verdict) and v.half is not None)
    if not halves:
        return None
    narrow = sum(half <= statistics.TOO_WIDE for half in halves)
    return statistics.LEVEL * narrow, (1 - statistics.LEVEL) * len(halves), halves[0], median(halves), halves[-1]


def warn_of_contradictions(sets: list[ResultSet]) -> None:
    """One run in two sets with different numbers: each set keeps its own, and the tables of the later one say so in their warnings."""
    first: dict[str, tuple[str, float]] = {}
    for results in sets:
        found: dict[str, float] = {}
        for table in results.tables:
            for cell in (c for row in table.rows for c in row.cells):
                for seed, value in cell.values.items():
                    run = cell.runs[seed].id
                    where, before = first.get(run, (results.name, value))
                    if before != value and run not in found:
                        table.warnings.append(f"run {run} ends at {value:.2f} here and at {before:.2f} in {where}")
                    found[run] = value
        for run, value in found.items():
            first.setdefault(run, (results.name, value))
