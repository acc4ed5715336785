"""What a table says, in short plain sentences made from its numbers: who leads and how surely, what it costs, whether it agrees with the papers."""

from collections import Counter

from bench.report import compare
from bench.report.blocks import is_few, row_title
from bench.report.compare import Comparison, Leader
from bench.report.table import Cell, Table
from bench.statistics import ASSUMED, CLAIM
from bench.text import clean, count, shortened

FEW = f"Fewer than {CLAIM} seeds support no claim: these numbers show that it runs, not which method is better."


def _listed(words: list[str], most: int = 4) -> str:
    shown = words if len(words) <= most + 1 else [*words[:most], f"{len(words) - most} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def signed(value: float) -> str:
    """Two digits behind the point and a sign, a true minus."""
    return f"{value:+.2f}".replace("-", "−")


def mean(cell: Cell) -> str:
    """`71.20 ± 0.21 (n = 3)`."""
    s = cell.summary
    return f"{s.mean:.2f} (n = 1)" if s.sd is None else f"{s.mean:.2f} ± {s.sd:.2f} (n = {s.n})"


def _title(table: Table, row: int) -> str:
    return shortened(row_title(table.rows[row]), 40)


def leader_line(table: Table, column: int, found: dict[int, Leader]) -> str:
    """Who is best on one pair, ahead of whom, by how much and how sure that is."""
    pair = clean(table.pairs[column].title, 60)
    if table.pairs[column].error:
        return f"{pair}: nothing counts, it {clean(table.pairs[column].error, 120)}."
    leader = found.get(column)
    if leader is None:
        done = [i for i, row in enumerate(table.rows) if row.cells[column].summary]
        if not done:
            return f"{pair}: no run is done yet."
        i = max(done, key=lambda k: table.rows[k].cells[column].summary.mean)
        return f"{pair}: fewer than two methods are complete; {_title(table, i)} stands at {mean(table.rows[i].cells[column])}."
    cells = [table.rows[i].cells[column] for i in (leader.row, leader.runner_up)]
    d = leader.ahead.difference
    text = f"Best on {pair}: {_title(table, leader.row)} {mean(cells[0])}, {abs(d.mean):.2f} ahead of {_title(table, leader.runner_up)}"
    if any(len(cell.values) > d.n for cell in cells):
        text += f" over the {count(d.n, 'seed')} that most methods have"
    if d.n < CLAIM:
        return f"{text}. With {count(d.n, 'seed')} there is no saying how sure that is."
    if d.half is None:
        return f"{text}. With differences that are all alike there is no saying how sure that is."
    text += f" (95 % interval {signed(d.mean - d.half)} to {signed(d.mean + d.half)})."
    others = [_title(table, i) for i in leader.rivals]
    if leader.ahead.clear:
        return f"{text} The lead is clear." if not others else f"{text} That lead is clear; {_listed(others)} vary too much to be told from it."
    if not others:
        return f"{text} The lead is likely, but not clear once all columns are counted."
    return f"{text} Not clear: {_listed(others)} cannot be told from it."


def pooled_lines(table: Table, versus: Comparison | None) -> list[str]:
    """The gain over a baseline, all pairs together."""
    if versus is None:
        return []
    every = {i: c for i, c in versus.pooled.items() if table.rows[i].cells}
    whole = {i: c for i, c in every.items() if not table.rows[i].variant} or every  # methods' own rows where there are any
    if not whole:
        return []
    best = versus.furthest(whole)
    d = whole[best].difference
    most = d.pairs
    base = clean(versus.title, 40)
    of = f" of {len(table.pairs)}" if most < len(table.pairs) else ""
    over = f"Over {most}{of} pairs" if len(table.pairs) > 1 else "On this pair"
    gain = signed(d.mean) + ("" if d.half is None else f" ± {d.half:.2f}")
    word = f"{_title(table, best)} is furthest above {base}" if d.mean > 0 else f"no method is above {base} and {_title(table, best)} comes nearest"
    lines = [f"{over}, {word}: {gain} points ({count(d.n, 'paired run')})."]
    if d.half is not None and len(table.pairs) > 1:
        wider = f"; where a seed may move all of them alike it is ± {d.common:.2f}" if d.common is not None else ""
        lines.append(f"That interval takes pairs of unlike students as independent{wider}.")
    tested = {i: c for i, c in whole.items() if c.holm is not None}
    if tested:
        better = [_title(table, i) for i, c in tested.items() if c.clear and c.difference.mean > 0]
        worse = [_title(table, i) for i, c in tested.items() if c.clear and c.difference.mean < 0]
        unsure = [_title(table, i) for i, c in tested.items() if not c.clear]
        found = (("clearly above", better), ("clearly below", worse), ("not to be told from", unsure))
        parts = [f"{word} {{}}: {_listed(names, 9)}" for word, names in found if names]
        text = "; ".join(part.replace("{}", base if k == 0 else "it", 1) for k, part in enumerate(parts))
        rows = sum(c.holm is not None for c in every.values())
        what = "methods" if rows == len(tested) else "rows"
        corrected = f" (Holm over {rows} {what}, 5 %)" if rows > 1 else " (5 %)"
        lines.append(f"{text[0].upper()}{text[1:]}{corrected}.")
    else:
        lines.append("There are too few seeds for an interval: nothing here is sure.")
    return lines


def in_short(table: Table, versus: Comparison | None) -> list[str]:
    """The three sentences that matter most; below three seeds one that says that they support no claim. What is not done comes first."""
    cells = [cell for row in table.rows for cell in row.cells]
    if not any(cell.values for cell in cells):
        return ["No run is done yet."]
    lines = [standing_line(table)] if any(cell.open for cell in cells) else []
    if is_few(table):
        return [*lines, FEW]
    pooled = pooled_lines(table, versus)
    return [*lines, *pooled[:1], *pooled[-1:], *published_lines(table)[:1]][:3]


def published_lines(table: Table) -> list[str]:
    """How many cells agree with what was printed, and which do not."""
    counts = Counter(c.verdict.word for row in table.rows for c in row.cells if c.verdict)
    if not sum(counts.values()):
        if any(c.published for r in table.rows for c in r.cells):
            return ["No cell with a published number has a finished run yet."]
        reason = "this is a trial" if table.trial else "none was published for this protocol and these pairs"
        return [f"No published number stands beside these: {reason}."]
    total, unsure = sum(counts.values()), counts["cannot tell"]
    lines = [
        f"Of {count(total, 'cell')} with a published number, {counts['agrees']} {'agrees' if counts['agrees'] == 1 else 'agree'} with it, "
        f"{counts['differs']} {'differs' if counts['differs'] == 1 else 'differ'}, and {unsure} cannot be told (no published deviation, too few "
        "seeds, or too wide an interval)."
    ]
    if expected := compare.by_chance(table):
        agree, differ, least, middle, most = expected
        lines.append(
            f"If nothing truly differed, chance alone would make about {agree:.1f} agree and {differ:.1f} differ. "
            f"What is smaller than ± {middle:.2f} points (median; {least:.2f} to {most:.2f}) could not have been seen."
        )
    best = sum(c.verdict is not None and c.published.epoch == "best" for r in table.rows for c in r.cells)
    if best:
        lines.append(f"Of these, {best} {'is' if best == 1 else 'are'} of a best epoch, held against our best epochs and never against our last.")
    differing = [
        (cell.verdict, f"{_title(table, i)} on {clean(pair.title, 60)} ({signed(cell.verdict.mean)} ± {cell.verdict.half:.2f})")
        for i, row in enumerate(table.rows)
        for pair, cell in zip(table.pairs, row.cells, strict=True)
        if cell.verdict and cell.verdict.word == "differs"
    ]
    if differing:
        differing.sort(key=lambda found: -abs(found[0].mean))
        lines.append(f"Furthest from the paper: {_listed([text for _, text in differing], 3)}.")
    assumed = {why for r in table.rows for c in r.cells if c.verdict and ASSUMED in (why := c.verdict.why.split("; ")[-1])}
    lines += [f"Where the source prints no deviation, this is judged {why}." for why in sorted(assumed)]
    return lines


def cost_lines(table: Table) -> list[str]:
    """What the methods cost, relative to the plain student."""
    most = max((row.cost_pairs for row in table.rows if row.method != "student"), default=0)  # the others' means are over other pairs
    rows = [(row.speed, i) for i, row in enumerate(table.rows) if most and row.cost_pairs == most and row.method != "student"]
    if not rows:
        if table.sheet:
            return ["No cost is given as a multiple: the plain student's, or every other one, was not measured at this precision and batch."]
        return ["No cost was measured at this precision and batch."]
    cheap, dear = max(rows), min(rows)
    over = f"Over {most} of {len(table.pairs)} pairs, training" if most < len(table.pairs) else "Training"
    text = f"{over} one step costs {1 / cheap[0]:.2f}× the plain student's time with {_title(table, cheap[1])}"
    text += f", the cheapest, and {1 / dear[0]:.2f}× with {_title(table, dear[1])}, the dearest." if len(rows) > 1 else "."
    lines = [text]
    noisy = [_title(table, i) for i, row in enumerate(table.rows) if row.noisy]
    if noisy:
        lines.append(f"The cost of {_listed(noisy)} was measured beside something else that ran, or too unsteadily: do not trust it.")
    memory, i = max((table.rows[i].memory, i) for _, i in rows)
    lines.append(f"Most memory: {_title(table, i)}, {memory:.2f}× the plain student's peak.")
    prepared = [(row.preparation, i) for i, row in enumerate(table.rows) if row.preparation]
    if prepared:
        lines.append("Prepared once a teacher: " + _listed([f"{_title(table, i)} ({seconds:,.0f} s)" for seconds, i in prepared]) + ".")
    return lines


def standing_line(table: Table) -> str:
    """How much of the table is there of what can be: what is skipped is named apart."""
    cells = [cell for row in table.rows for cell in row.cells]
    done, left = sum(len(cell.values) for cell in cells), sum(cell.open for cell in cells)
    skipped = sum(len(cell.others) - cell.open for cell in cells)
    apart = f"; {skipped} skipped" if skipped else ""
    if not left:
        return f"All {done} entries (method, pair, seed) are done{apart}."
    short = sum(bool(cell.open) for cell in cells)
    are = "is" if short == 1 else "are"
    return f"{done} of {done + left} entries (method, pair, seed) are done; {count(short, 'cell')} of the table {are} incomplete{apart}."
