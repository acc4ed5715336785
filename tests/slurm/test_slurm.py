"""The cluster path on a real Slurm that the tests start: arrays, GPUs, preemption, time limits."""

import os
import subprocess
from pathlib import Path

import pytest

from bench.errors import DONE
from bench.launch.options import Run
from bench.launch.slurm import submit_slurm
from bench.launch.tasks import Task, fresh_folder
from bench.plan.groups import Group
from bench.store.runs import scan
from bench.train import group_job
from bench.train.execution import Execution
from tests.bench import fakes
from tests.slurm.conftest import wait_for
from tests.slurm.jobs import TINY, slow_group

pytestmark = pytest.mark.slow


def group(seed: int = 1) -> Group:
    return Group(None, "resnet8", seed, TINY, "tf32", ("student",))


def execution(folder: Path, **changes) -> Execution:
    return Execution(results=str(folder), device="cpu", threads=1, deterministic=True, checkpoint_seconds=1.0, **changes)


def task(name: str, function, arguments: dict, folder: Path, **changes) -> Task:
    return Task(name, function, arguments, execution(folder), lambda: False, **changes)


def submit(folder: Path, *tasks: Task, gpus: int = 0, minutes: int = 30, **options) -> dict[str, str]:
    return submit_slurm(tasks, Run(**{"cpus": 1, "time": minutes, **options}), gpus, fresh_folder(folder))


def done(folder: Path) -> list[Path]:
    return sorted((folder / "runs").glob("*/record.json"))


def words(folder: Path) -> str:
    """What the jobs said, for a failed assertion."""
    return "\n".join(p.read_text(errors="replace")[-2000:] for p in sorted(folder.glob("jobs/*/*.*")) if p.suffix in (".err", ".out"))


def numbers(folder: Path) -> dict[str, tuple]:
    views, problems = scan(folder)
    assert not problems
    return {v.id: (v.record.weights_sha256, v.record.test_top1, v.record.test_loss, v.record.best_epoch) for v in views}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The numbers of the same run in a process of its own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code = "import sys; from tests.slurm import test_slurm as t, jobs; from pathlib import Path;"
    code += " sys.exit(t.group_job.run_group(t.group(), t.execution(Path(sys.argv[1]))))"
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    assert subprocess.run([os.sys.executable, "-c", code, str(folder)], cwd=root, env=environment).returncode == DONE
    return numbers(folder)


def test_an_array_of_groups_completes_and_the_last_job_waits_for_it(slurm, tmp_path):
    folder = tmp_path / "results with spaces é"
    folder.mkdir()
    groups = [task(f"s{seed}", group_job.run_group, {"group": group(seed)}, folder) for seed in (1, 2, 3)]
    last = task("report", fakes.work, {"name": "report", "seconds": 0.0}, folder, after=("s1", "s2", "s3"))
    ids = submit(folder, *groups, last)
    assert len({job.split("_")[0] for job in list(ids.values())[:3]}) == 1  # one array
    assert wait_for((folder / "report.done").exists, 600), words(folder) + slurm.logs()
    assert len(done(folder)) == 3
    finished = max(path.stat().st_mtime for path in done(folder))
    assert finished <= (folder / "report.done").stat().st_mtime
    assert len(numbers(folder)) == 3 and all(v.record.attempts == 1 for v in scan(folder)[0])


def test_a_gpu_is_given_to_one_job_at_a_time(slurm, tmp_path):
    """And no job that asks for one ends up on the node without."""
    names = [f"g{i}" for i in range(5)]
    submit(tmp_path, *(task(name, fakes.beside, {"name": name}, tmp_path) for name in names), gpus=1, partition="mixed")
    assert wait_for(lambda: len(list(tmp_path.glob("g?.done"))) == 5, 600), words(tmp_path) + slurm.logs()
    changes = sorted((at, 1 if kind == "start" else -1) for kind, _, _, at in fakes.events(tmp_path))
    load = [sum(step for _, step in changes[: i + 1]) for i in range(len(changes))]
    assert max(load) == 2  # two GPUs: both used, never a third job
    assert {(tmp_path / f"{name}.done").read_text().split(",")[1] for name in names} == {"0", "1"}


def test_a_preempted_group_goes_on_on_another_kind_of_node_and_ends_with_the_same_bits(slurm, tmp_path, undisturbed):
    """It begins on `large`; who drives it out stays there until it is done on `small`."""
    (job,) = submit(tmp_path, task("s1", slow_group, {"group": group(), "seconds": 120.0, "once": True}, tmp_path), partition="mixed").values()
    assert wait_for(lambda: list(tmp_path.glob("groups/*/manifest.json")), 300), words(tmp_path) + slurm.logs()
    assert slurm.node(job) == "large"
    intruder = slurm.ask("sbatch", "--parsable", "-p", "high", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 400")
    assert intruder.returncode == 0, intruder.stderr
    try:
        assert wait_for(lambda: any(v.status == "interrupted" for v in scan(tmp_path)[0]), 60), words(tmp_path) + slurm.logs()
        assert wait_for(lambda: done(tmp_path), 600), words(tmp_path) + slurm.logs()
    finally:
        slurm.ask("scancel", intruder.stdout.strip())
    (view,) = scan(tmp_path)[0]
    assert slurm.node(job) == "small"
    assert view.record.attempts == 2 and numbers(tmp_path) == undisturbed
    assert view.record.changes == []  # threads are the job's, not the node's
    assert "resumed at epoch" in (view.folder / "log.txt").read_text()


def test_a_time_limit_below_the_length_takes_several_submissions(slurm, tmp_path, undisturbed):
    """The limit is 4 minutes and the signal comes 120 s before it, or up to 60 s sooner: each turn has one to two minutes of the run's 130 s."""
    submit(tmp_path, task("s1", slow_group, {"group": group(), "seconds": 130.0}, tmp_path), minutes=4)
    assert wait_for(lambda: done(tmp_path), 1500), words(tmp_path) + slurm.logs()
    (view,) = scan(tmp_path)[0]
    assert view.record.attempts >= 2 and numbers(tmp_path) == undisturbed
    log = (view.folder / "log.txt").read_text()
    assert "interrupted: SIGUSR2" in log and "resumed at epoch" in log
