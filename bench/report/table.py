"""Table 1 as data: one table per set of results, protocol and precision. What may not be averaged is kept apart, and listed with the reason."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from bench import statistics
from bench.errors import StoreError, unknown
from bench.plan.profiles import ALL_PAIRS, ROWS
from bench.plan.protocols import Protocol
from bench.report import cost_sheets, planned, published, variants
from bench.report.planned import Planned
from bench.report.published import Published
from bench.statistics import Difference, Summary, Verdict
from bench.store import teachers
from bench.store.files import Problem, folders
from bench.store.records import AtUse
from bench.store.runs import TEACHER, RunView, of_students, scan

PAIRS = tuple((pair.teacher, pair.student) for pair in ALL_PAIRS)
OWN = "own runs"


@dataclass
class Pair:
    """A column. `top1`: the teacher's, from the records that used it; `error`: why nothing of this pair counts."""

    teacher: str | None
    student: str
    top1: float | None = None
    published: Published | None = None
    error: str = ""

    @property
    def key(self) -> tuple[str | None, str]:
        return self.teacher, self.student

    @property
    def title(self) -> str:
        return f"{name(self.teacher) if self.teacher else 'no teacher'} → {name(self.student)}"


@dataclass
class Cell:
    """A method on a pair. `values`: seed -> top-1 of the last epoch, done runs only; `others`: seed -> what became of it instead."""

    values: dict[int, float] = field(default_factory=dict)
    others: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    runs: dict[int, RunView] = field(default_factory=dict)
    summary: Summary | None = None
    difference: Difference | None = None
    published: Published | None = None
    verdict: Verdict | None = None
    best: bool = False

    @property
    def complete(self) -> bool:
        return bool(self.values) and not self.others

    @property
    def beside(self) -> Summary | None:
        """Ours to hold against the published number: of the best epochs where it is a best epoch's, else of the last."""
        if self.published and self.published.epoch == "best" and self.values:
            return statistics.summarise([self.runs[seed].record.best_top1 for seed in self.values])
        return self.summary

    @property
    def at_use(self) -> AtUse | None:
        """What the method adds to its student when it is used; None: nothing."""
        return next((run.record.inference for run in self.runs.values() if run.record and run.record.inference), None)

    @property
    def pretraining(self) -> float | None:
        """Mean seconds of the stage before the main one; None: there is none."""
        seconds = [run.record.pretraining.seconds for run in self.runs.values() if run.record and run.record.pretraining]
        return statistics.summarise(seconds).mean if seconds else None

    @property
    def open(self) -> int:
        """Seeds that are not done and may be: all others but the skipped ones."""
        return sum(state != "skipped" for state in self.others.values())

    @property
    def note(self) -> str:
        """What is not done, e.g. `1 diverged, 1 missing`."""
        return ", ".join(f"{count} {state}" for state, count in sorted(Counter(self.others.values()).items()))


@dataclass
class Row:
    """A method, or a variant of one with other settings. Costs: multiples of the plain student's, geometric mean over `cost_pairs` pairs."""

    method: str
    title: str
    variant: str
    cells: list[Cell]
    pooled: Difference | None = None
    speed: float | None = None
    memory: float | None = None
    cost_pairs: int = 0
    noisy: bool = False  # a cost among them that was measured beside something else
    preparation: float | None = None

    @property
    def parameters(self) -> float | None:
        """Parameters that the method adds to its student when it is used, the most over pairs; None: none."""
        return max((cell.at_use.parameters for cell in self.cells if cell.at_use), default=None)

    @property
    def pretraining(self) -> float | None:
        """Seconds of the stage before the main one, of each student, mean over pairs; None: there is none."""
        seconds = [cell.pretraining for cell in self.cells if cell.pretraining is not None]
        return statistics.summarise(seconds).mean if seconds else None


@dataclass
class Table:
    """One table: everything in it was made under one protocol and one precision."""

    protocol: Protocol
    precision: str
    baseline: str
    seeds: list[int]  # planned or met
    pairs: list[Pair]
    rows: list[Row]
    facts: dict[str, list[str]]
    sheet: cost_sheets.Sheet | None
    excluded: list[Problem]
    warnings: list[str]

    trial = property(attrgetter("protocol.trial"))

    @property
    def base_title(self) -> str:
        """What the table calls its baseline."""
        row = main_row(self.rows, self.baseline)
        return row.title if row else self.baseline


@dataclass
class ResultSet:
    """Own runs, or one evidence set. `problems`: files and runs left out that belong to no table."""

    name: str
    folder: Path
    tables: list[Table]
    sheets: list[cost_sheets.Sheet]
    problems: list[Problem]

    @property
    def faults(self) -> int:
        """What --strict fails on: left-out runs and warnings."""
        return len(self.problems) + sum(len(t.excluded) + len(t.warnings) for t in self.tables)


