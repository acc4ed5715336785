"""Which row of a table each run of a method stands in: its own row or a variant's, and which runs are of none."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.plan.identity import canonical
from bench.report.planned import PairKey, Planned
from bench.store.runs import RunView
from bench.text import settings_text

ANOTHER = "is not the planned run: its teacher, data set, version or defaults are others"


def versions(runs: Iterable[RunView], planned: set[str]) -> dict[str, int]:
    """The version of each method that is shown, on all pairs: that of a planned run, else the newest."""
    found: dict[str, tuple[bool, int]] = {}
    for run in runs:
        found[run.method] = max(found.get(run.method, (False, 0)), (run.id in planned, run.known.method_version))
    return {method: version for method, (_, version) in found.items()}


def left_out(runs: Sequence[RunView], planned: set[str], shown: Mapping[str, int], present: str | None = None) -> dict[str, str]:
    """Of the runs of one pair: run id -> why it is left out. `shown`: see `versions`; `present`: the hash of the teacher in the results folder,
    whose runs are shown where no planned run has a teacher and some finished run has this one."""
    out, teacher, data, whose = {}, None, None, "the planned runs have"
    for run in runs:
        if run.id in planned:
            teacher, data = run.known.teacher_hash or teacher, run.known.data_hash
    if not teacher and present in {run.known.teacher_hash for run in runs if run.record}:
        teacher, whose = present, "the results folder has"
    for run in runs:
        known = run.known
        if run.id in planned:
            continue
        if known.method_version != shown[run.method]:
            out[run.id] = f"version {known.method_version} of {run.method}; the table shows version {shown[run.method]}"
        elif teacher and known.teacher_hash and known.teacher_hash != teacher:
            out[run.id] = f"with the teacher {known.teacher_hash[:12]}; {whose} {teacher[:12]}"
        elif data and known.data_hash != data:
            out[run.id] = f"on the data {known.data_hash[:12]}; the planned runs have {data[:12]}"
    return out


def rows(runs: list[RunView], plan: Planned, planned: set[str], pair: PairKey) -> tuple[dict[str, str], dict[str, str]]:
    """For the runs of one method and pair: run id -> label of its row (empty: the method's own), and run id -> why it is left out.

    A planned run stands in its planned row. Another is labelled by what its own launch changed; where that is nothing, or not known, by what tells
    it from the main one: the planned one, else the one with most runs. Runs of the same settings have one label. A run in the place of a planned one
    that is not there yet is left out, and with it all that are like it but for the seed.
    """
    method = runs[0].method
    wanted = plan.labels(pair, method) or [""]
    main = "" if "" in wanted else wanted[0]
    own = {row: plan.own(pair, method, row) for row in wanted}
    cells = {cell.run: cell.label for row in wanted for seed in plan.seeds if (cell := plan.cell(pair, method, row, seed))}
    labels: dict[str, str | None] = {}
    for alike in _by_settings(runs):
        # What one launch changed may be what another, of a later version of the suite, had as its own: such runs differ by their seed alone.
        first = min(alike, key=lambda run: (run.id not in cells, bool(run.changed)))
        label = cells[first.id] if first.id in cells else _label(first, own[main])
        labels |= {run.id: cells.get(run.id, label) for run in alike}
    out: dict[str, str] = {}
    for row in wanted:
        here = [run for run in runs if labels[run.id] == row or (row == main and labels[run.id] is None)]
        if not any(run.id in planned for run in here):
            strangers = {_family(run) for run in here if _replaced(run, plan, pair, row)}
            out |= {run.id: ANOTHER for run in here if _family(run) in strangers}
    left = [run for run in runs if run.id not in out]
    if left:
        base = _base(left, labels, planned, own)
        for run in left:
            if labels[run.id] is None:
                labels[run.id] = _difference(run.known.hyper, base)
    return _told_apart(left, labels, planned), out


def _by_settings(runs: Iterable[RunView]) -> list[list[RunView]]:
    groups: dict[str, list[RunView]] = defaultdict(list)
    for run in runs:
        groups[canonical(run.known.hyper)].append(run)
    return list(groups.values())


def _label(run: RunView, own: Mapping[str, Any]) -> str | None:
    """Of a run that is not planned. `own`: what the main planned row changes, as the method's own row has it; empty: it is that row."""
    if run.changed:
        return settings_text(run.changed)
    return "" if own and all(run.known.hyper.get(name) == value for name, value in own.items()) else None


def _family(run: RunView) -> tuple[Any, ...]:
    """What runs have in common that differ by their seed alone."""
    return run.known.method_version, canonical(run.known.hyper), run.known.teacher_hash, run.known.data_hash


def _replaced(run: RunView, plan: Planned, pair: PairKey, row: str) -> bool:
    asked = plan.cell(pair, run.method, row, run.seed)
    return bool(asked and not asked.skipped and asked.run != run.id)  # one without an id waits for its teacher


def _base(runs: list[RunView], labels: Mapping[str, str | None], planned: set[str], own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of the method's own row, or the nearest to them: those of the planned runs with what a planned variant changes taken back."""

    def rank(members: list[RunView]) -> tuple[Any, ...]:
        first = members[0]
        return labels[first.id] == "", any(r.id in planned for r in members), labels[first.id] is None, len(members), canonical(first.known.hyper)

    main = max(_by_settings(runs), key=rank)[0]
    return main.known.hyper | (own.get(labels[main.id] or "", {}) if main.id in planned else {})


def _difference(hyper: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    return settings_text({k: hyper.get(k) for k in base.keys() | hyper.keys() if hyper.get(k) != base.get(k)})


def _told_apart(runs: list[RunView], labels: Mapping[str, str | None], planned: set[str]) -> dict[str, str]:
    """Labels that are one row's each: of two rows with one label, the planned one or that with most runs keeps it."""
    by_label: dict[str, dict[str, list[RunView]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_label[labels[run.id] or ""][canonical(run.known.hyper)].append(run)
    found = {}
    for text, groups in by_label.items():
        ordered = sorted(groups.values(), key=lambda members: (any(r.id in planned for r in members), len(members)), reverse=True)
        for members in ordered:
            more = _difference(members[0].known.hyper, ordered[0][0].known.hyper)
            found |= {run.id: ", ".join(filter(None, (text, more))) for run in members}
    return found
