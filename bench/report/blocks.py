"""From tables to blocks of short strings that every output format prints: accuracy with costs beside it, ours against published, costs per pair."""

from dataclasses import dataclass, field

from bench import statistics
from bench.plan.protocols import Protocol
from bench.report import compare, published
from bench.report.cost_sheets import Sheet
from bench.report.table import OWN, Cell, Pair, ResultSet, Row, Table, main_row, name, ranked
from bench.statistics import ASSUMED, Difference, Summary
from bench.store.records import AtUse
from bench.text import count

NONE = "–"
NOISY = "‡"
NOISE = f"{NOISY} measured beside something else that ran, or too unsteadily: not to be trusted. The warnings say why."
MIB = 1 << 20


@dataclass
class Line:
    """One printed line. `kind`: context (the teacher), main, or sub (belongs to the main line above); `best`, `second`: columns to mark."""

    label: str
    cells: list[str]
    kind: str = "main"
    best: frozenset[int] = frozenset()
    second: frozenset[int] = frozenset()


BEST = "best: the source prints its best test epoch, which lies above the last; only our best epochs (our best) are held against it."


@dataclass
class Block:
    """A table to print. `header`: two short lines for each column."""

    title: str
    caption: str
    header: list[tuple[str, str]]
    lines: list[Line]
    notes: list[str] = field(default_factory=list)


def accuracy(summary: Summary) -> str:
    """Mean, sample standard deviation and n; no deviation for one run."""
    return f"{summary.mean:.2f} (n=1)" if summary.sd is None else f"{summary.mean:.2f} ±{summary.sd:.2f} ({summary.n})"


def signed(difference: Difference | None, clear: bool = False) -> str:
    """A difference with the half-width of its interval, where it has one; a dagger where it is clear."""
    if difference is None:
        return NONE
    return f"{'†' if clear else ''}{difference.mean:+.2f}" + ("" if difference.half is None else f" ±{difference.half:.2f}")


def times(value: float | None) -> str:
    """A multiple, e.g. of the plain student's throughput."""
    return NONE if value is None else f"{value:.2f}×"


def of_pairs(covered: int, table: Table) -> str:
    """What follows a mean over pairs that does not cover all of them, e.g. ` (1/6)`."""
    return f" ({covered}/{len(table.pairs)})" if 0 < covered < len(table.pairs) else ""


def _head(pair: Pair) -> tuple[str, str]:
    return (name(pair.teacher) if pair.teacher else "", f"→ {name(pair.student)}" if pair.teacher else name(pair.student))


def second_best(table: Table, column: int) -> frozenset[int]:
    """The rows whose mean, as printed, comes second among the comparable cells of a column; none among fewer than three."""
    means = {i: round(mean, 2) for i, mean in ranked(table.rows, column).items()}
    levels = sorted(set(means.values()), reverse=True)
    return frozenset(i for i in means if means[i] == levels[1]) if len(means) > 2 and len(levels) > 1 else frozenset()


def row_title(row: Row) -> str:
    """The method's display name, with the settings a variant differs in."""
    return f"{row.title} [{row.variant}]" if row.variant else row.title


EMBEDDED = "Embedded data, says nothing about CIFAR-100."


def banner(table: Table) -> str:
    """What stands above everything made from a table that is not the protocol or not of real images; empty for others."""
    trial = f"TRIAL, not the protocol: {table.trial}." if table.trial else ""
    return " ".join(filter(None, (trial, EMBEDDED if table.protocol.train_images else "")))


def is_few(table: Table) -> bool:
    """Whether no two cells of a pair have as many seeds as a claim needs (nor the cells of the only row)."""
    seeds = (sorted((len(row.cells[j].values) for row in table.rows), reverse=True)[:2] for j in range(len(table.pairs)))
    return max((counts[-1] for counts in seeds if counts), default=0) < statistics.CLAIM


def test_noise(table: Table) -> str:
    """The standard error of a top-1 from the test set's size alone, in points, e.g. `0.45` or `0.38 to 0.47`; empty where there is no saying."""
    size = table.protocol.test_images or (10_000 if table.protocol.dataset == "cifar100" else None)
    found = [statistics.binomial_error(c.summary.mean, size) for row in table.rows for c in row.cells if c.summary] if size else []
    ends = dict.fromkeys(f"{end(found):.2f}" for end in (min, max)) if found else {}
    return " to ".join(ends) + f" points for {size:,} test images" if ends else ""


