"""Tasks on a Slurm cluster, through submitit."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.launch.tasks import Job, Slot, Task, child_environment


@dataclass(frozen=True)
class Slurm:
    """Options of the cluster's jobs."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    minutes: int = 24 * 60
    setup: tuple[str, ...] = ()
    gpus: int = 1  # of each job; 0: CPU only
    cpus: int = 4
    at_once: int = 256

    def parameters(self, name: str, after: Sequence[str]) -> dict[str, Any]:
        """For submitit's SlurmExecutor."""
        wanted = {
            "job_name": name,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "time": self.minutes,
            "setup": list(self.setup) or None,
            "gpus_per_node": self.gpus or None,
            "cpus_per_task": self.cpus,
            "array_parallelism": self.at_once,
            "signal_delay_s": 120,
            "dependency": f"afterany:{':'.join(after)}" if after else None,
        }
        return {key: value for key, value in wanted.items() if value is not None}


def on_slurm() -> bool:
    """Whether jobs would go to a cluster: its commands are there, its controller answers, and this is no job of it."""
    if shutil.which("sbatch") is None or "SLURM_JOB_ID" in os.environ:
        return False
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["sinfo", "-h"], capture_output=True, timeout=20, check=False).returncode == 0
    return False


def submit_slurm(tasks: Sequence[Task], options: Slurm, folder: Path) -> dict[str, str]:
    """Submit tasks, in order, as one array for each set of tasks they wait for. Returns job ids by task name. Raises UsageError.

    Dependencies are `afterany`: a group whose teacher is missing then says so by itself, while an `afterok` would wait for ever.
    """
    import submitit

    ids: dict[str, str] = {}
    try:
        for after in dict.fromkeys(t.after for t in tasks):
            batch = [t for t in tasks if t.after == after]
            executor = submitit.SlurmExecutor(folder, max_num_timeout=1000)  # a long run may need many turns of a short limit
            waits = [ids[name] for name in after if name in ids]
            executor.update_parameters(**options.parameters(f"kd-{batch[0].name.split('-')[0]}" if len(batch) == 1 else "kd-bench", waits))
            with child_environment(Slot(None, options.cpus), batch[0].execution.deterministic), executor.batch():
                jobs = [executor.submit(Job(t.function), t.arguments, replace(t.execution, threads=options.cpus)) for t in batch]
            ids |= {t.name: job.job_id for t, job in zip(batch, jobs, strict=True)}
    except (RuntimeError, ValueError, OSError, submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        text = " ".join(str(error).split())[:300]
        raise UsageError(f"Slurm took {len(ids)} of {len(tasks)} jobs and refused the next: {text}") from None
    return ids
