"""How and where a job runs."""

from dataclasses import dataclass


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