def main_row(rows: list[Row], method: str) -> Row | None:
    """The row of a method under its main settings."""
    return next((row for row in rows if row.method == method and not row.variant), None)


def name(architecture: str) -> str:
    """The name papers print: wrn_40_2 is WRN-40-2; others as they are."""
    return architecture.upper().replace("_", "-") if architecture.startswith("wrn_") else architecture


def _place(value: Any, order: Iterable[Any]) -> tuple[int, str]:
    known = list(order)
    return (known.index(value) if value in known else len(known), str(value))


def _variants_place(label: str, planned: list[str]) -> tuple[Any, ...]:
    """A method's own row first, then its planned ones in the plan's order, then the others, numbers by value."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label)
    by_value = [(float(text), "") if i % 2 else (0.0, text) for i, text in enumerate(parts)]
    return bool(label), planned.index(label) if label in planned else len(planned), by_value


def _mixed(runs: list[RunView], pair: Pair) -> str:
    """Why the done runs of a pair do not belong together, or an empty string."""
    hashes = sorted({str(r.known.teacher_hash) for r in runs if r.teacher})
    if len(hashes) > 1:
        return f"mixes {len(hashes)} teachers ({', '.join(h[:12] for h in hashes)}); keep the runs of one"
    data = sorted({r.known.data_hash for r in runs})
    return f"mixes {len(data)} data sets ({', '.join(d[:12] for d in data)}); keep the runs of one" if len(data) > 1 else ""


def _facts(runs: list[RunView]) -> dict[str, list[str]]:
    """What the done runs were made with: field -> the values met, e.g. device -> [H200]."""
    found: dict[str, set[str]] = defaultdict(set)
    for record in (r.record for r in runs if r.record):
        facts = {"device": record.device.name, "torch": record.versions.torch, "python": record.versions.python, "engine": record.engine}
        for key, value in {**facts, "deterministic": str(record.deterministic).lower()}.items():
            found[key].add(value)
    return {key: sorted(values) for key, values in found.items()}


def _warnings(runs: list[RunView]) -> list[str]:
    done = [(r, r.record) for r in runs if r.record]
    warnings = []
    commits = Counter(str(record.commit) for _, record in done)
    if len(commits) > 1:
        warnings.append("runs of different commits: " + ", ".join(f"{c[:24]} ({n} run{'s' * (n > 1)})" for c, n in commits.most_common()))
    moved = [(run.id, record.changes) for run, record in done if record.changes]
    if moved:
        what = "; ".join(moved[0][1])[:200]
        others = f", and {len(moved) - 1} more" if len(moved) > 1 else ""
        warnings.append(f"went on under other conditions than before, so that last bits may differ: {moved[0][0]} ({what}){others}")
    sources: dict[str, set[str]] = defaultdict(set)
    for run, record in done:
        sources[run.method].update({record.method_source, run.method_source})
    for method in sorted(m for m, met in sources.items() if len(met) > 1):
        warnings.append(f"the source of {method} changed between its done runs: --redo them or give the method a new version")
    return warnings


def build_table(
    runs: list[RunView], plan: Planned, sheets: list[cost_sheets.Sheet], index: published.Index, baseline: str, broken: set[str],
    present: Mapping[tuple[str, str], str],
) -> Table:
    """A table from runs of one protocol and precision. `plan` may be empty; `broken`: ids of runs whose files cannot be trusted; `present`: the
    hashes of the folder's teachers by data set and architecture."""
    protocol, precision = (runs[0].protocol, runs[0].precision) if runs else (plan.protocol, plan.precision)
    trained = {r.id for r in runs if r.record and r.record.teacher and r.record.teacher.trained}
    untrained = {r.id: "its teacher is not trained" for r in runs if r.record and r.teacher and r.id not in trained}
    excluded = [Problem(run, why) for run, why in untrained.items()]
    usable = [run for run in runs if run.id not in untrained]
    taken = {r.student for r in runs if r.teacher} | {s for _, s in plan.pairs}
    keys = {(r.teacher, r.student) for r in runs if r.teacher or r.student not in taken}
    keys = [*plan.pairs, *sorted(keys - set(plan.pairs), key=lambda k: _place(k, PAIRS))]
    pairs = [Pair(t, s, published=published.look_up(index, protocol, t, s, "teacher")) for t, s in keys]
    titles = dict(plan.titles)
    for run in usable:
        titles.setdefault(run.method, "Student" if run.title == TEACHER else run.title)
    found: dict[tuple[str, str], dict[tuple[str | None, str], list[RunView]]] = defaultdict(lambda: defaultdict(list))
    out: dict[str, str] = dict(untrained)
    asked = plan.runs
    shown = variants.versions(usable, asked)
    for pair in pairs:
        members = [r for r in usable if r.student == pair.student and r.teacher in (pair.teacher, None)]
        out |= variants.left_out(members, asked, shown, present.get((protocol.dataset, pair.teacher or "")))
        by_method: dict[str, list[RunView]] = defaultdict(list)
        for run in members:
            if run.id not in out:
                by_method[run.method].append(run)
        for method, several in by_method.items():
            labels, left = variants.rows(several, plan, asked, pair.key)
            out |= left
            for run in several:
                if run.id in labels:
                    found[method, labels[run.id]][pair.key].append(run)
        pair.error = _mixed([r for r in members if r.record and r.id not in out], pair)
        if pair.error:
            excluded.append(Problem(pair.title, pair.error))
        pair.top1 = next((r.record.teacher.test_top1 for r in members if r.record and r.teacher and r.id not in out), None)
    for method in plan.titles:
        for variant in {label for pair in pairs for label in plan.labels(pair.key, method)} or {""}:
            found[method, variant]  # a planned row stands even where nothing has run
    excluded.extend(Problem(run, why) for run, why in out.items() if run not in untrained)
    rows = []
    # Of an own row: all seeds where nothing is planned, the pair's where it is not in the plan.
    awaited = {p.key: {r.seed for r in runs if not plan.table or (r.teacher, r.student) == p.key} for p in pairs} | dict.fromkeys(plan.pairs, set())
    labels = {method: list(dict.fromkeys(label for pair in pairs for label in plan.labels(pair.key, method))) for method in plan.titles}
    for method, variant in sorted(found, key=lambda k: (*_place(k[0], [*plan.titles, *ROWS]), *_variants_place(k[1], labels.get(k[0], [])))):
        cells = [_cell(found[method, variant][p.key], p, method, variant, awaited[p.key], plan, broken | out.keys()) for p in pairs]
        for pair, cell in zip(pairs, cells, strict=True):
            cell.published = published.look_up(index, protocol, pair.teacher, pair.student, method, variant)
            if cell.published and cell.summary:
                cell.verdict = statistics.against_published(cell.beside, cell.published.top1, cell.published.sd, cell.published.n)
        rows.append(Row(method, titles[method], variant, cells))
    _compare(rows, pairs, baseline)
    counted = [r for r in usable if r.id not in out]
    facts = _facts(counted)
    settings: dict[cost_sheets.Key, list[cost_sheets.Settings]] = defaultdict(list)
    for run in (r for (_, variant), by_pair in found.items() if not variant for members in by_pair.values() for r in members):
        settings[run.teacher, run.student, run.method].append((run.known.method_version, run.known.hyper))
    sheet = cost_sheets.choose(sheets, protocol, precision, keys, list(titles), settings, set(facts.get("device", ())))
    warnings = _warnings(counted)
    for row in rows if sheet else ():
        warnings += _add_costs(row, pairs, sheet)
    return Table(protocol, precision, baseline, sorted({*plan.seeds, *(r.seed for r in runs)}), pairs, rows, facts, sheet, excluded, warnings)


