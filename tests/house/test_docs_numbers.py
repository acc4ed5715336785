"""Numbers that pages print of kept results: each stands in the results of one evidence set, as far as its digits go."""

import functools
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from bench.analysis.frame import registry, results
from bench.statistics import difference, summarise
from bench.store.files import read_json
from bench.store.rows import read_rows
from bench.store.runs import scan

ROOT = Path(__file__).resolve().parents[2]
EVIDENCE = ROOT / "results" / "evidence"
TENTH = EVIDENCE / "resnet56-resnet20-tenth"
DECIMAL = re.compile(r"(?<![\w.])[-+−]?\d+\.\d+")


def decimals(text: str) -> list[str]:
    return [found.replace("−", "-").lstrip("+") for found in DECIMAL.findall(text)]


def unknown(printed: str, known: Iterable[float]) -> list[str]:
    """The decimal numbers in a text that none of `known` rounds to; half a digit more, since `known` is rounded too."""
    known = list(known)
    slack = {text: 0.501 * 10.0 ** -len(text.partition(".")[2]) for text in decimals(printed)}
    return [text for text, near in slack.items() if not any(abs(float(text) - value) <= near for value in known)]


@functools.cache
def result_rows() -> dict[str, dict[str, list[tuple[str, list[float]]]]]:
    """Analysis -> evidence set -> (first cell, decimal numbers) of every row in the tables of its results there."""
    found: dict[str, dict[str, list[tuple[str, list[float]]]]] = defaultdict(lambda: defaultdict(list))
    for folder in sorted(EVIDENCE.iterdir()):
        for one in results.scan(folder)[0] if folder.is_dir() else ():
            for made in registry.get(one.name).tables(one):
                found[one.name][folder.name] += [(str(row[0]), [float(text) for text in decimals(" ".join(map(str, row)))]) for row in made.rows]
    return found


def kept() -> dict[str, dict[str, list[float]]]:
    """Analysis -> evidence set -> every decimal number in the tables of its results there."""
    return {name: {place: [value for _, row in rows for value in row] for place, rows in sets.items()} for name, sets in result_rows().items()}


def candidates(found: list[tuple[str, list[float]]], label: str) -> list[list[float]]:
    """What one printed row may be made of: a row of the results, or those of that label in all tables; of a label of the page's own, all."""
    labelled = [value for first, values in found if first == label for value in values]
    return [*(values for _, values in found), labelled or [value for _, values in found for value in values]]


def rows(text: str) -> list[str]:
    """Lines of tables that hold decimal numbers, without the headings."""
    lines = text.splitlines()
    heads = {i - 1 for i, line in enumerate(lines) if re.fullmatch(r"\|(:?-+:?\|)+", line.replace(" ", ""))}
    return [line for i, line in enumerate(lines) if line.startswith("|") and i not in heads and decimals(line)]


ANALYSES = {part.split("\n")[0].strip(): part for part in re.split(r"^## ", (ROOT / "docs" / "analyses.md").read_text(), flags=re.M)[1:]}
PRINTED = [(name, row) for name, part in ANALYSES.items() if name in registry.names() for row in rows(part)]


def test_the_numbers_of_most_analyses_are_looked_at():
    assert len({name for name, _ in PRINTED}) >= 7 and len(PRINTED) >= 30


@pytest.mark.parametrize(("name", "row"), PRINTED, ids=[f"{name}-{row.split('|')[1].strip()}" for name, row in PRINTED])
def test_a_row_is_that_of_one_set(name, row):
    label = row.split("|")[1].split(",")[0].strip()
    missing = {place: min((unknown(row, one) for one in candidates(found, label)), key=len) for place, found in result_rows()[name].items()}
    assert [] in missing.values(), missing


def test_rows_that_are_swapped_are_found():
    found = [("kd", [1.25, 0.1]), ("at", [2.5, 0.2]), ("kd", [7.75])]
    fits = lambda label, text: any(not unknown(text, one) for one in candidates(found, label))  # noqa: E731
    assert fits("kd", "1.25, 7.75") and not fits("at", "1.25, 7.75") and not fits("kd", "1.25, 0.2") and fits("mine", "1.25, 0.2")


def test_a_wrong_digit_is_found():
    assert unknown("| kd | 1.24 ± 0.10 |", [1.238, 0.1]) == [] and unknown("| kd | 1.25 ± 0.10 |", [1.238, 0.1]) == ["1.25"]


def test_skds_readings_are_what_the_records_and_results_say():
    text = (TENTH / "README.md").read_text().split("### Readings of SKD's loss")[1].split("**Why they end lower")[0]
    runs = {(v.method, (v.changed or {}).get("sum_over", ""), v.precision, v.seed): v.record.test_top1 for v in scan(TENTH)[0]}
    numbers = [value for name in ("relations", "gradients") for value in kept()[name][TENTH.name]]
    readings = [row for row in rows(text) if "sum_over=" in row]
    assert len(readings) == 2
    for row in readings:
        reading = re.search(r"sum_over=(\w+)", row)[1]
        found = [runs["skd", reading, "tf32", seed] for seed in (1, 2)]
        gains = [top1 - runs["student", "", "tf32", seed] for seed, top1 in zip((1, 2), found, strict=True)]
        printed = f"| {found[0]:.2f} | {found[1]:.2f} | {gains[0]:.2f}, {gains[1]:.2f} |"
        assert printed.replace(" -", " −") in row
    assert not [(row, left) for row in rows(text) if (left := unknown(row, [*numbers, *runs.values(), *differences(runs)]))]


