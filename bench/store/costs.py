"""What exclusive probes measured: results/costs/<device>/*.json, one file for each thing that was measured."""

import os
import re
from pathlib import Path
from typing import Any

from bench.errors import StoreError
from bench.plan.datasets import DATASETS
from bench.plan.expand import images
from bench.plan.identity import Run, digest
from bench.plan.protocols import Protocol
from bench.store.files import Problem, folders, read
from bench.store.records import Cost

STEP_TIMES = "speed.json"
"""Written by `speed` beside the costs, and none itself."""


def measured(run: Run, threads: int, engine: str) -> dict[str, Any]:
    """Everything that can change the cost of a run's step on a device, as JSON values. `engine`: the one that is asked for.

    The learning rate and the schedule are not in it: protocols that differ in no more share their costs. The number of training images is:
    memory holds the data, some methods keep something of every image, and preparations see them all.
    """
    method = {"method": run.method, "method_version": run.method_version, "hyper": run.hyper, "precision": run.precision}
    step = _step(run.protocol, images(run.protocol))
    return {"teacher": run.teacher, "student": run.student, **method, **step, "threads": threads, "engine": engine}


def fits(cost: Any, protocol: Protocol) -> bool:
    """Whether a step under this protocol is what was measured. `cost`: anything with the protocol's part of `measured` as attributes, of
    which None (an older record does not say) fits any."""
    seen = images(protocol) if protocol.train_images or protocol.dataset in DATASETS else None
    return all(getattr(cost, name) in (None, value) for name, value in _step(protocol, seen).items())


def _step(p: Protocol, seen: int | None) -> dict[str, Any]:
    """What a protocol says of a step; `seen`: training images."""
    step = {"batch": p.batch, "momentum": p.momentum, "nesterov": p.nesterov, "dropout": p.dropout}
    return {"dataset": p.dataset, "image_size": p.image_size, "train_images": seen, **step}


def record_path(results: Path, device: str, what: dict[str, Any]) -> Path:
    """Where the cost of `what` (from `measured`) on the device of that name stands: a readable prefix and a digest of all of it."""
    parts = (what["teacher"], what["student"], what["method"], what["precision"], digest(what))
    return results / "costs" / slug(device) / f"{'-'.join(part for part in parts if part)}.json"


def slug(name: str) -> str:
    """A folder's name for a device, e.g. `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("(r)", "").replace("(tm)", "")).strip("-")


def scan(results: Path) -> tuple[list[Cost], list[Problem]]:
    """All cost records of a results folder, by path, and the files left out with the reason."""
    costs, (devices, problems) = [], folders(results, "costs")
    for place in (results / "costs" / device for device in devices):
        try:
            names = sorted(name for name in os.listdir(place) if name.endswith(".json") and not name.startswith(".") and name != STEP_TIMES)
        except OSError as error:
            problems.append(Problem(f"costs/{place.name}", f"cannot be read ({error.strerror})"))
            continue
        for name in names:
            try:
                if (cost := read(place / name, Cost)) is None:
                    raise StoreError(f"{place / name}: a link to nothing")
                costs.append(cost)
            except StoreError as error:
                problems.append(Problem(f"costs/{place.name}/{name}", str(error).removeprefix(f"{results}{os.sep}")))
    return costs, problems
