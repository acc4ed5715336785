"""`doctor`: looks at everything a launch depends on and everything in a results folder, and says what is wrong and how to mend it."""

import contextlib
import importlib.metadata
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import models
from bench.data import cifar100
from bench.errors import StoreError, UsageError
from bench.launch.ledger import of_changed_source
from bench.options import DataOption, ResultsOption
from bench.plan import datasets, protocols, registries
from bench.plan.expand import Plan, expand
from bench.plan.profiles import PROFILES, get_profile
from bench.plan.rows import row_of
from bench.plan.selection import Selection
from bench.report import cost_sheets
from bench.store import redo, teachers
from bench.store.files import read
from bench.store.records import PlanRecord, Teacher
from bench.store.rows import read_rows
from bench.store.runs import GONE, TEACHER, RunView, is_done, scan
from bench.store.weights import read_state, state_hash
from bench.text import clean
from bench.train import checkpoint, preparations, teacher_networks
from methods import registry

ROW_BYTES = 400
LIVE_SECONDS = 60  # a temporary file that is younger may be of a save that goes on
GENERATIONS = 3  # two are kept, and a third is there while it is written


@dataclass(frozen=True)
class Doctor(DataOption, ResultsOption):
    """Check data, teachers, devices, disk space, versions, and every record and checkpoint of a results folder."""

    profile: str = "paper"
    """The profile whose data and disk space are checked: see `profiles`."""
    strict: bool = False
    """Exit with 1 where anything is wrong."""

    def main(self) -> int:
        self.results_there()
        the_plan = expand(profile := get_profile(self.profile), Selection(), registries.read(protocols.get(profile.protocol)))
        root = self.data_folder
        checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
            ("versions", check_versions),
            ("methods", check_methods),
            ("devices", check_devices),
            ("data", lambda: check_data(the_plan, root)),
            ("disk", lambda: check_disk(the_plan, self.results)),
            ("teachers", lambda: check_teachers(self.results, self.data_root)),
            ("runs", lambda: check_runs(self.results, self.data_root)),
            ("checkpoints", lambda: check_checkpoints(self.results)),
            ("other files", lambda: check_others(self.results)),
            ("evidence", lambda: check_evidence(self.results)),
        )
        wrong = 0
        for name, check in checks:
            found = list(check())
            for finding in found:
                print(f"{name}: {clean(finding.what, 1000)}\n    mend: {clean(finding.mend, 10_000)}")
            if not found:
                print(f"{name}: ok")
            wrong += len(found)
        print(f"{wrong} thing{'s' * (wrong != 1)} to mend" if wrong else "all is well")
        return 1 if wrong and self.strict else 0


@dataclass(frozen=True)
class Finding:
    """What is wrong, and the command (or act) that mends it."""

    what: str
    mend: str


def _remove(path: Path) -> str:
    return f"rm -r {shlex.quote(str(path))}"


def _readable(path: Path) -> str:
    return f"make it readable, and nothing in it is lost: chmod -R u+rwX {shlex.quote(str(path))}"


def _command(*words: str, results: Path, data_root: Path | None) -> str:
    """A command of the suite in the folders that were given, to copy."""
    return shlex.join(["python", "-m", "bench", *words, "--results", str(results), *(["--data-root", str(data_root)] if data_root else [])])


def check_versions() -> Iterator[Finding]:
    """The packages of pyproject.toml, where this is a checkout."""
    place = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if not place.exists():
        return
    wanted = tomllib.loads(place.read_text())["project"]
    python = wanted["requires-python"].removeprefix(">=")
    if sys.version_info[:2] < _numbers(python)[:2]:
        yield Finding(f"Python {sys.version.split()[0]} is older than {python}", f"install Python {python} and name it with KD_BENCH_PYTHON")
    for text in wanted["dependencies"]:
        name, _, least = text.partition(">=")
        try:
            present = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            present = ""
        if _numbers(present) < _numbers(least):
            said = f"{name} {present} is older than {least}" if present else f"{name} is not installed"
            yield Finding(said, f"{shlex.quote(sys.executable)} -m pip install '{text}'")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.split("+")[0])[:3])


