"""Hostile results folders: every kind of typed record with keys dropped, wrong types, huge numbers, deep nesting and control characters,
under valid checksums, names and sums, read by everything that reads. Longer by hand: `python -m tests.bench.store.fuzz 20000 [SEED]`.
"""

import contextlib
import copy
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import doctor
from bench.errors import UsageError
from bench.launch import estimate, progress, status
from bench.plan.identity import digest
from bench.report import compare, epochs, explain, page, render, table
from bench.store.files import crc
from bench.train import teacher_commands
from tests.bench import synthetic

SECONDS = 10.0
"""Of CPU time, for one input, all readers together; they take some hundredths."""
PAIR = ("resnet56", "resnet20")
CODES = "\x1b[31m\x07\n\r\x9b2J\u202e\u2028\x00"

NUMBERS = (0, -1, 1, 2, 100, 101, 1e308, -1e308, 5e-324, -0.0, 10**12, 2**63, 10**30, 10**400, 0.5, 1e18, float("nan"), float("inf"))


def deep(levels: int, leaf: Any = 1) -> Any:
    for _ in range(levels):
        leaf = [leaf] if levels % 2 else {"a": leaf}
    return leaf


def strange(source: random.Random) -> Any:
    """A value that belongs nowhere, or nearly."""
    number = source.choice(NUMBERS)
    text = source.choice(("", "x", CODES, f"a{CODES}b", "x" * 300, "y" * 200_000, "<b>", "..", "../..", "/", "\ud800", "kd", "student", "Teacher"))
    other = source.choice((None, True, False, [], {}, [[]], {"a": {}}, [1, "a", None], {CODES: 1}, deep(5), deep(31), deep(200), deep(900)))
    return source.choice((number, number, text, text, other, other))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    items = items if len(path) < 40 else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def spoil(value: dict[str, Any], source: random.Random) -> None:
    """One change, somewhere."""
    *way, key = source.choice(list(places(value)))
    at: Any = value
    for step in way:
        at = at[step]
    kind = source.randrange(10)
    if kind < 5:
        at[key] = strange(source)
    elif kind == 5:
        del at[key]
    elif kind == 6 and isinstance(at, dict):
        at[source.choice((CODES, "newer", "format", "crc", "", key.upper()))] = strange(source)
    elif kind == 7 and isinstance(at[key], int | float):
        at[key] = source.choice((str(at[key]), at[key] * 1000, -at[key], [at[key]], at[key] + 1))
    elif kind == 8 and isinstance(at[key], str):
        at[key] = at[key] + source.choice((CODES, " ", "'", '"', "\\", "é", "</script>"))
    elif kind == 9 and isinstance(at, list):
        at.append(copy.deepcopy(source.choice(at)))
    else:
        at[key] = strange(source)


def dumps(value: Any) -> bytes:
    return json.dumps(value).encode()  # lone surrogates as escapes, NaN as NaN


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """With its checksum, where one can be made."""
    value.pop("crc", None)
    with contextlib.suppress(ValueError, RecursionError):
        value["crc"] = crc(value)
    return value


class Folder:
    """A small results folder: two done runs, one that runs, a plan, costs, a teacher, published numbers, and a kept set."""

    def __init__(self, place: Path) -> None:
        self.place = place
        for root in (place, place / "evidence" / "kept"):
            for method, top1 in (("student", 68.0), ("kd", 70.0)):
                synthetic.add_run(root, synthetic.run_of(method, *PAIR, 1, hyper={"alpha": 0.9}), top1)
                synthetic.add_cost(root, *PAIR, method, 1000.0, 1 << 20)
        synthetic.add_run(place, synthetic.run_of("kd", *PAIR, 2, hyper={"alpha": 0.9}), 70.0, status="running", rows=2)
        synthetic.add_plan(place, [PAIR], ("student", "kd"), (1, 2))
        teacher = {"format": 1, "architecture": "resnet56", "dataset": "cifar100", "hash": "h", "test_top1": 72.0, "test_top5": 92.0}
        teacher |= {"test_top1_data": "d", "trained": True, "source": "imported", "trial": ""}
        (place / "teachers" / "cifar100-resnet56").mkdir(parents=True)
        (place / "teachers" / "cifar100-resnet56" / "teacher.json").write_bytes(dumps(sealed(teacher)))
        shutil.copytree(Path(table.__file__).parents[2] / "results" / "published", place / "published")
        self.files = sorted(p for p in place.rglob("*.json*") if p.parts[len(place.parts)] not in ("evidence", "published"))
        self.files += sorted((place / "published").glob("skd.json"))
        self.content = {path: path.read_bytes() for path in self.files}
        self.moved: Path | None = None
        self.kept = render.text([s for s in table.build(place) if s.name != table.OWN])

    def break_one(self, source: random.Random) -> Path:
        """Damage one file, with the sums that vouch for it made to fit."""
        path = self.broken = source.choice(self.files)
        rows = path.name == "epochs.jsonl"
        values = [json.loads(line) for line in self.content[path].splitlines()] if rows else [json.loads(self.content[path])]
        for _ in range(source.choice((1, 1, 1, 2, 3))):
            spoil(source.choice(values), source)
        if rows and source.random() < 0.2:
            source.shuffle(values)
        data = b"".join(dumps(sealed(v)) + b"\n" for v in values)
        if source.random() < 0.03:
            data = data[: source.randrange(len(data))]
        path.write_bytes(data)
        if path.parts[-3] == "runs":
            self._fit(path.parent, source)
        return path

    def _fit(self, folder: Path, source: random.Random) -> None:
        """The run's other files say what the damaged one says: sums, and the name where the identity is another one."""
        moved = None
        with contextlib.suppress(Exception):  # what cannot be made to fit stays as it is
            i = json.loads((folder / "config.json").read_bytes())["identity"]
            name = "-".join(p for p in (i.get("teacher"), i["student"], i["method"], f"s{i['seed']}", digest(i)) if p)
            moved = folder.with_name(name)
            lines = [json.loads(line) for line in (folder / "epochs.jsonl").read_bytes().splitlines()]
            if name != folder.name:
                (folder / "epochs.jsonl").write_bytes(b"".join(dumps(sealed({**line, "run": name})) + b"\n" for line in lines))
            record = json.loads((folder / "record.json").read_bytes())
            record["run"] = name if record["run"] == folder.name else record["run"]
            if source.random() < 0.5:
                record |= {"test_top1": lines[-1]["test_top1"], "best_top1": max(line["test_top1"] for line in lines)}
            for key, file in (("config_sha256", "config.json"), ("rows_sha256", "epochs.jsonl")):
                record[key] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
            (folder / "record.json").write_bytes(dumps(sealed(record)))
        with contextlib.suppress(OSError, ValueError):
            if moved:
                folder.rename(moved)
                self.moved = moved  # only a name that can be one: others cannot be removed either

    def mend(self) -> None:
        if self.moved is not None and self.moved not in {p.parent for p in self.files}:
            shutil.rmtree(self.moved, ignore_errors=True)
        self.moved = None
        for path in [p for p in self.files if p == self.broken or p.parent == self.broken.parent]:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(self.content[path])


