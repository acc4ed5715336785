"""How a number came about, in words: one text for --explain and for the page's panel of a cell."""

import math

from bench.report.compare import Comparison
from bench.report.table import Cell, Table
from bench.statistics import paired, summarise, t_quantile
from bench.text import count


def steps(table: Table, cell: Cell, base: Cell | None, versus: list[tuple[Comparison, tuple[int, int]]]) -> list[str]:
    """From the runs of a cell to what the table prints, a sentence a step. `base`: the baseline's cell of that pair; `versus`: what the cell is
    held against, and where it stands there."""
    trial = ["A trial: no published number stands beside it."] if table.trial and not cell.published else []
    return [*_ours(table, cell, base), *_corrected(versus), *(trial or _published(cell))]


def _ours(table: Table, cell: Cell, base: Cell | None) -> list[str]:
    s, d = cell.summary, cell.difference
    found = []
    if s:
        found.append(f"Mean of {count(s.n, 'seed')}: {s.mean:.4f}" + ("." if s.sd is None else f"; sample standard deviation (ddof 1): {s.sd:.4f}."))
    if d and base:
        text = f"Paired difference to {table.baseline}: {d.mean:+.4f} over {count(d.n, 'seed')}."
        sd = summarise(list(paired(cell.values, base.values).values())).sd
        if d.half is not None:
            text += f" 95 % interval: ± t({d.n - 1}) × sd / √n = {t_quantile(d.n - 1):.3f} × {sd:.4f} / {math.sqrt(d.n):.4f} = ± {d.half:.4f}."
        found.append(text)
    return found


def _corrected(versus: list[tuple[Comparison, tuple[int, int]]]) -> list[str]:
    found = []
    for comparison, key in versus:
        compared = comparison.cells.get(key)
        if compared and compared.p is not None:
            word = "clear" if compared.clear else "not clear"
            cells = count(sum(c.p is not None for c in comparison.cells.values()), "cell")
            holm = f"after Holm over {cells} of the table {compared.holm:.4g}"
            found.append(f"Against {comparison.title}: p = {compared.p:.4g}, {holm}: {word} at 5 %.")
    return found


def _published(cell: Cell) -> list[str]:
    p, v = cell.published, cell.verdict
    if not p:
        return ["None published for this protocol, pair and method."]
    deviation = f" ± {p.sd:.2f}" if p.sd is not None else ", no deviation"
    found = [f"Published: {p.top1:.2f}{deviation} (n = {p.n or '?'}). {p.source}." + (f" That is: {p.said}." if p.said else "")]
    found += [f"Another source prints {o.text} (n = {o.n or '?'}): {o.source}" + (f" ({o.said})." if o.said else ".") for o in p.differing]
    if p.epoch == "best" and cell.beside:
        text = f"Our best epochs, which alone are held against a best epoch: mean of {cell.beside.n}: {cell.beside.mean:.4f}"
        found.append(text + ("." if cell.beside.sd is None else f"; sample standard deviation (ddof 1): {cell.beside.sd:.4f}."))
    if v:
        interval = "" if v.half is None else f" ± {v.half:.4f} (Welch, 95 %)"
        found.append(f"Ours minus published: {v.mean:+.4f}{interval}: {v.word}" + (f" ({v.why})." if v.why else "."))
    return found
