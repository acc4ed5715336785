"""`python -m bench speed`: what a training step takes on this device, for each pair, precision and engine, alone and in a group.

Measured beside it: the device's copy bandwidth and matrix rate. A step's floating-point operations and bytes over those ceilings are
the time it could take; that over the time it takes is the roofline fraction. From the group's step follow the hours for a whole table.
Random images and untrained teachers serve: they cost the same. Nothing here is an accuracy, and unlike a cost probe a group shares its
teacher.
"""

import dataclasses
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch

import models
from bench import data
from bench.errors import UsageError, check_known
from bench.measure import ceilings, meters
from bench.measure.probes import exclusive
from bench.options import DeviceOption, ResultsOption, ThreadsOption
from bench.plan import names, protocols
from bench.plan.groups import Group
from bench.plan.identity import PRECISIONS
from bench.plan.members import Member, resolve
from bench.plan.profiles import PAIRS, PROFILES, Pair
from bench.plan.selection import parse_pair
from bench.store.costs import slug
from bench.store.files import write_json
from bench.train import engine, environment
from bench.train.context import Context
from bench.train.execution import Execution
from bench.train.learner import evaluate

FORMAT = 1
TEST_IMAGES, TEST_BATCH, TRAIN_IMAGES = 10_000, 500, 50_000
SINGLE = "kd"
"""The row that is timed alone."""


