"""The commands that list what is declared and at hand, and those that get one teacher."""

import dataclasses
from pathlib import Path

from bench import plan, protocol
from bench.commands import TeachersImport, TeachersTrain, data_root
from bench.progress import table


def show_methods() -> int:
    """Print the registered methods and the broken files."""
    from methods import registry

    rows = []
    for name in registry.names():
        method = registry.get(name)
        rows.append((name, f"v{method.version}", method.title, method.paper))
    for text in ([line.rstrip() for line in _left(rows)]) or ["no method is registered"]:
        print(text)
    for name, error in registry.broken().items():
        print(f"{name}: BROKEN, {error}")
    return 0


def _left(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def show_pairs() -> int:
    """Print the declared pairs and the networks."""
    import models

    for pair in plan.PAIRS:
        print(pair.name)
    print(f"\nany two of these networks make a pair, as teacher-student: {', '.join(models.names())}")
    return 0


def show_profiles() -> int:
    """Print the declared profiles and protocols."""
    for p in plan.PROFILES.values():
        rows = ", ".join(p.methods) if p.methods else "every registered method"
        print(f"{p.name}: {p.summary}\n  protocol {p.protocol}, seeds {', '.join(map(str, p.seeds))}, precision {p.precision}")
        print(f"  pairs {', '.join(pair.name for pair in p.pairs)}\n  rows {rows}")
        if p.variant:
            print(f"  as a variant: {', '.join(f'{method}.{field}={value}' for method, field, value in p.variant)}")
    print("\nprotocols")
    for one in protocol.PROTOCOLS.values():
        milestones = "/".join(map(str, one.milestones))
        part = f", {one.sample_rate:.0%} of the training set" if one.sample_rate < 1 else ""
        print(f"  {one.name}: {one.dataset}, {one.epochs} epochs, lr {one.lr} x{one.decay} after {milestones}, batch {one.batch}{part}")
    return 0


def show_teachers(results: Path) -> int:
    """Print the teachers of a results folder."""
    from bench import teachers

    found = teachers.available(results)
    rows = [(t.architecture, t.record["dataset"], t.hash, f"{t.record['test_top1']:.2f} %", t.record.get("source", "?")) for t in found]
    rows = [(*row, t.record.get("trial") or "-") for row, t in zip(rows, found, strict=True)]
    if not rows:
        print(f"no teachers in {results / 'teachers'}; get one with: python -m bench teachers import FILE --architecture NAME")
        return 0
    print("\n".join(table(rows, ("teacher", "data", "hash", "top-1", "source", "trial"))))
    return 0


def import_teacher(options: TeachersImport) -> int:
    """Measure and import a teacher file. Raises UsageError or NetworkError."""
    import models
    from bench import data, environment, teachers
    from bench.data.augment import Augmenter

    models.shapes(options.architecture)
    teachers.read_state(options.file)  # a bad file says so before the data is asked for
    device = environment.select(options.device)
    dataset = data.load(protocol.get(options.protocol), options.data_root or data_root(), options.download)
    found = teachers.import_file(
        options.file, options.architecture, options.results, dataset, Augmenter(dataset, device), device, options.expected, options.replace
    )
    print(f"{found.folder}: hash {found.hash}, {found.record['test_top1']:.2f} % top-1 on {dataset.name}")
    return 0


def train_teacher(options: TeachersTrain) -> int:
    """Train a teacher in this process. Returns an exit code of bench.jobs. Raises UsageError or NetworkError."""
    import models
    from bench import environment
    from bench.identity import PRECISIONS
    from bench.jobs import Where, run_teacher

    models.shapes(options.architecture)
    if options.precision not in PRECISIONS:
        raise protocol.unknown("precision", options.precision, list(PRECISIONS))
    environment.select(options.device)
    chosen = protocol.get(options.protocol)
    chosen = chosen.scaled(options.epochs) if options.epochs is not None else chosen
    shared = {f.name for f in dataclasses.fields(Where)} & {f.name for f in dataclasses.fields(TeachersTrain)}
    where = {name: getattr(options, name) for name in shared} | {"results": str(options.results), "data_root": str(options.data_root or data_root())}
    budget = options.time_budget
    return run_teacher(
        options.architecture,
        chosen,
        plan.TEACHER_SEED,
        options.precision,
        Where(**where, stop_after_seconds=None if budget is None else 60 * budget),
    )
