"""The statistics on experiments whose truth is known: do intervals cover, are corrected calls rarely wrong, is a stated effect found.

Each experiment is the paper profile: nine rows, six pairs (two with one student), three seeds. A run's top-1 is the pair's level, plus its
method's effect on that pair, plus what the student's seed brings to all methods, plus noise of its own. The functions under test get plain dicts,
so what is drawn with numpy here is counted in hundreds of experiments; the vectorised checks below count in tens of thousands.
"""

import numpy as np
import pytest

from bench import statistics
from bench.report import compare
from bench.report.table import Cell, Pair, Row, Table

PAIRS = (("t0", "a"), ("t1", "b"), ("t2", "b"), ("t3", "c"), ("t4", "d"), ("t5", "e"))
STUDENTS = [student for _, student in PAIRS]
SEEDS = (1, 2, 3)
METHODS = 9
SEED_NOISE, RUN_NOISE = 0.15, 0.2
"""Points. Their own runs of one method scatter by 0.05 to 0.35 in the CRD paper's tables; 0.25 together here."""


def experiments(count: int, effects: np.ndarray, rng: np.random.Generator, methods: int = METHODS) -> np.ndarray:
    """Top-1 of `count` experiments, shape (count, methods, pairs, seeds); `effects`: (methods, pairs) points above the student's level.

    Row 0 is the plain student: its run is one and the same for the two pairs that share a network.
    """
    shape = (count, methods, len(PAIRS), len(SEEDS))
    shared = {s: rng.normal(0, SEED_NOISE, (count, len(SEEDS))) for s in dict.fromkeys(STUDENTS)}
    plain = {s: rng.normal(0, RUN_NOISE, (count, len(SEEDS))) for s in dict.fromkeys(STUDENTS)}
    top1 = 70 + effects[None, :, :, None] + rng.normal(0, RUN_NOISE, shape)
    for j, student in enumerate(STUDENTS):
        top1[:, :, j] += shared[student][:, None]
        top1[:, 0, j] = 70 + shared[student] + plain[student]
    return top1


def as_table(top1: np.ndarray) -> Table:
    """One experiment, shape (methods, pairs, seeds), as the report holds it."""
    rows = []
    for i, row in enumerate(top1):
        cells = [Cell(values=dict(zip(SEEDS, map(float, cell), strict=True))) for cell in row]
        for cell in cells:
            cell.summary = statistics.summarise(list(cell.values.values()))
        rows.append(Row("student" if i == 0 else "kd" if i == 1 else f"m{i}", f"M{i}", "", cells))
    pairs = [Pair(teacher, student) for teacher, student in PAIRS]
    return Table({}, "tf32", "student", list(SEEDS), pairs, rows, {}, None, [], [])


def test_a_table_is_what_was_drawn():
    top1 = experiments(1, np.zeros((METHODS, 6)), np.random.default_rng(0))[0]
    versus = compare.against(as_table(top1), "student")
    assert versus.cells[3, 2].difference.mean == pytest.approx((top1[3, 2] - top1[0, 2]).mean())
    assert versus.pooled[3].difference.mean == pytest.approx((top1[3] - top1[0]).mean())
    assert len(versus.cells) == 48 and len(versus.pooled) == 8
    by_pair = {str(j): dict(zip(SEEDS, (top1[3, j] - top1[0, j]).tolist(), strict=True)) for j in range(6)}
    shared, apart = (statistics.pooled(by_pair, dict(zip("012345", names, strict=True))).half for names in (STUDENTS, "uvwxyz"))
    assert versus.pooled[3].difference.half == pytest.approx(shared) and shared != pytest.approx(apart)


def test_intervals_of_one_cell_cover():
    """20,000 cells of three seeds: 95 % of the intervals hold the truth (stated: 94.5 to 95.5 %)."""
    rng = np.random.default_rng(1)
    d = 0.7 + rng.normal(0, 0.28, (20_000, 3))
    half = statistics.t_quantile(2) * d.std(1, ddof=1) / np.sqrt(3)
    assert 0.945 <= (abs(d.mean(1) - 0.7) <= half).mean() <= 0.955
    for values, expected in zip(d[:20].tolist(), half[:20], strict=True):  # the same interval as the report's
        assert statistics.difference(values).half == pytest.approx(expected)


@pytest.mark.parametrize(("baseline", "index"), [("student", 0), ("kd", 1)])
def test_pooled_intervals_cover(baseline, index):
    """Against the student (whose runs two pairs share) and against KD, effects differing between pairs: stated 93 to 98.5 %."""
    rng = np.random.default_rng(2)
    effects = rng.normal(0.8, 0.5, (4, 6))
    effects[0] = 0
    truth = (effects - effects[index]).mean(1)
    held = [
        abs(found.difference.mean - truth[i]) <= found.difference.half
        for top1 in experiments(500, effects, rng, methods=4)
        for i, found in compare.against(as_table(top1), baseline).pooled.items()
    ]
    assert 0.93 <= np.mean(held) <= 0.985


