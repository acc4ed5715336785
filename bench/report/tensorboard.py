"""TensorBoard event files of runs, on request: a copy of their epoch rows for people who live there. Nothing is written unless asked for."""

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

from bench.errors import StoreError, UsageError
from bench.options import ResultsOption
from bench.store.rows import read_rows
from bench.store.runs import scan
from bench.text import say

SCALARS = ("lr", "loss", "train_top1", "test_top1", "test_top5", "test_loss")
MARK = ".kd-bench-events"
"""Names a folder that this module made and may replace."""


@dataclass(frozen=True)
class Tensorboard(ResultsOption):
    """Write the epoch rows of all runs as TensorBoard event files."""

    out: Path | None = None
    """Where the event files go, one folder a run, written anew each time; default: RESULTS/report/tensorboard."""

    def main(self) -> int:
        """Write one event file a run below `out`; a run that cannot be trusted is named and left out. Returns 0.

        Accuracies are in percent; the step is the epoch. Raises UsageError where the tensorboard package is missing, there are no runs, or
        `out` is a file, cannot be written, or is a folder that this command did not make.
        """
        if importlib.util.find_spec("tensorboard") is None:
            raise UsageError("event files need the package tensorboard; pip install tensorboard")
        out = self.out or self.results / "report" / "tensorboard"
        runs, problems = scan(self.results)
        if not runs:
            raise UsageError(f"no runs below {self.results}/runs; choose another --results folder")
        from torch.utils.tensorboard import SummaryWriter

        try:
            if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
                raise UsageError(f"{out} holds other files; choose another --out folder")
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            (out / MARK).touch()
        except OSError as error:
            raise UsageError(f"{out}: {error.strerror or error}; choose another --out folder") from None
        written = 0
        for problem in problems:
            say(f"left out: {problem.where}: {problem.reason}")
        for run in runs:
            try:
                rows = read_rows(run.folder / "epochs.jsonl", run.id).rows
            except StoreError as error:
                say(f"left out: {error}")
                continue
            if not rows:
                continue
            with SummaryWriter(str(out / run.id)) as writer:
                for row in rows:
                    for name in SCALARS:
                        writer.add_scalar(name, getattr(row, name), row.epoch)
                    for name, value in row.losses.items():
                        writer.add_scalar(f"losses/{name}", value, row.epoch)
            written += 1
        print(f"{written} runs in {out}; look at them with: tensorboard --logdir {out}")
        return 0