@dataclass(frozen=True)
class Speed(ThreadsOption, DeviceOption, ResultsOption):
    """Time training steps on this device for each pair, precision and engine, alone and in a group; hours for the whole table."""

    pairs: tuple[str, ...] = ()
    """Pairs, as in resnet56-resnet20; default: the six of the paper profile."""
    methods: tuple[str, ...] = ()
    """Rows of the group; default: those of the paper profile."""
    precisions: tuple[str, ...] = ()
    """tf32, fp32, bf16; default: all that differ on the device (on a CPU fp32 is tf32)."""
    engines: tuple[str, ...] = ()
    """Default: eager and the fastest one here: graph on CUDA, native on a CPU with a C++ compiler."""
    steps: int | None = None
    """Timed steps of each; default: 100 on CUDA, 3 on a CPU."""
    quick: bool = False
    """One pair, three rows, two steps: under a minute on a CPU."""

    def main(self) -> int:
        """Measure, print a table and write costs/<device>/speed.json. Returns 0. Raises UsageError for bad input."""
        device = environment.select(self.device)
        options = filled(self, device)
        pairs = [parse_pair(name, models.names()) for name in options.pairs]
        engines = [engine.choose(name, device) for name in options.engines]
        for pair in pairs:
            if not _members(pair, options.precisions[0], options):
                raise UsageError(f"--methods {' '.join(options.methods)}: none of them can do {pair.name}")
        rows: list[dict[str, Any]] = []
        with exclusive(device):
            environment.configure(options.precisions[0], options.threads)
            ceiling = {precision: ceilings.measure(device, precision, options.quick) for precision in options.precisions}
            print(ceilings.describe(ceiling), flush=True)
            for pair in pairs:
                for precision in options.precisions:
                    environment.configure(precision, options.threads)
                    for row in _measure(pair, precision, engines, options, device):
                        rows.append(row | {"roofline": ceilings.fraction(row, ceiling[precision])})
                        print(line(rows[-1]), flush=True)
        table = hours(rows, PROFILES["paper"].seeds, len(PAIRS))
        for text in (sentence(entry) for entry in table):
            print(text)
        record = {
            "format": FORMAT,
            "kind": "speed",
            "device": environment.device_facts(device),
            "versions": environment.versions(),
            "commit": environment.commit(),
            "threads": torch.get_num_threads(),
            "quick": options.quick,
            "ceilings": ceiling,
            "steps": rows,
            "table_hours": table,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        path = options.results / "costs" / slug(environment.device_facts(device)["name"]) / "speed.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        print(f"written to {path}")
        return 0


def filled(options: Speed, device: torch.device) -> Speed:
    """The options with their defaults for this device. Raises UsageError."""
    on_gpu = device.type == "cuda"
    paper = PROFILES["paper"]
    for precision in options.precisions:
        check_known("precision", precision, PRECISIONS)
    names.check_methods(options.methods)
    if options.steps is not None and options.steps < 1:
        raise UsageError(f"--steps {options.steps}: at least 1")
    return dataclasses.replace(
        options,
        pairs=tuple(dict.fromkeys(options.pairs)) or (("resnet56-resnet20",) if options.quick else tuple(pair.name for pair in PAIRS)),
        methods=tuple(dict.fromkeys(options.methods)) or (("student", "kd", "at") if options.quick else paper.methods),
        precisions=options.precisions or (("tf32", "fp32", "bf16") if on_gpu else ("tf32", "bf16")),
        engines=options.engines or tuple(dict.fromkeys(("eager", engine.choose("auto", device).name))),
        steps=options.steps or ((100 if on_gpu else 3) if not options.quick else (20 if on_gpu else 2)),
    )


def random_images(count: int, test: int) -> data.Dataset:
    """CIFAR-100's shapes with random content."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count + test, 3, 32, 32), generator=g, dtype=torch.uint8)
    labels = torch.arange(count + test) % 100
    classes, half = tuple(str(i) for i in range(100)), (0.5, 0.5, 0.5)
    a, b = slice(count), slice(count, None)
    return data.Dataset("random", pixels[a], labels[a], pixels[b], labels[b], classes, (0,) * 100, half, half, "0" * 16)


def _members(pair: Pair, precision: str, options: Speed) -> list[Member]:
    """The rows that can do a pair."""
    group = Group(pair.teacher, pair.student, 1, protocols.get("crd"), precision, options.methods)
    images = 200 if options.quick else TRAIN_IMAGES
    return [m for m in resolve(group, "0" * 16, 100, 32, images, "untrained") if not m.skipped]


def _measure(
    pair: Pair, precision: str, engines: Sequence[type[engine.Eager]], options: Speed, device: torch.device
) -> list[dict[str, Any]]:
    """One pair in one precision: a row for each engine, of the group and of one method alone."""
    crd = protocols.get("crd")
    dataset = random_images(200 if options.quick else TRAIN_IMAGES, TEST_BATCH)
    execution = Execution(str(options.results), device=options.device, threads=options.threads)
    context = Context(crd, precision, execution, pair.teacher, untrained=True, dataset=dataset)
    images, teacher = context.images, context.teacher()
    members = _members(pair, precision, options)
    alone = next((m for m in members if m.run.method == SINGLE), members[-1])
    rows = []
    for kind in engines:
        for chosen in (members, [alone]):
            learners = [context.timed_learner(m) for m in chosen]
            runner = kind(images, teacher if any(one.teacher_needs for one in learners) else None, learners, precision)
            times = _times(runner, dataset, options.steps, crd.batch, device)
            test = lambda one=learners[0]: evaluate(one.student, images.test_batches(TEST_BATCH), precision)  # noqa: E731
            tested = meters.timed(test, 2, device)[1]  # the first does not count
            first, median, third = meters.quartiles(times)
            seen = pair.teacher if runner.teacher is not None else None
            rows.append(
                {
                    "teacher": pair.teacher,
                    "student": pair.student,
                    "precision": precision,
                    "engine": runner.name,
                    "methods": [m.run.method for m in chosen],
                    "step_ms_median": median,
                    "step_ms_iqr": [first, third],
                    "steps_timed": len(times),
                    "test_ms": tested * TEST_IMAGES / TEST_BATCH,
                    **ceilings.work(seen, [pair.student] * len(chosen), crd.batch, precision),
                }
            )
            del runner, learners
            gc.collect()
    return rows


def _times(runner: engine.Eager, dataset: data.Dataset, steps: int, batch: int, device: torch.device) -> list[float]:
    """Milliseconds of each of so many full-batch steps, after warm-up (and capture)."""
    for one in runner.learners:
        one.begin_epoch(1)
    step = meters.Steps(runner, len(dataset.train_labels), batch)
    for _ in range(10 if device.type == "cuda" else 1):
        step()
    return meters.timed(step, steps, device)


def hours(rows: Sequence[dict[str, Any]], seeds: Sequence[int], all_pairs: int) -> list[dict[str, Any]]:
    """For each (precision, engine): hours of the CRD protocol over the measured pairs, trained as groups and one row at a time."""
    crd = protocols.get("crd")
    steps = crd.epochs * -(-TRAIN_IMAGES // crd.batch)
    found: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["precision"], row["engine"], len(row["methods"]) > 1), []).append(row)
    table = []
    for (precision, name, grouped), measured in found.items():
        if not grouped:
            continue
        total = sum(steps * r["step_ms_median"] + crd.epochs * len(r["methods"]) * r["test_ms"] for r in measured) * len(seeds) / 3.6e6
        single = [r for r in found.get((precision, name, False), ())]
        one = [(steps * r["step_ms_median"] + crd.epochs * r["test_ms"]) / 3.6e6 for r in single]
        table.append(
            {
                "precision": precision,
                "engine": name,
                "pairs": len(measured),
                "pairs_in_table": all_pairs,
                "seeds": len(seeds),
                "rows": [len(r["methods"]) for r in measured],
                "hours": total,
                "hours_of_one_run": {f"{r['teacher']}-{r['student']}": h for r, h in zip(single, one, strict=True)},
            }
        )
    return table


def line(row: dict[str, Any]) -> str:
    """One measurement for people."""
    what = f"group of {len(row['methods'])}" if len(row["methods"]) > 1 else f"{row['methods'][0]} alone"
    pair = f"{row['teacher']} -> {row['student']}"
    low, high = row["step_ms_iqr"]
    start = f"{pair:<24} {row['precision']:<5} {row['engine']:<7} {what:<13}"
    return f"{start}{row['step_ms_median']:9.3f} ms a step ({low:.3f} to {high:.3f}), {100 * row['roofline']:.0f} % of the roofline"


def sentence(entry: dict[str, Any]) -> str:
    """The hours for people."""
    part = "" if entry["pairs"] == entry["pairs_in_table"] else f" (of {entry['pairs_in_table']})"
    rows = f"{entry['rows'][0]} rows" if len(set(entry["rows"])) == 1 else f"{min(entry['rows'])} to {max(entry['rows'])} rows"
    return (
        f"{entry['precision']} {entry['engine']}: {entry['hours']:.2f} h for {entry['pairs']}{part} pairs x {entry['seeds']} seeds x {rows}, "
        f"240 epochs, one group after the other"
    )