def differences(runs: dict[tuple[str, str, str, int], float]) -> list[float]:
    """To the student of the same precision and seed."""
    return [top1 - runs["student", "", precision, seed] for (_, _, precision, seed), top1 in runs.items()]


PRECISION = {"": "bf16", " (fp32)": "tf32"}
"""How the tenth's README names the precision of a cell."""


def section(heading: str) -> str:
    return (TENTH / "README.md").read_text().split(f"\n{heading}\n")[1].split("\n##")[0]


def test_the_tenths_table_is_what_the_records_say():
    runs = {(v.title, v.precision, v.seed): v.record.test_top1 for v in scan(TENTH)[0] if not v.changed}
    seen = []
    for row in rows(section("## What the numbers say")):
        title, count, *cells, mean, gain, _ = (cell.strip() for cell in row.strip("|").split("|"))
        given = {seed: re.fullmatch(r"([\d.]+)( \(fp32\))?", cell) for seed, cell in enumerate(cells, 1) if cell}
        values = {(PRECISION[found[2] or ""], seed): float(found[1]) for seed, found in given.items()}
        assert values == {place: pytest.approx(runs[title, *place], abs=0.0051) for place in values}
        assert len(values) == sum(map(int, count.split("+")))
        top1 = {place: runs[title, *place] for place in values}
        if len({precision for precision, _ in values}) == 1:
            s = summarise([*top1.values()])
            assert mean == (f"{s.mean:.2f}" if s.sd is None else f"{s.mean:.2f} ± {s.sd:.2f}")
        if title != "Student":
            d = difference([value - runs["Student", *place] for place, value in top1.items()])
            assert gain == (f"{d.mean:+.2f}" + ("" if d.half is None else f" ± {d.half:.2f}")).replace("-", "−")
        seen.append(title)
    assert seen == ["Student", "KD", "KD (shifted)", "FitNet", "SKD", "AT"]


def test_the_tenths_leads_are_what_the_epochs_say():
    epochs = {(v.title, v.precision, v.seed): read_rows(v.folder / "epochs.jsonl", v.id).rows for v in scan(TENTH)[0] if not v.changed}

    def leads(title: str, precision: str, seed: int) -> list[str]:
        ours, plain = epochs[title, precision, seed], epochs["Student", precision, seed]
        return [f"{ours[e - 1].train_top1 - plain[e - 1].train_top1:+.1f}".replace("-", "−") for e in (2, 5, 10, 15, 24)]

    text = section("### Where the leads come from")
    table = rows(text)
    for row in table[1:]:
        title, *cells, gap, test = (cell.strip() for cell in row.strip("|").split("|"))
        ours, plain = epochs[title, "bf16", 1], epochs["Student", "bf16", 1]
        assert cells == leads(title, "bf16", 1) and gap == f"{ours[-1].train_top1 - ours[-1].test_top1:.1f}"
        assert test == f"{ours[-1].test_top1 - plain[-1].test_top1:+.2f}"
    assert [row.split("|")[1].strip() for row in table] == ["Student", "KD", "FitNet", "AT", "SKD"]
    assert f"{', '.join(leads('AT', 'tf32', 2))} and {', '.join(leads('AT', 'tf32', 3))} in the same epochs" in text
    assert f"{', '.join(leads('FitNet', 'tf32', 2))} in the same epochs" in text


def test_skds_figures_in_papers_are_those_of_all_its_students():
    text = (ROOT / "docs" / "papers.md").read_text()
    found, trained = [one for one in results.scan(TENTH)[0] if one.name in ("relations", "gradients")], {v.id for v in scan(TENTH)[0]}
    kl = {"skd": [], "student": [], "initial": []}
    pulls = defaultdict(list)
    for one in found:
        rows = one.facts["rows"]
        if one.name == "relations":
            by_seed = {(r["method"], r["seed"]): sum(r["images"]) / len(r["images"]) for r in rows}
            for method, values in kl.items():  # each beside those of its seed and precision
                values += [by_seed[method, seed] for name, seed in by_seed if name == "skd"]
        elif {r["label"] for r in rows} <= trained:
            for r in rows:
                if r["term"] == "skd" and r["when"] == "initial":
                    pulls[r["method"]].append(r["ratio"])
    mean = {name: sum(values) / len(values) for name, values in (pulls | kl).items()}  # pulls of the readings, whose names are others
    printed = {name: f"{mean[name] * 10**power:.{digits}f}e-{power}" for name, power, digits in (("initial", 3, 1), ("skd", 2, 2), ("student", 2, 2))}
    assert all(len(values) == 3 for values in kl.values())
    assert f"nats: {printed['initial']} before\ntraining, {printed['skd']} after it with SKD and {printed['student']} without (three seeds" in text
    assert f"is {mean['skd [sum_over=images]']:.2f} of the labels' before training" in text
    assert f"(`skd.sum_over=rows`) {mean['skd [sum_over=rows]']:.2f}." in text


def test_what_a_best_epoch_is_above_a_last_one_is_what_the_kept_logs_say():
    def logs(which: str) -> dict:
        return read_json(ROOT / "results" / "published" / f"lskd-logs-{which}.json")

    best, last = (
        {(e["teacher"], e["student"], e["method"]): e["top1"] for e in logs(which)["entries"] if "protocols" not in e} for which in ("best", "last")
    )
    above = [best[key] - last[key] for key in best.keys() & last.keys()]
    said = f"{sum(above) / len(above):.2f}"
    text = (ROOT / "docs" / "papers.md").read_text()
    assert f"the {len(above)} public logs of 240 epochs kept here end {said} points below their\nbest epoch on average" in text
    assert f"the {len(above)} logs of 240 epochs whose last epoch is kept too end {said} points below their best" in logs("best")["note"]