def _cell(runs: list[RunView], pair: Pair, method: str, variant: str, awaited: set[int], plan: Planned, left_out: set[str]) -> Cell:
    cell = Cell()
    by_seed = {run.seed: run for run in sorted(runs, key=lambda r: r.record is not None)}
    planned = {seed: found for seed in plan.seeds if (found := plan.cell(pair.key, method, variant, seed))}
    for seed in sorted({*by_seed, *planned, *(() if variant else awaited)}):
        run, asked = by_seed.get(seed), planned.get(seed)
        if run is not None:
            cell.runs[seed] = run
            if run.record is not None and not pair.error:
                cell.values[seed] = run.record.test_top1
            else:
                cell.others[seed] = "excluded" if run.record is not None else run.status
                cell.reasons[seed] = pair.error or run.reason
        elif asked and asked.run in left_out:
            cell.others[seed] = "excluded"
        elif asked and asked.skipped:
            cell.others[seed], cell.reasons[seed] = "skipped", asked.skipped
        else:
            cell.others[seed] = "missing"
    cell.summary = statistics.summarise(list(cell.values.values())) if cell.values else None
    return cell


def differences(rows: list[Row], pairs: list[Pair], base: Row) -> tuple[dict[tuple[int, int], Difference], dict[int, Difference]]:
    """Every other row minus `base`, see statistics.differences."""
    values = {i: [cell.values for cell in row.cells] for i, row in enumerate(rows) if row is not base}
    return statistics.differences(values, [cell.values for cell in base.cells], [pair.student for pair in pairs])