def shared_test_set(table: Table) -> str:
    """What the test set's size means for the numbers of a table."""
    noise = test_noise(table)
    said = f" (a standard error of {noise})" if noise else ""
    return f"All methods share one test set: its sampling noise{said} is common to all cells and is in no deviation or interval."


def conditions(table: Table) -> str:
    """Protocol, trial or not, precision, device, versions, seeds: the caption of everything made from a table."""
    p = table.protocol
    parts = [f"Protocol {p.name} on {p.dataset}, {count(p.epochs, 'epoch')}"]
    parts.append(f"precision {table.precision}")
    for key, label in (("device", ""), ("torch", "torch "), ("engine", "engine ")):
        if table.facts.get(key):
            parts.append(label + " and ".join(table.facts[key]))
    if "true" in table.facts.get("deterministic", ()):
        parts.append("deterministic" if len(table.facts["deterministic"]) == 1 else "partly deterministic")
    parts.append(f"{count(len(table.seeds), 'seed')} ({', '.join(map(str, table.seeds))})")
    return " ".join(filter(None, (banner(table), "; ".join(parts) + ".")))


def _is_best(cell: Cell) -> bool:
    return cell.published is not None and cell.published.epoch == "best"


def other_sources(table: Table) -> list[str]:
    """For each row what other sources print for its cells, where they print another number."""
    lines = []
    for row in table.rows:
        cells = [
            f"{pair.title} {', '.join(f'{p.text} ({p.name}{_origin(p)})' for p in cell.published.differing)} beside {cell.published.text}"
            for pair, cell in zip(table.pairs, row.cells, strict=True)
            if cell.published and cell.published.differing
        ]
        if cells:
            lines.append(f"Other sources print for {row_title(row)}: {'; '.join(cells)}.")
    return lines


def _origin(number: published.Published) -> str:
    return "" if number.origin == "own" else f", {number.origin}"


def added(at_use: AtUse) -> str:
    """Parameters and multiply-accumulates an image that come to the student when it is used, e.g. `+214 k, +13.6 M MAC`."""
    return f"{at_use.parameters / 1e3:+,.0f} k, {at_use.macs / 1e6:+,.1f} M MAC"


