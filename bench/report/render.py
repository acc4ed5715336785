"""Blocks as text, Markdown, LaTeX (booktabs) and CSV. Names come from outside: every format escapes them and no control character gets through."""
import csv
import io
import re
import textwrap
from collections.abc import Callable

from bench.report import compare
from bench.report.blocks import Block, Line, remarks, set_blocks, set_title, total_seconds
from bench.report.table import ResultSet
from bench.text import LONG, clean, shortened

TITLE = "Knowledge distillation benchmark"
_INDENT = "  "
_NUMBER = re.compile(r"((?:[a-z ]+)?†?[-+]?[\d.,]+) ((?:±|\(n=).*)")
_SIGN = re.compile(r"(?<![\w.-])-(?=\d)")  # a minus, which in text would be a hyphen
_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_TEX |= {c: f"\\{c}" for c in "&%$#_{}"} | {"±": r"$\pm$", "×": r"$\times$", "Δ": r"$\Delta$", "→": r"$\to$", "–": "--", '"': "''"}
_TEX |= {"†": r"$\dagger$", "‡": r"$\ddagger$"}
_MARKDOWN = {c: f"\\{c}" for c in "\\`*_[]|#~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def markdown_escape(text: object, limit: int = 400) -> str:
    """Text that Markdown prints as it is, in a table cell too; cut at `limit` characters."""
    return "".join(_MARKDOWN.get(c, c) for c in clean(text, limit))


def latex_escape(text: object, limit: int = 400) -> str:
    """Text that LaTeX prints as it is; cut at `limit` characters."""
    return "".join(_TEX.get(c, c) for c in clean(text, limit))


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(clean(text, LONG), width, subsequent_indent=_INDENT) or [""]


def _label(line: Line, escape: Callable[[object], str], indent: str) -> str:
    return (indent if line.kind == "sub" else "") + escape(line.label)


def block_text(block: Block, width: int) -> str:
    """One block in aligned columns; where they do not fit into `width` they go in several panels."""
    labels = [_label(line, lambda t: shortened(t, 28), _INDENT) for line in block.lines]
    columns = []
    for i, (top, bottom) in enumerate(block.header):
        marked = bool(any(i in line.best for line in block.lines))
        cells = [clean(line.cells[i], 40) + ("*" if i in line.best else " " * marked) for line in block.lines]
        columns.append([clean(top, 24), clean(bottom, 26), *cells])
    first = max([len(label) for label in labels] + [4])
    sizes = [max(map(len, column)) for column in columns]
    out = [clean(block.title), "=" * min(width, len(clean(block.title))), *_wrap(block.caption, width), ""]
    grouped = any(line.kind != "main" for line in block.lines)
    start = 0
    while start < len(columns):
        end, used = start, first
        while end < len(columns) and (end == start or used + 2 + sizes[end] <= width):
            used += 2 + sizes[end]
            end += 1
        for j, label in enumerate(["", "", *labels]):
            if j == 2 or (j > 2 and grouped and block.lines[j - 2].kind == "main"):
                out.append("-" * used if j == 2 else "")
            out.append((label.ljust(first) + "".join("  " + columns[i][j].rjust(sizes[i]) for i in range(start, end))).rstrip())
        out.append("-" * used)
        start = end
        if start < len(columns):
            out.append("")
    for note in block.notes:
        out += _wrap(note, width)
    return "\n".join(out)


def text(sets: list[ResultSet], width: int = 160) -> str:
    """The whole report for a terminal."""
    parts = []
    for results in sets:
        title = clean(set_title(results))
        parts.append(f"{'#' * 3} {title} {'#' * max(3, min(width, 100) - len(title) - 5)}")
        parts += [block_text(block, width) for block in set_blocks(results)]
        said = [line for remark in remarks(results) for line in _wrap(remark, width)]
        if said:
            parts.append("\n".join(said))
    return "\n\n".join(parts) + "\n"


def markdown(sets: list[ResultSet]) -> str:
    """The whole report in Markdown."""
    out = [f"# {TITLE}", ""]
    for results in sets:
        out += [f"## {markdown_escape(set_title(results))}", ""]
        for block in set_blocks(results):
            out += [f"### {markdown_escape(block.title)}", "", markdown_escape(block.caption, LONG), ""]
            out.append("| | " + " | ".join(markdown_escape(f"{top} {bottom}".strip()) for top, bottom in block.header) + " |")
            out.append("|---|" + "---:|" * len(block.header))
            for line in block.lines:
                marks = ["**" if i in line.best else "*" if i in line.second else "" for i in range(len(line.cells))]
                cells = [f"{mark}{markdown_escape(c)}{mark}" for mark, c in zip(marks, line.cells, strict=True)]
                out.append(f"| {_label(line, markdown_escape, '&nbsp;&nbsp;')} | " + " | ".join(cells) + " |")
            notes = [note.replace("* best complete", "Bold: best, italic: second complete") for note in block.notes]
            out += [""] + [f"{markdown_escape(note, LONG)}  " for note in notes] + [""]
        out += [f"- {markdown_escape(remark, LONG)}" for remark in remarks(results)] + [""]
    return "\n".join(out)


def _latex_cell(text: str, command: str) -> str:
    """The number, in `command` where there is one; what follows it (deviation, interval, n) is set small."""
    found = _NUMBER.fullmatch(text)
    number, rest = (found[1], found[2]) if found else (text, "")
    number, rest = (_SIGN.sub("$-$", latex_escape(part)) for part in (number, rest))
    shown = rf"\{command}{{{number}}}" if command else number
    return shown + (rf" {{\tiny {rest}}}" if rest else "")


def latex(sets: list[ResultSet]) -> str:
    r"""The whole report as LaTeX table* environments (\usepackage{booktabs}); remarks stand as comments."""
    out = [r"% needs \usepackage{booktabs}"]
    for results in sets:
        out += ["", f"% {clean(set_title(results))}"] + [f"% {clean(remark, LONG)}" for remark in remarks(results)]
        for block in set_blocks(results):
            out += ["", r"\begin{table*}", r"\centering\scriptsize", r"\setlength{\tabcolsep}{3pt}"]
            out.append(rf"\caption{{{latex_escape(set_title(results))}, {latex_escape(block.title)}. {latex_escape(block.caption, LONG)}}}")
            out += [rf"\begin{{tabular}}{{l{'r' * len(block.header)}}}", r"\toprule"]
            out += [" & " + " & ".join(latex_escape(head[i]) for head in block.header) + r" \\" for i in (0, 1)] + [r"\midrule"]
            for i, line in enumerate(block.lines):
                marks = ["textbf" if j in line.best else "underline" if j in line.second else "" for j in range(len(line.cells))]
                cells = [_latex_cell(c, mark) for c, mark in zip(line.cells, marks, strict=True)]
                if i and line.kind == "main" and block.lines[i - 1].kind == "sub":
                    out.append(r"\addlinespace")
                out.append(f"{_label(line, latex_escape, chr(92) + 'quad ')} & " + " & ".join(cells) + r" \\")
            out += [r"\bottomrule", r"\end{tabular}"]
            notes = [note.replace("* best complete", "Bold: best, underlined: second complete") for note in block.notes]
            out += [rf"\par\smallskip\parbox{{\textwidth}}{{\scriptsize {latex_escape(note, LONG)}}}" for note in notes]
            out.append(r"\end{table*}")
    return "\n".join(out) + "\n"


COLUMNS = (
    "set", "protocol", "trial", "precision", "teacher", "student", "method", "title", "variant", "n", "planned", "mean", "sd", "best_epoch_mean",
    "not_done", "baseline", "difference", "half_width", "difference_n", "p_holm", "kd_difference", "kd_half_width", "kd_p_holm",
    "published", "published_sd", "published_n", "verdict", "minus_published",
    "minus_published_half_width", "images_per_second", "relative_speed", "peak_memory_bytes", "relative_memory", "preparation_seconds",
    "total_seconds", "published_epoch",
)  # fmt: skip


def csv_field(value: object) -> str:
    """A CSV field; text that a spreadsheet would run as a formula is quoted with an apostrophe."""
    if value is None:
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.6g}"
    shown = clean(value)
    return f"'{shown}" if isinstance(value, str) and shown[:1] in ("=", "+", "-", "@") and shown else shown