def readers(place: Path) -> Iterator[tuple[str, str]]:
    """What every reader prints of a folder, by the reader's name."""
    sets = table.build(place)
    yield "kept", render.text([s for s in sets if s.name != table.OWN])  # before it is told where another set says otherwise
    compare.warn_of_contradictions(sets)
    for form, (_, make) in render.FORMATS.items():
        yield f"report --format {form}", make(sets)
    if _some(sets, 4):
        yield "page", page.html(sets)
    for method in sorted({row.method for s in sets for t in s.tables for row in t.rows})[:3]:
        for pair in sorted({f"{p.teacher}/{p.student}" for s in sets for t in s.tables for p in t.pairs if p.teacher})[:2]:
            with contextlib.suppress(UsageError):
                yield "explain", explain.explain(sets, method, pair)
    for name, command in (("status", lambda: status.show(place, True)), ("teachers", lambda: teacher_commands.Teachers(results=place).main())):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            command()
        yield name, out.getvalue()
    out = io.StringIO()
    show = progress.Progress(place, lambda: (0, 1), out)
    show.update(force=True)
    yield "progress", out.getvalue()
    estimate.load_costs(place, synthetic.DEVICE["name"])
    for check in (doctor.check_runs, doctor.check_others, doctor.check_evidence, doctor.check_teachers):
        list(check(place))
    if _some(sets, 20):  # slow: it runs pandas
        yield "epochs", _csv(sets)


def _some(sets: list[table.ResultSet], one_in: int) -> bool:
    """For what is slow: one input in so many, always the same ones."""
    return int(digest([[f.reason for f in s.problems] + [t.warnings for t in s.tables] for s in sets]), 16) % one_in == 0


def _csv(sets: list[table.ResultSet]) -> str:
    out = io.StringIO()
    epochs.write_csv(sets, out)
    return out.getvalue()


def codes(text: str) -> set[str]:
    """Characters that a terminal acts on, but line ends."""
    lines = text.replace("\n", "")
    return set() if lines.isprintable() else {c for c in lines if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029"}


class TooSlow(BaseException):
    pass


def _ring(number: int, frame: Any) -> None:
    raise TooSlow


def run(place: Path, count: int, seed: int, say: bool = False) -> Counter[str]:
    """`count` inputs. Raises AssertionError naming the input's number and seed for a traceback, a hang, a control code, or a kept set that
    the damage touched. Returns how many inputs of each kind of file were read, and how many were refused."""
    folder = Folder(place)
    found: Counter[str] = Counter()
    signal.signal(signal.SIGALRM, _ring)
    signal.signal(signal.SIGPROF, _ring)
    started = time.monotonic()
    for number in range(count):
        path = folder.break_one(random.Random(f"{seed}/{number}"))
        what = f"input {number} of seed {seed} ({path.relative_to(place)}: {path.read_bytes()[:2000] if path.exists() else 'moved'!r})"
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 60 * SECONDS)  # for one that waits and does nothing
        try:
            for name, said in readers(place):
                assert not (bad := codes(said)), f"{what}: {name} prints {bad}"
                assert name != "kept" or said == folder.kept or path.parent.name == "published", f"{what}: the kept set reads otherwise"
                found["refused"] += name == "report --format text" and "excluded: " in said
        except (Exception, TooSlow) as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[-300:]}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            folder.mend()
        found[path.name if path.parts[-3] != "costs" else "cost"] += 1
        if say and (number + 1) % 100 == 0:
            print(f"{number + 1} inputs, {time.monotonic() - started:.0f} s, {dict(found)}", flush=True)
    return found


if __name__ == "__main__":
    root = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        run(root, int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, say=True)
    finally:
        shutil.rmtree(root)