def table_block(table: Table, number: str) -> Block:
    """Methods x pairs, the difference to the baseline and the published number under each mean, costs relative to the plain student beside."""
    comparable = published.is_comparable(table.protocol)
    base = table.base_title
    extra = [("Δ over", "all pairs"), ("speed", ""), ("mem.", ""), ("prep.", "s")]
    blank = [""] * len(extra)
    lines = []
    if any(p.top1 is not None for p in table.pairs):
        lines.append(Line("Teacher", [NONE if p.top1 is None else f"{p.top1:.2f}" for p in table.pairs] + blank, "context"))
        if any(p.published for p in table.pairs):
            lines.append(Line("published", [f"{p.published.top1:.2f}" if p.published else NONE for p in table.pairs] + blank, "sub"))
    versus = compare.against(table, table.baseline)
    over_all = versus.pooled if versus else {}
    seconds = [second_best(table, j) for j in range(len(table.pairs))]
    for place, row in enumerate(table.rows):
        some = of_pairs(row.pooled.pairs, table) if row.pooled else ""
        prep = NONE if row.preparation is None else f"{row.preparation:.0f}"
        speed = times(row.speed) + NOISY * row.noisy + of_pairs(row.cost_pairs, table)
        beside = [signed(row.pooled, place in over_all and over_all[place].clear) + some, speed, times(row.memory), prep]
        best = frozenset(i for i, cell in enumerate(row.cells) if cell.best)
        second = frozenset(j for j in range(len(table.pairs)) if place in seconds[j])
        means = [accuracy(c.summary) if c.summary else c.note or NONE for c in row.cells]
        lines.append(Line(row_title(row), means + beside, "main", best, second))
        if any(c.difference for c in row.cells):
            clear = [bool(versus and (found := versus.cells.get((place, j))) and found.clear) for j in range(len(row.cells))]
            lines.append(Line(f"Δ {base}", [signed(c.difference, k) for c, k in zip(row.cells, clear, strict=True)] + blank, "sub"))
        below = {
            "at use": [added(c.at_use) if c.at_use else "" for c in row.cells],
            "pre-training s": ["" if c.pretraining is None else f"{c.pretraining:,.0f}" for c in row.cells],
            "not done": [c.note if c.values else "" for c in row.cells],
        }
        lines += [Line(label, shown + blank, "sub") for label, shown in below.items() if any(shown)]
        if comparable and (not row.variant or any(c.published for c in row.cells)):
            lines.append(Line("published", [c.published.text if c.published else "none published" for c in row.cells] + blank, "sub"))
            if any(_is_best(c) and c.beside for c in row.cells):
                lines.append(Line("our best", [accuracy(c.beside) if _is_best(c) and c.beside else "" for c in row.cells] + blank, "sub"))
    notes = [
        "Test top-1 (%) after the last epoch: mean ± sample standard deviation (n seeds). * best complete cell of its column, over "
        "the seeds that most have. "
        "Only done runs are averaged.",
        f"Δ {base}: mean difference paired by seed ± half-width of its 95 % t-interval (none for one seed, nor where all are alike); over all "
        "pairs: pooled, pairs of unlike students taken as independent, (k/m) where only k pairs have it. "
        "† stands at 5 % after Holm's correction, over the cells of the table and over the methods.",
        shared_test_set(table),
    ]
    if table.sheet:
        notes.append(
            "speed, mem.: training throughput and peak memory relative to the plain student, geometric mean over pairs, on "
            f"{_condition(table.sheet)}. prep.: seconds of the preparation stage, mean over pairs."
        )
        if any(row.noisy for row in table.rows):
            notes.append(NOISE)
    else:
        notes.append("speed, mem., prep.: no costs measured at this precision and batch.")
    if any(c.at_use for r in table.rows for c in r.cells):
        notes.append("at use: parameters and multiply-accumulates of an image that the method adds to its student when it is used.")
    if any(c.pretraining is not None for r in table.rows for c in r.cells):
        notes.append("pre-training s: of a stage before the main one, for each student; no part of it is shared.")
    if not comparable:
        notes.append("No published number stands beside a trial or an undeclared protocol.")
    if any(_is_best(c) for r in table.rows for c in r.cells):
        notes.append(BEST)
    return Block(f"{number}: accuracy", conditions(table), [_head(p) for p in table.pairs] + extra, lines, notes)


def published_block(table: Table, number: str) -> Block | None:
    """Ours minus published with a verdict for each cell; None where nothing can be compared."""
    lines: list[Line] = []
    for row in table.rows:
        cells = []
        for cell in row.cells:
            v = cell.verdict
            if v is None:
                cells.append("none published" if cell.published is None else NONE)
            else:
                cells.append(f"{v.word} {v.mean:+.2f}" + ("" if v.half is None else f" ±{v.half:.2f}") + " best" * _is_best(cell))
        if any(cell.verdict for cell in row.cells):
            lines.append(Line(row_title(row), cells))
    if not lines:
        return None
    met = {(c.published.name, c.published.source, c.published.note): None for r in table.rows for c in r.cells if c.published}
    notes = [
        "Ours minus published, ± half-width of Welch's 95 % interval. agrees: it holds zero and is no wider than ±1; differs: it does not hold "
        "zero; cannot tell: no published deviation, one seed, or wider."
    ]
    assumed = {v.why.split("; ")[-1] for r in table.rows for c in r.cells if (v := c.verdict) and ASSUMED in v.why}
    notes += [f"Judged {why}." for why in sorted(assumed)] + [BEST] * any(_is_best(c) for r in table.rows for c in r.cells)
    notes += other_sources(table)
    notes += [f"Source {title}: {source}. {note}." for title, source, note in met]
    return Block(f"{number}: ours against published", conditions(table), [_head(p) for p in table.pairs], lines, notes)


