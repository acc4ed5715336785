"""Tasks on a Slurm cluster, through submitit."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.errors import UsageError
from bench.launch.options import Run
from bench.launch.tasks import Job, Slot, Task, child_environment

AT_ONCE = 256
"""Jobs of an array that may run at once."""


def parameters(options: Run, gpus: int, name: str, after: Sequence[str]) -> dict[str, Any]:
    """For submitit's SlurmExecutor. `gpus`: of each job; 0: CPU only. `after`: the jobs that it waits for."""
    wanted = {
        "job_name": name,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "time": options.time,
        "setup": list(options.setup) or None,
        "gpus_per_node": gpus or None,
        "cpus_per_task": options.threads or options.cpus,
        "array_parallelism": AT_ONCE,
        "signal_delay_s": 120,
        "additional_parameters": {"requeue": True},  # where JobRequeue=0, jobs that do not ask are not queued again
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


def submit_slurm(tasks: Sequence[Task], options: Run, gpus: int, folder: Path) -> dict[str, str]:
    """Submit tasks, in order, as one array for each set of tasks they wait for. Returns job ids by task name. Raises UsageError.

    Dependencies are `afterany`: a group whose teacher is missing then says so by itself, while an `afterok` would wait for ever.
    """
    import submitit

    cpus = options.threads or options.cpus
    ids: dict[str, str] = {}
    try:
        for after in dict.fromkeys(t.after for t in tasks):
            batch = [t for t in tasks if t.after == after]
            executor = submitit.SlurmExecutor(folder, max_num_timeout=1000)  # a long run may need many turns of a short limit
            waits = [ids[name] for name in after if name in ids]
            executor.update_parameters(**parameters(options, gpus, f"kd-{batch[0].name.split('-')[0]}" if len(batch) == 1 else "kd-bench", waits))
            with child_environment(Slot(None, cpus), batch[0].execution.deterministic), executor.batch():
                jobs = [executor.submit(Job(t.function), t.arguments, replace(t.execution, threads=cpus)) for t in batch]
            ids |= {t.name: job.job_id for t, job in zip(batch, jobs, strict=True)}
    except (RuntimeError, ValueError, OSError, submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        text = " ".join(str(error).split())[:300]
        raise UsageError(f"Slurm took {len(ids)} of {len(tasks)} jobs and refused the next: {text}") from None
    return ids
