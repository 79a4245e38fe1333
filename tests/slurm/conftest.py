"""A real SLURM controller on loopback: slurmctld and two nodes on this host, started and stopped by the tests."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.running import TIMEOUT

# messages may wait for a minute: daemons and jobs share one core of a machine that stands still for seconds at times
CONFIGURATION = """
ClusterName=vitrail
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=10
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
MessageTimeout=60
JobRequeue=1
KillWait=30
SlurmdTimeout=10
OverTimeLimit=0
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmdSpoolDir={root}/spool.%n
StateSaveLocation={root}/state
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
NodeName=n0 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=n0,n1 State=UP PriorityTier=2
"""
PARTS = ("slurmctld", "slurmd", "sbatch", "munged")


class Slurm:
    """A cluster of two nodes, n0 and n1."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {**os.environ, "SLURM_CONF": str(root / "slurm.conf")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        ports = [free_port() for _ in range(3)]
        (root / "slurm.conf").write_text(CONFIGURATION.format(root=root, ports=ports))
        (root / "munge.key").write_bytes(secrets.token_bytes(128))
        (root / "munge.key").chmod(0o600)
        (root / "state").mkdir()
        munge = [f"--{name}={root}/munge.{name.partition('-')[0]}" for name in ("socket", "key-file", "pid-file")]
        munge += [f"--log-file={root}/munge.log", f"--seed-file={root}/munge.seed"]
        self._start("munged", "munged", "--foreground", "--force", *munge)
        wait_for(lambda: (root / "munge.socket").exists(), "munged")
        self._start("slurmctld", "slurmctld", "-D", "-c")
        for node in ("n0", "n1"):
            self.start_node(node)
        wait_for(lambda: self.run("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"], "both nodes")

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._start(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill the daemon of a node."""
        daemon = self._processes.pop(node)
        daemon.kill()
        daemon.wait()

    def _start(self, name: str, *command: str) -> None:
        program = shutil.which(command[0]) or f"/usr/sbin/{command[0]}"
        with (self.root / f"{name}.out").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [program, *command[1:]], env=self.environment, stdout=log, stderr=log
            )

    def run(self, *command: str, environment: dict[str, str] | None = None) -> str:
        """Run one of SLURM's commands and return what it printed."""
        done = subprocess.run(
            command,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        """Return a job's state: PENDING, RUNNING, COMPLETED, FAILED, ..."""
        return self.run("scontrol", "show", "job", "-o", job).partition("JobState=")[2].split()[0]

    def logs(self) -> str:
        """Return the last lines of the daemons' logs, for what is not a job's own fault."""
        texts = [path.read_text(errors="replace").splitlines()[-40:] for path in sorted(self.root.glob("*.log"))]
        return "\n".join("\n".join(lines) for lines in texts)

    def wait_for(self, job: str, *states: str) -> str:
        """Wait until a job is in one of the states, and return it."""
        wait_for(lambda: self.state(job) in states, f"job {job} to be {' or '.join(states)}")
        return self.state(job)

    def stop(self) -> None:
        """Cancel all jobs and stop all daemons."""
        self.run("scancel", "--user", "root")
        wait_for(lambda: not self.run("squeue", "-h"), "all jobs to end")
        for process in reversed(self._processes.values()):
            process.terminate()
            process.wait(TIMEOUT)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A running cluster; skipped where its parts are missing, unless VITRAIL_DEMAND says that they must be there."""
    missing = [part for part in PARTS if not shutil.which(part) and not Path("/usr/sbin", part).exists()]
    if missing and not os.environ.get("VITRAIL_DEMAND"):
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    assert not missing, f"{', '.join(missing)} demanded: apt-get install slurm-wlm munge"
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, f"waited {TIMEOUT} s for {what}"
        time.sleep(0.2)
