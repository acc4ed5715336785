"""Options that several commands share: frozen dataclasses to inherit from, and the types of lists of words."""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bench.errors import UsageError

Texts = tuple[str, ...]
Appended = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class ResultsOption:
    results: Path = Path("results")
    """The results folder."""

    def results_there(self) -> bool:
        """Whether the results folder is there. Raises UsageError where it is no folder or cannot be looked at."""
        try:
            mode = self.results.stat().st_mode
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UsageError(f"--results {self.results}: {error.strerror}; choose another --results folder") from None
        if not stat.S_ISDIR(mode):
            raise UsageError(f"--results {self.results} is no folder; choose another --results folder")
        return True


@dataclass(frozen=True)
class DataOption:
    data_root: Path | None = None
    """Folder that holds cifar-100-python; default: $KD_BENCH_DATA, else ./data."""

    @property
    def data_folder(self) -> Path:
        """The folder named, or the default one."""
        return self.data_root or Path(os.environ.get("KD_BENCH_DATA", "data"))


@dataclass(frozen=True)
class DownloadOption:
    download: bool = False
    """Fetch CIFAR-100 (169 MB) to the data root if it is not there."""


@dataclass(frozen=True)
class DeviceOption:
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def check_device(self) -> None:
        """Raises UsageError for what names no device, whether or not one is there."""
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"--device {self.device!r}: auto, cpu, cuda or cuda:N")


@dataclass(frozen=True)
class ThreadsOption:
    threads: int | None = None
    """CPU threads."""


@dataclass(frozen=True)
class EngineOption:
    engine: str = "auto"
    """How steps are executed: auto, eager, native, static or graph. Every engine gives the same numbers but for rounding."""


@dataclass(frozen=True)
class DeterministicOption:
    deterministic: bool = False
    """Deterministic algorithms: the same bits after a resume."""


@dataclass(frozen=True)
class TimeBudgetOption:
    time_budget: float | None = None
    """Minutes after which everything stops cleanly with exit code 75; the next call goes on."""

    def check_time_budget(self) -> None:
        """Raises UsageError for a time that is none."""
        if self.time_budget is not None and not self.time_budget > 0:  # nan too
            raise UsageError(f"--time-budget {self.time_budget}: minutes, above 0")


@dataclass(frozen=True)
class TrainingOptions(TimeBudgetOption, DeterministicOption, EngineOption, ThreadsOption, DeviceOption, DownloadOption, DataOption, ResultsOption):
    """Those of a command that trains by a protocol."""