def check_methods() -> Iterator[Finding]:
    """Method files that cannot be loaded."""
    registry.names()
    for name, error in registry.broken().items():
        yield Finding(f"{name} cannot be loaded: {error}", f"correct methods/{name}.py, or remove it")


def check_devices() -> Iterator[Finding]:
    """Every visible GPU computes; a GPU that the driver shows is one that torch sees."""
    if not torch.cuda.is_available():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if shutil.which("nvidia-smi") and hidden is None and Path("/dev/nvidia0").exists():
            yield Finding(f"there is a GPU, and torch {torch.__version__} cannot use it", "install a torch build for this driver: https://pytorch.org")
        return
    for index in range(torch.cuda.device_count()):
        try:
            one = torch.ones(64, 64, device=f"cuda:{index}")
            good = (one @ one).sum().item() == 64**3
        except RuntimeError as error:
            good, text = False, str(error).split("\n")[0]
        else:
            text = "computes wrong"
        if not good:
            yield Finding(f"cuda:{index} ({torch.cuda.get_device_name(index)}): {text}", "leave it out with CUDA_VISIBLE_DEVICES")


def check_data(the_plan: Plan, root: Path) -> Iterator[Finding]:
    """The official files by their sums. Embedded data is drawn and cannot be damaged."""
    if the_plan.protocol.dataset != "cifar100":
        return
    for name in cifar100.FILES:
        try:
            cifar100.checked(root, name)
        except UsageError as error:
            what, _, mend = str(error).rpartition("; ")  # an error of the suite says both
            yield Finding(what or str(error), mend.removeprefix("get it with: ") or "see above")


def _parameters(name: str) -> int:
    with models.without_values():
        return sum(p.numel() for p in models.build(name).parameters())


def space_needed(the_plan: Plan, slots: int) -> int:
    """Bytes that a profile takes at most: every run's weights and rows, the teachers, and the checkpoints of the groups that run at once.

    A checkpoint holds weights and momentum in float32; a method's own modules are not counted.
    """
    size = {name: 4 * _parameters(name) for name in {g.student for g in the_plan.groups} | set(the_plan.teachers)}
    kept = sum(len(g.methods) * (size[g.student] + ROW_BYTES * the_plan.protocol.epochs) for g in the_plan.groups)
    kept += sum(2 * size[name] for name in the_plan.teachers)
    training = sorted((len(g.methods) * 2 * size[g.student] for g in the_plan.groups), reverse=True)[:slots]
    return kept + GENERATIONS * sum(training)


