"""A real Slurm on this machine, for one session of tests: controller, munge and two node daemons in a folder of their own.

The nodes differ: `large`, which is given out first, has eight cores and two pretend GPUs, `small` one core and none.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
JobRequeue=1
KillWait=5
InactiveLimit=0
SlurmdParameters=config_overrides
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=large NodeHostname={host} NodeAddr=127.0.0.1 Port={large} CPUs=8 RealMemory=1000 Gres=gpu:2 Weight=1
NodeName=small NodeHostname={host} NodeAddr=127.0.0.1 Port={small} CPUs=1 RealMemory=1000 Weight=9
PartitionName=debug Nodes=large Default=YES PriorityTier=1 GraceTime=15 PreemptMode=REQUEUE MaxTime=INFINITE
PartitionName=mixed Nodes=large,small PriorityTier=1 GraceTime=15 PreemptMode=REQUEUE MaxTime=INFINITE
PartitionName=high Nodes=large PriorityTier=10 MaxTime=INFINITE
"""


def missing() -> str:
    """Why there can be no Slurm here; empty where there can."""
    if os.getuid() != 0:
        return "starting Slurm needs root"
    absent = [name for name in (*DAEMONS, "sbatch", "srun", "scontrol") if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    return f"Slurm is not installed ({', '.join(absent)})" if absent else ""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(what, seconds: float = 60.0, every: float = 0.25):
    """The first true value of `what()`; None where there is none in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := what():
            return value
        time.sleep(every)
    return None


class Cluster:
    """The daemons and what asks them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen] = []

    def start(self) -> None:
        host = socket.gethostname().split(".")[0]
        for name in ("state", "spool.large", "spool.small"):
            (self.folder / name).mkdir()
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o400)
        for i in range(2):
            os.mknod(self.folder / f"fakegpu{i}", 0o666 | 0o020000, os.makedev(1, 3))
        conf = CONF.format(folder=self.folder, host=host, controller=free_port(), large=free_port(), small=free_port())
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "gres.conf").write_text(f"AutoDetect=off\nNodeName=large Name=gpu File={self.folder}/fakegpu[0-1]\n")
        munge = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self._run("munged", "--foreground", f"--socket={self.folder}/munge.socket", *munge)
        assert wait_for((self.folder / "munge.socket").exists, 20), self.logs()
        self._run("slurmctld", "-D", "-i")
        assert wait_for(lambda: self.ask("scontrol", "ping").returncode == 0, 30), self.logs()
        for node in ("large", "small"):
            self._run("slurmd", "-D", "-N", node)
        ready = ["idle"] * 4  # a line a node and partition
        assert wait_for(lambda: self.ask("sinfo", "-h", "-N", "-o", "%t").stdout.split() == ready, 60), self.logs()

    def _run(self, name: str, *arguments: str) -> None:
        path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
        with open(self.folder / f"{name}.out", "wb") as out:
            self.processes.append(subprocess.Popen([path, *arguments], stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True))

    def ask(self, *command: str) -> subprocess.CompletedProcess:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def node(self, job: str) -> str:
        """The node that a job runs on, or ran on last (the controller remembers it for minutes)."""
        shown = dict(word.split("=", 1) for word in self.ask("scontrol", "-o", "show", "job", job).stdout.split() if "=" in word)
        return shown.get("NodeList", "")

    def logs(self) -> str:
        return "\n".join(f"{p.name}:\n{p.read_text(errors='replace')[-3000:]}" for p in sorted(self.folder.glob("*.[lo][ou][gt]")))

    def idle(self) -> bool:
        """Whether no job is there any more."""
        return not self.ask("squeue", "-h").stdout.strip()

    def stop(self) -> None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.ask("scancel", "-f", "-u", "root")
            wait_for(self.idle, 20)
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def slurm():
    reason = missing()
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="kdslurm"))
    folder.chmod(0o755)  # munge asks for it
    cluster = Cluster(folder)
    names = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    before = {name: os.environ.get(name) for name in names}
    os.environ |= names
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        shutil.rmtree(folder, ignore_errors=True)
