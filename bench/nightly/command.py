"""`python -m bench nightly`: run the plan, add a night to the history, say what it means. No torch until the plan runs."""

import json
import math
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.errors import StoreError, UsageError
from bench.nightly import history
from bench.nightly.rows import FORMAT, Row, sift
from bench.nightly.text import verdict_lines
from bench.nightly.verdict import judge
from bench.options import DeviceOption, ResultsOption
from bench.text import clean

THREADS = 1
"""Of a run: more would change the order of sums with the number of cores."""


@dataclass(frozen=True)
class Nightly(DeviceOption, ResultsOption):
    """A small fixed plan, compared with the baseline of this kind of machine; exit code 1 on a new regression."""

    accept: str | None = None
    """Run nothing; make the latest night the baseline, for this reason."""
    machine: str | None = None
    """Name of the machine class; default: from the processor."""
    benchmarks: Path | None = None
    """JSON written by pytest --benchmark-json, whose figures join the night."""
    every_hours: float = 24.0
    """How often it is run: more than one and a half times that without a row is a gap."""
    workers: int | None = None
    """Processes that train side by side on a CPU; default: one a core, at most 4. Never changes a number."""
    keep: bool = False
    """Keep tonight's runs below the history."""

    def main(self) -> int:
        """Gives 0 for nothing new, 1 for a new regression or a plan that could not be run. Raises UsageError, StoreError."""
        if self.every_hours <= 0:
            raise UsageError(f"--every-hours {self.every_hours:g}: above 0")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers {self.workers}: at least 1")
        if self.accept is not None:
            return _accept(self)
        benches = read_benchmarks(self.benchmarks) if self.benchmarks else {}
        from bench.nightly import measure

        machine = self.machine or _machine(self.device)
        place = history.folder(self.results, _checked(machine))
        with history.alone(place):
            rows = history.read(place)  # a damaged history is told before the work, not after
            baseline = history.read_baseline(place)
            history.read_told(place)
            number = history.last_night(rows, baseline) + 1
            if lost := history.behind(place, rows, baseline):
                print(f"warning: {lost}; compared with that baseline, nights go on from {number}")
            folder = place / f"night-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            plan = measure.Plan()
            try:
                parts = measure.run(plan, folder, self.device, _workers(self.device) if self.workers is None else self.workers)
            except measure.NightStopped as stopped:
                print("stopped; nothing was added to the history")
                return stopped.code
            except measure.NightFailed as failed:
                print(f"regression: {failed}")
                return 1
            finally:
                if not self.keep:
                    shutil.rmtree(folder, ignore_errors=True)
            row = make_row(number, plan.hash(), parts, benches)
            return record(place, machine, rows, row, self.every_hours)


def make_row(number: int, plan: str, parts: Any, benches: dict[str, dict[str, Any]]) -> Row:
    """Tonight's row from what was measured (measure.Parts) and the benchmark figures."""
    from bench.train import environment

    metrics, odd = sift({**parts.metrics, **benches})
    return {
        "format": FORMAT,
        "night": number,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": environment.commit(),
        "plan": plan,
        "parts": ["accuracy", "speed", *(["benchmarks"] if benches else [])],
        "facts": parts.facts,
        "sources": parts.sources,
        "failures": {**parts.failures, **odd},
        "metrics": metrics,
    }