def ranked_seeds(rows: list[Row], column: int) -> list[int]:
    """The seeds that a column is ranked over: of its complete cells (own rows', where two are) those that most have, then the most; or none."""
    whole = [row for row in rows if row.cells[column].complete]
    own = [row for row in whole if not row.variant]
    cells = [row.cells[column].values.keys() for row in (own if len(own) > 1 else whole)]
    having = {frozenset(seeds): sum(seeds <= others for others in cells) for seeds in cells}
    sure = [seeds for seeds in having if len(seeds) >= statistics.CLAIM and 2 * having[seeds] > len(cells)]  # enough for a claim
    return sorted(max(sure or having, key=lambda seeds: (having[seeds], len(seeds)), default=()))


def ranked(rows: list[Row], column: int) -> dict[int, float]:
    """The rows that can be ranked in a column, each with its mean over `ranked_seeds`: complete cells that have them all."""
    seeds = ranked_seeds(rows, column)
    cells = {i: row.cells[column].values for i, row in enumerate(rows) if row.cells[column].complete}
    return {i: statistics.summarise([values[s] for s in seeds]).mean for i, values in cells.items() if values.keys() >= set(seeds)}


def _compare(rows: list[Row], pairs: list[Pair], baseline: str) -> None:
    """Paired differences to the baseline row, pooled over pairs, and the best of the comparable cells of each column."""
    cells, pooled = differences(rows, pairs, base) if (base := main_row(rows, baseline)) else ({}, {})
    for (i, j), difference in cells.items():
        rows[i].cells[j].difference = difference
    for i, difference in pooled.items():
        rows[i].pooled = difference
    for column in range(len(pairs)):
        means = {i: round(mean, 2) for i, mean in ranked(rows, column).items()}
        for i in (i for i in means if len(means) > 1 and means[i] == max(means.values())):
            rows[i].cells[column].best = True


def _add_costs(row: Row, pairs: list[Pair], sheet: cost_sheets.Sheet) -> list[str]:
    """Fill in what a row costs; returns a warning for each cost that is noisy."""
    if row.variant:
        return []
    ratios = [r for p in pairs if (r := sheet.relative(p.teacher, p.student, row.method))]
    costs = [c for p in pairs if (c := sheet.get(p.teacher, p.student, row.method))]
    row.cost_pairs = len(ratios)
    row.speed = statistics.geometric_mean([speed for speed, _ in ratios])
    row.memory = statistics.geometric_mean([memory for _, memory in ratios])
    seconds = [c.preparation for c in costs if c.preparation is not None]
    row.preparation = statistics.summarise(seconds).mean if seconds else None
    noisy = {p.title: why for p in pairs if (why := sheet.noisy(p.teacher, p.student, row.method))}
    row.noisy = bool(noisy)
    return [f"the cost of {row.method} on {pair} is noisy: {why}" for pair, why in noisy.items()]


def build_set(title: str, folder: Path, index: published.Index, baseline: str = "student") -> ResultSet:
    """Everything in one folder of results."""
    runs, problems = scan(folder)
    sheets, more = cost_sheets.load(folder)
    problems += more
    plan = Planned()
    try:
        plan = planned.read(folder)
    except StoreError as error:
        problems.append(Problem("plan.json", str(error)))
    groups: dict[tuple[str, str], list[RunView]] = defaultdict(list)
    for run in of_students(runs, plan.runs):
        groups[run.table].append(run)
    if plan.table:
        groups.setdefault(plan.table, [])
    broken = {p.where for p in problems}
    keys = sorted(groups, key=lambda k: (k != plan.table, bool(groups[k] and groups[k][0].protocol.trial), k))
    present = {(t.record.dataset, t.architecture): t.hash for t in teachers.available(folder)[0]}
    tables = [build_table(groups[key], plan if key == plan.table else Planned(), sheets, index, baseline, broken, present) for key in keys]
    return ResultSet(title, folder, tables, sheets, problems)


def build(results: Path, baseline: str = "student") -> list[ResultSet]:
    """Own runs first (their tables may be none), then each evidence set by name. Raises UsageError for a baseline that is in no table, StoreError."""
    own_published = results / "published"
    unread: list[Problem] = []
    try:
        index = published.load(own_published if own_published.is_dir() else None)
    except StoreError as error:
        index, unread = {}, [Problem("published", f"{error}; no published number stands beside ours")]
    names, problems = folders(results, "evidence")
    sets = [build_set(OWN, results, index, baseline)]
    sets[0].problems += unread + problems
    sets += [build_set(f"evidence/{name}", results / "evidence" / name, index, baseline) for name in names]
    methods = {row.method for s in sets for table in s.tables for row in table.rows}
    if methods and baseline not in methods and baseline != "student":
        raise unknown("--baseline row", baseline, sorted(methods))
    return sets