def _condition(sheet: Sheet) -> str:
    c = sheet.like
    threads = f", {count(c.threads, 'thread')}" if c.threads else ""
    data = f", {c.dataset} at {c.image_size} px" if c.dataset and c.image_size else ""
    torch = " and ".join(sorted(sheet.versions))
    if commits := sorted({cost.commit for cost in sheet.costs.values() if cost.commit}):
        torch += f", commit{'s' * (len(commits) > 1)} {' and '.join(c[:24] for c in commits)}"
    return f"{c.device.name}, {c.precision}, engine {c.engine}, batch {c.batch}{data}{threads}, torch {torch}"


def _images(protocol: Protocol) -> float | None:
    """Training images of an epoch, where the protocol tells."""
    whole = protocol.train_images or (50_000 if protocol.dataset == "cifar100" else None)
    return whole * protocol.sample_rate if whole else None


def served(pair: tuple[str | None, str], method: str, table: Table) -> int:
    """Students that one preparation serves: the runs of the method with this pair's teacher, all its pairs and seeds but the skipped ones."""
    row = main_row(table.rows, method)
    cells = {p.key: c for p, c in zip(table.pairs, row.cells, strict=True) if p.teacher == pair[0]} if row else {}
    keys = {key: _prepared(cell) for key, cell in cells.items()}
    own = keys.get(pair, set())  # what depends on the student too has others for other pairs
    cells = {key: cell for key, cell in cells.items() if not own or not keys[key] or own & keys[key]}
    return max(1, sum(len(cell.values) + cell.open for cell in cells.values()))


def _prepared(cell: Cell) -> set[str]:
    """The keys of the preparations that a cell's runs were trained with."""
    return {str(run.record.preparation.get("key")) for run in cell.runs.values() if run.record and run.record.preparation}


def total_seconds(sheet: Sheet, pair: tuple[str | None, str], method: str, table: Table, alone: bool = False) -> float | None:
    """Seconds for one student: its training steps, and its share of the preparation; `alone`: all of the preparation. None where that is not
    known, nor of a method with a stage before the main one: the probe measures the main one's step."""
    cost, images, row = sheet.get(*pair, method), _images(table.protocol), main_row(table.rows, method)
    if cost is None or images is None or (row and row.pretraining is not None):
        return None
    if cost.preparation is None and row and any(_prepared(cell) for cell in row.cells):
        return None  # it was prepared on another device, or with other threads
    students = 1 if alone else served(pair, method, table)
    return table.protocol.epochs * images / sheet.speed(*pair, method) + (cost.preparation or 0.0) / students


def hours(seconds: float | None) -> str:
    """For people: "0.52 h", below a tenth of an hour "340 s"."""
    return NONE if seconds is None else f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.0f} s"