def record(place: Path, machine: str, rows: list[Row], row: Row, every_hours: float) -> int:
    """Append the row, start a baseline where there is none of this plan, print the verdict, note that it was. Returns the exit code.

    Raises UsageError where nothing can be written, StoreError for a damaged file.
    """
    if not row["metrics"]:
        print(clean("regression: no metric could be measured; " + "; ".join(f"{name}: {reason}" for name, reason in row["failures"].items()), 4000))
        return 1
    with history.writing(place):
        history.append(place, row)
    for name, said in row["failures"].items():
        print(clean(f"not measured: {name}: {said}", 1000))
    baseline = history.read_baseline(place)
    if baseline is None or baseline["row"]["plan"] != row["plan"]:
        reason = "first night on this machine class" if baseline is None else "the nightly plan itself changed"
        with history.writing(place):
            baseline = history.set_baseline(place, row, reason)
        print(f"new baseline on {machine}: {reason}, night {row['night']}, commit {row['commit'] or 'unknown'}")
    verdict = judge([*rows, row], baseline, every_hours, history.read_told(place))
    print("\n".join(verdict_lines(verdict, baseline, machine)), flush=True)
    try:
        history.set_told(place, row["night"])
    except OSError as error:
        print(f"warning: cannot note that this was told ({error.strerror}): what is new tonight will be new again")
    return verdict.code


def _accept(options: Nightly) -> int:
    reason = " ".join((options.accept or "").split())
    if not reason:
        raise UsageError('--accept needs a reason, as in --accept "the new KD loss is meant to be slower"')
    known = history.machines(options.results)
    machine = options.machine or (known[0] if len(known) == 1 else None)
    if machine is None and known:
        machine = _machine(options.device)
    if machine not in known:
        raise UsageError(f"no history to accept in {options.results / 'nightly'}" + (f"; choose --machine from {', '.join(known)}" if known else ""))
    place = history.folder(options.results, machine)
    with history.alone(place):
        rows = history.read(place)
        if not rows:
            raise UsageError(f"no night to accept in {place}; run `python -m bench nightly` first")
        _newest(place, rows)
        with history.writing(place):
            history.set_baseline(place, rows[-1], reason)
    print(f"baseline of {machine}: night {rows[-1]['night']}, commit {rows[-1]['commit'] or 'unknown'} ({reason})")
    return 0


def _newest(place: Path, rows: list[Row]) -> None:
    """Raises UsageError where the baseline knows of a later night than the history: its last row is not the latest night."""
    try:
        baseline = history.read_baseline(place)
    except StoreError:
        return  # a damaged one is what is being replaced
    if lost := history.behind(place, rows, baseline):
        raise UsageError(f"{lost}; run `python -m bench nightly` first, then accept that night")


def read_benchmarks(path: Path) -> dict[str, dict[str, Any]]:
    """Metrics of a pytest-benchmark JSON: the ratios ours / theirs that benchmarks leave in `extra_info`, of CPU times unless "counts" names
    another, else the median seconds. Of all of them higher is worse. Raises UsageError for anything else."""
    if not path.exists():
        raise UsageError(f"{path}: cannot be read (no such file)")
    try:
        found = json.loads(history.content(path) or b"")["benchmarks"]
        metrics = {}
        for bench in found:
            ratios = {k: v[v.get("counts", "cpu")] for k, v in bench.get("extra_info", {}).items() if isinstance(v, dict) and "cpu" in v}
            for what, value in (ratios or {"median": bench["stats"]["median"]}).items():
                if not math.isfinite(value) or value <= 0:
                    raise ValueError(f"{bench['fullname']}: {value}")
                unit = "ratio" if ratios else "s"
                common = {"method": "", "pair": "", "unit": unit, "part": "benchmarks", "worse": "higher", "scale": "log"}
                metrics[f"{bench['fullname']}/{what}"] = {**common, "metric": f"{bench['name']}: {what}", "values": {"0": float(value)}}
    except StoreError as error:
        raise UsageError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UsageError(f"{path}: not the JSON of pytest --benchmark-json ({type(error).__name__}: {error})") from None
    return metrics


def _checked(machine: str) -> str:
    if not machine or machine != Path(machine).name or machine.startswith("."):
        raise UsageError(f"--machine {machine!r}: one folder name")
    return machine


def _machine(device: str) -> str:
    """The class of this machine. Raises UsageError where the device is not there."""
    from bench.train import environment

    return history.machine_class(environment.device_facts(environment.select(device)), THREADS)


def _workers(device: str) -> int:
    from bench.train import environment

    return 1 if environment.select(device).type == "cuda" else min(4, os.cpu_count() or 1)