def csv_text(sets: list[ResultSet]) -> str:
    """One line for each cell of each table, numbers unrounded to six digits. `best_epoch_mean` is stored for reading, never ranked."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for results in sets:
        for table in results.tables:
            versus, kd = (compare.against(table, method) for method in (table.baseline, "kd"))
            for i, row in enumerate(table.rows):
                for j, (pair, cell) in enumerate(zip(table.pairs, row.cells, strict=True)):
                    s, d, p, v, sheet = cell.summary, cell.difference, cell.published, cell.verdict, table.sheet if not row.variant else None
                    judged = versus.cells.get((i, j)) if versus else None
                    k = kd.cells.get((i, j)) if kd else None
                    to_kd = [k.difference.mean, k.difference.half, k.holm] if k else [None] * 3
                    best = [cell.runs[seed].record.best_top1 for seed in cell.values]
                    cost = sheet.get(*pair.key, row.method) if sheet else None
                    ratio = sheet.relative(*pair.key, row.method) if sheet else None
                    total = total_seconds(sheet, pair.key, row.method, table) if sheet else None
                    fields = [results.name, table.protocol.name, table.trial, table.precision, pair.teacher, pair.student]
                    fields += [row.method, row.title, row.variant, len(cell.values), len(cell.values) + cell.open]
                    fields += [s and s.mean, s and s.sd, sum(best) / len(best) if best else None, cell.note, table.baseline]
                    fields += [d and d.mean, d and d.half, d and d.n, judged and judged.holm, *to_kd]
                    fields += [p and p.top1, p and p.sd, p and p.n, v and v.word, v and v.mean, v and v.half]
                    fields += [cost and sheet.speed(*pair.key, row.method), ratio and ratio[0], cost and cost.memory, ratio and ratio[1]]
                    fields += [cost and cost.preparation, total, p and p.epoch]
                    writer.writerow([csv_field(value) for value in fields])
    return out.getvalue()


FORMATS: dict[str, tuple[str, Callable[[list[ResultSet]], str]]] = {
    "text": ("report.txt", text),
    "markdown": ("report.md", markdown),
    "latex": ("report.tex", latex),
    "csv": ("report.csv", csv_text),
}
