"""How and where a job runs."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Execution:
    """How and where a job runs: never part of a run's identity."""

    results: str
    data_root: str | None = None
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    threads: int | None = None
    engine: str = "auto"
    deterministic: bool = False
    redo: bool = False
    checkpoint_seconds: float = 60.0
    stop_after_seconds: float | None = None  # stop cleanly at a step after so long, exit code 75
    download: bool = False
    keep_epochs: tuple[int, ...] = ()  # whose weights are kept beside the run; 0: before the first

    @classmethod
    def of(cls, options: Any, **rest: Any) -> "Execution":
        """As the options of a command say, which has a results and a data folder; `rest`: what they do not."""
        said = {f.name: getattr(options, f.name) for f in fields(cls) if hasattr(options, f.name)}
        return cls(**said | {"results": str(options.results), "data_root": str(options.data_folder)} | rest)
