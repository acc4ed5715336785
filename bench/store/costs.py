"""What exclusive probes measured: results/costs/<device>/*.json."""

import os
from pathlib import Path

from bench.errors import StoreError
from bench.store.files import Problem, folders, read
from bench.store.records import Cost

STEP_TIMES = "speed.json"
"""Written by `speed` beside the costs, and none itself."""


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