@pytest.mark.parametrize(("correlation", "low", "high"), [(0.0, 0.93, 0.985), (0.25, 0.83, 0.89)])
def test_seeds_common_to_pairs_are_allowed_for(correlation, low, high):
    """A seed moves all pairs alike, a share `correlation` of the variance: the pooled interval holds the truth too rarely then (0.86 found,
    0.95 meant), the one that allows for it as often as it says, in both cases (stated 0.935 to 0.965)."""
    rng = np.random.default_rng(10)
    count, shared = 2500, {str(j): student for j, student in enumerate("abcdef")}
    common = rng.normal(0, 0.28 * correlation**0.5, (count, 1, len(SEEDS)))
    d = 0.5 + common + rng.normal(0, 0.28 * (1 - correlation) ** 0.5, (count, 6, len(SEEDS)))
    found = [
        statistics.pooled({str(j): dict(zip(SEEDS, by_seed, strict=True)) for j, by_seed in enumerate(one)}, shared) for one in d.tolist()
    ]
    assert low <= np.mean([abs(f.mean - 0.5) <= f.half for f in found]) <= high
    assert 0.935 <= np.mean([abs(f.mean - 0.5) <= f.common for f in found]) <= 0.965
    print(f"median half-widths: {np.median([f.half for f in found]):.2f} and {np.median([f.common for f in found]):.2f}")


def test_false_calls_after_holm():
    """No method does anything: an experiment with any cell called clear, or any pooled row, comes at most in 7 % (stated; 5 % plus simulation)."""
    rng = np.random.default_rng(3)
    cells = pooled = raw = 0
    count = 300
    for top1 in experiments(count, np.zeros((METHODS, 6)), rng):
        versus = compare.against(as_table(top1), "student")
        cells += any(c.clear for c in versus.cells.values())
        pooled += any(c.clear for c in versus.pooled.values())
        raw += any(c.p <= 0.05 for c in versus.cells.values())
    assert cells / count <= 0.07 and pooled / count <= 0.07
    assert raw / count > 0.5  # without the correction most tables would call something


def test_power_of_the_pooled_row():
    """An effect of 0.5 points on every pair is found after Holm in at least 85 % of experiments, of 0.4 in 70 %; one of 0.1 rarely."""
    rng = np.random.default_rng(4)
    effects = np.zeros((METHODS, 6))
    effects[2:5] = np.array([[0.5], [0.4], [0.1]])
    found = np.zeros(METHODS)
    count = 200
    for top1 in experiments(count, effects, rng):
        for i, c in compare.against(as_table(top1), "student").pooled.items():
            found[i] += c.clear and c.difference.mean > 0
    print(f"found: {found[2:5] / count}")
    assert found[2] / count >= 0.85 and found[3] / count >= 0.70
    assert found[4] / count <= 0.40
    assert found[5:].sum() / count <= 0.07


def test_one_cell_can_rarely_be_called():
    """What three seeds cannot do is not promised: 0.4 points in one cell of 48 is called in fewer than one experiment of five."""
    rng = np.random.default_rng(5)
    effects = np.zeros((METHODS, 6))
    effects[2, 3] = 0.4
    called = [compare.against(as_table(t), "student").cells[2, 3].clear for t in experiments(100, effects, rng)]
    assert np.mean(called) < 0.2


def test_a_leader_among_equals_is_rarely_called_clear():
    """All methods equal: any column's leader is called clear in at most 6 % of tables; with one truly 1.5 points ahead everywhere, often enough."""
    rng = np.random.default_rng(6)
    wrong = [any(found.ahead.clear for found in compare.leaders(as_table(t)).values()) for t in experiments(300, np.zeros((METHODS, 6)), rng)]
    assert np.mean(wrong) <= 0.06
    effects = np.zeros((METHODS, 6))
    effects[5] = 1.5
    tables = [compare.leaders(as_table(t)) for t in experiments(100, effects, rng)]
    assert np.mean([found[0].row == 5 for found in tables]) >= 0.98
    assert np.mean([any(found[j].ahead.clear for j in found) for found in tables]) >= 0.4


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.0, 0.06), (1.0, 0.9, 1.0)])
def test_verdicts_against_a_published_mean(shift, low, high):
    """Three seeds against five of a paper: `differs` in about 5 % where nothing differs (stated: at most 6 %), in 90 % at a point's."""
    rng = np.random.default_rng(7)
    ours, theirs = rng.normal(70 + shift, 0.25, (4000, 3)), rng.normal(70, 0.25, (4000, 5))
    words = [
        statistics.against_published(statistics.summarise(a), float(b.mean()), float(b.std(ddof=1)), 5).word
        for a, b in zip(ours.tolist(), theirs, strict=True)
    ]
    assert low <= words.count("differs") / len(words) <= high


def test_holm_against_its_definition():
    rng = np.random.default_rng(8)
    for size in (1, 2, 7, 48):
        p = rng.uniform(0, 0.2, size)
        order = np.argsort(p)
        expected = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(size, 0, -1)))
        assert np.array(compare.holm(p.tolist()))[order] == pytest.approx(expected)
    assert compare.holm([]) == []


def test_p_values_against_scipy():
    from scipy import stats

    for values in np.random.default_rng(9).normal(0.3, 0.3, (20, 3)).tolist():
        assert compare.p_value(statistics.difference(values)) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert compare.p_value(statistics.difference([0.4])) is None
    assert compare.p_value(statistics.difference([63.1 - 61.6, 62.9 - 61.4])) is None  # alike but for rounding: accuracies come in steps