def cost_block(sheet: Sheet, number: str, table: Table | None = None) -> Block | None:
    """Costs per pair: images a second, peak memory, preparation, and with a table the seconds for one student. None where nothing fits the table."""
    keys = [p.key for p in table.pairs] if table else sheet.pairs()
    titles = {r.method: r.title for r in table.rows if not r.variant} if table else {}
    noisy: dict[str, None] = {}
    lines, freed = [], False
    for method in titles or sorted({c.method for c in sheet.costs.values()}, key=lambda m: (m != "student", m)):
        costs = [sheet.get(*key, method) for key in keys]
        if not any(costs):
            continue
        ratios = [sheet.relative(*key, method) for key in keys]
        beside = [(f" ({r[0]:.2f}×)", f" ({r[1]:.2f}×)") if r else ("", "") for r in ratios]
        marks = [NOISY if sheet.noisy(*key, method) else "" for key in keys]
        noisy |= {f"{titles.get(method, method)}: {why}": None for key in keys if (why := sheet.noisy(*key, method))}
        found = [sheet.speed(*key, method) for key in keys]
        speeds = [f"{speed:,.0f}{b[0]}{mark}" if speed else NONE for speed, b, mark in zip(found, beside, marks, strict=True)]
        lines.append(Line(titles.get(method, method), speeds))
        lines.append(Line("peak MiB", [f"{c.memory / MIB:,.0f}{b[1]}" if c else NONE for c, b in zip(costs, beside, strict=True)], "sub"))
        for label, field_name, unit in (("prep. s", "preparation", 1), ("prep. MiB", "preparation_memory", MIB)):
            found = [getattr(c, field_name, None) for c in costs]
            if any(value is not None for value in found):
                lines.append(Line(label, [NONE if value is None else f"{value / unit:,.0f}" for value in found], "sub"))
        if table:
            lines.append(Line("total", [hours(total_seconds(sheet, key, method, table)) for key in keys], "sub"))
            if any(c and c.preparation is not None for c in costs):
                lines.append(Line("alone", [hours(total_seconds(sheet, key, method, table, alone=True)) for key in keys], "sub"))
        claims = [sheet.without_teacher(*key, method) for key in keys]
        if any(claims):
            lines.append(Line("of KD's step", [f"{c[0]:.2f}× ({c[1]:.2f})" if c else NONE for c in claims], "sub"))
            freed = True
    if not lines:
        return None
    notes = ["Images a second in training (× the plain student), peak memory of the step (×), preparation stage in seconds."]
    if any(c.relative for c in sheet.costs.values()):
        notes[0] += " Images a second: the plain student's own × the ratio of steps that took turns, as measured where it has none or is noisy."
    if sheet.like.memory_kind:
        notes[0] += f" Memory: {sheet.like.memory_kind}."
    if table:
        notes.append(
            "total: training steps of one student under this protocol, plus its share of the preparation, which serves all of the table's "
            "students and seeds of one teacher; alone: a student that bears the whole preparation."
        )
        if any(r.pretraining is not None for r in table.rows):
            notes[-1] += " None for a method that pre-trains its student: that stage's step is not measured."
        prepared = {method for method in titles if any(_prepared(cell) for cell in main_row(table.rows, method).cells)}
        if any(c.preparation is None for method in prepared for key in keys if (c := sheet.get(*key, method))):
            notes[-1] += " None where the preparation was made on another device or with other threads."
    if freed:
        notes.append(
            "of KD's step: the time of a step without a teacher in it as a fraction of KD's, measured, and (ideally) by multiply-accumulates: "
            "3 student / (3 student + teacher)."
        )
    if noisy:
        notes.append(f"{NOISY} not to be trusted: {'; '.join(noisy)}.")
    if any(not c.teacher_trained for c in sheet.costs.values() if c.teacher):
        notes.append("Some were measured with an untrained teacher: that changes no cost.")
    return Block(f"{number}: costs", f"Exclusive probe on {_condition(sheet)}.", [_head(Pair(*key)) for key in keys], lines, notes)


def set_blocks(results: ResultSet) -> list[Block]:
    """All blocks of a set, in order."""
    blocks: list[Block | None] = []
    used = []
    for i, table in enumerate(results.tables, 1):
        number = f"Table {i}" + (" (TRIAL)" if table.trial else "")
        blocks += [table_block(table, number), published_block(table, number)]
        if table.sheet:
            blocks.append(cost_block(table.sheet, number, table))
            used.append(table.sheet.condition)
    blocks += [cost_block(sheet, "Probe") for sheet in results.sheets if sheet.condition not in used]
    return [block for block in blocks if block]


def set_title(results: ResultSet) -> str:
    """What a set is, for its heading."""
    return "Own runs" if results.name == OWN else f"Evidence set {results.name.removeprefix('evidence/')}"


def remarks(results: ResultSet) -> list[str]:
    """Warnings, then what is left out with the reason, then why a cell is short."""
    lines = [f"warning: {w}" for table in results.tables for w in table.warnings]
    lines += [f"excluded: {p.where}: {p.reason}" for p in [*results.problems, *(p for t in results.tables for p in t.excluded)]]
    for table in results.tables:
        for row in table.rows:
            for pair, cell in zip(table.pairs, row.cells, strict=True):
                for seed, reason in cell.reasons.items():
                    if reason and not pair.error:
                        lines.append(f"{cell.others[seed]}: {row_title(row)}, {pair.title}, seed {seed}: {reason}")
    if results.name == OWN and not results.tables:
        lines.append(f"no own runs in {results.folder}: ./run_all.sh makes them")
    elif not results.tables and not results.sheets:
        lines.append("no runs in this set: its README.md says what it holds")
    return list(dict.fromkeys(lines))