def check_disk(the_plan: Plan, results: Path) -> Iterator[Finding]:
    """The results folder, or the first of its parents that exists, takes a file and has room for the profile."""
    place = next(p for p in (results.absolute(), *results.absolute().parents) if p.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        yield Finding(f"nothing can be written in {place}: {error.strerror}", "choose another folder with --results")
        return
    needed, free = space_needed(the_plan, max(1, torch.cuda.device_count())), shutil.disk_usage(place).free
    if free < needed:
        yield Finding(
            f"profile {the_plan.profile} takes up to {needed / 1e9:.1f} GB and {place} has {free / 1e9:.1f} GB left",
            "free some space, or choose another folder with --results",
        )


def check_teachers(results: Path, data_root: Path | None = None) -> Iterator[Finding]:
    """Every teacher's record and weights. `data_root`: for the commands that mend."""
    found, problems = teachers.available(results)

    def mend(place: Path, record: Teacher | None = None) -> str:
        dataset, _, architecture = place.name.partition("-")
        words = ("teachers", "import", "FILE", "--architecture", architecture, *teachers.of_data(dataset))
        bring = _command(*words, results=results, data_root=data_root)
        if record and record.source == "imported":
            return f"{_remove(place)}; {bring}"
        if record and record.protocol in protocols.PROTOCOLS and not record.trial:
            precision = ("--precision", record.precision) if record.precision else ()
            words = ("teachers", "train", architecture, "--protocol", record.protocol, *precision)
            return f"{_remove(place)}; {_command(*words, results=results, data_root=data_root)}"
        return f"{_remove(place)}, then launch again as before, which trains it; one that was imported: {bring}"

    for problem in problems:
        yield Finding(problem.reason, _readable(results / "teachers") if problem.where == "teachers" else mend(results / problem.where))
    for teacher in found:
        place = teacher.folder
        try:
            state = read_state(place / "teacher.pt")
            if state_hash(state) != teacher.hash:
                yield Finding(f"{place / 'teacher.pt'}: its hash is not the one of its record", mend(place, teacher.record))
                continue
            teacher_networks.network(teacher.architecture, state, datasets.get(teacher.record.dataset).classes, place / "teacher.pt")
        except (UsageError, models.NetworkError) as error:
            yield Finding(str(error), mend(place, teacher.record))


def check_runs(results: Path, data_root: Path | None = None) -> Iterator[Finding]:
    """Every run: its files, its weights, and whether one that says it is running has somebody who runs it. `data_root`: for the commands that
    mend."""
    views, problems = scan(results)
    for problem in problems:
        if problem.where == "runs":
            yield Finding(problem.reason, _readable(results / "runs"))
            continue
        folder = results / "runs" / problem.where
        status = "status.json" in problem.reason
        yield Finding(f"{problem.where}: {problem.reason}", f"{_remove(folder / 'status.json' if status else folder)}, then launch it again")
    yield from _scraps(results)
    for again in sorted(redo.root(results).glob("runs/*")):
        mend = f"the same --redo goes on; to keep the old results: {_remove(again)}"
        yield Finding(f"{again.name} was to be trained again (--redo) and was not", mend)
    for view in views:
        mend = f"{_remove(view.folder)}, then launch it again"
        if view.record is not None:
            if problem := _weights(view):
                yield Finding(f"{view.id}: {problem}", mend)
            continue
        try:
            read_rows(view.folder / "epochs.jsonl", view.id)
        except StoreError as error:
            yield Finding(str(error), mend)
        if view.reason == GONE:
            yield Finding(f"{view.id}: says it is running, and nobody runs it", "launch it again: it goes on from its checkpoint")
    stale: dict[str, list[RunView]] = {}
    for view in of_changed_source(results, views):
        if view.title == TEACHER:
            words = ("teachers", "train", view.student, "--redo", "--protocol", view.protocol.name, *_changes(view))
            again = _command(*words, results=results, data_root=data_root) if _changes(view) else "train it again as before, with --redo"
            mend = f"{again}, after which a launch trains its students anew; or raise its version"
            yield Finding(f"the source of {view.method} changed since the teacher {view.student} was trained", mend)
        else:
            stale.setdefault(view.method, []).append(view)
    for method, changed in sorted(stale.items()):
        mend = f"{_again(changed, views, results, data_root)}, or raise its version"
        yield Finding(f"the source of {method} changed since its runs were done", mend)


def _scraps(results: Path) -> Iterator[Finding]:
    """What saves that were killed left, and not what is being saved just now."""
    for path in sorted([*results.glob("runs/*/.*.tmp"), *results.glob("groups/*/.*.tmp")]):
        with contextlib.suppress(OSError):  # gone meanwhile
            found = path.stat()
            if time.time() - found.st_mtime > LIVE_SECONDS:
                what = f"{path}: {found.st_size / 1e6:.1f} MB of a save that was killed"
                yield Finding(what, "launch its run again, which clears it away, or remove it")


def _changes(view: RunView) -> list[str]:
    """The options of a run's launch beside the name of its protocol; empty: no options give that."""
    p, declared = view.protocol, protocols.PROTOCOLS.get(view.protocol.name)
    if declared is None or declared.scaled(p.epochs).sampled(p.sample_rate) != p:
        return []
    epochs = ["--epochs", str(p.epochs)] if p.epochs != declared.epochs else []
    return [*epochs, *(["--sample-rate", str(p.sample_rate)] if p.sample_rate != declared.sample_rate else []), "--precision", view.precision]


def _again(stale: list[RunView], views: list[RunView], results: Path, data_root: Path | None) -> str:
    """The commands that train these runs again and no others; words, where no options give the protocol of one."""
    found: dict[tuple[tuple[str, ...], str, str], set[int]] = {}  # options, row, pair -> seeds
    for view in stale:
        if not (changes := _changes(view)):
            return f"launch again as before, with --redo --methods {shlex.join(sorted({row_of(v.method, v.changed) for v in stale}))}"
        name = view.protocol.name
        # A profile says how the teachers of its protocol are trained.
        plan = next((("--profile", one.name) for one in PROFILES.values() if one.protocol == name), ("--protocol", name))
        beside = (v.teacher for v in views if v.teacher and (v.student, v.protocol) == (view.student, view.protocol))
        pair = f"{view.teacher or next(beside, view.student)}-{view.student}"
        found.setdefault(((*plan, *changes), row_of(view.method, view.changed), pair), set()).add(view.seed)
    alike: dict[tuple[tuple[str, ...], str, tuple[int, ...]], list[str]] = {}  # options, row, seeds -> pairs
    for (options, row, pair), seeds in sorted(found.items()):
        alike.setdefault((options, row, tuple(sorted(seeds))), []).append(pair)
    commands = []
    for (options, row, seeds), pairs in alike.items():
        words = ("run", "--redo", *options, "--pairs", *pairs, "--seeds", ",".join(map(str, seeds)), "--methods", row)
        commands.append(_command(*words, results=results, data_root=data_root))
    return "; ".join(commands)


def _weights(view: RunView) -> str:
    """What is wrong with a finished run's weights; empty: nothing."""
    try:
        state = read_state(view.folder / "student.pt")
    except UsageError as error:
        return str(error).partition(";")[0]
    return "" if state_hash(state) == view.record.weights_sha256 else "student.pt is not what the record names"


def check_checkpoints(results: Path) -> Iterator[Finding]:
    """Every checkpoint that a run would go on from, and every manifest."""
    for place in sorted(results.glob("groups/*/*.json")):
        if checkpoint.read_manifest(place) is None:
            yield Finding(f"{place} is damaged", f"{_remove(place)}; the next launch falls back a generation")
    for folder in sorted(p.parent for p in results.glob("runs/*/group.json")):
        if is_done(folder):
            continue
        try:
            rows = len(read_rows(folder / "epochs.jsonl").rows)
        except StoreError:
            continue  # named among the runs
        for note in checkpoint.restore(results, folder.name, rows)[1].notes:
            yield Finding(f"{folder.name}: {note}", "launch it again: it goes on from what is sound")


def check_others(results: Path) -> Iterator[Finding]:
    """The plan, the cost records and the preparations."""
    try:
        read(results / "plan.json", PlanRecord)
    except StoreError as error:
        yield Finding(str(error), f"{_remove(results / 'plan.json')}; the next launch writes it")
    for problem in cost_sheets.load(results)[1]:
        yield Finding(f"{problem.where}: {problem.reason}", f"{_remove(results / problem.where)}; the next launch measures it")
    for place in sorted(p.parent for p in results.glob("preparations/*/prepared.json")):
        try:
            preparations.read(place, {"name": place.name.rpartition("-")[0]})
        except UsageError as error:
            yield Finding(str(error), f"{_remove(place)}; the next launch builds it")


def check_evidence(results: Path) -> Iterator[Finding]:
    """The records, rows and costs of the sets that were kept; their weights were not."""
    for place in sorted(p for p in (results / "evidence").glob("*") if p.is_dir()):
        views, problems = scan(place)
        said = [f"{problem.where}: {problem.reason}" for problem in (*problems, *cost_sheets.load(place)[1])]
        for view in views:
            try:
                read_rows(view.folder / "epochs.jsonl", view.id)
            except StoreError as error:
                said.append(str(error))
        for text in said:
            yield Finding(f"{place.name}: {text}", f"git checkout -- {shlex.quote(str(place))}, or take the set out")
